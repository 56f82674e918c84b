"""Open Images data sets: from the official CSV files to Detectron2's dataset dicts."""

import hashlib
import os
from pathlib import Path
from typing import List, Optional

from detectron2.data import MetadataCatalog

from eql_d2.data.annotations import PathLike
from eql_d2.data.cache import cache_files, is_worth_caching
from eql_d2.data.image_sizes import ImageSizes
from eql_d2.data.lvis import FileNaming
from eql_d2.data.open_images_files import open_images_table, read_classes
from eql_d2.data.open_images_table import OpenImagesFiles, OpenImagesTable
from eql_d2.data.records import Record, RecordList
from eql_d2.data.registration import register_loader, set_metadata
from eql_d2.errors import InputError

#: What ``evaluator_type`` says of these sets.
EVALUATOR_TYPE = "open_images"


class OpenImagesRecords(RecordList):
    """The images of an :class:`~eql_d2.data.open_images_table.OpenImagesTable` as dataset dicts, boxes in pixels.

    Args:
        table: the images.
        image_root: the folder of the images, ``<ImageID>.jpg`` each.
        sizes: of the images, by row.
    """

    def __init__(self, table: OpenImagesTable, image_root: str, sizes: ImageSizes):
        super().__init__(table, FileNaming(image_root, "file_name"))
        self._sizes = sizes

    def _record(self, index: int) -> Record:
        record = super()._record(index)
        width, height = self._sizes.size(record["image_id"], record["file_name"])
        for annotation in record["annotations"]:
            x1, y1, x2, y2 = annotation["bbox"]
            annotation["bbox"] = [x1 * width, y1 * height, x2 * width, y2 * height]
        return {**record, "width": width, "height": height}


def load_open_images(files: OpenImagesFiles, image_root: PathLike, name: Optional[str] = None) -> OpenImagesRecords:
    """Load Open Images' files as Detectron2's dataset dicts.

    The files do not have the images' sizes: the size of an image is read from its head when its dict is first made, and
    kept (:class:`~eql_d2.data.image_sizes.ImageSizes`).

    Args:
        files: the annotations.
        image_root: the folder of the images, ``<ImageID>.jpg`` each.
        name: of the data set whose metadata is set, if any.

    Returns:
        A read-only list, sorted by ImageID, of every image that has a box or a label, as dicts with ``file_name``,
        ``height``, ``width``, ``image_id`` (the place among all, sorted by ImageID) and

        * ``annotations``: ``bbox`` in pixels, ``bbox_mode``, ``category_id``, and ``is_occluded``, ``is_truncated``,
          ``is_group_of``, ``is_depiction``, ``is_inside`` where the file has them (1, 0, or -1 for not known). A
          group-of box is trained on like any other; boxes are not repeated for the classes above theirs,
        * ``image_labels``: ``positive`` and ``negative``, the sorted labels of the classes that are verified to be in
          the image (from labels and boxes, with the classes above them) and not to be in it (with the classes below
          them); no such key without a file of image-level labels.

    Raises:
        InputError: if a file is missing or of another form.
    """
    table = open_images_table(files)
    if name is not None:
        set_metadata(
            name,
            thing_classes=table.header.class_names,
            thing_dataset_id_to_contiguous_id=_official_ids(len(table.header.class_names)),
            frequency_groups=table.header.counts.groups,
        )
    return OpenImagesRecords(
        table, os.fspath(image_root), ImageSizes(_size_files(files, table, image_root), len(table))
    )


def _size_files(files: OpenImagesFiles, table: OpenImagesTable, image_root: PathLike) -> List[Path]:
    """Return where the sizes of the images may lie: beside the cache of the annotations."""
    files = files.local()
    if not is_worth_caching(files.given):
        return []
    # The same annotations may stand for the images of several folders, some of them smaller.
    of_images = hashlib.sha256(f"{table.header.checksum} {os.path.abspath(image_root)}".encode()).hexdigest()[:16]
    return [path.with_name(f"{path.name}.{of_images}.sizes") for path in cache_files(files.boxes)]


def _official_ids(num_classes: int) -> dict:
    """Return the contiguous label of each id of the official label map: 1 to K in the order of the list of classes."""
    return {label + 1: label for label in range(num_classes)}


def register_open_images(name: str, files: OpenImagesFiles, image_root: PathLike) -> None:
    """Register Open Images' files; afterwards ``name`` may be used in ``DATASETS.TRAIN`` and ``DATASETS.TEST``.

    The list of classes is read now, the boxes when they are needed. Metadata: ``thing_classes``,
    ``thing_dataset_id_to_contiguous_id`` (the ids of the official label map: 1 to K in the order of the list),
    ``open_images_files``, ``image_root``, ``evaluator_type``, ``has_annotations``.

    Args:
        name: of the data set.
        files, image_root: as in :func:`load_open_images`.

    Raises:
        InputError: if a file is missing, or the name stands for another data set.
    """
    local = files.local()
    for path in local.given:
        if not os.path.isfile(path):
            raise InputError(f"{path}: there is no such file; it should be one of the files of {name}.")
    names = [class_name for _, class_name in read_classes(local.classes)]
    register_unread(name, files, image_root)
    set_metadata(name, thing_classes=names, thing_dataset_id_to_contiguous_id=_official_ids(len(names)))


def register_unread(name: str, files: OpenImagesFiles, image_root: PathLike) -> bool:
    """Register Open Images' files without looking at them; return whether the data set is new.

    Raises:
        InputError: if the name stands for another data set.
    """
    where = (EVALUATOR_TYPE, files.boxes, os.fspath(image_root))
    is_new = register_loader(name, where, lambda: load_open_images(files, image_root, name))
    if is_new:
        set_metadata(
            name,
            open_images_files=files,
            image_root=os.fspath(image_root),
            evaluator_type=EVALUATOR_TYPE,
            has_annotations=True,
        )
    return is_new


def is_open_images(name: str) -> bool:
    """Return whether a registered data set is one of Open Images."""
    return MetadataCatalog.get(name).get("evaluator_type") == EVALUATOR_TYPE
