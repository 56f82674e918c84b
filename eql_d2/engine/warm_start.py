"""Starting from a detector of other classes: each class that both have, by its name, keeps what was learnt of it."""

import logging
import re
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from torch import Tensor, nn

from eql_d2.data.annotations import read_annotations
from eql_d2.data.catalog import check_registered
from eql_d2.errors import InputError

logger = logging.getLogger("detectron2.eql_d2")

#: Names of parameters that have rows for classes, as Detectron2's heads call them.
_CLASSIFIER = re.compile(r"\.(cls_score\.(weight|bias)|cls_scale)$")
_BOXES = re.compile(r"^roi_heads\..*\.bbox_pred\.(weight|bias)$")
_MASKS = re.compile(r"\.mask_head\.predictor\.(weight|bias)$")


def class_names(source: str) -> List[str]:
    """Return the class names, in the order of labels, of a registered data set or of a json in LVIS or COCO format.

    Raises:
        InputError: if it is neither.
    """
    if source.endswith(".json") or Path(source).is_file():
        return [category.name for category in read_annotations(source).sorted_categories]
    names = MetadataCatalog.get(source).get("thing_classes") if source in MetadataCatalog.list() else None
    if names is None:
        check_registered(source)
        names = MetadataCatalog.get(source).get("thing_classes")
    return list(names or ())


def match_classes(cfg: CfgNode, model: nn.Module, state: Dict[str, Any]) -> None:
    """Give the parameters of ``state`` that have rows for classes the rows of the model's classes, in place.

    A class of the model has the row of the class of the same name (upper and lower case, spaces and underscores alike),
    and a class that the weights do not know the row that the model has drawn for it. Rows that stand for no class, as
    that of background, are taken over if the weights have as many of them. What a loss had accumulated is left out.

    Args:
        cfg: of the training, with ``MODEL.LONG_TAIL.INIT_CLASSES`` and ``DATASETS.TRAIN``.
        model: that trains.
        state: parameters of ``MODEL.WEIGHTS`` by name.

    Raises:
        InputError: if the names are missing, not as many as the weights have classes, or none of them is the model's.
    """
    source, weights = cfg.MODEL.LONG_TAIL.INIT_CLASSES, cfg.MODEL.WEIGHTS
    if not source:
        raise InputError(
            "MODEL.LONG_TAIL.INIT_CLASSIFIER is 'match', which needs the class names of MODEL.WEIGHTS: set "
            "MODEL.LONG_TAIL.INIT_CLASSES to the json or the registered data set that they were trained on."
        )
    known, wanted = class_names(source), class_names(cfg.DATASETS.TRAIN[0])
    place = {_plain(name): label for label, name in enumerate(known)}
    found: Dict[int, int] = {new: place[_plain(name)] for new, name in enumerate(wanted) if _plain(name) in place}
    if not found:
        raise InputError(
            f"None of the {len(wanted)} classes of {cfg.DATASETS.TRAIN[0]} ({', '.join(wanted[:3])}, ...) has the name "
            f"of one of the {len(known)} of MODEL.LONG_TAIL.INIT_CLASSES {source} ({', '.join(known[:3])}, ...)."
        )
    rows = _Rows(list(found), list(found.values()), len(wanted), len(known))
    targets, matched = model.state_dict(), 0
    for key in list(state):
        name = key[len("module.") :] if key.startswith("module.") else key
        if "classifier_loss." in name:
            del state[key]
            continue
        target = targets.get(name)
        if target is None:
            continue
        value = torch.as_tensor(state[key])
        if _CLASSIFIER.search(name):
            selected = rows.of_classifier(target, value, anchors=_anchors(model))
            matched += 1
        elif _BOXES.search(name):
            selected = rows.of_groups(target, value, width=4)
        elif _MASKS.search(name):
            selected = rows.of_groups(target, value, width=1)
        else:
            continue
        if selected is None:
            raise InputError(
                f"{name} is {list(value.shape)} in MODEL.WEIGHTS {weights}, which does not fit the {len(known)} "
                f"classes of MODEL.LONG_TAIL.INIT_CLASSES {source}."
            )
        state[key] = selected
    if not matched:
        raise InputError(f"MODEL.WEIGHTS {weights} has no classifier; set MODEL.LONG_TAIL.INIT_CLASSIFIER reset.")
    new = [name for label, name in enumerate(wanted) if label not in found]
    logger.info(
        "%d of %d classes start from those of the same name in %s; new: %s",
        len(found), len(wanted), weights, ", ".join(new) or "none",
    )  # fmt: skip


class _Rows:
    """Copies the rows of matched classes from one parameter to another.

    Args:
        new: labels of the model, and ``old``: those of the weights, of the classes that match.
        num_new: classes of the model, and ``num_old``: of the weights.
    """

    def __init__(self, new: Sequence[int], old: Sequence[int], num_new: int, num_old: int):
        self.new, self.old = torch.as_tensor(new), torch.as_tensor(old)
        self.num_new, self.num_old = num_new, num_old

    def of_classifier(self, target: Tensor, value: Tensor, anchors: int) -> Optional[Tensor]:
        """Return ``target`` ``[anchors * columns, ...]`` with the columns of matched classes; classes come first."""
        if value.shape[1:] != target.shape[1:] or len(value) % anchors or len(value) < anchors * self.num_old:
            return None
        result = target.detach().clone().cpu().unflatten(0, (anchors, -1))
        value = value.to(result.dtype).unflatten(0, (anchors, -1))
        result[:, self.new] = value[:, self.old]
        if result.shape[1] - self.num_new == value.shape[1] - self.num_old:
            result[:, self.num_new :] = value[:, self.num_old :]
        return result.flatten(0, 1)

    def of_groups(self, target: Tensor, value: Tensor, width: int) -> Optional[Tensor]:
        """Return ``target`` ``[K * width, ...]`` with the rows of matched classes; rows for all classes stay."""
        if value.shape[1:] != target.shape[1:]:
            return None
        if len(target) == width:  # of all classes together: no rows to choose
            return value
        if len(value) == width:  # each of the model's classes begins with that of all
            return value.repeat(self.num_new, *[1] * (value.ndim - 1))
        if len(value) != self.num_old * width or len(target) != self.num_new * width:
            return None
        result = target.detach().clone().cpu().unflatten(0, (-1, width))
        result[self.new] = value.to(result.dtype).unflatten(0, (-1, width))[self.old]
        return result.flatten(0, 1)


def _anchors(model: nn.Module) -> int:
    """Return the anchors of a place that a convolution classifies; 1 for a linear layer."""
    boxes = getattr(getattr(model, "head", None), "bbox_pred", None)
    return boxes.out_channels // 4 if boxes is not None else 1


def _plain(name: str) -> str:
    return " ".join(re.split(r"[\s_]+", name.strip().lower()))
