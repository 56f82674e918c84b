"""What an annotated data set is like: counts, tail, names, sizes, and what is missing."""

import os
import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import cached_property
from pathlib import Path
from typing import List, Sequence, Tuple

import numpy as np

from eql_d2.data.annotations import PathLike, check_content, decode_segmentation, read_annotations
from eql_d2.data.categories import CategoryTable
from eql_d2.data.check import check_dataset
from eql_d2.data.frequency import CategoryFrequency
from eql_d2.data.lvis import FileNaming, choose_file_naming
from eql_d2.data.records import image_record
from eql_d2.errors import InputError

#: Names with so large a share of letters in common, in their order, may be one class (difflib's ratio).
SAME_NAME = 0.9
#: COCO's bounds of small, medium and large objects: the square roots of their areas in pixels.
SIZE_BOUNDS = (32.0, 96.0)


@dataclass(frozen=True, eq=False)
class DatasetFacts:
    """Numbers of one json and its image folder.

    Attributes:
        json_file: the annotations.
        images: the folder of the images.
        is_lvis: LVIS format, else COCO format.
        has_image_labels: whether images say which classes were looked for and not found.
        categories: names, counts and groups.
        without_annotations: images that show no annotated object.
        missing_files: image files that are not there.
        objects: float ``[A]``, of each object that is no crowd: the square root of its box's area in pixels.
        objects_of_image: int ``[N]``, objects of each image.
        image_sides: int ``[N, 2]``, shorter and longer side of each image in pixels.
        with_mask: share of the objects that have a polygon or a mask.
    """

    json_file: Path
    images: Path
    is_lvis: bool
    has_image_labels: bool
    categories: CategoryTable
    without_annotations: int
    missing_files: int
    objects: np.ndarray
    objects_of_image: np.ndarray
    image_sides: np.ndarray
    with_mask: float

    @classmethod
    def of(cls, json_file: PathLike, images: PathLike) -> "DatasetFacts":
        """Read a json in COCO or LVIS format.

        Raises:
            InputError: if it is in neither format, its ids do not fit together, or no image shows an object.
        """
        content = read_annotations(json_file)
        check_content(content, json_file)
        counts = content.counts()
        names = [category.name for category in content.sorted_categories]
        by_image = content.annotations_by_image()
        objects = [[one for one in by_image[image.id] if not one.iscrowd] for image in content.images]
        if not any(objects):
            raise InputError(f"{json_file} has no annotated object in its images; there is nothing to plan.")
        first = image_record(min(content.images, key=lambda image: image.id))
        path_of = choose_file_naming(str(images), first) if content.is_lvis else FileNaming(str(images), "file_name")
        flat = [one for listed in objects for one in listed]
        masked = sum(
            decode_segmentation(one, image, json_file) is not None
            for image, listed in zip(content.images, objects)
            for one in listed
        )
        sides = np.sort([[image.height, image.width] for image in content.images], axis=1)
        number = np.array([len(listed) for listed in objects])
        return cls(
            json_file=Path(json_file),
            images=Path(images),
            is_lvis=content.is_lvis,
            has_image_labels=content.has_image_labels,
            categories=CategoryTable(names, CategoryFrequency.of_counts(counts)),
            without_annotations=int((number == 0).sum()),
            missing_files=sum(not os.path.isfile(path_of(image_record(image))) for image in content.images),
            objects=np.sqrt([max(one.bbox[2] * one.bbox[3], 0.0) for one in flat]),
            objects_of_image=number,
            image_sides=sides,
            with_mask=masked / len(flat),
        )

    @cached_property
    def same_names(self) -> List[Tuple[str, str]]:
        """Pairs of class names that may be one class, see :func:`same_names`."""
        return same_names(self.categories.names)

    @cached_property
    def findings(self) -> List[str]:
        """What :func:`eql_d2.data.check.check_dataset` says of the json."""
        return check_dataset(self.json_file, None).lines()

    @property
    def frequency(self) -> CategoryFrequency:
        """The counts."""
        return self.categories.frequency

    @property
    def empty(self) -> List[str]:
        """Names of the classes that no image shows."""
        return [self.categories.names[label] for label in self.frequency.categories_without_images()]

    @property
    def imbalance(self) -> float:
        """Images of the most frequent class by those of the least frequent one that has any."""
        counts = self.frequency.image_count
        return int(counts.max()) / int(counts[counts > 0].min())

    def resized(self, short_side: int, long_side: int) -> np.ndarray:
        """Return :attr:`objects` in images whose shorter side is ``short_side``, the longer at most ``long_side``."""
        scale = np.minimum(short_side / self.image_sides[:, 0], long_side / self.image_sides[:, 1])
        return self.objects * np.repeat(scale, self.objects_of_image)

    def size_shares(self, objects: np.ndarray) -> List[float]:
        """Return the shares of ``objects`` (as :attr:`objects`) that are small, medium and large by COCO's bounds."""
        places = np.searchsorted(SIZE_BOUNDS, objects, side="right")
        return (np.bincount(places, minlength=3) / max(len(objects), 1)).tolist()


def same_names(names: Sequence[str]) -> List[Tuple[str, str]]:
    """Return pairs of names that may be one class: equal but for case, punctuation and a plural s, or nearly so.

    Names that differ in a number are two.
    """
    plain = [re.sub(r"[\W_]+", " ", name.casefold()).strip() for name in names]
    plain = [name[:-1] if name.endswith("s") and not name.endswith("ss") else name for name in plain]
    digits = [re.findall(r"\d+", name) for name in plain]
    pairs, matcher = [], SequenceMatcher(autojunk=False)
    for second in range(len(names)):
        matcher.set_seq2(plain[second])
        for first in range(second):
            matcher.set_seq1(plain[first])
            near = matcher.real_quick_ratio() >= SAME_NAME and matcher.quick_ratio() >= SAME_NAME
            if near and matcher.ratio() >= SAME_NAME and digits[first] == digits[second]:
                pairs.append((names[first], names[second]))
    return pairs
