"""FRACAL: scores corrected by how often a class occurs, and by where in the image."""

import io
import os
from pathlib import Path
from types import MappingProxyType
from typing import Union

import torch
from torch import Tensor

from eql_d2.data.frequency import CategoryFrequency
from eql_d2.errors import InputError
from eql_d2.files import write_whole
from eql_d2.losses.base import Categories, ClassifierLoss, widen
from eql_d2.losses.calibration import CALIBRATION_REGISTRY, Calibration
from eql_d2.weights import read_torch

#: Name of the dimensions in the file of :func:`save_dimensions`.
_KEY = "fractal_dimension"


def save_dimensions(dimensions: Tensor, path: Union[str, os.PathLike]) -> None:
    """Write the fractal dimension of each class, ``[K]``, for :class:`Fracal`."""
    buffer = io.BytesIO()
    torch.save({_KEY: dimensions}, buffer)
    write_whole(Path(path), buffer.getvalue())


@CALIBRATION_REGISTRY.register("FRACAL")
class Fracal(Calibration):
    """Fractal calibration (Alexandridis et al., arXiv 2410.11774), as the authors' code computes it.

    With p_j the class's share of the images, ``b_j = -log10(p_j K)`` is added to the foreground logits; base 10 makes
    that a logit adjustment with tau = 0.434. With D_j the class's fractal dimension
    (:func:`eql_d2.data.fractal.fractal_dimensions`), the scores are then divided by ``D_j^lambda`` and, where they sum
    to one with background, made to do so again. Independent scores are multiplied by those of the logits
    ``z_j + b_j + a_j``, ``a_j = -log10(D_j^lambda / sum_k D_k^lambda) - log10(K)``. Background stays.

    Args:
        frequency: counts of the training set; a class that does not occur counts as once.
        statistics: file of :func:`save_dimensions`; "" for all dimensions 1.
        lambda_: power of the dimension; to be tuned on held-out data, 0 leaves it out.
        counts: "images" or "instances", what p_j is a share of.

    Raises:
        InputError: if only the number of classes is given, ``counts`` is neither, or the file is missing, has other
            content or belongs to another number of classes.
    """

    needs_frequency = True
    statistics_of = "boxes"
    free_constants = MappingProxyType({"lambda_": [half / 2 for half in range(9)]})

    offset: Tensor
    divisor: Tensor
    independent_offset: Tensor

    def __init__(self, frequency: Categories, statistics: str = "", lambda_: float = 2.0, counts: str = "images"):
        super().__init__(frequency)
        if not isinstance(frequency, CategoryFrequency):
            raise InputError(f"FRACAL needs the images of each class: pass a CategoryFrequency, not {frequency!r}.")
        if counts not in ("images", "instances"):
            raise InputError(f"FRACAL's COUNTS is {counts!r}; there are 'images' and 'instances'.")
        self.statistics, self.lambda_, self.counts = statistics, lambda_, counts
        dimension = _read(statistics, self.num_classes) if statistics else torch.ones(self.num_classes)
        divisor = dimension.double() ** lambda_
        if counts == "images":
            number, total = frequency.image_count.double().clamp(min=1), float(frequency.num_images)
        else:
            number = frequency.instance_count.double().clamp(min=1)
            total = float(number.sum())
        offset = -torch.log10(number / total * self.num_classes)
        independent = offset - torch.log10(divisor / divisor.sum() * self.num_classes)
        for name, values in (("offset", offset), ("divisor", divisor), ("independent_offset", independent)):
            self.register_buffer(name, values.float(), persistent=False)

    def forward(self, loss: ClassifierLoss, logits: Tensor) -> Tensor:
        if not loss.scores_sum_to_one:
            plain, adjusted = loss.scores(logits), loss.scores(self._add(logits, self.independent_offset))
            return torch.cat([plain[:, :-1] * adjusted[:, :-1], plain[:, -1:]], dim=1)
        scores = loss.scores(self._add(logits, self.offset))
        scores = torch.cat([scores[:, :-1] / self.divisor.to(scores.dtype), scores[:, -1:]], dim=1)
        return scores / scores.sum(1, keepdim=True).clamp(min=torch.finfo(scores.dtype).tiny)

    def _add(self, logits: Tensor, offset: Tensor) -> Tensor:
        """Return ``logits`` with ``offset [K]`` added to those of the classes."""
        logits = widen(logits)
        foreground = logits[:, : self.num_classes] + offset.to(logits.dtype)
        return torch.cat([foreground, logits[:, self.num_classes :]], dim=1)


def _read(path: str, num_classes: int) -> Tensor:
    content = read_torch(path)
    dimension = content.get(_KEY) if isinstance(content, dict) else None
    if not isinstance(dimension, Tensor):
        raise InputError(f"{path} holds no fractal dimensions, as eql-d2 calibrate writes them.")
    if len(dimension) != num_classes:
        raise InputError(f"{path} holds the fractal dimensions of {len(dimension)} classes, not of {num_classes}.")
    if not bool((dimension >= 1).all()):
        raise InputError(f"{path} holds a fractal dimension below 1: {float(dimension.min())}.")
    return dimension
