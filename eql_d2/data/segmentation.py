"""Masks as a json holds them, polygons or run lengths: decoded, and checked before pycocotools sees them.

pycocotools believes what it is given. Run lengths that do not fill the mask, a size of 10^9 or a coordinate of 10^300
make it read and write memory that is not its own, or fill all there is.
"""

import math
import re
from functools import lru_cache
from typing import Any, Dict, Iterable, List, Sequence, Tuple, Union

import msgspec
import numpy as np

from eql_d2.errors import InputError

#: The largest side of an image in pixels, which is JPEG's, and the most pixels: run lengths are 32-bit numbers.
MAX_SIDE = 2**16 - 1
MAX_PIXELS = 2**31 - 1
#: Coordinates of boxes and polygons in pixels, either way from the corner of the image.
MAX_COORDINATE = 10**6
#: The length in pixels of the outline of a polygon, which is rasterized at five points a pixel.
MAX_OUTLINE = 4 * 10**6

Polygons = List[List[float]]


class RunLengthMask(msgspec.Struct):
    """A mask as COCO's json holds it: run lengths, as numbers or compressed to a string."""

    size: Tuple[int, int]
    counts: Union[List[int], str]


# The json of numbers without exponents, and the space around them. Without these characters, a polygon of 2 n numbers
# is a pair of brackets with 2 n - 1 commas in it.
_OF_PLAIN_NUMBERS = b"0123456789.- \t\r\n"
_POLYGON = rb"\[,{5}(?:,,)*\]"
_SKELETON_OF_POLYGONS = re.compile(rb"\[%b(?:,%b)*\]" % (_POLYGON, _POLYGON))

_DECODER = msgspec.json.Decoder(Union[Polygons, RunLengthMask, None])


def decode(encoded: Union[bytes, msgspec.Raw], height: int, width: int) -> Union[Polygons, Dict[str, Any], None]:
    """Decode and check the json of a segmentation.

    Args:
        encoded: the json.
        height, width: of the image in pixels, checked before.

    Returns:
        Polygons as lists of x, y, x, y, ..., also invalid ones (:func:`is_valid_polygon`); or a dict with ``size``
        (height, width) and compressed ``counts``; or ``None`` where there is no mask.

    Raises:
        InputError: what is wrong with it, the end of a sentence that begins with whose segmentation it is.
    """
    try:
        segmentation = _DECODER.decode(encoded)
    except (msgspec.DecodeError, RecursionError) as error:
        raise InputError(f"is neither a list of polygons nor a run-length mask: {error}") from None
    if not isinstance(segmentation, RunLengthMask):
        for polygon in filter(is_valid_polygon, segmentation or ()):
            check_polygon(polygon)
        return segmentation or None  # COCO writes an empty list for no mask
    check_run_lengths(segmentation.size, segmentation.counts, height, width)
    size = list(segmentation.size)
    if isinstance(segmentation.counts, str):
        return {"size": size, "counts": segmentation.counts}
    import pycocotools.mask as mask_util  # only COCO's crowd regions need it

    return mask_util.frPyObjects({"size": size, "counts": segmentation.counts}, *size)


def is_plainly_polygons(encoded: bytes) -> bool:
    """Whether the json of a segmentation is a list of valid polygons, told from its brackets and commas alone.

    True is certain, for json that was parsed before. False may also stand for valid polygons in an odd spelling
    (numbers with exponents); :func:`decode` tells. The coordinates themselves are not looked at.
    """
    return _is_skeleton_of_polygons(encoded.translate(None, _OF_PLAIN_NUMBERS))


@lru_cache(maxsize=2**12)  # the polygons of a data set share a few hundred skeletons
def _is_skeleton_of_polygons(skeleton: bytes) -> bool:
    return _SKELETON_OF_POLYGONS.fullmatch(skeleton) is not None


def is_valid_polygon(polygon: Sequence[float]) -> bool:
    """Whether a polygon has at least three points, each with an x and a y. Others are left out everywhere."""
    return len(polygon) >= 6 and len(polygon) % 2 == 0


def check_polygon(polygon: Sequence[float]) -> None:
    """Check the coordinates x, y, x, y, ... of a valid polygon, in pixels.

    Raises:
        InputError: for a coordinate that is no number or lies millions of pixels away, and for an outline that long.
    """
    low, high = min(polygon), max(polygon)
    # The sum is for NaN, which is neither smaller nor larger than anything.
    if low < -MAX_COORDINATE or high > MAX_COORDINATE or math.isnan(sum(polygon)):
        raise InputError(f"has the coordinates {low} to {high}; they may be {MAX_COORDINATE} pixels from 0 at most")
    if len(polygon) * (high - low) > MAX_OUTLINE:  # else no need to measure
        points = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
        outline = np.abs(points - np.roll(points, 1, axis=0)).max(axis=1).sum()
        if not outline <= MAX_OUTLINE:
            raise InputError(f"has an outline of {outline:.0f} pixels; at most {MAX_OUTLINE} can be drawn")


def check_run_lengths(size: Sequence[int], counts: Union[Iterable[int], str, bytes], height: int, width: int) -> None:
    """Check that run lengths, as numbers or compressed, fill the mask of an image.

    Args:
        size: height and width that the mask states.
        counts: the run lengths.
        height, width: of the image in pixels.

    Raises:
        InputError: the end of a sentence, as for :func:`decode`.
    """
    if list(size) != [height, width]:
        raise InputError(f"has the size {list(size)} (height, width), but its image has {[height, width]}")
    try:
        lengths = expand(counts) if isinstance(counts, (str, bytes)) else np.asarray(counts, dtype=np.int64)
    except (OverflowError, TypeError, ValueError):
        raise InputError(
            "has 'counts' that are no run lengths; they are numbers of pixels, or such in COCO's text form"
        ) from None
    if lengths.ndim != 1 or (lengths.size and lengths.min() < 0):
        raise InputError("has a run length below 0")
    # The sum of many large numbers may wrap around: none of them may be larger than the image.
    total = int(lengths.sum()) if lengths.size and lengths.max() <= height * width else -1
    if total != height * width or lengths.size > height * width + 1:
        has = f"run lengths of {total} pixels in all" if total >= 0 else "no run lengths, or one beyond its end"
        raise InputError(f"has {has}; a mask of {height} x {width} has {height * width} pixels")


def expand(counts: Union[str, bytes]) -> np.ndarray:
    """Return the run lengths that COCO's text form holds (``rleFrString`` of pycocotools' maskApi.c), int64 ``[n]``.

    Each number is 5 bits a character, the lowest first, bit 5 saying that another follows and bit 4 of the last being
    the sign; from the fourth on it is the difference to the number two before.

    Raises:
        ValueError: for characters that do not occur, a number without an end, or one of more than 35 bits.
    """
    encoded = counts.encode("ascii") if isinstance(counts, str) else counts
    characters = np.frombuffer(encoded, dtype=np.uint8).astype(np.int64) - 48
    if not len(characters):
        return characters
    if characters.min() < 0 or characters.max() > 63 or characters[-1] & 32:
        raise ValueError("no run lengths in COCO's text form")
    ends = np.flatnonzero((characters & 32) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    places = np.arange(len(characters)) - np.repeat(starts, ends - starts + 1)
    if places.max() > 6:
        raise ValueError("a number of more than 35 bits")
    numbers = np.add.reduceat((characters & 31) << (5 * places), starts)
    numbers -= np.where(characters[ends] & 16, 1 << (5 * (ends - starts + 1)), 0)
    numbers[1::2] = np.cumsum(numbers[1::2])
    numbers[2::2] = np.cumsum(numbers[2::2])
    return numbers
