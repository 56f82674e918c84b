"""THE reader of annotation files in LVIS or COCO format: read with types, checked before anything is built on them.

Its format, ids, counts, groups, image-level sets and what of it is left out are told here and nowhere else; loader,
counter, re-scorer and checker ask. Needs neither torch nor Detectron2.

The polygons, nearly all of such a file, stay as the bytes that they are in the json until an image is asked for
(:mod:`eql_d2.data.records`): no Python object is made for the tens of millions of coordinates.
"""

import os
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import (
    Annotated,
    Any,
    Dict,
    Hashable,
    Iterable,
    Iterator,
    List,
    Mapping,
    Optional,
    Sequence,
    Tuple,
    Union,
)

import msgspec
import numpy as np

from eql_d2.data import segmentation
from eql_d2.data.groups import frequency_group, given_groups
from eql_d2.data.image_labels import ImageSource, wrong_sources
from eql_d2.errors import InputError

PathLike = Union[str, os.PathLike]


#: Ids are signed 64-bit numbers everywhere after the json, and counts are added.
MAX_ID = 2**63 - 1
MAX_COUNT = 10**12

_NO_SEGMENTATION = msgspec.Raw()
#: Of a box, in pixels. No image is so large; products of such numbers are finite, also in single precision.
Coordinate = Annotated[float, msgspec.Meta(ge=-1e9, le=1e9)]


class Category(msgspec.Struct, gc=False):
    """An entry of ``categories``. ``frequency`` is r, c or f in LVIS, absent in COCO.

    ``image_count`` and ``instance_count`` are those of the data set that the file was made of, which may be larger.
    """

    id: int
    name: str
    frequency: Optional[str] = None
    image_count: Optional[int] = None
    instance_count: Optional[int] = None


class Image(msgspec.Struct):
    """An entry of ``images``. LVIS v0.5 and v1 name the file by ``coco_url``, COCO and custom sets by ``file_name``."""

    id: int
    height: int
    width: int
    file_name: str = ""
    coco_url: str = ""
    neg_category_ids: Optional[List[int]] = None
    not_exhaustive_category_ids: Optional[List[int]] = None
    source: Any = ""  # of other programs' files it may be anything; it counts where the file has ``sources``


class Annotation(msgspec.Struct, gc=False):
    """An entry of ``annotations``. ``bbox`` is x, y, width, height in pixels. ``segmentation`` is still json."""

    id: int
    image_id: int
    category_id: int
    bbox: Tuple[Coordinate, Coordinate, Coordinate, Coordinate]
    segmentation: msgspec.Raw = _NO_SEGMENTATION
    keypoints: Optional[List[float]] = None
    iscrowd: Union[int, bool, None] = None
    ignore: int = 0


class CategoryCounts(msgspec.Struct, frozen=True):
    """How often each of the K categories of a file occurs, in the order of the contiguous labels.

    Attributes:
        image_count: listed images with at least one instance of the category, crowd regions left out.
        instance_count: instances in listed images, crowd regions left out; with those that have no valid polygon.
        num_images: listed images, also those without an annotation.
        groups: K letters r, c or f: the file's where each category has one, else LVIS's bounds on ``image_count`` of
            the category records (of the whole data set) where each has one, else LVIS's bounds on the counts above.
        groups_are_given: whether they come from the category records.
    """

    image_count: List[int]
    instance_count: List[int]
    num_images: int
    groups: List[str]
    groups_are_given: bool


class AnnotationFile(msgspec.Struct):
    """A whole json. ``annotations`` is ``None`` for a test set, whose json has images and categories only."""

    images: List[Image]
    categories: List[Category]
    annotations: Optional[List[Annotation]] = None
    sources: List[ImageSource] = []

    @property
    def is_lvis(self) -> bool:
        """LVIS format: an image has a negative or a not-exhaustive set, or a category has a frequency letter."""
        return self.has_image_labels or any(category.frequency is not None for category in self.categories)

    @property
    def has_image_labels(self) -> bool:
        """Whether any image says which categories were looked for and not found, or its source does."""
        return bool(self.sources) or any(
            image.neg_category_ids is not None or image.not_exhaustive_category_ids is not None for image in self.images
        )

    @property
    def has_annotations(self) -> bool:
        """Whether there is any annotation: a test set has none."""
        return bool(self.annotations)

    @property
    def sorted_categories(self) -> List[Category]:
        """The categories by ascending id; the place in this list is the contiguous label."""
        return sorted(self.categories, key=lambda category: category.id)

    @property
    def letters(self) -> Optional[List[str]]:
        """The r/c/f letters by contiguous label; ``None`` unless every category has one."""
        return given_groups(category.frequency for category in self.sorted_categories)

    @property
    def contiguous_ids(self) -> Dict[int, int]:
        """The contiguous label of each category id, which may have gaps."""
        return contiguous_ids(self.categories)

    def annotations_by_image(self) -> Dict[int, List[Annotation]]:
        """Return the annotations of each listed image by its id. Those of other images are left out everywhere."""
        by_image: Dict[int, List[Annotation]] = {image.id: [] for image in self.images}
        for annotation in self.annotations or ():
            if annotation.image_id in by_image:
                by_image[annotation.image_id].append(annotation)
        return by_image

    def counts(self) -> CategoryCounts:
        """Count images and instances of each category. The ids must have been checked (:func:`check_content`)."""
        labels = self.contiguous_ids
        counted = [
            [labels[one.category_id] for one in annotations if not one.iscrowd]
            for annotations in self.annotations_by_image().values()
        ]
        instances = np.fromiter(chain.from_iterable(counted), np.int64)
        images = np.fromiter(chain.from_iterable(map(set, counted)), np.int64)
        image_count = np.bincount(images, minlength=len(labels)).tolist()
        recorded = [one.image_count for one in self.sorted_categories if one.image_count is not None]
        of_whole = [frequency_group(count) for count in recorded] if len(recorded) == len(labels) else None
        given = self.letters or of_whole
        return CategoryCounts(
            image_count,
            np.bincount(instances, minlength=len(labels)).tolist(),
            len(self.images),
            given or [frequency_group(count) for count in image_count],
            given is not None,
        )


