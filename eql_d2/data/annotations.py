"""Annotation files in LVIS or COCO format: read with types, checked before anything is built on them.

The polygons, nearly all of such a file, stay as the bytes that they are in the json until an image is asked for
(:mod:`eql_d2.data.records`): no Python object is made for the tens of millions of coordinates.
"""

import os
import re
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, Dict, Hashable, Iterable, Iterator, List, Optional, Tuple, Union

import msgspec

from eql_d2.data.groups import GROUPS
from eql_d2.errors import InputError

PathLike = Union[str, os.PathLike]


_NO_SEGMENTATION = msgspec.Raw()


class Category(msgspec.Struct, gc=False):
    """An entry of ``categories``. ``frequency`` is r, c or f in LVIS, absent in COCO."""

    id: int
    name: str
    frequency: Optional[str] = None


class Image(msgspec.Struct):
    """An entry of ``images``. LVIS v0.5 and v1 name the file by ``coco_url``, COCO and custom sets by ``file_name``."""

    id: int
    height: int
    width: int
    file_name: str = ""
    coco_url: str = ""
    neg_category_ids: Optional[List[int]] = None
    not_exhaustive_category_ids: Optional[List[int]] = None


class Annotation(msgspec.Struct, gc=False):
    """An entry of ``annotations``. ``bbox`` is x, y, width, height in pixels. ``segmentation`` is still json."""

    id: int
    image_id: int
    category_id: int
    bbox: Tuple[float, float, float, float]
    segmentation: msgspec.Raw = _NO_SEGMENTATION
    keypoints: Optional[List[float]] = None
    iscrowd: Union[int, bool, None] = None
    ignore: int = 0


class AnnotationFile(msgspec.Struct):
    """A whole json. ``annotations`` is ``None`` for a test set, whose json has images and categories only."""

    images: List[Image]
    categories: List[Category]
    annotations: Optional[List[Annotation]] = None

    @property
    def is_lvis(self) -> bool:
        """LVIS format: an image has a negative or a not-exhaustive set, or a category has a frequency letter."""
        return self.has_image_labels or any(category.frequency is not None for category in self.categories)

    @property
    def has_image_labels(self) -> bool:
        """Whether any image says which categories were looked for and not found."""
        return any(
            image.neg_category_ids is not None or image.not_exhaustive_category_ids is not None for image in self.images
        )

    @property
    def groups(self) -> Optional[List[str]]:
        """The r/c/f letters in the order of the sorted category ids; ``None`` unless every category has one."""
        letters = [category.frequency for category in sorted(self.categories, key=lambda category: category.id)]
        return letters if all(letter in GROUPS for letter in letters) else None


class RunLengthMask(msgspec.Struct):
    """A mask as COCO's json holds it: run lengths, as numbers or compressed to a string."""

    size: Tuple[int, int]
    counts: Union[List[int], str]


# The json of numbers without exponents, and the space around them. Without these characters, a polygon of 2 n numbers
# is a pair of brackets with 2 n - 1 commas in it.
_OF_PLAIN_NUMBERS = b"0123456789.- \t\r\n"
_POLYGON = rb"\[,{5}(?:,,)*\]"
_SKELETON_OF_POLYGONS = re.compile(rb"\[%b(?:,%b)*\]" % (_POLYGON, _POLYGON))

_FILE_DECODER = msgspec.json.Decoder(AnnotationFile)
_SEGMENTATION_DECODER = msgspec.json.Decoder(Union[List[List[float]], RunLengthMask, None])


def parse_annotations(content: bytes, path: PathLike) -> AnnotationFile:
    """Parse the bytes of a json in LVIS or COCO format. The types of all fields are checked, their values are not.

    Args:
        content: the json.
        path: where it was read, for messages.

    Raises:
        InputError: if it is truncated, no json, or lacks a field of the format.
    """
    try:
        return _FILE_DECODER.decode(content)
    except msgspec.ValidationError as error:
        raise InputError(f"{path} is not in LVIS or COCO format: {error}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid json ({error}); is the download complete?") from None


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


def decode_segmentation(annotation: Annotation, path: PathLike) -> Union[List[List[float]], Dict[str, Any], None]:
    """Decode an annotation's polygons or run-length mask.

    Returns:
        Polygons as lists of x, y, x, y, ..., or a dict with ``size`` (height, width) and compressed ``counts``, or
        ``None`` where the annotation has no segmentation.

    Raises:
        InputError: if the segmentation is neither.
    """
    if annotation.segmentation is _NO_SEGMENTATION:
        return None
    try:
        segmentation = _SEGMENTATION_DECODER.decode(annotation.segmentation)
    except msgspec.ValidationError as error:
        raise InputError(
            f"{path}: annotation {annotation.id} has a segmentation that is neither a list of polygons nor a "
            f"run-length mask: {error}."
        ) from None
    if not isinstance(segmentation, RunLengthMask):
        return segmentation or None  # COCO writes an empty list for no mask
    size = list(segmentation.size)
    if isinstance(segmentation.counts, str):
        return {"size": size, "counts": segmentation.counts}
    import pycocotools.mask as mask_util  # only COCO's crowd regions need it

    return mask_util.frPyObjects({"size": size, "counts": segmentation.counts}, *size)


def is_plainly_polygons(encoded: bytes) -> bool:
    """Whether the json of a segmentation is a list of valid polygons, told from its brackets and commas alone.

    True is certain, for json that was parsed before. False may also stand for valid polygons in an odd spelling
    (numbers with exponents); :func:`decode_segmentation` tells.
    """
    return _is_skeleton_of_polygons(encoded.translate(None, _OF_PLAIN_NUMBERS))


@lru_cache(maxsize=2**12)  # the polygons of a data set share a few hundred skeletons
def _is_skeleton_of_polygons(skeleton: bytes) -> bool:
    return _SKELETON_OF_POLYGONS.fullmatch(skeleton) is not None


def is_valid_polygon(polygon: List[float]) -> bool:
    """Whether a polygon has at least three points, each with an x and a y."""
    return len(polygon) >= 6 and len(polygon) % 2 == 0


def check_ids(content: AnnotationFile, path: PathLike) -> None:
    """Check that ids are unique and that what is referred to exists.

    Annotations of images that are not listed are allowed: subsets of a data set often keep them.

    Raises:
        InputError: naming the first offender.
    """
    if not content.images:
        raise InputError(f"{path} lists no image; 'images' must have at least one entry.")
    if not content.categories:
        raise InputError(f"{path} lists no category; 'categories' must have at least one entry.")
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
    annotations = content.annotations or ()
    _check_unique("annotation", (annotation.id for annotation in annotations), path)
    for annotation in annotations:
        if annotation.category_id not in category_ids:
            raise InputError(
                f"{path}: annotation {annotation.id} has category_id {annotation.category_id}, which is not in "
                f"'categories' ({describe_ids(category_ids)})."
            )
        if annotation.ignore:
            raise InputError(
                f"{path}: annotation {annotation.id} has 'ignore' {annotation.ignore}; only iscrowd is supported, "
                f"use iscrowd 1 for a region to be ignored."
            )


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
