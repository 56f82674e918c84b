"""Ensembles: the results files of several detectors merged into one, image by image and class by class."""

import re
from collections import defaultdict
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

import msgspec
import numpy as np
import pycocotools.mask as mask_util

from eql_d2.data import segmentation
from eql_d2.data.annotations import AnnotationFile, check_content, read_annotations
from eql_d2.errors import InputError
from eql_d2.evaluation.by_image import Found, by_image, encode, whole_id
from eql_d2.evaluation.checks import Detection
from eql_d2.evaluation.merging import Rule
from eql_d2.evaluation.store import JSON_LIST
from eql_d2.files import whole_file


class ResultsFile(NamedTuple):
    """A results file.

    Attributes:
        path: in the submission format.
        weight: of its scores, above 0.
        classes: of an expert, its category id of each class that it knows, and the ensemble's; ``None`` for a detector
            of all classes, whose ids are the ensemble's.
    """

    path: Path
    weight: float = 1.0
    classes: Optional[Mapping[int, int]] = None


class Rescoring(NamedTuple):
    """What becomes of the scores of a group of classes before they are merged: ``factor * score ** exponent``."""

    factor: float = 1.0
    exponent: float = 1.0

    def __call__(self, score: float) -> float:
        return self.factor * score**self.exponent if score > 0 else score


def ensemble(
    sources: Sequence[ResultsFile],
    output: Path,
    rule: Rule,
    rescoring: Optional[Mapping[int, Rescoring]] = None,
    max_detections: int = 300,
    min_score: float = 0.0,
    boxes_only: bool = False,
) -> int:
    """Write the detections of several results files as one, images by ascending id, one image in memory at a time.

    Args:
        sources: the files. The detections of an expert count for the classes that it knows, all others are left out.
        output: the file to write, in the submission format; it appears whole or not at all.
        rule: how the boxes of one class in an image are merged. A box keeps its mask.
        rescoring: by category id; of all files but the experts', whose scores do not suffer from the ensemble's
            long tail.
        max_detections: the best of an image that are written; all if negative.
        min_score: detections with a lower score after merging are left out.
        boxes_only: leave masks out. Boxes that are fused have none.

    Returns:
        The number of images.

    Raises:
        InputError: for a file that is missing or damaged, or if some detections have masks and others not.
    """
    merger = _Merger(sources, rule, rescoring or {}, _Masks(boxes_only))
    images: List[int] = []

    def merged() -> Iterator[bytes]:
        for image, found in by_image([source.path for source in sources]):
            images.append(image)
            detections = [one for one in merger.merge(found) if one.score >= min_score]
            # Stable: equal scores in the order of their classes, and there as the rule has them.
            detections.sort(key=lambda one: -one.score)
            yield encode(detections[:max_detections] if max_detections >= 0 else detections)[1:-1]

    with whole_file(output) as target:
        JSON_LIST.write(target, merged())
    return len(images)


class _Merger:
    """Merges the detections of one image after the other; the arguments are those of :func:`ensemble`."""

    def __init__(self, sources: Sequence[ResultsFile], rule: Rule, rescoring: Mapping[int, Rescoring], masks: "_Masks"):
        self._sources, self._rule, self._rescoring, self._masks = sources, rule, rescoring, masks
        self._known = [None if source.classes is None else set(source.classes.values()) for source in sources]
        self._voters: Dict[int, List[int]] = {}

    def merge(self, found: Sequence[Found]) -> List[Detection]:
        """Return what is left of the detections of an image, class by class."""
        by_class: Dict[int, List[Tuple[int, Detection]]] = defaultdict(list)
        for number, detections in found:
            for one in detections:
                if self._adapt(one, self._sources[number]):
                    by_class[int(one.category_id)].append((number, one))
        return [one for category in sorted(by_class) for one in self._merge_class(category, by_class[category])]

    def _adapt(self, one: Detection, source: ResultsFile) -> bool:
        """Give a detection the ensemble's category id and score; return whether it counts."""
        category = whole_id(one.category_id, "category_id", source.path)
        if source.classes is not None:
            if category not in source.classes:
                return False
            category = source.classes[category]
        elif category in self._rescoring:
            one.score = self._rescoring[category](one.score)
        one.category_id = category
        self._masks.check(one, source)
        return True

    def _merge_class(self, category: int, found: Sequence[Tuple[int, Detection]]) -> List[Detection]:
        if category not in self._voters:
            # An expert has no say in the classes that it does not know.
            self._voters[category] = [i for i, known in enumerate(self._known) if known is None or category in known]
        voters = self._voters[category]
        detections = [one for _, one in found]
        boxes = np.array([one.bbox for one in detections], np.float64)
        boxes[:, 2:] += boxes[:, :2]
        result = self._rule(
            boxes,
            np.array([one.score for one in detections], np.float64),
            np.array([voters.index(number) for number, _ in found], np.int64),
            np.array([self._sources[i].weight for i in voters], np.float64),
        )
        merged = []
        for index, (left, top, right, bottom), score in zip(*(part.tolist() for part in result)):
            if index >= 0:  # its box as it was written
                one = detections[index]
                one.score = score
            else:
                one = Detection(detections[0].image_id, category, score, (left, top, right - left, bottom - top))
            merged.append(one)
        return merged