def contiguous_ids(categories: Iterable[Category]) -> Dict[int, int]:
    """Map category ids, which may have gaps, to ``0..K-1`` in the order of the ids."""
    return {category_id: label for label, category_id in enumerate(sorted(category.id for category in categories))}


_FILE_DECODER = msgspec.json.Decoder(AnnotationFile)


def parse_annotations(content: bytes, path: PathLike) -> AnnotationFile:
    """Parse the bytes of a json in LVIS or COCO format. The types of all fields are checked, their values are not.

    Args:
        content: the json.
        path: where it was read, for messages.

    Raises:
        InputError: if it is truncated, no json, or lacks a field of the format.
    """
    if not content.strip():
        raise InputError(f"{path} is empty; it should hold annotations in LVIS or COCO format.")
    try:
        return _FILE_DECODER.decode(content)
    except msgspec.ValidationError as error:
        raise InputError(f"{path} is not in LVIS or COCO format: {error}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid json ({error}); is the download complete?") from None
    except RecursionError:
        raise InputError(f"{path} is not in LVIS or COCO format: something in it is nested without end.") from None


def read_annotations(source: Union[PathLike, Mapping[str, Any]], name: str = "annotations") -> AnnotationFile:
    """Read a file in LVIS or COCO format, or its parsed content. Ids are not checked, see :func:`check_content`.

    Args:
        source: a path, or what ``json.load`` returns for it.
        name: stands for parsed content in messages.

    Raises:
        InputError: if the file is missing, or as :func:`parse_annotations`.
    """
    if isinstance(source, (str, os.PathLike)):
        with readable_json(source):
            content = Path(source).read_bytes()
        return parse_annotations(content, source)
    try:
        encoded = msgspec.json.encode(source)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise InputError(f"{name} is not what a json holds ({error}).") from None
    return parse_annotations(encoded, name)


@contextmanager
def readable_json(path: PathLike) -> Iterator[None]:
    """Turn the operating system's errors on reading ``path`` into an :class:`~eql_d2.errors.InputError`."""
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; it should hold annotations in LVIS or COCO format.") from None
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}); it should hold LVIS or COCO annotations."
        ) from None


def decode_segmentation(
    annotation: Annotation, image: Image, path: PathLike
) -> Union[segmentation.Polygons, Dict[str, Any], None]:
    """Decode an annotation's polygons or run-length mask (:func:`eql_d2.data.segmentation.decode`).

    Args:
        annotation: of the file.
        image: that it is in, whose values have been checked.
        path: of the file, for messages.

    Raises:
        InputError: if the segmentation is neither, or could not be drawn in the image.
    """
    if annotation.segmentation is _NO_SEGMENTATION:
        return None
    try:
        return segmentation.decode(annotation.segmentation, image.height, image.width)
    except InputError as error:
        raise InputError(
            f"{path}: the segmentation of annotation {annotation.id} in image {image.id} {error}."
        ) from None


