"""Index masks, images whose pixel values are labels: read, checked, and their pixels counted once.

In memory a mask has the labels ``0..K-1`` and, where a pixel has none, :attr:`MaskValues.ignore_label`, whatever the
file has in their places.
"""

import hashlib
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, List, Optional, Sequence, Tuple

import msgspec
import numpy as np
from detectron2.data.transforms import TransformList

from eql_d2.data.annotations import PathLike
from eql_d2.data.cache import cache_files, find_or_build, is_worth_caching
from eql_d2.data.frequency import CategoryFrequency
from eql_d2.data.image_files import load_image, read_upright_size
from eql_d2.data.records import RecordError, Writer
from eql_d2.errors import InputError

logger = logging.getLogger("detectron2.eql_d2.data")

#: Pillow's names of pixels that hold one whole number: of 8 bits, of 8 bits with a palette, of 16, of 32.
_MODES = ("L", "P", "I;16", "I;16B", "I")
_MAX_VALUE = 2**16 - 1


def ignore_label_of(num_classes: int) -> int:
    """Return the label of a pixel without one: 255, or 65535 where there are 255 classes or more."""
    return 255 if num_classes < 255 else _MAX_VALUE


@dataclass(frozen=True)
class MaskValues:
    """What the values of the pixels of a data set's masks mean.

    Attributes:
        num_classes: K.
        first_label: the value of class 0; class k has ``first_label + k``.
        ignore: the value of a pixel without a label.

    Raises:
        InputError: if there is no class, a value is beyond 16 bits, or ``ignore`` is the value of a class.
    """

    num_classes: int
    first_label: int = 0
    ignore: int = 255

    def __post_init__(self):
        last = self.first_label + self.num_classes - 1
        if self.num_classes < 1 or self.first_label < 0 or not 0 <= self.ignore <= _MAX_VALUE or last > _MAX_VALUE:
            raise InputError(
                f"A mask of {self.num_classes} classes from the value {self.first_label} on and {self.ignore} for no "
                f"label is none: there is at least one class, and values are 0 to {_MAX_VALUE}."
            )
        if self.first_label <= self.ignore <= last:
            raise InputError(
                f"The value {self.ignore} of pixels without a label is also that of class "
                f"{self.ignore - self.first_label}; {self.num_classes} classes have the values {self.first_label} to "
                f"{last}. Masks of 255 classes and more need 16 bits, with 65535 for no label."
            )

    @property
    def ignore_label(self) -> int:
        """The label of a pixel without one, in memory."""
        return ignore_label_of(self.num_classes)

    def __str__(self) -> str:
        return (
            f"its {self.num_classes} classes have the values {self.first_label} to "
            f"{self.first_label + self.num_classes - 1}, and {self.ignore} is for no label"
        )


@lru_cache(maxsize=8)
def _labels_of_values(values: MaskValues) -> np.ndarray:
    """Return the label of every value of 16 bits, ``[65536]``; K for a value that has none."""
    labels = np.full(_MAX_VALUE + 1, values.num_classes, np.uint8 if values.ignore_label == 255 else np.uint16)
    labels[values.first_label : values.first_label + values.num_classes] = np.arange(values.num_classes)
    labels[values.ignore] = values.ignore_label
    return labels


def read_mask(path: PathLike, values: MaskValues, size: Optional[Tuple[int, int]] = None) -> np.ndarray:
    """Return the labels of a mask, uint8 ``[H, W]``, or uint16 where there are 255 classes or more.

    Args:
        path: an image of one whole number per pixel, as PNG or TIFF; of a palette, the indices.
        values: what the numbers mean.
        size: width and height of the image that the mask is of, to be compared.

    Raises:
        RecordError: if the file is missing, cannot be read, has several numbers per pixel, another size than the image,
            or a value that is no label.
    """
    name = os.fspath(path)
    try:
        image = load_image(path)
    except FileNotFoundError:
        raise RecordError(f"{name}: there is no such file; it should be an index mask.") from None
    except OSError as error:
        raise RecordError(f"{name} cannot be read as an index mask ({error}).") from None
    if image.mode not in _MODES:
        raise RecordError(
            f"{name} has pixels of the kind {image.mode}; an index mask has one whole number per pixel: a grey image "
            f"of 8 or 16 bits, or one with a palette."
        )
    if size is not None and image.size != tuple(size):
        raise RecordError(
            f"{name} has {image.width} x {image.height} pixels (width x height), and its image {size[0]} x {size[1]}; "
            f"a mask has the size of its image."
        )
    found = np.asarray(image)
    if found.dtype.itemsize > 2 and found.size and (found.min() < 0 or found.max() > _MAX_VALUE):
        wrong = found[(found < 0) | (found > _MAX_VALUE)].flat[0]
        raise RecordError(f"{name} has the value {wrong}; {values}.")
    labels = _labels_of_values(values)[found]
    wrong = labels == values.num_classes
    if wrong.any():
        raise RecordError(f"{name} has the value {found[wrong].flat[0]}; {values}.")
    return labels


