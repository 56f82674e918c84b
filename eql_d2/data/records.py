"""Dataset dicts packed into one buffer, unpacked one image at a time.

A table holds what one json says of its images, independent of where the images lie. Its buffer is a memory map of the
cache file (:mod:`eql_d2.data.cache`) or bytes; either way no Python object exists for an image until it is asked for,
and the processes of one machine share the mapped pages.
"""

from collections.abc import Sequence as SequenceABC
from copy import copy
from typing import Annotated, Any, Callable, Dict, List, Optional, Protocol, Sequence, Tuple, Union, overload

import msgspec
import numpy as np
from detectron2.structures import BoxMode

from eql_d2.data.annotations import (
    Annotation,
    AnnotationFile,
    Category,
    CategoryCounts,
    Image,
    PathLike,
    check_content,
    contiguous_ids,
    decode_segmentation,
)
from eql_d2.data.frequency import CategoryFrequency
from eql_d2.data.image_files import leads_out
from eql_d2.data.image_labels import ImageSource, add_source, image_level_labels
from eql_d2.data.segmentation import MAX_COORDINATE, is_plainly_polygons, is_valid_polygon
from eql_d2.errors import InputError

Record = Dict[str, Any]


class RecordError(InputError):
    """An image cannot be read, or its annotations cannot be used.

    A data loader raises a worker's exception again with the worker's whole stack for a message; of that, only the
    sentence is kept.
    """

    def __init__(self, message: str):
        super().__init__(message.rsplit(f"{type(self).__name__}: ", 1)[-1].strip())


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder()
_POLYGONS_ENCODER = msgspec.json.Encoder()
_Coordinate = Annotated[float, msgspec.Meta(ge=-MAX_COORDINATE, le=MAX_COORDINATE)]
_POLYGONS_DECODER = msgspec.json.Decoder(List[Optional[List[List[_Coordinate]]]])
# Where a packed image has the json of all its polygons: a list with an entry for each annotation, null for one without.
_POLYGONS = "polygons"


class Header(msgspec.Struct):
    """What is known of a whole json without unpacking an image. The arrays are the bytes of numpy arrays.

    Attributes:
        checksum: SHA-256 of the json, hexadecimal.
        categories: sorted by id; the place in this list is the contiguous label.
        counts: of the categories.
        record_ends: int64 ``[N]``, where each image's record ends in the buffer.
        annotation_ends: int64 ``[N]``, running number of annotations.
        annotation_classes: int32 ``[A]``, contiguous labels.
        annotation_crowd: bool ``[A]``.
        num_left_out: instances without a valid polygon.
        num_orphans: annotations of images that are not listed.
        names_lead_out: whether the name of an image may lead out of the image folder, as ``/etc/x`` and ``../x`` do.
        sources: of a merged file, with contiguous labels in the place of ids.
    """

    checksum: str
    categories: List[Category]
    is_lvis: bool
    has_annotations: bool
    has_image_labels: bool
    counts: CategoryCounts
    record_ends: bytes = b""
    annotation_ends: bytes = b""
    annotation_classes: bytes = b""
    annotation_crowd: bytes = b""
    num_left_out: int = 0
    num_orphans: int = 0
    names_lead_out: bool = False
    sources: List[ImageSource] = []

    def table(self, buffer: Any, reopen: Optional[tuple] = None) -> "AnnotationTable":
        """Return the table over the packed records; arguments as for :class:`AnnotationTable`."""
        return AnnotationTable(buffer, self, reopen)

    def losses(self, name: str) -> List[str]:
        """Say which annotations of the json, called ``name``, are not used."""
        sentences = []
        if self.num_left_out:
            sentences.append(
                f"{name}: {self.num_left_out} instances have no polygon of at least 3 points and are left out; "
                f"eql-d2 check-dataset lists them."
            )
        if self.num_orphans:
            sentences.append(
                f"{name}: {self.num_orphans} annotations are of images that are not in 'images' and are left out."
            )
        return sentences


