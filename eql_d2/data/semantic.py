"""Semantic segmentation sets: folders of images and of index masks as Detectron2's dataset dicts."""

import logging
import os
from functools import cache, cached_property
from operator import itemgetter
from pathlib import Path
from typing import Dict, List, Sequence, Tuple

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog

from eql_d2.data.annotations import PathLike
from eql_d2.data.frequency import CategoryFrequency
from eql_d2.data.image_sizes import ImageSizes
from eql_d2.data.index_masks import MaskCounts, MaskSet, MaskValues
from eql_d2.data.records import Record, RecordList, entries_of_rows
from eql_d2.data.registration import register_loader, set_metadata
from eql_d2.errors import InputError

logger = logging.getLogger("detectron2.eql_d2.data")

#: What ``evaluator_type`` says of these sets; Detectron2's word.
EVALUATOR_TYPE = "sem_seg"
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff")
_MASK_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")


class MaskTable:
    """The images of a :class:`~eql_d2.data.index_masks.MaskSet`; the masks are counted when that is asked for."""

    def __init__(self, masks: MaskSet):
        self.masks = masks

    @cached_property
    def counts(self) -> MaskCounts:
        """The pixels of each label in each mask."""
        return self.masks.counts()

    def __len__(self) -> int:
        return len(self.masks.masks)

    def unpack(self, row: int) -> Record:
        """Return the files of an image."""
        masks = self.masks
        return {
            "file_name": masks.images[row],
            "sem_seg_file_name": masks.masks[row],
            "image_id": row,
            "mask_values": masks.values,
        }

    def labels(self, rows: np.ndarray, with_crowd: bool = True) -> Tuple[np.ndarray, np.ndarray]:
        """Return the labels that occur in some images, as ``RecordList.labels`` does."""
        ends, labels, _ = self.counts.entries()
        image, entry = entries_of_rows(rows, ends)
        return image, labels[entry]


class SegmentationRecords(RecordList):
    """Images with an index mask each, as dataset dicts.

    They have ``file_name``, ``sem_seg_file_name``, ``height``, ``width``, ``image_id`` and ``mask_values``, what the
    pixels of the mask mean (:class:`~eql_d2.data.index_masks.MaskValues`). Samplers see an image's classes as they see
    the annotations of one that has boxes.
    """

    table: MaskTable

    def __init__(self, masks: MaskSet):
        super().__init__(MaskTable(masks), itemgetter("file_name"))
        self._sizes = ImageSizes([], len(self.table))

    def _record(self, index: int) -> Record:
        record = super()._record(index)
        width, height = self._sizes.size(record["image_id"], record["file_name"])
        return {**record, "height": height, "width": width}

    @property
    def frequency(self) -> CategoryFrequency:
        """Images and pixels (the instances of this task) of each class, over all images of the data set."""
        return self.table.counts.frequency(self.table.masks.values.num_classes)


def load_masks(images: PathLike, masks: PathLike, values: MaskValues) -> SegmentationRecords:
    """Find the images and masks of a data set; no file is opened.

    A mask belongs to the image of the same name below the other folder, but for the suffix. Images without a mask are
    left out, with a warning.

    Args:
        images: a folder, with or without folders in it.
        masks: likewise.
        values: what the pixels of the masks mean.

    Raises:
        InputError: if a folder is missing, has no such file, or a mask has no image.
    """
    found = _files(images, _IMAGE_SUFFIXES, "images")
    labelled = _files(masks, _MASK_SUFFIXES, "index masks")
    lacking = sorted(labelled.keys() - found.keys())
    if lacking:
        others = f", as are {len(lacking) - 1} others" if len(lacking) > 1 else ""
        raise InputError(
            f"{labelled[lacking[0]]} is a mask without an image{others}; there should be "
            f"{Path(images, lacking[0])} with the suffix of an image."
        )
    without = len(found) - len(labelled)
    if without:
        logger.warning("%s: %d of %d images have no mask and are left out.", images, without, len(found))
    names = sorted(labelled)
    return SegmentationRecords(
        MaskSet(tuple(found[name] for name in names), tuple(labelled[name] for name in names), values)
    )


