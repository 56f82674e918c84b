"""The data sets that can be named in a config: LVIS, Open Images, ADE20K, and those that the config registers.

Importing this module registers nothing. A name of these that a config or a tool uses is registered then, below
``$DETECTRON2_DATASETS`` (default ``./datasets``), LVIS's with this package's loader in place of Detectron2's, which
drops the image-level labels, and ADE20K's with one that counts pixels. What another program has registered under such a
name is left alone. No file is read before a data set is used.
"""

import os
import re
from pathlib import Path
from typing import Any, Iterable, Mapping, Sequence, Tuple

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.builtin_meta import ADE20K_SEM_SEG_CATEGORIES
from detectron2.data.datasets.lvis_v0_5_categories import LVIS_CATEGORIES as V0_5_CATEGORIES
from detectron2.data.datasets.lvis_v1_categories import LVIS_CATEGORIES as V1_CATEGORIES

from eql_d2.data.classification import DATASET_KINDS, register_image_set
from eql_d2.data.coco import register_coco
from eql_d2.data.lvis import load_lvis, register_lvis
from eql_d2.data.open_images import register_open_images, register_unread
from eql_d2.data.open_images_table import OpenImagesFiles
from eql_d2.data.registration import is_registered_here, open_table, register_dataset, set_metadata
from eql_d2.data.semantic import optional_class_names, read_class_names, register_masks
from eql_d2.errors import InputError

#: The json of each data set, below the data folder; the images are in COCO's folder beside it.
LVIS_JSON_FILES = {
    "lvis_v0.5_train": "lvis/lvis_v0.5_train.json",
    "lvis_v0.5_val": "lvis/lvis_v0.5_val.json",
    "lvis_v0.5_val_rand_100": "lvis/lvis_v0.5_val_rand_100.json",
    "lvis_v0.5_test": "lvis/lvis_v0.5_image_info_test.json",
    "lvis_v1_train": "lvis/lvis_v1_train.json",
    "lvis_v1_val": "lvis/lvis_v1_val.json",
    "lvis_v1_test_dev": "lvis/lvis_v1_image_info_test_dev.json",
    "lvis_v1_test_challenge": "lvis/lvis_v1_image_info_test_challenge.json",
}
_IMAGE_ROOT = "coco/"
_OPEN_IMAGES_ROOT = "openimages/"
#: Open Images' challenge of 2019: the split in the names of its files, which is also the folder of its images.
OPEN_IMAGES_SPLITS = {"openimages_challenge2019_train": "train", "openimages_challenge2019_val": "validation"}
_ADE20K_150, _ADE20K_FULL = "ADEChallengeData2016", "ADE20K_2021_17_01"
#: ADE20K: folders of images and of masks below the data folder, before that of the split; the values of class 0 and of
#: no label. The first has Detectron2's copies of the masks, the second those of the release, the third MaskFormer's.
ADE20K_FOLDERS = {
    "ade20k_sem_seg": (f"{_ADE20K_150}/images", f"{_ADE20K_150}/annotations_detectron2", 0, 255),
    "ade20k_150": (f"{_ADE20K_150}/images", f"{_ADE20K_150}/annotations", 1, 0),
    "ade20k_full_sem_seg": (f"{_ADE20K_FULL}/images_detectron2", f"{_ADE20K_FULL}/annotations_detectron2", 0, 65535),
}
ADE20K_SPLITS = {"train": "training", "val": "validation"}
#: Where head and body of ADE20K-150's classes end, whose order falls by their pixels (DisAlign, arXiv 2103.16370).
ADE20K_150_HEAD_BODY_ENDS = (20, 75)
#: Classes of ADE20K-full, and the file that may name them, one in each line.
ADE20K_FULL_CLASSES, ADE20K_FULL_NAMES = 847, f"{_ADE20K_FULL}/classes_847.txt"
#: The module whose functions stand in Detectron2's catalog for its own LVIS sets.
_DETECTRON2_LVIS = "detectron2.data.datasets.lvis"


def data_root() -> str:
    """Return the folder that relative paths of data sets start at: ``$DETECTRON2_DATASETS``, else ``datasets``."""
    return os.path.expanduser(os.environ.get("DETECTRON2_DATASETS", "datasets"))


def open_images_files(name: str) -> OpenImagesFiles:
    """Return where the files of one of :data:`OPEN_IMAGES_SPLITS` are, below :func:`data_root`."""
    folder = os.path.join(data_root(), _OPEN_IMAGES_ROOT, "annotations", "challenge-2019-")
    split = OPEN_IMAGES_SPLITS[name]
    return OpenImagesFiles(
        boxes=f"{folder}{split}-detection-bbox.csv",
        classes=f"{folder}classes-description-500.csv",
        image_labels=f"{folder}{split}-detection-human-imagelabels.csv",
        hierarchy=f"{folder}label500-hierarchy.json",
    )


