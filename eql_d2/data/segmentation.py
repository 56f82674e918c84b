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

Mask = Union[Polygons, RunLengthMask, None]
_DECODER = msgspec.json.Decoder(Mask)


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
    return _checked(parse(encoded), height, width)


def parse(encoded: Union[bytes, msgspec.Raw]) -> Mask:
    """Decode the json of a segmentation; the types in it are checked, the numbers are not.

    Raises:
        InputError: the end of a sentence, as for :func:`decode`.
    """
    try:
        return _DECODER.decode(encoded)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _no_mask(error) from None


def convert_segmentation(value: Any, height: int, width: int) -> Union[Polygons, Dict[str, Any], None]:
    """Check a segmentation that was parsed before, or made by a program; else as :func:`decode`."""
    if isinstance(value, dict) and isinstance(value.get("counts"), bytes):
        value = {**value, "counts": value["counts"].decode("latin-1")}
    try:
        return _checked(msgspec.convert(value, Mask), height, width)
    except (msgspec.ValidationError, RecursionError) as error:
        raise _no_mask(error) from None


def _no_mask(error: Exception) -> InputError:
    return InputError(f"is neither a list of polygons nor a run-length mask: {error}")


def _checked(mask: Mask, height: int, width: int) -> Union[Polygons, Dict[str, Any], None]:
    if not isinstance(mask, RunLengthMask):
        for polygon in filter(is_valid_polygon, mask or ()):
            check_polygon(polygon)
        return mask or None  # COCO writes an empty list for no mask
    check_run_lengths(mask.size, mask.counts, height, width)
    size = list(mask.size)
    if isinstance(mask.counts, str):
        return {"size": size, "counts": mask.counts}
    import pycocotools.mask as mask_util  # only COCO's crowd regions need it

    return mask_util.frPyObjects({"size": size, "counts": mask.counts}, *size)


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
        if isinstance(counts, (str, bytes)):
            lengths, _ = expand([counts.encode("ascii") if isinstance(counts, str) else counts])
        else:
            lengths = np.asarray(counts, dtype=np.int64)
    except (OverflowError, TypeError, ValueError):
        raise InputError(
            "has 'counts' that are no run lengths; they are numbers of pixels, or such in COCO's text form"
        ) from None
    if lengths.ndim != 1 or (lengths.size and lengths.min() < 0):
        raise InputError("has a run length below 0")
    # The sum of many large numbers may wrap around: none of them may be larger than the image.
    total = int(lengths.sum()) if lengths.size and lengths.max() <= height * width else -1
    if total != height * width:
        has = f"run lengths of {total} pixels in all" if total >= 0 else "no run lengths, or one beyond its end"
        raise InputError(f"has {has}; a mask of {height} x {width} has {height * width} pixels")


def all_fill(texts: Sequence[bytes], pixels: Sequence[int]) -> bool:
    """Whether each of many compressed run lengths fills a mask of so many pixels; :func:`check_run_lengths` says why
    one does not, and takes four times as long for it."""
    if not texts:
        return True
    try:
        lengths, ends = expand(texts)
    except ValueError:
        return False
    starts = np.concatenate([[0], ends[:-1]])
    largest, expected = np.maximum.reduceat(lengths, starts), np.asarray(pixels, dtype=np.int64)
    fits = lengths.min() >= 0 and bool((largest <= expected).all())
    return fits and bool((np.add.reduceat(lengths, starts) == expected).all())


def expand(texts: Sequence[bytes]) -> Tuple[np.ndarray, np.ndarray]:
    """Return the run lengths that COCO's text form holds (``rleFrString`` of pycocotools' maskApi.c).

    Each number is 5 bits a character, the lowest first, bit 5 saying that another follows and bit 4 of the last being
    the sign; from the fourth of a mask on it is the difference to the number two before.

    Returns:
        The run lengths of all masks one after the other, int64 ``[n]``, and where those of each mask end, int64
        ``[len(texts)]``.

    Raises:
        ValueError: for an empty text, characters that do not occur, a number without an end, or of more than 35 bits.
    """
    characters = np.frombuffer(b"".join(texts), dtype=np.uint8) - np.uint8(48)  # what is below wraps around
    text_ends = np.cumsum(np.fromiter(map(len, texts), np.int64, len(texts)))
    if not all(texts) or characters.max() > 63 or (characters[text_ends - 1] & 32).any():
        raise ValueError("no run lengths in COCO's text form")
    last = np.flatnonzero((characters & 32) == 0)
    first = np.concatenate([[0], last[:-1] + 1])
    widths = last - first + 1
    if widths.max() > 7:
        raise ValueError("a number of more than 35 bits")
    numbers = (characters[first] & 31).astype(np.int64)
    for place in range(1, int(widths.max())):
        wider = np.flatnonzero(widths > place)
        numbers[wider] |= (characters[first[wider] + place] & 31).astype(np.int64) << (5 * place)
    numbers -= np.where(characters[last] & 16, np.int64(1) << (5 * widths), 0)
    ends = np.searchsorted(last, text_ends - 1) + 1
    starts = np.concatenate([[0], ends[:-1]])
    places = np.arange(len(numbers)) - np.repeat(starts, ends - starts)
    for chain in (places % 2 == 1, (places % 2 == 0) & (places > 0)):  # each a sum of differences, anew in each mask
        added = np.cumsum(numbers[chain])
        begins = places[chain] <= 2
        before = np.where(begins, added - numbers[chain], 0)
        numbers[chain] = added - before[np.maximum.accumulate(np.where(begins, np.arange(len(begins)), 0))]
    return numbers, ends


def compress(lengths: np.ndarray, ends: np.ndarray) -> List[str]:
    """Return run lengths in COCO's text form (``rleToString``): what :func:`expand` reads, from what it returns.

    Args:
        lengths: of all masks one after the other, int64 ``[n]``, at most ``MAX_PIXELS``.
        ends: where those of each mask end, int64; each has at least one.
    """
    starts = np.concatenate([[0], ends[:-1]])
    places = np.arange(len(lengths)) - np.repeat(starts, ends - starts)
    later = np.flatnonzero(places > 2)
    numbers = lengths.astype(np.int64)
    numbers[later] -= lengths[later - 2]
    magnitudes = np.where(numbers < 0, ~numbers, numbers)
    widths = np.ones_like(numbers)
    for bits in range(4, 31, 5):
        widths += magnitudes >= 1 << bits
    beyond = np.cumsum(widths)
    text = np.empty(beyond[-1] if len(beyond) else 0, dtype=np.uint8)
    for place in range(int(widths.max(initial=0))):
        wider = np.flatnonzero(widths > place)
        characters = (numbers[wider] >> (5 * place)) & 31
        characters[widths[wider] > place + 1] |= 32
        text[beyond[wider] - widths[wider] + place] = characters + 48
    joined = text.tobytes().decode("ascii")
    text_ends = beyond[ends - 1].tolist()
    return [joined[start:end] for start, end in zip([0, *text_ends], text_ends)]
