"""Data sets in COCO format. They have no image-level labels, so the exemption of EQL is off for them."""

import os
from typing import Optional

from eql_d2.data.annotations import PathLike
from eql_d2.data.lvis import FileNaming
from eql_d2.data.records import RecordList
from eql_d2.data.registration import open_table, register_dataset, set_table_metadata


def load_coco(
    json_file: PathLike, image_root: PathLike, name: Optional[str] = None, images_anywhere: bool = False
) -> RecordList:
    """Load a json in COCO format as Detectron2's dataset dicts, with the values that its ``load_coco_json`` gives.

    Run-length masks, crowd regions and keypoints are kept, polygons of less than three points are left out, and so are
    instances that have no other. What differs: ids may have gaps without a warning, errors name what is wrong, and
    large files are cached.

    Args:
        json_file: the annotations; of a test set, the image list without annotations.
        image_root: the folder below which ``file_name`` leads to the image.
        name: of the data set whose metadata is set, if any.
        images_anywhere: whether an image's name may lead out of ``image_root``, as ``/data/a.jpg`` and ``../a.jpg`` do.

    Returns:
        A read-only list, sorted by image id, of dicts with ``file_name``, ``height``, ``width``, ``image_id`` and, if
        the json has annotations, ``annotations`` with labels ``0..K-1`` in the order of the category ids.

    Raises:
        InputError: if the json is missing, truncated, of another format, its ids do not fit together, or an image's
            name leads out of the folder.
    """
    table = open_table(json_file)
    if name is not None:
        set_table_metadata(name, table)
    naming = FileNaming(os.fspath(image_root), "file_name", images_anywhere)
    naming.check(table)
    return RecordList(table, naming, with_image_labels=False)


def register_coco(name: str, json_file: PathLike, image_root: PathLike, images_anywhere: bool = False) -> None:
    """Register a data set in COCO format. The json is read now.

    Metadata as for LVIS (:func:`eql_d2.data.lvis.register_lvis`); the r/c/f groups are derived with LVIS's
    bounds of 10 and 100 images, from ``image_count`` in the category records, else from the counts of this json.

    Args:
        name, json_file, image_root, images_anywhere: as in :func:`load_coco`.

    Raises:
        InputError: as in :func:`load_coco`, and if the name stands for another data set.
    """
    table = open_table(json_file)
    register_dataset(name, "coco", json_file, image_root, load_coco, images_anywhere=images_anywhere)
    set_table_metadata(name, table)