class AnnotationTable:
    """The packed images of one json, sorted by image id.

    Args:
        buffer: the packed records.
        header: what :func:`pack` returned for them.
        reopen: how another process gets the same table, as a callable and its arguments, if not by a copy.
    """

    def __init__(self, buffer: Any, header: Header, reopen: Optional[tuple] = None):
        self.header = header
        self._buffer = memoryview(buffer)
        self._reopen = reopen
        self._record_ends = np.frombuffer(header.record_ends, dtype=np.int64)
        self._annotation_ends = np.frombuffer(header.annotation_ends, dtype=np.int64)
        self._classes = np.frombuffer(header.annotation_classes, dtype=np.int32)
        self._crowd = np.frombuffer(header.annotation_crowd, dtype=bool)
        self._sources = {source.name: source for source in header.sources}

    def __reduce__(self):
        return self._reopen or (AnnotationTable, (bytes(self._buffer), self.header))

    def __len__(self) -> int:
        return len(self._record_ends)

    def unpack(self, row: int) -> Record:
        """Return what the json says of the image in a row; ``file_name`` and ``coco_url`` as they are in the json.

        Raises:
            InputError: if a polygon has a coordinate that lies millions of pixels away.
        """
        start = self._record_ends[row - 1] if row else 0
        record = _DECODER.decode(self._buffer[start : self._record_ends[row]])
        if _POLYGONS in record:
            try:
                of_all = _POLYGONS_DECODER.decode(record.pop(_POLYGONS))
            except msgspec.DecodeError as error:
                raise RecordError(
                    f"A polygon of image {record['image_id']} cannot be drawn: {error}; "
                    f"eql-d2 check-dataset lists all such."
                ) from None
            for annotation, polygons in zip(record["annotations"], of_all):
                annotation["bbox_mode"] = BoxMode.XYWH_ABS
                if polygons is not None:
                    annotation["segmentation"] = polygons
        add_source(record, self._sources)
        return record

    def labels(self, rows: np.ndarray, with_crowd: bool = True) -> Tuple[np.ndarray, np.ndarray]:
        """Return the contiguous labels of all annotations of some images; see :meth:`RecordList.labels`."""
        image, annotation = entries_of_rows(rows, self._annotation_ends)
        if not with_crowd:
            kept = ~self._crowd[annotation]
            image, annotation = image[kept], annotation[kept]
        return image, self._classes[annotation]

    @property
    def class_names(self) -> List[str]:
        """K names, in the order of the contiguous labels."""
        return [category.name for category in self.header.categories]

    @property
    def contiguous_ids(self) -> Dict[int, int]:
        """Contiguous label of each category id of the json."""
        return contiguous_ids(self.header.categories)

    @property
    def frequency(self) -> CategoryFrequency:
        """The counts of the annotations of this json, over all of its images."""
        return CategoryFrequency.of_counts(self.header.counts)


class RecordTable(Protocol):
    """The packed images of one data set, whatever its format."""

    def __len__(self) -> int: ...

    def unpack(self, row: int) -> Record:
        """Return what is known of the image in a row."""

    def labels(self, rows: np.ndarray, with_crowd: bool = True) -> Tuple[np.ndarray, np.ndarray]:
        """Return the labels of all annotations of some images, as ``RecordList.labels`` does."""


class RecordList(SequenceABC):
    """A read-only list of Detectron2's dataset dicts, made when asked for. Pass it where a list of dicts is expected.

    Args:
        table: the packed images.
        file_path: called with an unpacked record, returns the path of its image.
        rows: rows of the table, int64 ``[N]``; all of them by default.
        with_image_labels: whether records have image-level labels, if the json has them.
    """

    def __init__(
        self,
        table: RecordTable,
        file_path: Callable[[Record], str],
        rows: Union[Sequence[int], np.ndarray, None] = None,
        with_image_labels: bool = True,
    ):
        self.table = table
        self._file_path = file_path
        self._rows = np.arange(len(table)) if rows is None else np.asarray(rows, dtype=np.int64)
        self._with_image_labels = with_image_labels
        self._ignored: Optional[Callable[[Record], np.ndarray]] = None

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Record: ...

    @overload
    def __getitem__(self, index: slice) -> "RecordList": ...

    def __getitem__(self, index: Union[int, slice]) -> Union[Record, "RecordList"]:
        return self.select(np.arange(len(self))[index]) if isinstance(index, slice) else self._record(index)

    def _record(self, index: int) -> Record:
        record = self.table.unpack(int(self._rows[index]))
        record["file_name"] = self._file_path(record)
        record.pop("coco_url", None)
        if not self._with_image_labels:
            record.pop("image_labels", None)
            record.pop("not_exhaustive_category_ids", None)
        if self._ignored is not None:
            record["ignored_boxes"] = self._ignored(record)
        return record

    def with_ignored(self, boxes: Callable[[Record], np.ndarray]) -> "RecordList":
        """Return the records with ``ignored_boxes``, what ``boxes`` returns for each."""
        changed = copy(self)
        changed._ignored = boxes
        return changed

    def select(self, indices: Union[Sequence[int], np.ndarray]) -> "RecordList":
        """Return the records at ``indices``."""
        selected = copy(self)
        selected._rows = self._rows[np.asarray(indices, dtype=np.int64)]
        return selected

    def labels(self, with_crowd: bool = True) -> Tuple[np.ndarray, np.ndarray]:
        """Return the contiguous labels of all annotations without unpacking the images.

        Returns:
            The place in this list of the image of each annotation, ascending, int64 ``[A]``, and its label, ``[A]``.
        """
        return self.table.labels(self._rows, with_crowd)


def entries_of_rows(rows: np.ndarray, ends: np.ndarray) -> Tuple[np.ndarray, np.ndarray]:
    """Return which entries of a ragged array belong to some of its rows.

    Args:
        rows: int64 ``[N]``.
        ends: int64, where the entries of each row of the array end.

    Returns:
        The place in ``rows`` of each entry, ascending, and its index among all entries, int64 ``[A]`` both.
    """
    starts = np.concatenate([np.zeros(1, np.int64), ends[:-1]])[rows]
    counts = ends[rows] - starts
    before = np.cumsum(counts) - counts
    place = np.repeat(np.arange(len(rows)), counts)
    return place, np.arange(len(place)) + (starts - before)[place]