def transform_mask(labels: np.ndarray, transforms: TransformList, values: MaskValues) -> np.ndarray:
    """Return a mask that was resized, cropped, ... as its image was.

    Detectron2 resizes masks of 8 bits to the nearest pixel as Pillow does, and cannot resize others; those of 16 bits
    are transformed as two of 8. What a transform pads with is no label.

    Args:
        labels: of :func:`read_mask`.
        transforms: what the image went through.
        values: of the mask.

    Returns:
        int64 ``[H', W']``.
    """
    if labels.dtype == np.uint8:
        turned = transforms.apply_segmentation(labels).astype(np.int64)
    else:
        low, high = (labels & 255).astype(np.uint8), (labels >> 8).astype(np.uint8)
        turned = transforms.apply_segmentation(low).astype(np.int64)
        turned += transforms.apply_segmentation(high).astype(np.int64) << 8
    turned[turned >= values.num_classes] = values.ignore_label
    return turned


class MaskCounts(msgspec.Struct):
    """The pixels of each label in each of N masks; the arrays are the bytes of numpy arrays.

    Attributes:
        checksum: of names, sizes and times of the masks.
        ends: int64 ``[N]``, where the entries of each mask end.
        labels: int32 ``[P]``, the labels that occur in each mask, ascending.
        pixels: int64 ``[P]``, as many times.
    """

    checksum: str
    ends: bytes
    labels: bytes
    pixels: bytes

    def table(self, buffer: Any, reopen: Optional[tuple] = None) -> "MaskCounts":
        """Return the counts themselves; the cache has nothing but a header."""
        return self

    def losses(self, name: str) -> List[str]:
        """Say what is not used: nothing."""
        return []

    def entries(self) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return ``ends``, ``labels`` and ``pixels`` as arrays."""
        return (
            np.frombuffer(self.ends, np.int64),
            np.frombuffer(self.labels, np.int32),
            np.frombuffer(self.pixels, np.int64),
        )

    def frequency(self, num_classes: int) -> CategoryFrequency:
        """Return how often each class occurs; its instances are its pixels."""
        ends, labels, pixels = self.entries()
        pixel_count = np.zeros(num_classes, np.int64)
        np.add.at(pixel_count, labels, pixels)
        image_count = np.bincount(labels, minlength=num_classes)
        return CategoryFrequency.from_counts(image_count.tolist(), pixel_count.tolist(), num_images=len(ends))


@dataclass(frozen=True)
class MaskSet:
    """The masks of a data set and their images, as the cache of annotations sees them.

    Attributes:
        images: paths, N of them.
        masks: the path of the mask of each.
        values: what is in the masks.
    """

    images: Tuple[str, ...]
    masks: Tuple[str, ...]
    values: MaskValues
    header_type = MaskCounts

    @property
    def files(self) -> Tuple[str, ...]:
        """The first mask, which is locked while all are counted."""
        return self.masks[:1]

    @property
    def name(self) -> str:
        """The folder of the masks."""
        return os.path.commonpath([os.path.dirname(os.path.abspath(mask)) for mask in self.masks])

    def checksum(self) -> str:
        """Return a digest of what tells these masks from changed ones without opening them: name, size and time."""
        digest = hashlib.sha256(repr(self.values).encode())
        for mask in self.masks:
            try:
                found = os.stat(mask)
            except OSError:
                continue  # which is said when it is counted
            digest.update(f"\0{mask}\0{found.st_size} {found.st_mtime_ns}".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def read(self) -> Tuple[List[np.ndarray], str]:
        """Count the pixels of each mask, several at a time, one mask of each thread in memory."""
        checksum = self.checksum()
        logger.info("Counting the pixels of %d masks below %s.", len(self.masks), self.name)
        with ThreadPoolExecutor() as pool:
            return list(pool.map(self.count, range(len(self.masks)))), checksum

    def count(self, row: int) -> np.ndarray:
        """Return the labels that occur in a mask, ascending, and the pixels of each, int64 ``[2, any number]``.

        Raises:
            RecordError: as :func:`read_mask`, and if the size of the image cannot be read.
        """
        image, mask = self.images[row], self.masks[row]
        try:
            size = read_upright_size(image)
        except OSError as error:
            raise RecordError(f"{image}, the image of {mask}, cannot be read ({error}).") from None
        labels = read_mask(mask, self.values, size)
        counts = np.bincount(labels.reshape(-1), minlength=self.values.num_classes)[: self.values.num_classes]
        present = np.flatnonzero(counts)
        return np.stack([present, counts[present]])

    def pack(self, content: Sequence[np.ndarray], checksum: str, out: Optional[Writer] = None) -> MaskCounts:
        """Return the counts of all masks (:meth:`count`); nothing is written before them."""
        labels, pixels = np.concatenate(content, axis=1) if content else np.zeros((2, 0), np.int64)
        ends = np.cumsum([counts.shape[1] for counts in content], dtype=np.int64)
        return MaskCounts(checksum, ends.tobytes(), labels.astype(np.int32).tobytes(), pixels.tobytes())

    def counts(self) -> MaskCounts:
        """Return the counts from the cache beside the folder of the masks, or by reading them all.

        Raises:
            RecordError: as :func:`read_mask`.
        """
        try:
            locations = cache_files(self.name) if is_worth_caching(self.masks) else []
        except OSError:
            locations = []  # a mask is missing, which is said when it is counted
        return find_or_build(self, locations)
