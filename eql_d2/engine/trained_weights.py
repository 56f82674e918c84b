"""Are these the weights of this model? What evaluation, calibration, analysis and inference ask before they run it.

Detectron2 initializes at random what a file lacks, and warns: right where a training starts from a backbone, and a
number that looks like one everywhere else.
"""

import logging
from collections import Counter
from typing import Iterable, List, Sequence, Set, Tuple

import torch
from detectron2.layers import FrozenBatchNorm2d
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from eql_d2.errors import InputError

logger = logging.getLogger("detectron2.eql_d2")

_NUM_PARTS = 4
#: Components of a parameter's name that say which part of the model it is in.
_PART_LENGTH = 2


def required_names(model: nn.Module) -> Set[str]:
    """Return the names of all parameters and of the statistics and frozen weights of batch norm.

    What losses sum up in training, and what is built from the config, may be absent.
    """
    names = {name for name, _ in model.named_parameters()}
    for prefix, module in model.named_modules():
        if isinstance(module, (_BatchNorm, FrozenBatchNorm2d)):
            buffers = (name for name, _ in module.named_buffers(recurse=False) if name != "num_batches_tracked")
            names.update(f"{prefix}.{name}" if prefix else name for name in buffers)
    return names


def check_complete(
    model: nn.Module, missing: Iterable[str], unexpected: Sequence[str], source: str, allow_missing: bool
) -> None:
    """Check that the weights which were loaded are all of the model's.

    Args:
        model: that they were loaded into.
        missing: names in the model that they lack.
        unexpected: names in them that the model lacks.
        source: the file, for messages.
        allow_missing: whether a warning is enough (``--allow-missing``).

    Raises:
        InputError: naming the parts of the model that have none.
    """
    required = required_names(model)
    absent = [name for name in missing if name in required]
    if not absent:
        return
    words = f"MODEL.WEIGHTS {source} lacks {len(absent)} of the model's {len(required)} tensors: {_parts(absent)}."
    if unexpected:
        words += f" It has others that the model lacks: {_parts(unexpected)}."
    if allow_missing:
        logger.warning("%s They stay as they were initialized.", words)
        return
    raise InputError(
        f"{words} Name weights of this model, or set MODEL and its keys as in their training; --allow-missing leaves "
        f"the others as they are initialized."
    )


def check_numbers(state: Iterable[Tuple[str, Tensor]], source: str) -> None:
    """Check that no parameter or buffer holds NaN or infinity.

    Args:
        state: names and values.
        source: the file, for messages.

    Raises:
        InputError: naming the parts that do.
    """
    wrong = [name for name, value in state if value.is_floating_point() and not torch.isfinite(value).all()]
    if wrong:
        raise InputError(
            f"MODEL.WEIGHTS {source} holds NaN or infinity in {_parts(wrong)}; its training has diverged, or the file "
            f"is damaged."
        )


def _parts(names: Iterable[str]) -> str:
    """Return the parts of a model that names belong to, with their number, in the order of the names."""
    counts = Counter(".".join(name.split(".")[:_PART_LENGTH]) for name in names)
    words: List[str] = [f"{part} ({count})" for part, count in counts.items()]
    more = [f"{len(words) - _NUM_PARTS} more parts"] if len(words) > _NUM_PARTS else []
    return ", ".join(words[:_NUM_PARTS] + more)
