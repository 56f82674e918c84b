"""Samplers that Detectron2 does not have."""

import itertools
from typing import Iterator, List, Optional

import numpy as np
import torch
from detectron2.utils import comm
from torch import Tensor
from torch.utils.data import Sampler

from eql_d2.errors import InputError


class ClassAwareSampler(Sampler):
    """Class-aware sampling: first a class, then an image that shows it (Shen et al., arXiv 1512.05830, section 3.3).

    As in the paper, both choices go through shuffled lists that are shuffled anew when they come to their end: every
    class is drawn equally often, and within a class every image. Classes without an image are never drawn, images
    without a class neither. The stream is infinite; rank ``r`` of ``n`` takes its elements ``r, r + n, r + 2n, ...``.

    Args:
        images: the image of each instance, int ``[A]``.
        labels: its label, int ``[A]``; repetitions within an image do not matter.
        seed: of the shuffles. Must be the same on all ranks; if ``None``, they agree on a random one.

    Raises:
        InputError: if no image shows any class.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, seed: Optional[int] = None):
        self._images_of_class = images_of_class(images, labels)
        if not self._images_of_class:
            raise InputError("ClassAwareSampler needs annotated images, and no image of the training set has a class.")
        self._seed = int(comm.shared_random_seed() if seed is None else seed)
        self._rank = comm.get_rank()
        self._world_size = comm.get_world_size()

    def __iter__(self) -> Iterator[int]:
        yield from itertools.islice(self._infinite_indices(), self._rank, None, self._world_size)

    def _infinite_indices(self) -> Iterator[int]:
        generator = torch.Generator()
        generator.manual_seed(self._seed)
        streams = [_shuffled_forever(images, generator) for images in self._images_of_class]
        for index in _shuffled_forever(torch.arange(len(streams)), generator):
            yield next(streams[index])


def images_of_class(images: np.ndarray, labels: np.ndarray) -> List[Tensor]:
    """Return the images of each class that has any, ascending, in the order of the labels."""
    if not len(images):
        return []
    num_images = int(images.max()) + 1
    pairs = np.unique(labels.astype(np.int64) * num_images + images)
    starts = np.flatnonzero(np.diff(pairs // num_images, prepend=-1))
    return [torch.from_numpy(part) for part in np.split(pairs % num_images, starts[1:])]


def _shuffled_forever(values: Tensor, generator: torch.Generator) -> Iterator[int]:
    while True:
        # Not a list: its integers would take four times the memory, of every class.
        yield from map(int, values[torch.randperm(len(values), generator=generator)].numpy())