class _Masks:
    """Sees to it that all detections have masks, or none; and that each has a box."""

    def __init__(self, boxes_only: bool):
        self._boxes_only = boxes_only
        self._first: Optional[ResultsFile] = None
        self._has = False

    def check(self, one: Detection, source: ResultsFile) -> None:
        """Give a detection without a box that of its mask.

        Raises:
            InputError: if it has a mask and an earlier one has not, or the other way round; or neither mask nor box.
        """
        has = one.has("segmentation")
        if one.bbox is None:
            if not has:
                raise InputError(f"{source.path}: a detection of image {one.image_id} has neither a box nor a mask.")
            one.bbox = _box_of(one, source)
        if self._boxes_only:
            one.segmentation = msgspec.Raw()
            return
        if self._first is None:
            self._first, self._has = source, has
        elif has != self._has:
            with_masks, without = (source, self._first) if has else (self._first, source)
            raise InputError(
                f"{with_masks.path} has masks and {without.path} has detections without; leave masks out with "
                f"--boxes-only, or those files."
            )


def _box_of(one: Detection, source: ResultsFile) -> Any:
    """Return x, y, width, height in pixels of the box around a mask."""
    try:
        mask = segmentation.parse(one.segmentation)
        if isinstance(mask, segmentation.RunLengthMask):
            return tuple(mask_util.toBbox(segmentation.decode(one.segmentation, *mask.size)).tolist())
        points = np.array([value for polygon in mask or () for value in polygon]).reshape(-1, 2)
        (left, top), (right, bottom) = points.min(0), points.max(0)
        return float(left), float(top), float(right - left), float(bottom - top)
    except (InputError, ValueError) as error:
        raise InputError(f"{source.path}: the segmentation of a detection of image {one.image_id}: {error}") from None


def expert_classes(path: Path, content: Optional[AnnotationFile] = None) -> Dict[int, int]:
    """Read which classes an expert knows: its category id of each, and the ensemble's.

    Args:
        path: a text file with a class on each line, whose ids are the ensemble's; or a ``.json`` with an object from
            the expert's category ids to the ensemble's classes. A class is an id, or a name of ``content``.
        content: annotations in the ensemble's classes, checked.

    Raises:
        InputError: if the file is missing, empty or of another form, or has a class that is not in ``content``.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}, the classes of an expert, cannot be read ({error}).") from None
    if path.suffix == ".json":
        try:
            pairs = msgspec.json.decode(text, type=Dict[int, Union[int, str]])
        except msgspec.DecodeError as error:
            raise InputError(
                f"{path} must be a json object from the expert's category ids to classes, as in "
                f'{{"1": "person", "3": 207}}: {error}.'
            ) from None
        classes = {source: _class_id(str(target), path, content) for source, target in pairs.items()}
    else:
        lines = [line.strip() for line in text.splitlines()]
        classes = {one: one for one in (_class_id(line, path, content) for line in lines if line)}
    if not classes:
        raise InputError(f"{path} names no class; an expert knows one at least.")
    return classes


def _class_id(given: str, path: Path, content: Optional[AnnotationFile]) -> int:
    """Return the id of a class that is given by its id or its name."""
    ids = {} if content is None else {category.name: category.id for category in content.categories}
    if given in ids:
        return ids[given]
    number = int(given) if re.fullmatch(r"-?\d{1,18}", given) else None
    if number is not None and (content is None or number in ids.values()):
        return number
    if content is None:
        raise InputError(f"{path} names the class {given!r}; name the annotations that have its id with --annotations.")
    near = get_close_matches(given, ids, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise InputError(f"{path} has the class {given!r}, which is no name and no id of the annotations.{hint}")


def rescoring_by_group(train_json: Path, groups: Mapping[str, Rescoring]) -> Dict[int, Rescoring]:
    """Return the rescoring of each category id, by the group that it has in the training set.

    Args:
        train_json: the training annotations, or others that give the groups of the classes, as LVIS's do.
        groups: the rescoring of "r", "c" and "f".

    Raises:
        InputError: if the file cannot be used.
    """
    content = read_annotations(train_json)
    check_content(content, train_json)
    letters = zip(content.contiguous_ids, content.counts().groups)
    return {category: groups[letter] for category, letter in letters if letter in groups}