def register_builtin(names: Iterable[str]) -> None:
    """Register those of the names that are LVIS's, Open Images' or ADE20K's, below :func:`data_root`, and no others.

    Takes the place of Detectron2's own registration, whose loader drops the image-level labels. A registration by
    another program stays as it is, and so does Detectron2's with another json than its own.
    """
    for name in set(names) & set(OPEN_IMAGES_SPLITS):
        if name not in DatasetCatalog or is_registered_here(name):
            images = os.path.join(data_root(), _OPEN_IMAGES_ROOT, OPEN_IMAGES_SPLITS[name])
            register_unread(name, open_images_files(name), images)
    for name in names:
        _register_ade20k(name)
    root = data_root()
    for name in set(names) & set(LVIS_JSON_FILES):
        if name in DatasetCatalog and not (is_registered_here(name) or _is_detectron2s_own(name)):
            continue
        json_file, image_root = LVIS_JSON_FILES[name], os.path.join(root, _IMAGE_ROOT)
        if not register_dataset(name, "lvis", os.path.join(root, json_file), image_root, load_lvis, replace=True):
            continue
        categories = V0_5_CATEGORIES if "v0.5" in name else V1_CATEGORIES
        categories = sorted(categories, key=lambda category: category["id"])
        # What the json says takes the place of these once it is read; they serve where it is absent.
        set_metadata(
            name,
            thing_classes=[category["name"] for category in categories],
            thing_dataset_id_to_contiguous_id={category["id"]: label for label, category in enumerate(categories)},
            frequency_groups=[category["frequency"] for category in categories],
            has_annotations="image_info" not in json_file,
        )


def register_from_config(cfg: CfgNode) -> None:
    """Register the data sets of ``MODEL.LONG_TAIL.DATASETS``, ``[name, json, image folder]`` each.

    So are those of ``MODEL.LONG_TAIL.CLASSIFICATION.DATASETS``, see :mod:`eql_d2.data.classification`, of
    ``MODEL.LONG_TAIL.OPEN_IMAGES.DATASETS``, see :func:`open_images_entry`, of
    ``MODEL.LONG_TAIL.SEM_SEG.DATASETS``, see :func:`register_masks_entry`, and those of ``DATASETS.TRAIN`` and
    ``DATASETS.TEST`` that are LVIS's, Open Images' or ADE20K's, see :func:`register_builtin`. Relative paths start at
    :func:`data_root`, ``$VARIABLES`` and ``~`` are expanded. A json is in LVIS format if one of its images has
    ``neg_category_ids`` or ``not_exhaustive_category_ids`` or one of its categories has a ``frequency``; otherwise it
    is in COCO format.

    Raises:
        InputError: if an entry is no such triple, a variable is not defined, a file or folder is missing, the json is
            of neither format, or the name stands for another data set.
    """
    register_builtin((*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST))
    for entry in cfg.MODEL.LONG_TAIL.DATASETS:
        if not _is_triple(entry):
            raise InputError(
                f"MODEL.LONG_TAIL.DATASETS has the entry {entry!r}; it must be three strings: name, json, image folder."
            )
        name = entry[0]
        json_file, image_root = (resolve_path(path, f"MODEL.LONG_TAIL.DATASETS, {name}") for path in entry[1:])
        if "://" not in image_root and not os.path.isdir(image_root):
            raise InputError(f"{image_root}: there is no such folder; it should hold the images of {name}.")
        register = register_lvis if open_table(json_file).header.is_lvis else register_coco
        register(name, json_file, image_root, cfg.MODEL.LONG_TAIL.IMAGES_ANYWHERE)
    for entry in cfg.MODEL.LONG_TAIL.CLASSIFICATION.DATASETS:
        _register_image_set_entry(entry)
    for entry in cfg.MODEL.LONG_TAIL.OPEN_IMAGES.DATASETS:
        register_open_images(*open_images_entry(entry))
    for entry in cfg.MODEL.LONG_TAIL.SEM_SEG.DATASETS:
        register_masks_entry(entry)


def register_masks_entry(entry: Any) -> None:
    """Register a mapping of ``MODEL.LONG_TAIL.SEM_SEG.DATASETS``.

    Raises:
        InputError: if it is no mapping of ``name``, ``images``, ``masks`` and ``classes`` to strings and, if it likes,
            ``first_label`` and ``ignore`` to whole numbers; or as :func:`~eql_d2.data.semantic.register_masks` and
            :func:`~eql_d2.data.semantic.read_class_names`.
    """
    where, strings = "MODEL.LONG_TAIL.SEM_SEG.DATASETS", {"name", "images", "masks", "classes"}
    if (
        not isinstance(entry, Mapping)
        or not strings <= set(entry) <= strings | {"first_label", "ignore"}
        or not all(isinstance(value, str if key in strings else int) for key, value in entry.items())
    ):
        raise InputError(
            f"{where} has the entry {entry!r}; it must be a mapping with {', '.join(sorted(strings))} and, where they "
            f"are not 0 and 255, the whole numbers first_label and ignore."
        )
    name = entry["name"]
    paths = {key: resolve_path(entry[key], f"{where}, {name}") for key in ("images", "masks", "classes")}
    values = {key: entry[key] for key in ("first_label", "ignore") if key in entry}
    register_masks(name, paths["images"], paths["masks"], read_class_names(paths["classes"]), **values)


