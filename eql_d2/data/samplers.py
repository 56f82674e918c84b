"""Samplers that Detectron2 does not have."""

import itertools
from typing import Dict, Iterable, Iterator, List, Optional

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
        image_classes: the labels of the instances of each image; repetitions do not matter.
        seed: of the shuffles. Must be the same on all ranks; if ``None``, they agree on a random one.

    Raises:
        InputError: if no image shows any class.
    """

    def __init__(self, image_classes: Iterable[Iterable[int]], seed: Optional[int] = None):
        self._images_of_class = _images_of_class(image_classes)
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


def _images_of_class(image_classes: Iterable[Iterable[int]]) -> List[Tensor]:
    """Return the images of each class that has any, in the order of the labels."""
    images: Dict[int, List[int]] = {}
    for image, classes in enumerate(image_classes):
        for label in {int(label) for label in classes}:
            images.setdefault(label, []).append(image)
    return [torch.tensor(images[label]) for label in sorted(images)]


def _shuffled_forever(values: Tensor, generator: torch.Generator) -> Iterator[int]:
    while True:
        yield from values[torch.randperm(len(values), generator=generator)].tolist()
