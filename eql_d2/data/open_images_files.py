"""Reading the CSV files of Open Images, 500,000 rows at a time, into the columns of an ``OpenImagesTable``."""

import csv
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Dict, Iterator, List, NamedTuple, Sequence, Tuple, Union

import numpy as np

from eql_d2.data.annotations import CategoryCounts, PathLike, duplicates
from eql_d2.data.cache import checksum_of, packed_table
from eql_d2.data.csv_columns import csv_chunks, read_header
from eql_d2.data.groups import frequency_group
from eql_d2.data.label_hierarchy import LabelHierarchy
from eql_d2.data.open_images_table import FLAGS, Column, OpenImagesFiles, OpenImagesHeader, OpenImagesTable
from eql_d2.data.records import Writer, images_of_labels
from eql_d2.errors import InputError

_CORNERS = ("XMin", "YMin", "XMax", "YMax")
# ImageIDs have 16 characters, labels at most 12.
_TEXT = "S48"


def open_images_table(files: OpenImagesFiles) -> OpenImagesTable:
    """Return the images of Open Images' files, from memory, from the cache, or by reading the CSV files.

    Raises:
        InputError: if a file is missing or of another form.
    """
    files = files.local()
    for path in files.given:
        if not os.path.isfile(path):
            raise InputError(f"{path}: there is no such file; it should be one of the files of Open Images.")
    return packed_table(_CsvFiles(files))


def read_classes(path: PathLike) -> List[Tuple[str, str]]:
    """Return label and name of each class, in the order of the file.

    Raises:
        InputError: if the file is missing, a line has not two columns, or a label occurs twice.
    """
    try:
        with Path(path).open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}); it should list a class in each line: label,name.") from None
    for number, row in enumerate(rows, 1):
        if len(row) != 2:
            raise InputError(f"{path}, class {number}: {','.join(row)!r} is not 'label,name'.")
    repeated = duplicates(label for label, _ in rows)
    if repeated or not rows:
        raise InputError(f"{path} {f'lists {repeated[0]} twice' if repeated else 'lists no class'}.")
    return [(label.strip(), name.strip()) for label, name in rows]


def read_hierarchy(path: PathLike) -> LabelHierarchy:
    """Return the hierarchy in a json file.

    Raises:
        InputError: if the file is missing, no json, or no hierarchy.
    """
    try:
        tree = json.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); it should hold the nested json of the hierarchy.") from None
    try:
        return LabelHierarchy(tree)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


class Rows(NamedTuple):
    """Rows of a CSV file: the ImageIDs of runs of rows that follow each other, and columns of rows of known classes.

    Attributes:
        run_ids: bytes ``[runs]``.
        run_lengths: int64 ``[runs]``, the rows of known classes, which may be none.
        labels: int32 ``[n]``, contiguous.
        values: float64 ``[n, columns]``.
        flags: int8 ``[n, columns]``.
        num_left_out: rows of other classes.
    """

    run_ids: np.ndarray
    run_lengths: np.ndarray
    labels: np.ndarray
    values: np.ndarray
    flags: np.ndarray
    num_left_out: int


class _Content(NamedTuple):
    """What :meth:`_CsvFiles.read` returns."""

    classes: List[Tuple[str, str]]
    ancestors: List[List[int]]
    boxes: Rows
    flags: List[str]
    labels: Rows


@dataclass(frozen=True)
class _CsvFiles:
    """The files of a data set, as the cache sees them."""

    paths: OpenImagesFiles
    header_type = OpenImagesHeader

    @property
    def files(self) -> Tuple[str, ...]:
        return self.paths.given

    @property
    def name(self) -> str:
        return self.paths.boxes

    def checksum(self) -> str:
        return checksum_of(self.files)

    def read(self) -> Tuple[_Content, str]:
        classes = read_classes(self.paths.classes)
        number = {label: k for k, (label, _) in enumerate(classes)}
        ancestors: List[List[int]] = [[] for _ in classes]
        if self.paths.hierarchy:
            tree = read_hierarchy(self.paths.hierarchy)
            above = (tree.ancestors(label) for label, _ in classes)
            ancestors = [sorted(number[other] for other in others if other in number) for others in above]
        header = read_header(self.paths.boxes, ("ImageID", "LabelName", *_CORNERS))
        flags = [key for key, column in FLAGS.items() if column in header]
        boxes = _read_rows(self.paths.boxes, list(number), _CORNERS, [FLAGS[key] for key in flags])
        _check_finite(boxes.values, self.paths.boxes)
        if self.paths.image_labels:
            labels = _read_rows(self.paths.image_labels, list(number), ("Confidence",))
            _check_confidence(labels.values, self.paths.image_labels)
        else:
            none = slice(0)
            labels = Rows(
                boxes.run_ids[none],
                boxes.run_lengths[none],
                boxes.labels[none],
                boxes.values[none],
                boxes.flags[none],
                0,
            )
        return _Content(classes, ancestors, boxes, flags, labels), self.checksum()

    def pack(self, content: _Content, checksum: str, out: Writer) -> OpenImagesHeader:
        boxes, labels, num_classes = content.boxes, content.labels, len(content.classes)
        image_ids = np.unique(np.concatenate([boxes.run_ids, labels.run_ids]))
        if not len(image_ids):
            raise InputError(f"{self.paths.boxes} lists no image.")
        image_ids = image_ids.astype(f"S{max(1, int(np.char.str_len(image_ids).max()))}")
        box_image, box_order = _by_image(boxes, image_ids)
        label_image, label_order = _by_image(labels, image_ids)
        box_labels = boxes.labels[box_order]
        arrays = {
            # The widest types first: each array then begins at a multiple of its items' size.
            "corners": boxes.values[box_order],
            "box_ends": np.searchsorted(box_image, np.arange(len(image_ids)), side="right"),
            "label_ends": np.searchsorted(label_image, np.arange(len(image_ids)), side="right"),
            "box_labels": box_labels,
            "label_classes": labels.labels[label_order],
            "label_present": labels.values[label_order, 0] > 0,
            "box_flags": boxes.flags[box_order],
            "image_ids": image_ids,
        }
        image_count = images_of_labels(box_image, box_labels, num_classes).tolist()
        return OpenImagesHeader(
            checksum=checksum,
            class_ids=[label for label, _ in content.classes],
            class_names=[name for _, name in content.classes],
            ancestors=content.ancestors,
            flags=content.flags,
            has_image_labels=bool(self.paths.image_labels),
            counts=CategoryCounts(
                image_count,
                np.bincount(box_labels, minlength=num_classes).tolist(),
                len(image_ids),
                [frequency_group(count) for count in image_count],
                groups_are_given=False,
            ),
            columns=_write_arrays(arrays, out),
            num_left_out=boxes.num_left_out,
        )