def open_images_entry(entry: Any) -> Tuple[str, OpenImagesFiles, str]:
    """Return name, files and image folder of an entry of ``MODEL.LONG_TAIL.OPEN_IMAGES.DATASETS``, paths resolved.

    Raises:
        InputError: if it is no mapping of ``name``, ``boxes``, ``classes``, ``images`` and, if it likes,
            ``image_labels`` and ``hierarchy`` to strings.
    """
    where = "MODEL.LONG_TAIL.OPEN_IMAGES.DATASETS"
    needed, optional = {"name", "boxes", "classes", "images"}, {"image_labels", "hierarchy"}
    if (
        not isinstance(entry, Mapping)
        or not needed <= set(entry) <= needed | optional
        or not all(isinstance(value, str) for value in entry.values())
    ):
        raise InputError(
            f"{where} has the entry {entry!r}; it must be a mapping with {', '.join(sorted(needed))} and, if there are "
            f"any, {' and '.join(sorted(optional))}."
        )
    paths = {
        key: path and resolve_path(path, f"{where}, {entry['name']}") for key, path in entry.items() if key != "name"
    }
    images = paths.pop("images")
    return entry["name"], OpenImagesFiles(**paths), images


def _register_image_set_entry(entry: Any) -> None:
    """Register a mapping of name, kind, path and options, from ``MODEL.LONG_TAIL.CLASSIFICATION.DATASETS``."""
    where = "MODEL.LONG_TAIL.CLASSIFICATION.DATASETS"
    if not isinstance(entry, Mapping) or not all(isinstance(entry.get(key), str) for key in ("name", "kind", "path")):
        raise InputError(f"{where} has the entry {entry!r}; it must be a mapping with name, kind and path.")
    name, kind = entry["name"], entry["kind"]
    options = {key: value for key, value in entry.items() if key not in ("name", "kind", "path")}
    for option in DATASET_KINDS[kind].path_options if kind in DATASET_KINDS else ():
        if option in options:
            options[option] = resolve_path(str(options[option]), f"{where}, {name}")
    register_image_set(name, kind, resolve_path(entry["path"], f"{where}, {name}"), options)


def resolve_path(path: str, where: str) -> str:
    """Expand variables and ``~`` in the path of a data set and let a relative path start at :func:`data_root`.

    Args:
        path: as the user wrote it.
        where: what names it, for messages.

    Raises:
        InputError: if a variable is not defined.
    """
    expanded = os.path.expanduser(os.path.expandvars(path))
    undefined = re.search(r"\$(\w+|\{[^}]*\})", expanded)
    if undefined:
        raise InputError(
            f"{where}: {path} has the environment variable {undefined.group()}, which is not set; "
            f"set it to the place of the data."
        )
    if "://" in expanded:
        return expanded
    return str(Path(data_root(), expanded))


def _register_ade20k(name: str) -> None:
    kind, _, split = name.rpartition("_")
    if kind not in ADE20K_FOLDERS or split not in ADE20K_SPLITS:
        return
    images, masks, first_label, ignore = ADE20K_FOLDERS[kind]
    images, masks = (os.path.join(data_root(), folder, ADE20K_SPLITS[split]) for folder in (images, masks))
    if name in DatasetCatalog and not (is_registered_here(name) or _is_detectron2s_ade20k(name)):
        return
    names = ADE20K_SEM_SEG_CATEGORIES
    if kind == "ade20k_full_sem_seg":
        names = optional_class_names(os.path.join(data_root(), ADE20K_FULL_NAMES), ADE20K_FULL_CLASSES)
    register_masks(name, images, masks, names, first_label, ignore, replace=True)
    if names is ADE20K_SEM_SEG_CATEGORIES:
        set_metadata(name, head_body_ends=ADE20K_150_HEAD_BODY_ENDS)


def _is_detectron2s_ade20k(name: str) -> bool:
    return DatasetCatalog[name].__module__ == "detectron2.data.datasets.builtin"


def _is_triple(entry: Any) -> bool:
    return (
        isinstance(entry, Sequence)
        and not isinstance(entry, str)
        and len(entry) == 3
        and all(isinstance(item, str) and item for item in entry)
    )


def _is_detectron2s_own(name: str) -> bool:
    loader, json_file = DatasetCatalog[name], MetadataCatalog.get(name).get("json_file", "")
    return loader.__module__ == _DETECTRON2_LVIS and str(json_file).endswith(LVIS_JSON_FILES[name])
