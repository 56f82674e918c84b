"""Data sets in LVIS format: v0.5, v1, and one's own."""

import os
from contextlib import suppress
from typing import Callable, Dict, Optional

from eql_d2.data.annotations import PathLike
from eql_d2.data.image_files import path_below
from eql_d2.data.records import AnnotationTable, Record, RecordError, RecordList
from eql_d2.data.registration import open_table, register_dataset, set_table_metadata

# COCO's 2014 file names, which LVIS v0.5 gives, end in the 2017 names: COCO_val2014_000000001268.jpg.
_COCO_NAME_LENGTH = len("000000001268.jpg")


def load_lvis(
    json_file: PathLike, image_root: PathLike, name: Optional[str] = None, images_anywhere: bool = False
) -> RecordList:
    """Load a json in LVIS format as Detectron2's dataset dicts.

    Category ids may have gaps; labels are ``0..K-1`` in the order of the ids, everywhere in the result.

    Args:
        json_file: the annotations; of a test set, the image list without annotations.
        image_root: COCO's folder with ``train2017`` and ``val2017`` in it, or one folder with all the images.
        name: of the data set whose metadata is set, if any.
        images_anywhere: whether an image's name may lead out of ``image_root``, as ``/data/a.jpg`` and ``../a.jpg`` do.

    Returns:
        A read-only list, sorted by image id, of dicts with ``file_name``, ``height``, ``width``, ``image_id`` and

        * ``annotations``: ``bbox``, ``bbox_mode``, ``category_id``, ``segmentation``, and ``iscrowd`` if the json has
          it; no such key if the json has no annotations,
        * ``image_labels``: ``positive`` and ``negative``, the sorted labels of the classes that are verified to be in
          the image (from all of its annotations) and not to be in it; no such key if no image of the json has a
          negative or a not-exhaustive set,
        * ``not_exhaustive_category_ids``: sorted labels of the classes whose instances are not all annotated.

    Raises:
        InputError: if the json is missing, truncated, of another format, its ids do not fit together, or an image's
            name leads out of the folder.
    """
    table = open_table(json_file)
    if name is not None:
        set_table_metadata(name, table)
    naming = choose_file_naming(str(image_root), table.unpack(0), images_anywhere)
    naming.check(table)
    return RecordList(table, naming)


def register_lvis(name: str, json_file: PathLike, image_root: PathLike, images_anywhere: bool = False) -> None:
    """Register a data set in LVIS format; afterwards ``name`` may be used in ``DATASETS.TRAIN`` and ``DATASETS.TEST``.

    The json is read now. Metadata: ``thing_classes``, ``thing_dataset_id_to_contiguous_id``, ``frequency_groups`` (K
    letters, derived from the counts if the json has none), ``json_file``, ``image_root``, ``evaluator_type``,
    ``has_annotations``, ``images_anywhere``.

    Args:
        name, json_file, image_root, images_anywhere: as in :func:`load_lvis`.

    Raises:
        InputError: as in :func:`load_lvis`, and if the name stands for another data set.
    """
    table = open_table(json_file)
    register_dataset(name, "lvis", json_file, image_root, load_lvis, images_anywhere=images_anywhere)
    set_table_metadata(name, table)


class FileNaming:
    """One of the rules by which image files are found, with the folder that it starts from.

    Args:
        image_root: the folder.
        rule: a key of :data:`RULES`.
        anywhere: whether a name may lead out of the folder.
    """

    def __init__(self, image_root: str, rule: str, anywhere: bool = False):
        self.image_root = image_root
        self.rule = rule
        self.anywhere = anywhere

    def __call__(self, record: Record) -> str:
        """Return the path of an image; a record to which the rule does not apply is named by the first that does.

        Raises:
            RecordError: if it leads out of the folder, and must not.
        """
        relative = RULES[self.rule](record) or next(filter(None, (rule(record) for rule in RULES.values())), "")
        path = os.path.join(self.image_root, relative) if self.anywhere else path_below(self.image_root, relative)
        if path is None:
            raise RecordError(
                f"Image {record['image_id']} is named {relative!r}, which leads out of the image folder "
                f"{self.image_root}. Name a folder that holds all images or, if you trust the annotations with any "
                f"path of this machine, set MODEL.LONG_TAIL.IMAGES_ANYWHERE True."
            )
        return path

    def check(self, table: AnnotationTable) -> None:
        """Check the names of all images, before one of them is met in the middle of a training.

        Raises:
            RecordError: as a call does.
        """
        if table.header.names_lead_out and not self.anywhere:
            for row in range(len(table)):
                self(table.unpack(row))


def choose_file_naming(image_root: str, first_record: Record, anywhere: bool = False) -> FileNaming:
    """Choose the first rule of :data:`RULES` that finds the first image of a data set; all images then follow it.

    If none does (the images are not there yet), the first rule that applies is taken: ``coco_url`` where the json has
    it, else ``file_name``.
    """
    applicable = [rule for rule, relative in RULES.items() if relative(first_record)]
    for rule in applicable:
        naming = FileNaming(image_root, rule, anywhere)
        with suppress(RecordError):  # of the names, only those that are used must not lead out
            if os.path.isfile(naming(first_record)):
                return naming
    return FileNaming(image_root, applicable[0] if applicable else "file_name", anywhere)


def _split_and_file(record: Record) -> str:
    return "/".join(record["coco_url"].split("/")[-2:])


def _file_of_url(record: Record) -> str:
    return record["coco_url"].split("/")[-1]


def _short_name(record: Record) -> str:
    return record["file_name"][-_COCO_NAME_LENGTH:] if record["file_name"].startswith("COCO_") else ""


#: How an image may be named below the image folder, the preferred way first. A rule that does not apply gives "".
RULES: Dict[str, Callable[[Record], str]] = {
    "split folder and file of coco_url": _split_and_file,
    "file_name": lambda record: record["file_name"],
    "file of coco_url": _file_of_url,
    "last 16 characters of file_name": _short_name,
}
