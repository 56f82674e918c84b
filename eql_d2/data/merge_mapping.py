"""The mapping file of a merge: which data sets, and which of their categories is which of the merged file's."""

import os
from collections import Counter
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Dict, List, Literal, Optional, Sequence, Set, Tuple, Union

import msgspec
import yaml

from eql_d2.data.annotations import AnnotationFile, Category, PathLike, duplicates, readable_json
from eql_d2.errors import InputError

#: Categories as a json has them: ``id``, ``name`` and whatever else it says of them.
Records = List[Dict[str, Any]]
#: Names of categories that a message lists before it says how many more there are.
_NAMED = 20


class OpenImagesEntry(msgspec.Struct, forbid_unknown_fields=True):
    """The CSV files of Open Images, as in ``MODEL.LONG_TAIL.OPEN_IMAGES.DATASETS``."""

    boxes: str
    classes: str
    image_labels: str = ""
    hierarchy: str = ""


class MergedSource(msgspec.Struct, forbid_unknown_fields=True):
    """An entry of ``sources`` of a mapping file.

    Attributes:
        name: what each of its images will name, and metrics will be called by.
        json: in LVIS or COCO format, below the root; or
        open_images: the files of Open Images, whose classes then have the ids 1 to K.
        images: its image folder, below the root.
        exhaustive: whether all objects of all its categories are annotated in all its images, as in COCO; or the names
            of the categories of which that is true. Must be said of a file without negative sets.
        match: what a category that ``categories`` does not name is found by: "name", "synset" or "id".
        categories: name (or id) of a category, and the name or synset of the target; ``null`` leaves it out.
        adds_to: name of an earlier source; the annotations are added to its images, and no image of this one.
        images_by: how its images are found among those: "id" or "file_name" (the last part).
    """

    name: str
    json: str = ""
    open_images: Optional[OpenImagesEntry] = None
    images: str = ""
    exhaustive: Union[bool, List[str], None] = None
    match: Literal["name", "synset", "id"] = "name"
    categories: Dict[Union[int, str], Optional[str]] = {}
    adds_to: str = ""
    images_by: Literal["id", "file_name"] = "id"

    @property
    def file(self) -> str:
        """The file that lists its categories, for messages."""
        return self.json if self.open_images is None else self.open_images.classes

    def exhaustive_ids(self, content: AnnotationFile) -> Set[int]:
        """Return the ids of the categories that are annotated exhaustively.

        Raises:
            InputError: if it is not said, or a name is unknown.
        """
        if self.exhaustive is None:
            if not content.has_image_labels:
                raise InputError(
                    f"source {self.name!r}: {self.file} has no negative sets, so the mapping must say which classes "
                    f"its images verify: exhaustive: true (all, as in COCO), a list of names, or false."
                )
            return set()
        if isinstance(self.exhaustive, bool):
            return {category.id for category in content.categories} if self.exhaustive else set()
        ids = {category.name: category.id for category in content.categories}
        unknown = sorted(set(self.exhaustive) - set(ids))
        if unknown:
            raise InputError(
                f"source {self.name!r}: exhaustive has {_names(unknown)}, which {self.file} does not have."
            )
        return {ids[name] for name in self.exhaustive}


class MergeMapping(msgspec.Struct, forbid_unknown_fields=True):
    """A mapping file.

    Attributes:
        sources: the data sets, in the order of the merged images.
        categories: a json whose categories (ids, names, synsets, letters) are the merged file's, below the root; if
            empty they are those that the sources name, in their order.
        unmapped: "error", or "drop" for categories of sources that find no target.
        drop_verified_absent: with ``adds_to``: drop a box whose class is in the image's negative set. If not, the class
            leaves the negative set.
        duplicate_iou: with ``adds_to``: drop a box that has this IoU with a box of its class that is there already; 0
            keeps all.
    """

    sources: List[MergedSource]
    categories: str = ""
    unmapped: Literal["error", "drop"] = "error"
    drop_verified_absent: bool = True
    duplicate_iou: float = 0.7


