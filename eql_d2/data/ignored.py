"""Ignored regions: boxes over which nothing is taken for background, of another data set or of the set itself."""

import logging
from collections import defaultdict
from typing import Any, Dict, Hashable, List, Mapping, Sequence

import numpy as np
from detectron2.config import CfgNode
from detectron2.structures import BoxMode
from detectron2.utils.file_io import PathManager

from eql_d2.data.annotations import AnnotationFile, PathLike, check_content, read_annotations
from eql_d2.data.builtin import resolve_path
from eql_d2.data.catalog import check_registered, describe_dataset
from eql_d2.data.image_files import MATCHES, image_key
from eql_d2.data.records import Record, RecordList
from eql_d2.errors import InputError

logger = logging.getLogger("detectron2.eql_d2.data")

_KEY = "MODEL.LONG_TAIL.IGNORED.BOXES"
_NEEDED, _OPTIONAL = {"dataset", "json"}, {"categories", "match"}


class IgnoredBoxes:
    """The boxes of another data set, found by image.

    Args:
        json_file: in LVIS or COCO format.
        match: "id", or "file_name" (its last part) for data sets that number the same images differently.
        categories: names; the boxes of these categories only. All of them if empty.

    Raises:
        InputError: if the json cannot be used, has no annotations or not such a category, or there is no such match.
    """

    def __init__(self, json_file: PathLike, match: str = "id", categories: Sequence[str] = ()):
        self.json_file, self.match = str(json_file), match
        if match not in MATCHES:
            raise InputError(f"{_KEY}: match is {match!r}; there are {' and '.join(map(repr, MATCHES))}.")
        content = read_annotations(PathManager.get_local_path(self.json_file))
        check_content(content, json_file, allow_ignore=True)
        if not content.has_annotations:
            raise InputError(f"{json_file} has no annotations, so {_KEY} can ignore none of its boxes.")
        chosen = _ids_of(content, categories, self.json_file)
        keys = {image.id: image_key(match, image.id, image.file_name or image.coco_url) for image in content.images}
        by_image: Dict[Hashable, List[Any]] = defaultdict(list)
        for one in content.annotations or ():
            if one.image_id in keys and one.category_id in chosen and min(one.bbox[2:]) > 0:
                by_image[keys[one.image_id]].append(one.bbox)
        # Two arrays and a dict of integers: the processes that load the images share them.
        self._places = {key: place for place, key in enumerate(by_image)}
        self._ends = np.cumsum([0, *map(len, by_image.values())])
        boxes = np.array([box for of_image in by_image.values() for box in of_image], np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        self._boxes = boxes

    def __len__(self) -> int:
        return len(self._boxes)

    def of(self, record: Record) -> np.ndarray:
        """Return the boxes of an image, float32 ``[M, 4]``: left, top, right, bottom in pixels."""
        place = self._places.get(image_key(self.match, record["image_id"], record["file_name"]))
        return self._boxes[:0] if place is None else self._boxes[self._ends[place] : self._ends[place + 1]]

    def attach(self, records: Sequence[Record], name: str) -> Sequence[Record]:
        """Return the records of a data set with ``ignored_boxes``, what :meth:`of` returns for each.

        Raises:
            InputError: if the json has a box in none of the images.
        """
        if not any(len(self.of(record)) for record in records):
            raise InputError(
                f"{_KEY}: {self.json_file} has a box in no image of {describe_dataset(name)}; they were matched by "
                f"{self.match}, and match may be {' or '.join(map(repr, MATCHES))}."
            )
        logger.info("Nothing under the %d boxes of %s is background in %s.", len(self), self.json_file, name)
        if isinstance(records, RecordList):
            return records.with_ignored(self.of)
        return [{**record, "ignored_boxes": self.of(record)} for record in records]


def _ids_of(content: AnnotationFile, names: Sequence[str], json_file: str) -> Sequence[int]:
    """Return the ids of the categories of these names, all ids for no names."""
    ids = {category.name: category.id for category in content.sorted_categories}
    unknown = sorted(set(names) - set(ids))
    if unknown:
        raise InputError(
            f"{_KEY}: categories has {', '.join(map(repr, unknown))}, which {json_file} does not have; its "
            f"{len(ids)} categories start with {', '.join(map(repr, list(ids)[:5]))}."
        )
    return [ids[name] for name in names or ids]


def ignored_boxes(cfg: CfgNode, names: Sequence[str]) -> Dict[str, IgnoredBoxes]:
    """Read what ``MODEL.LONG_TAIL.IGNORED.BOXES`` names for some data sets; relative paths as in ``DATASETS``.

    Raises:
        InputError: for an entry that is no mapping of the fields, names a data set that is not registered or for the
            second time, or as :class:`IgnoredBoxes`.
    """
    boxes = {}
    for name, entry in _entries(cfg).items():
        if name not in names:
            continue
        path = resolve_path(entry["json"], f"{_KEY}, {name}")
        boxes[name] = IgnoredBoxes(path, entry.get("match", "id"), entry.get("categories", ()))
    return boxes


def _entries(cfg: CfgNode) -> Dict[str, Mapping[str, Any]]:
    """Return the checked entries of ``IGNORED.BOXES`` by the name of their data set."""
    entries: Dict[str, Mapping[str, Any]] = {}
    for entry in cfg.MODEL.LONG_TAIL.IGNORED.BOXES:
        if (
            not isinstance(entry, Mapping)
            or not _NEEDED <= set(entry) <= _NEEDED | _OPTIONAL
            or not all(isinstance(entry.get(key, ""), str) for key in ("dataset", "json", "match"))
            or not _is_names(entry.get("categories", []))
        ):
            raise InputError(
                f"{_KEY} has the entry {entry!r}; it must be a mapping with dataset, json and, if wanted, categories "
                f"(a list of names) and match."
            )
        name = entry["dataset"]
        if name in entries:
            raise InputError(f"{_KEY} has two entries for {name!r}; one json holds the boxes of a data set.")
        check_registered(name)
        entries[name] = entry
    return entries


def _is_names(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and all(isinstance(name, str) for name in value)


def own_ignored_boxes(annotations: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """Return the boxes of an image's crowd regions and group-of boxes, float32 ``[M, 4]`` XYXY.

    Args:
        annotations: of a dataset dict.
    """
    boxes = [
        BoxMode.convert(list(one["bbox"]), one["bbox_mode"], BoxMode.XYXY_ABS)
        for one in annotations
        if one.get("iscrowd", 0) or one.get("is_group_of", 0) == 1
    ]
    return np.array(boxes, np.float32).reshape(-1, 4)