def check_content(content: AnnotationFile, path: PathLike, allow_ignore: bool = False) -> None:
    """Check that every number can be computed with, that ids are unique and that what is referred to exists.

    Segmentations are left to :func:`decode_segmentation`.

    Annotations of images that are not listed are allowed: subsets of a data set often keep them.

    Args:
        content: of the file.
        path: of the file, for messages.
        allow_ignore: whether annotations may have ``ignore``, which evaluation knows and training does not.

    Raises:
        InputError: naming the first offender.
    """
    if not content.images:
        raise InputError(f"{path} lists no image; 'images' must have at least one entry.")
    if not content.categories:
        raise InputError(f"{path} lists no category; 'categories' must have at least one entry.")
    for wrong in wrong_values(content):
        raise InputError(f"{path}: {wrong}.")
    category_ids = {category.id for category in content.categories}
    for kind, entries in (("image", content.images), ("category", content.categories)):
        _check_unique(kind, (entry.id for entry in entries), path)
    for image in content.images:
        for field in ("neg_category_ids", "not_exhaustive_category_ids"):
            for category_id in getattr(image, field) or ():
                if category_id not in category_ids:
                    raise InputError(
                        f"{path}: image {image.id} has {category_id} in {field}, which is not in 'categories' "
                        f"({describe_ids(category_ids)})."
                    )
    for wrong in wrong_sources(content.sources, content.images, category_ids):
        raise InputError(f"{path}: {wrong}.")
    annotations = content.annotations or ()
    _check_unique("annotation", (annotation.id for annotation in annotations), path)
    for annotation in annotations:
        if annotation.category_id not in category_ids:
            raise InputError(
                f"{path}: annotation {annotation.id} has category_id {annotation.category_id}, which is not in "
                f"'categories' ({describe_ids(category_ids)})."
            )
        if annotation.ignore and not allow_ignore:
            raise InputError(
                f"{path}: annotation {annotation.id} has 'ignore' {annotation.ignore}; only iscrowd is supported, "
                f"use iscrowd 1 for a region to be ignored."
            )


def wrong_values(content: AnnotationFile) -> Iterator[str]:
    """Yield what no program could compute with: the values whose type is right and whose size is not, and names that
    no file can have. Each is a clause that names the entry, the field, the value and what would be right."""
    for image in content.images:
        where = f"image {image.id}"
        yield from _wrong_numbers(where, "id", (image.id,), 0, MAX_ID)
        yield from _wrong_numbers(where, "height", (image.height,), 1, segmentation.MAX_SIDE)
        yield from _wrong_numbers(where, "width", (image.width,), 1, segmentation.MAX_SIDE)
        if 0 < image.height <= segmentation.MAX_SIDE and image.height * image.width > segmentation.MAX_PIXELS:
            yield f"{where} has {image.height} x {image.width} pixels; there may be {segmentation.MAX_PIXELS}"
        for field in ("file_name", "coco_url"):
            if "\0" in getattr(image, field):
                yield f"{where} has a {field} with the character NUL, which no name of a file can have"
    for category in content.categories:
        where = f"category {category.id}"
        yield from _wrong_numbers(where, "id", (category.id,), 0, MAX_ID)
        yield from _wrong_numbers(where, "image_count", (category.image_count or 0,), 0, MAX_COUNT)
        yield from _wrong_numbers(where, "instance_count", (category.instance_count or 0,), 0, MAX_COUNT)
        if "\0" in category.name:
            yield f"{where} has a name with the character NUL"
    for one in content.annotations or ():
        if not 0 <= one.id <= MAX_ID:
            yield from _wrong_numbers(f"annotation {one.id}", "id", (one.id,), 0, MAX_ID)
        if not 0 <= one.image_id <= MAX_ID:
            yield from _wrong_numbers(f"annotation {one.id}", "image_id", (one.image_id,), 0, MAX_ID)
        if one.iscrowd not in (None, 0, 1):
            yield f"annotation {one.id} has iscrowd {one.iscrowd}; it is 0 or 1"
        if one.keypoints:
            far = segmentation.MAX_COORDINATE
            yield from _wrong_numbers(f"annotation {one.id}", "keypoints", one.keypoints, -far, far)
            if len(one.keypoints) % 3:
                yield f"annotation {one.id} has {len(one.keypoints)} numbers in keypoints; each point has 3"


def _wrong_numbers(where: str, field: str, numbers: Sequence[float], low: int, high: int) -> Iterator[str]:
    for number in numbers:
        if not low <= number <= high:
            yield f"{where} has {number} in {field}; it must be from {low} to {high}"


def describe_ids(ids: Iterable[int]) -> str:
    """Say which ids there are in a few words: their number, the smallest and the largest."""
    ids = list(ids)
    return f"{len(ids)} ids from {min(ids)} to {max(ids)}"


def duplicates(values: Iterable[Hashable]) -> List[Any]:
    """Return the values that occur again, once for each repetition, in order."""
    seen, repeated = set(), []
    for value in values:
        if value in seen:
            repeated.append(value)
        seen.add(value)
    return repeated


def _check_unique(kind: str, ids: Iterable[int], path: PathLike) -> None:
    ids = list(ids)
    if len(set(ids)) < len(ids):
        raise InputError(f"{path}: {kind} id {duplicates(ids)[0]} occurs more than once; ids must be unique.")
