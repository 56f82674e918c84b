"""Open Images: boxes and verified image-level labels from the official CSV files, as columns that images are made of.

A table holds numpy arrays over one buffer (a memory map of the cache, :mod:`eql_d2.data.cache`); a dataset dict is made
of them when it is asked for. The rules of the hierarchy are those of the challenge's evaluation: a class that is
verified to be in an image verifies the classes above it, one that is verified to be absent those below it. Boxes are
not expanded: they are trained on as they were drawn.
"""

import os
from dataclasses import dataclass, fields
from typing import Any, Dict, List, Optional, Set, Tuple

import msgspec
import numpy as np
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from eql_d2.data.annotations import CategoryCounts
from eql_d2.data.records import Record, entries_of_rows

#: What an annotator said of a box, by column: 1, 0, or -1 where it is not known. The key is that of the dataset dict.
FLAGS = {
    "is_occluded": "IsOccluded",
    "is_truncated": "IsTruncated",
    "is_group_of": "IsGroupOf",
    "is_depiction": "IsDepiction",
    "is_inside": "IsInside",
}


@dataclass(frozen=True)
class OpenImagesFiles:
    """The files of one data set.

    Attributes:
        boxes: CSV with ImageID, LabelName, XMin, XMax, YMin, YMax as shares of the image's width and height, and maybe
            IsOccluded, IsTruncated, IsGroupOf, IsDepiction, IsInside.
        classes: CSV without a header: label (MID) and name of each class, in the order of the contiguous labels.
        image_labels: CSV with ImageID, LabelName, Confidence: 1 for a class that a human verified to be in the image, 0
            for one that is not; empty if there is none.
        hierarchy: nested json, :class:`~eql_d2.data.label_hierarchy.LabelHierarchy`; empty if there is none.
    """

    boxes: str
    classes: str
    image_labels: str = ""
    hierarchy: str = ""

    def local(self) -> "OpenImagesFiles":
        """Return the absolute paths of what Detectron2's ``PathManager`` makes of the paths."""
        paths = {field.name: getattr(self, field.name) for field in fields(self)}
        local = {key: path and os.path.abspath(PathManager.get_local_path(path)) for key, path in paths.items()}
        return OpenImagesFiles(**local)

    @property
    def given(self) -> Tuple[str, ...]:
        """The paths that are not empty, the boxes first."""
        return tuple(filter(None, (self.boxes, self.classes, self.image_labels, self.hierarchy)))


class Column(msgspec.Struct, frozen=True):
    """Where an array lies in the buffer: its numpy type, its shape and its first byte."""

    dtype: str
    shape: List[int]
    offset: int


class OpenImagesHeader(msgspec.Struct):
    """What is known of a data set without its arrays.

    Attributes:
        checksum: SHA-256 over the files, hexadecimal.
        class_ids: K labels (MIDs), in the order of the contiguous labels.
        class_names: K names; two classes may share one.
        ancestors: the contiguous labels above each class.
        flags: the keys of :data:`FLAGS` that the boxes have.
        has_image_labels: whether there is a file of verified image-level labels.
        counts: of the boxes, not expanded, group-of boxes as one.
        columns: by name; see :class:`OpenImagesTable`.
        num_left_out: boxes of classes that are not among the K.
    """

    checksum: str
    class_ids: List[str]
    class_names: List[str]
    ancestors: List[List[int]]
    flags: List[str]
    has_image_labels: bool
    counts: CategoryCounts
    columns: Dict[str, Column]
    num_left_out: int = 0

    def table(self, buffer: Any, reopen: Optional[tuple] = None) -> "OpenImagesTable":
        """Return the table over the buffer; arguments as for :class:`OpenImagesTable`."""
        return OpenImagesTable(buffer, self, reopen)

    def losses(self, name: str) -> List[str]:
        """Say which boxes of the file, called ``name``, are not used."""
        if not self.num_left_out:
            return []
        return [f"{name}: {self.num_left_out} boxes are of classes that are not in the list of classes and left out."]


