"""How often each category occurs in a training set. Needs torch, not Detectron2."""

import contextlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Union

import msgspec
import torch
from torch import Tensor

from eql_d2.data.annotations import (
    AnnotationFile,
    CategoryCounts,
    PathLike,
    check_content,
    parse_annotations,
    read_annotations,
    readable_json,
)
from eql_d2.data.groups import GROUPS, frequency_group
from eql_d2.errors import InputError
from eql_d2.files import write_whole

logger = logging.getLogger("detectron2.eql_d2.data")

#: "Proper range" of the tail ratio (EQL, section 4.4).
PROPER_RANGE = (0.02, 0.10)
#: The tail ratio of EQL's own lambda, 1.76e-3 on LVIS v0.5 (EQL, Table 2).
USUAL_TAIL_RATIO = 0.09


class _SavedCounts(msgspec.Struct):
    """What :meth:`CategoryFrequency.save` writes; a json of annotations has no ``image_count`` of its own."""

    image_count: List[int]
    num_images: int
    instance_count: Optional[List[int]] = None
    groups: Optional[List[str]] = None


@dataclass(frozen=True, eq=False)
class CategoryFrequency:
    """Counts of the K categories of one training set, in the order of the contiguous labels ``0..K-1``.

    Attributes:
        image_count: int64 ``[K]``, training images with at least one instance of the class.
        instance_count: int64 ``[K]``, training instances of the class.
        num_images: all training images, also those without an annotation. Only this denominator gives the tail ratios
            of EQL's Table 2.
        groups: K letters r, c or f; derived from ``image_count`` by LVIS's bounds where the data set gives none.
    """

    image_count: Tensor
    instance_count: Tensor
    num_images: int
    groups: Sequence[str]

    def __post_init__(self):
        num_classes = len(self.image_count)
        for field in ("image_count", "instance_count"):
            counts = getattr(self, field)
            if counts.ndim != 1 or len(counts) != num_classes or (num_classes and int(counts.min()) < 0):
                raise InputError(f"{field} must hold {num_classes} counts of at least 0, got {counts.tolist()[:8]}...")
        if len(self.groups) != num_classes or not set(self.groups) <= set(GROUPS):
            raise InputError(f"groups must be {num_classes} letters of r, c, f, got {list(self.groups)[:8]}...")
        largest = int(self.image_count.max()) if num_classes else 0
        if self.num_images < max(largest, 1):
            raise InputError(f"num_images is {self.num_images}, but one category is in {largest} images.")

    @classmethod
    def from_counts(
        cls,
        image_count: Union[Sequence[int], Tensor],
        instance_count: Union[Sequence[int], Tensor, None] = None,
        *,
        num_images: int,
        groups: Optional[Sequence[str]] = None,
    ) -> "CategoryFrequency":
        """Build from plain counts.

        Args:
            image_count: images of each class.
            instance_count: instances of each class; the image counts where they are not known.
            num_images: all training images.
            groups: r/c/f letters; derived with LVIS's bounds if not given.
        """
        images = torch.as_tensor(image_count, dtype=torch.int64)
        instances = images if instance_count is None else torch.as_tensor(instance_count, dtype=torch.int64)
        if groups is None:
            groups = [frequency_group(count) for count in images.tolist()]
        return cls(images, instances, int(num_images), tuple(groups))

    @classmethod
    def of_counts(cls, counts: CategoryCounts) -> "CategoryFrequency":
        """Take over what the reader of annotations counted."""
        return cls.from_counts(
            counts.image_count, counts.instance_count, num_images=counts.num_images, groups=counts.groups
        )

    @classmethod
    def from_annotations(cls, content: Mapping[str, Any], source: str = "annotations") -> "CategoryFrequency":
        """Count the annotations of a parsed LVIS or COCO json, crowd regions and images that are not listed left out.

        The counts come from the annotations themselves, not from ``image_count`` in the category records, which a
        subset of a data set carries over from the whole. The groups: :class:`~eql_d2.data.annotations.CategoryCounts`.

        Args:
            content: what ``json.load`` returns.
            source: where it is from, for messages.

        Raises:
            InputError: if it is in neither format, has no annotations, or its ids do not fit together.
        """
        return cls._of_file(read_annotations(content, source), source)

    @classmethod
    def from_json(cls, path: Union[str, os.PathLike]) -> "CategoryFrequency":
        """Count the categories of a training json in LVIS or COCO format, or read what :meth:`save` wrote.

        Raises:
            InputError: if the file is missing, is no json, or is of neither format.
        """
        with readable_json(path):
            encoded = Path(path).read_bytes()
        with contextlib.suppress(msgspec.MsgspecError, UnicodeDecodeError):
            saved = msgspec.json.decode(encoded, type=_SavedCounts)
            return cls.from_counts(
                saved.image_count, saved.instance_count, num_images=saved.num_images, groups=saved.groups
            )
        return cls._of_file(parse_annotations(encoded, path), path)

    @classmethod
    def _of_file(cls, content: AnnotationFile, path: PathLike) -> "CategoryFrequency":
        if content.annotations is None:
            raise InputError(f"{path} has no key 'annotations'; a training json in LVIS or COCO format has one.")
        check_content(content, path)
        return cls.of_counts(content.counts())

    def save(self, path: Union[str, os.PathLike]) -> None:
        """Write the counts as a small json that :meth:`from_json` reads; the file appears whole or not at all."""
        content = {
            "image_count": self.image_count.tolist(),
            "instance_count": self.instance_count.tolist(),
            "num_images": self.num_images,
            "groups": list(self.groups),
        }
        write_whole(path, json.dumps(content))

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.image_count)

    @property
    def frequency(self) -> Tensor:
        """f_j, float64 ``[K]``: images of class j / all training images (EQL, section 3.2)."""
        return self.image_count.double() / self.num_images

    def tail_mask(self, lambda_: float) -> Tensor:
        """Bool ``[K]``: f_j < lambda_, strictly."""
        return self.frequency < lambda_

    def num_tail_classes(self, lambda_: float) -> int:
        """Number of classes that the threshold ``lambda_`` takes in."""
        return int(self.tail_mask(lambda_).sum())

    def tail_ratio(self, lambda_: float) -> float:
        """TR(lambda) in [0, 1]: the tail classes' share of the image counts (EQL, equation 8)."""
        return int(self.image_count[self.tail_mask(lambda_)].sum()) / max(int(self.image_count.sum()), 1)

    def lambda_of(self, tail_ratio: float) -> float:
        """Return the threshold whose tail ratio is nearest to ``tail_ratio``, the smaller one of two that are as near.

        It lies half an image above the most frequent class that it takes in, and takes in a class that has images, but
        not all of them.

        Raises:
            InputError: if the ratio is not between 0 and 1, or no threshold tells the classes that have images apart.
        """
        if not 0 < tail_ratio < 1:
            raise InputError(f"TAIL_RATIO is {tail_ratio:g}; it is a share of the image counts, between 0 and 1.")
        counts, classes = self.image_count[self.image_count > 0].unique(return_counts=True)
        if len(counts) < 2:
            raise InputError(
                f"TAIL_RATIO is {tail_ratio:g}, but all classes that have images have as many ({counts.tolist()}): no "
                f"threshold tells a tail from the rest. Set LAMBDA by hand, or choose a method without a threshold."
            )
        ratios = (counts * classes).cumsum(0)[:-1].double() / int(self.image_count.sum())
        return (int(counts[(ratios - tail_ratio).abs().argmin()]) + 0.5) / self.num_images

    def describe_tail(self, lambda_: float) -> str:
        """Say in a few words what the threshold ``lambda_`` takes in."""
        with_images = int((self.tail_mask(lambda_) & (self.image_count > 0)).sum())
        return (
            f"{lambda_:.4g} takes in {with_images} of the {int((self.image_count > 0).sum())} classes that have "
            f"images, {100 * self.tail_ratio(lambda_):.1f}% of the image counts"
        )

    def tail_threshold(self, lambda_: float, tail_ratio: float, setting: str) -> float:
        """Return the threshold that a setting asks for, and log what it takes in where that was not chosen by hand.

        A threshold that takes in no class with images, or all of them, is a warning: what depends on it does nothing,
        or the same for all.

        Args:
            lambda_: the threshold, used where ``tail_ratio`` is 0.
            tail_ratio: share of the image counts for :meth:`lambda_of`.
            setting: its name, for the log.

        Raises:
            InputError: as :meth:`lambda_of`.
        """
        if tail_ratio:
            lambda_ = self.lambda_of(tail_ratio)
            logger.info("%s, from a tail ratio of %g: %s.", setting, tail_ratio, self.describe_tail(lambda_))
            return lambda_
        with_images = self.image_count > 0
        taken_in = int((self.tail_mask(lambda_) & with_images).sum())
        if taken_in not in (0, int(with_images.sum())):
            return lambda_
        advice = ""
        with contextlib.suppress(InputError):  # nothing to advise where all classes are as frequent
            low, high = PROPER_RANGE
            advice = (
                f" The range that EQL calls proper is {100 * low:.0f} to {100 * high:.0f}%: "
                f"{self.describe_tail(self.lambda_of(USUAL_TAIL_RATIO))}."
            )
        logger.warning("%s %s.%s", setting, self.describe_tail(lambda_), advice)
        return lambda_

    def group_mask(self, group: str) -> Tensor:
        """Bool ``[K]``: the classes of group r, c or f."""
        if group not in GROUPS:
            raise InputError(f"{group!r} is no frequency group; there are r, c and f.")
        return torch.tensor([letter == group for letter in self.groups])

    def group_sizes(self) -> Dict[str, int]:
        """Number of classes in each of r, c and f."""
        return {group: list(self.groups).count(group) for group in GROUPS}

    def categories_without_images(self) -> List[int]:
        """Contiguous labels of classes that no training image shows."""
        return torch.nonzero(self.image_count == 0).flatten().tolist()