def images_of_labels(images: np.ndarray, labels: np.ndarray, num_classes: int) -> np.ndarray:
    """Return how many images have each label, int64 ``[K]``.

    Args:
        images: the image of each annotation, int ``[A]``.
        labels: its label, int ``[A]``; repetitions within an image do not matter.
        num_classes: K.
    """
    pairs = np.unique(images.astype(np.int64) * num_classes + labels)
    return np.bincount(pairs % num_classes, minlength=num_classes)


class Writer(Protocol):
    """What bytes are written to."""

    def write(self, data: bytes, /) -> int: ...


def pack(content: AnnotationFile, checksum: str, path: PathLike, out: Writer) -> Header:
    """Check a parsed json and write its images, sorted by id, to ``out``.

    Args:
        content: the parsed json.
        checksum: SHA-256 of the json.
        path: of the json, for messages.
        out: where the records go, one after the other.

    Raises:
        InputError: if a number is out of bounds, ids are not unique or refer to nothing, or a segmentation is neither
            polygons nor a mask of the image.
    """
    check_content(content, path)
    labels = content.contiguous_ids
    by_image = content.annotations_by_image()
    has_annotations, has_image_labels = content.has_annotations, content.has_image_labels
    record_ends, annotation_ends, classes, crowd = [], [], [], []
    position = 0
    for image in sorted(content.images, key=lambda image: image.id):
        annotations = by_image[image.id]
        record = {**image_record(image), **({"source": image.source} if content.sources else {})}
        image_labels = image_level_labels(image, annotations, labels) if has_image_labels else None
        if image_labels is not None:
            record["not_exhaustive_category_ids"] = image_labels.not_exhaustive
        if has_annotations:
            packed, polygons = _pack_annotations(annotations, image, labels, path)
            record["annotations"], record[_POLYGONS] = packed, polygons
            classes.extend([annotation["category_id"] for annotation in packed])
            crowd.extend([bool(annotation.get("iscrowd")) for annotation in packed])
            if image_labels is not None:
                record["image_labels"] = {"positive": image_labels.positive, "negative": image_labels.negative}
        position += out.write(_ENCODER.encode(record))
        record_ends.append(position)
        annotation_ends.append(len(classes))

    num_listed = sum(map(len, by_image.values()))
    return Header(
        checksum=checksum,
        categories=content.sorted_categories,
        is_lvis=content.is_lvis,
        has_annotations=has_annotations,
        has_image_labels=has_image_labels,
        counts=content.counts(),
        record_ends=np.asarray(record_ends, np.int64).tobytes(),
        annotation_ends=np.asarray(annotation_ends, np.int64).tobytes(),
        annotation_classes=np.asarray(classes, np.int32).tobytes(),
        annotation_crowd=np.asarray(crowd, bool).tobytes(),
        num_left_out=num_listed - len(classes),
        num_orphans=len(content.annotations or ()) - num_listed,
        names_lead_out=any(
            leads_out(name)
            for image in content.images
            for name in (image.file_name, "/".join(image.coco_url.split("/")[-2:]))
        ),
        sources=[
            ImageSource(one.name, sorted({labels[id_] for id_ in one.exhaustive_category_ids}), one.has_masks)
            for one in content.sources
        ],
    )


def image_record(image: Image) -> Record:
    """Return what a json says of an image itself, the start of its record."""
    return {
        "file_name": image.file_name,
        "coco_url": image.coco_url,
        "height": image.height,
        "width": image.width,
        "image_id": image.id,
    }


def _pack_annotations(
    annotations: Sequence[Annotation], image: Image, labels: Dict[int, int], path: PathLike
) -> Tuple[List[Record], bytes]:
    """Pack the annotations of an image, but for those none of whose polygons is valid.

    Returns:
        Annotations in Detectron2's form but for ``bbox_mode`` and polygons, and the json of their polygons.
    """
    records, polygons = [], []
    for annotation in annotations:
        record = {"bbox": annotation.bbox, "category_id": labels[annotation.category_id]}
        encoded = bytes(annotation.segmentation)
        if not is_plainly_polygons(encoded):
            segmentation = decode_segmentation(annotation, image, path)
            encoded = b"null"
            if isinstance(segmentation, list):
                segmentation = list(filter(is_valid_polygon, segmentation))
                if not segmentation:
                    continue
                encoded = _POLYGONS_ENCODER.encode(segmentation)
            elif segmentation is not None:
                record["segmentation"] = segmentation
        if annotation.iscrowd is not None:
            record["iscrowd"] = annotation.iscrowd
        if annotation.keypoints:
            # COCO counts keypoints in pixel indices and everything else in continuous coordinates.
            record["keypoints"] = [
                value if place % 3 == 2 else value + 0.5 for place, value in enumerate(annotation.keypoints)
            ]
        records.append(record)
        polygons.append(encoded)
    return records, b"[" + b",".join(polygons) + b"]"