class OpenImagesTable:
    """The boxes and labels of N images, sorted by ImageID.

    Args:
        buffer: the arrays, one after the other.
        header: what is known besides.
        reopen: how another process gets the same table, as a callable and its arguments, if not by a copy.

    Attributes:
        image_ids: bytes ``[N]``, ascending.
        corners: float64 ``[B, 4]``: x1, y1, x2, y2, as shares of the image's width and height.
        box_labels: int32 ``[B]``, contiguous.
        box_flags: int8 ``[B, F]``: a column for each of ``header.flags``.
        box_ends: int64 ``[N]``, where the boxes of each image end.
        label_classes: int32 ``[L]``, the image-level labels, contiguous.
        label_present: bool ``[L]``: verified to be there, or not to be there.
        label_ends: int64 ``[N]``, where the labels of each image end.
        above, below: the contiguous labels above and below each class, K sets.
    """

    image_ids: np.ndarray
    corners: np.ndarray
    box_labels: np.ndarray
    box_flags: np.ndarray
    box_ends: np.ndarray
    label_classes: np.ndarray
    label_present: np.ndarray
    label_ends: np.ndarray

    def __init__(self, buffer: Any, header: OpenImagesHeader, reopen: Optional[tuple] = None):
        self.header = header
        self._buffer = memoryview(buffer)
        self._reopen = reopen
        for name, column in header.columns.items():
            count = int(np.prod(column.shape))
            array = (
                np.frombuffer(self._buffer, column.dtype, count, column.offset) if count else np.empty(0, column.dtype)
            )
            setattr(self, name, array.reshape(column.shape))
        self.above = [frozenset(labels) for labels in header.ancestors]
        self.below = [
            frozenset(other for other, above in enumerate(self.above) if label in above)
            for label in range(len(self.above))
        ]

    def __reduce__(self):
        return self._reopen or (OpenImagesTable, (bytes(self._buffer), self.header))

    def __len__(self) -> int:
        return len(self.image_ids)

    def image_id(self, row: int) -> str:
        """Return the ImageID of a row."""
        return self.image_ids[row].decode()

    def unpack(self, row: int) -> Record:
        """Return what the files say of the image in a row; boxes as shares of its width and height."""
        image_id = self.image_id(row)
        boxes = slice(self.box_ends[row - 1] if row else 0, self.box_ends[row])
        names = self.header.flags
        annotations = [
            {"bbox": corners, "bbox_mode": BoxMode.XYXY_ABS, "category_id": label, **dict(zip(names, flags))}
            for corners, label, flags in zip(
                self.corners[boxes].tolist(), self.box_labels[boxes].tolist(), self.box_flags[boxes].tolist()
            )
        ]
        record = {"file_name": f"{image_id}.jpg", "image_id": row, "annotations": annotations}
        if self.header.has_image_labels:
            record["image_labels"] = {key: sorted(labels) for key, labels in self.verified(row).items()}
        return record

    def verified(self, row: int) -> Dict[str, Set[int]]:
        """Return the contiguous labels that are verified to be in an image (``positive``) and not to be (``negative``).

        A class that a box shows is verified; the hierarchy is applied.
        """
        boxes = slice(self.box_ends[row - 1] if row else 0, self.box_ends[row])
        labels = slice(self.label_ends[row - 1] if row else 0, self.label_ends[row])
        present, classes = self.label_present[labels], self.label_classes[labels]
        positive = {*self.box_labels[boxes].tolist(), *classes[present].tolist()}
        negative = set(classes[~present].tolist())
        return {
            "positive": positive.union(*(self.above[label] for label in positive)),
            "negative": negative.union(*(self.below[label] for label in negative)),
        }

    def labels(self, rows: np.ndarray, with_crowd: bool = True) -> Tuple[np.ndarray, np.ndarray]:
        """Return the labels of all boxes of some images, as ``RecordList.labels`` does; no box is a crowd."""
        image, box = entries_of_rows(rows, self.box_ends)
        return image, self.box_labels[box]