def row_chunks(
    path: PathLike, class_ids: Sequence[str], values: Sequence[str], flags: Sequence[str] = ()
) -> Iterator[Rows]:
    """Read ImageID, LabelName and further columns of a CSV file, some rows at a time.

    Args:
        path: of the file.
        class_ids: the known classes, in the order of the contiguous labels.
        values: columns of numbers.
        flags: columns of small integers.

    Raises:
        InputError: as :func:`~eql_d2.data.csv_columns.csv_chunks`.
    """
    known = np.array([label.encode() for label in class_ids], dtype=_TEXT)
    order = np.argsort(known)
    known = known[order]
    columns = {"ImageID": _TEXT, "LabelName": _TEXT, **dict.fromkeys(values, "f8"), **dict.fromkeys(flags, "i1")}
    for chunk in csv_chunks(path, columns):
        place = np.minimum(np.searchsorted(known, chunk["LabelName"]), len(known) - 1)
        is_known = known[place] == chunk["LabelName"]
        ids = np.ascontiguousarray(chunk["ImageID"])
        starts = np.flatnonzero(np.concatenate([[True], ids[1:] != ids[:-1]]))
        run_lengths = np.add.reduceat(is_known.astype(np.int64), starts)
        kept = chunk[is_known]
        labels = order[place[is_known]].astype(np.int32)
        num_left_out = len(chunk) - len(kept)
        yield Rows(
            ids[starts], run_lengths, labels, _stacked(kept, values, "f8"), _stacked(kept, flags, "i1"), num_left_out
        )


def _read_rows(path: str, class_ids: Sequence[str], values: Sequence[str], flags: Sequence[str] = ()) -> Rows:
    """Return all rows of a file, at least one; see :func:`row_chunks`."""
    parts = list(row_chunks(path, class_ids, values, flags))
    if not parts:
        raise InputError(f"{path} has no row; it should hold annotations of Open Images.")
    *columns, num_left_out = zip(*parts)
    del parts
    run_ids, run_lengths, labels, of_values, of_flags = map(np.concatenate, columns)
    return Rows(run_ids, run_lengths, labels, of_values, of_flags, sum(num_left_out))


def _stacked(chunk: np.ndarray, names: Sequence[str], dtype: str) -> np.ndarray:
    return np.stack([chunk[name] for name in names], axis=1) if names else np.empty((len(chunk), 0), dtype)


def _by_image(rows: Rows, image_ids: np.ndarray) -> Tuple[np.ndarray, Union[slice, np.ndarray]]:
    """Return the image of each row, ascending, and the order that sorts the rows so; those of one image keep theirs."""
    image = np.repeat(np.searchsorted(image_ids, rows.run_ids).astype(np.int32), rows.run_lengths)
    if (image[1:] >= image[:-1]).all():
        return image, slice(None)  # the official files are sorted: no copy of every column
    order = np.argsort(image, kind="stable")
    return image[order], order


def _write_arrays(arrays: Dict[str, np.ndarray], out: Writer) -> Dict[str, Column]:
    columns, offset = {}, 0
    for name, array in arrays.items():
        columns[name] = Column(array.dtype.str, list(array.shape), offset)
        # Not all at once: a copy of the largest array as bytes would double what it takes.
        for part in np.array_split(array, max(1, array.nbytes >> 26)):
            offset += out.write(np.ascontiguousarray(part).tobytes())
    return columns


def _check_finite(corners: np.ndarray, path: str) -> None:
    bad = ~np.isfinite(corners).all(axis=1)
    if bad.any():
        raise InputError(f"{path} has a box with a coordinate that is not finite: {corners[bad.argmax()].tolist()}.")


def _check_confidence(confidence: np.ndarray, path: str) -> None:
    bad = (confidence != 0) & (confidence != 1)
    if bad.any():
        raise InputError(
            f"{path} has the Confidence {confidence[bad][0]:g}; labels that a human verified have 1 (there) or 0 (not "
            f"there), those of a machine are not used."
        )