def _files(folder: PathLike, suffixes: Sequence[str], what: str) -> Dict[str, str]:
    """Return the path of each file below a folder by its name, relative to it and without its suffix."""
    root = os.fspath(folder)
    if not os.path.isdir(root):
        raise InputError(f"{root}: there is no such folder; it should hold {what}.")
    found: Dict[str, str] = {}
    for place, _, names in os.walk(root, followlinks=True):
        for name in names:
            stem, suffix = os.path.splitext(name)
            if suffix.lower() not in suffixes:
                continue
            path = os.path.join(place, name)
            other = found.setdefault(os.path.relpath(os.path.join(place, stem), root), path)
            if other != path:
                raise InputError(f"{path} and {other} have the same name but for the suffix; {what} need one each.")
    if not found:
        raise InputError(f"{root} holds no {what}: no file ends in {', '.join(suffixes)}.")
    return found


def register_masks(
    name: str,
    images: PathLike,
    masks: PathLike,
    class_names: Sequence[str],
    first_label: int = 0,
    ignore: int = 255,
    replace: bool = False,
) -> bool:
    """Register folders of images and index masks; ``name`` may then be in ``DATASETS.TRAIN`` and ``DATASETS.TEST``.

    The folders are looked at when the data set is needed. Metadata: ``stuff_classes``, ``ignore_label`` (255, or 65535
    from 255 classes on, which the model's ``MODEL.SEM_SEG_HEAD.IGNORE_VALUE`` must be), ``image_root``,
    ``sem_seg_root``, ``evaluator_type``; and ``thing_classes``, where all else of this package looks for names.

    Args:
        name: of the data set.
        images, masks: as for :func:`load_masks`.
        class_names: K names, in the order of the labels.
        first_label, ignore: what is in the masks, see :class:`~eql_d2.data.index_masks.MaskValues`.
        replace: take the place of what another program registered under the name.

    Returns:
        Whether the data set is new.

    Raises:
        InputError: if the values are no use, or the name stands for another data set.
    """
    values = MaskValues(len(class_names), first_label, ignore)
    where = (EVALUATOR_TYPE, os.fspath(masks), os.fspath(images), repr(values), *class_names)
    load = cache(lambda: load_masks(where[2], where[1], values))
    is_new = register_loader(name, where, load, replace)
    if is_new:
        if replace and name in MetadataCatalog.list():
            MetadataCatalog.remove(name)  # another program's values cannot be changed
        set_metadata(
            name,
            stuff_classes=list(class_names),
            thing_classes=list(class_names),
            ignore_label=values.ignore_label,
            image_root=where[2],
            sem_seg_root=where[1],
            evaluator_type=EVALUATOR_TYPE,
        )
    return is_new


def is_segmentation_set(name: str) -> bool:
    """Return whether a registered data set is one of semantic segmentation."""
    return MetadataCatalog.get(name).get("evaluator_type") == EVALUATOR_TYPE


def segmentation_records(name: str) -> SegmentationRecords:
    """Return the records of a data set of semantic segmentation, whoever registered it.

    Raises:
        InputError: if the metadata has no ``stuff_classes``, or a record no mask, or there is none.
    """
    records = DatasetCatalog.get(name)
    if isinstance(records, SegmentationRecords):
        return records
    metadata = MetadataCatalog.get(name)
    class_names = metadata.get("stuff_classes")
    if not class_names:
        raise InputError(f"The metadata of {name} has no stuff_classes; set it to the names of the categories.")
    if not records or any("sem_seg_file_name" not in record for record in records):
        raise InputError(f"{name} has a record without sem_seg_file_name, or none at all; an image needs a mask.")
    if metadata.get("thing_classes") is None:
        metadata.thing_classes = list(class_names)
    values = MaskValues(len(class_names), 0, metadata.get("ignore_label", 255))
    images, masks = zip(*((record["file_name"], record["sem_seg_file_name"]) for record in records))
    return SegmentationRecords(MaskSet(images, masks, values))


def read_class_names(path: PathLike) -> List[str]:
    """Return the names in a file with one in each line.

    Raises:
        InputError: if it cannot be read or has no line.
    """
    try:
        names = [line.strip() for line in Path(path).read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read ({error}); it should hold the name of a class in each line.") from None
    if not names:
        raise InputError(f"{path} names no class; it should hold the name of one in each line.")
    return names


def optional_class_names(path: PathLike, num_classes: int) -> List[str]:
    """Return the names in a file that may be absent: then the labels are the names.

    Raises:
        InputError: if the file is there and of no use, or names another number of classes.
    """
    if not os.path.exists(path):
        return [str(label) for label in range(num_classes)]
    names = read_class_names(path)
    if len(names) != num_classes:
        raise InputError(f"{path} names {len(names)} classes; there should be {num_classes}.")
    return names