class _UniqueKeys(yaml.SafeLoader):
    """A loader to which a key that occurs twice is an error: YAML's own would take the last."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        doubled = [key for key, count in Counter(map(str, keys)).items() if count > 1]
        if doubled:
            raise yaml.YAMLError(f"{doubled[0]!r} occurs twice in one mapping, in line {node.start_mark.line + 1}")
        return super().construct_mapping(node, deep)


def read_mapping(path: PathLike) -> MergeMapping:
    """Read a mapping file, YAML or json.

    Raises:
        InputError: if it is missing, has an unknown field or a value of another type, or its sources do not fit
            together.
    """
    try:
        mapping = msgspec.convert(yaml.load(Path(path).read_text(), _UniqueKeys), MergeMapping)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise InputError(f"{path} cannot be read as YAML ({' '.join(str(error).split())}).") from None
    except msgspec.ValidationError as error:
        raise InputError(f"{path} is no mapping of data sets to merge: {error}.") from None
    check_mapping(mapping, str(path))
    return mapping


def check_mapping(mapping: MergeMapping, path: str) -> None:
    """Raise an :class:`InputError` unless the sources of a mapping fit together."""
    seen: List[str] = []
    for source in mapping.sources:
        if not source.name or source.name in seen:
            raise InputError(f"{path}: two sources are called {source.name!r}, or one has no name.")
        if bool(source.json) == (source.open_images is not None):
            raise InputError(f"{path}: source {source.name!r} must have json or open_images, and not both.")
        if source.adds_to and source.adds_to not in seen:
            raise InputError(
                f"{path}: source {source.name!r} adds_to {source.adds_to!r}, which is no source before it "
                f"({', '.join(map(repr, seen)) or 'it is the first'})."
            )
        if source.adds_to and source.exhaustive:
            raise InputError(
                f"{path}: source {source.name!r} adds_to another; what the images verify is told by that one, so "
                f"exhaustive is of no use."
            )
        if not source.adds_to:
            seen.append(source.name)
    if not seen:
        raise InputError(f"{path} names no source; sources is a list of at least one data set.")
    if not 0 <= mapping.duplicate_iou <= 1:
        raise InputError(f"{path}: duplicate_iou is {mapping.duplicate_iou}; an IoU is from 0 to 1, 0 keeps all.")


@dataclass
class TargetCategories:
    """The categories of the merged file.

    Attributes:
        entries: as they will be written but for the counts: ``id``, ``name`` and what else the json says of them.
        source: where they come from, for messages.
    """

    entries: Records
    source: str

    @classmethod
    def of(cls, mapping: MergeMapping, categories: Sequence[Records], root: str) -> "TargetCategories":
        """Read the target json, or collect what the sources, whose categories are given, name."""
        if mapping.categories:
            path = os.path.join(root, mapping.categories)
            return cls(read_categories(path), path)
        names: Dict[str, Dict[str, Any]] = {}
        for source, entries in zip(mapping.sources, categories):
            for entry in entries:
                target = explicit_target(source, entry)
                name = entry["name"] if target is _BY_MATCH else target
                if name is not None and name not in names:
                    names[name] = {**(entry if name == entry["name"] else {}), "id": len(names) + 1, "name": name}
        # Letters of several sets do not compare: each is by the images of its own.
        is_one = sum(not source.adds_to for source in mapping.sources) == 1
        if not (is_one and all("frequency" in entry for entry in names.values())):
            for entry in names.values():
                entry.pop("frequency", None)
        return cls(list(names.values()), "the sources")

    def ids(self, key: str) -> Dict[Any, List[int]]:
        """Return the ids of the categories by their ``name``, ``synset`` or ``id``."""
        found: Dict[Any, List[int]] = {}
        for entry in self.entries:
            if entry.get(key) not in (None, ""):
                found.setdefault(entry[key], []).append(entry["id"])
        return found

    def records(self, annotations: List[Dict[str, Any]]) -> Records:
        """Return the entries with the counts of the merged annotations."""
        pairs = [(one["image_id"], one["category_id"]) for one in annotations if not one.get("iscrowd")]
        instances, images = Counter(id_ for _, id_ in pairs), Counter(id_ for _, id_ in set(pairs))
        return [
            {**entry, "image_count": images[entry["id"]], "instance_count": instances[entry["id"]]}
            for entry in self.entries
        ]


class _Categories(msgspec.Struct):
    categories: Records


def read_categories(path: PathLike) -> Records:
    """Return the category records of a json as they are, by ascending id.

    Raises:
        InputError: if one has no id or no name, or two have one id.
    """
    with readable_json(path):
        encoded = Path(path).read_bytes()
    try:
        entries = msgspec.json.decode(encoded, type=_Categories).categories
        msgspec.convert(entries, List[Category])
    except msgspec.DecodeError as error:
        raise InputError(f"{path} has no categories with id and name ({error}).") from None
    for doubled in duplicates(entry["id"] for entry in entries):
        raise InputError(f"{path}: category id {doubled} occurs more than once; ids must be unique.")
    return sorted(entries, key=lambda entry: entry["id"])


#: In the place of a target: the mapping file does not name the category.
_BY_MATCH: Any = object()


def explicit_target(source: MergedSource, entry: Dict[str, Any]) -> Any:
    """Return what the mapping file says of a category: a target, ``None`` (left out) or :data:`_BY_MATCH`."""
    for key in (entry["name"], entry["id"], str(entry["id"])):  # json has no other keys than texts
        if key in source.categories:
            return source.categories[key]
    return _BY_MATCH


def map_categories(
    mapping: MergeMapping, categories: Sequence[Records], targets: TargetCategories
) -> List[Dict[int, int]]:
    """Return for each source the target id of each of its category ids; those that are left out have none.

    Args:
        mapping: what is merged.
        categories: of each source, by ascending id.
        targets: the categories of the merged file.

    Raises:
        InputError: with everything that is wrong: names in the mapping that a source or the target does not have,
            targets that stand for two categories, categories without a target, and two of a source that were matched
            with one target though the mapping file names neither.
    """
    maps, wrong = [], []
    for source, entries in zip(mapping.sources, categories):
        found, problems = _map_source(mapping, source, entries, targets)
        maps.append(found)
        wrong += problems
    if wrong:
        raise InputError("The categories cannot be merged: " + "; ".join(wrong) + ".")
    return maps


def _map_source(
    mapping: MergeMapping, source: MergedSource, entries: Records, targets: TargetCategories
) -> Tuple[Dict[int, int], List[str]]:
    by_name, by_synset = targets.ids("name"), targets.ids("synset")
    by_match = targets.ids(source.match)
    known = {key for entry in entries for key in (entry["name"], entry["id"], str(entry["id"]))}
    problems = []
    strange = [str(key) for key in source.categories if key not in known]
    if strange:
        problems.append(f"{source.name} has no {_names(strange)}{_hint(strange[0], known)}")
    found: Dict[int, int] = {}
    matched: Dict[int, List[str]] = {}
    missing, unknown = [], []
    for entry in entries:
        target, name = explicit_target(source, entry), entry["name"]
        if target is None:
            continue
        if target is _BY_MATCH:
            ids = by_match.get(entry.get(source.match), [])
            if not ids:
                missing.append(name)
                continue
        else:
            ids = by_name.get(target) or by_synset.get(target) or []
            if not ids:
                unknown.append(target)
                continue
        if len(ids) > 1:
            problems.append(f"{source.name}: {name!r} is that of {len(ids)} targets, {ids}")
            continue
        found[entry["id"]] = ids[0]
        if target is _BY_MATCH:
            matched.setdefault(ids[0], []).append(name)
    if unknown:
        near = _hint(unknown[0], by_name)
        problems.append(f"{source.name} maps to {_names(unknown)}, which {targets.source} does not have{near}")
    if missing and mapping.unmapped == "error":
        problems.append(
            f"{source.name}: {len(missing)} categories have no target ({_names(missing)}); name one in categories, "
            f"null to leave one out, or set unmapped: drop"
        )
    for names in matched.values():
        if len(names) > 1:
            problems.append(f"{source.name}: {_names(names)} all match one target; say in categories which is meant")
    return found, problems


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(map(repr, names[:_NAMED])) + more


def _hint(name: str, known: Any) -> str:
    near = get_close_matches(name, list(map(str, known)), n=1)
    return f" (did you mean {near[0]!r}?)" if near else ""
