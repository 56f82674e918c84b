"""Putting data sets into Detectron2's catalogs, for all formats."""

from typing import Any, Callable, Dict, Optional, Tuple

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.file_io import PathManager

from eql_d2.data.annotations import PathLike
from eql_d2.data.cache import cached_table
from eql_d2.data.records import AnnotationTable, RecordList
from eql_d2.errors import InputError

Loader = Callable[[str, str, Optional[str], bool], RecordList]

# What was registered here: name -> (evaluator type, annotations, image folder, and what else tells it from another).
_REGISTERED: Dict[str, Tuple[str, ...]] = {}


def register_dataset(
    name: str,
    evaluator_type: str,
    json_file: PathLike,
    image_root: PathLike,
    loader: Loader,
    replace: bool = False,
    images_anywhere: bool = False,
) -> bool:
    """Register a data set under a name; the same data set under the same name again is no error.

    Args:
        name: for ``DATASETS.TRAIN`` and ``DATASETS.TEST``.
        evaluator_type: "lvis" or "coco".
        json_file: the annotations.
        image_root: the image folder.
        loader: called with the json, the image folder, the name and ``images_anywhere`` when the data set is needed.
        replace: take the place of what another program registered under the name.
        images_anywhere: whether the json may name images that are not below the image folder.

    Returns:
        Whether the data set is new.

    Raises:
        InputError: if the name stands for another data set.
    """
    where = (evaluator_type, str(json_file), str(image_root), *["images anywhere"] * images_anywhere)
    is_new = register_loader(name, where, lambda: loader(where[1], where[2], name, images_anywhere), replace)
    if is_new:
        set_metadata(
            name,
            json_file=where[1],
            image_root=where[2],
            evaluator_type=evaluator_type,
            images_anywhere=images_anywhere,
        )
    return is_new


def register_loader(name: str, where: Tuple[str, ...], load: Callable[[], RecordList], replace: bool = False) -> bool:
    """Put a data set into Detectron2's catalog; as :func:`register_dataset`, without metadata.

    Args:
        name: for ``DATASETS.TRAIN`` and ``DATASETS.TEST``.
        where: evaluator type, annotations, image folder and whatever else tells it from another one.
        load: called when the data set is needed.
        replace: take the place of what another program registered under the name.
    """
    if name in DatasetCatalog:
        if _REGISTERED.get(name) == where:
            return False
        if not replace:
            there = " in {1} with images in {2}".format(*_REGISTERED[name]) if name in _REGISTERED else ""
            raise InputError(
                f"The data set name {name!r} is already registered for another data set{there}; "
                f"choose another name for {where[1]} with images in {where[2]}."
            )
        DatasetCatalog.remove(name)
    DatasetCatalog.register(name, load)
    _REGISTERED[name] = where
    return True


def is_registered_here(name: str) -> bool:
    """Return whether the data set was registered by :func:`register_dataset`."""
    return name in _REGISTERED


def open_table(json_file: PathLike) -> AnnotationTable:
    """Return the images of a json; ``json_file`` may be anything that Detectron2's ``PathManager`` resolves."""
    return cached_table(PathManager.get_local_path(str(json_file)))


def set_table_metadata(name: str, table: AnnotationTable) -> None:
    """Set what a json says of its categories as the metadata of a data set."""
    set_metadata(
        name,
        thing_classes=table.class_names,
        thing_dataset_id_to_contiguous_id=table.contiguous_ids,
        frequency_groups=list(table.frequency.groups),
        has_annotations=table.header.has_annotations,
        partly_labelled=any(
            len(source.exhaustive_category_ids) < len(table.class_names) for source in table.header.sources
        ),
    )


def set_metadata(name: str, **values: Any) -> None:
    """Set metadata of a data set.

    ``MetadataCatalog`` refuses to change a value. For data sets that are registered here the last word counts, since a
    json says more than what was known before it was read; those of other programs keep Detectron2's rule.
    """
    metadata = MetadataCatalog.get(name)
    for key, value in values.items():
        if name in _REGISTERED and key in metadata.as_dict():
            delattr(metadata, key)
        setattr(metadata, key, value)
