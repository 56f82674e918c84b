"""Operating thresholds: for each class, the score from which its detections are shown."""

import contextlib
import io
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import numpy as np

from eql_d2.data.annotations import check_content, read_annotations
from eql_d2.errors import InputError
from eql_d2.evaluation.checks import check_ground_truth, check_results
from eql_d2.evaluation.reference_backend import coco_evaluator, lvis_evaluator
from eql_d2.evaluation.results_file import Results, source_name, with_encoded_masks
from eql_d2.files import write_whole

#: A threshold that no score reaches.
_NONE = 1.01


@dataclass(frozen=True)
class OperatingPoint:
    """The threshold of one class, and what it gives on the data that it was chosen on.

    Attributes:
        id: category id in the annotation file.
        name: of the class.
        threshold: detections with at least this score are shown; above 1 for none.
        objects: annotated objects of the class that count.
        precision: share of the shown detections that match an object; ``None`` if none is shown or judged.
        recall: share of the objects that are matched; ``None`` without objects.
        source: "own", or "pooled": the threshold of all classes together, for a class with too few objects.
    """

    id: int
    name: str
    threshold: float
    objects: int
    precision: Optional[float]
    recall: Optional[float]
    source: str


@dataclass(frozen=True)
class Thresholds:
    """Operating points of all classes, in the order of their labels ``0..K-1``.

    Attributes:
        precision: that is to be reached; ``None`` if F1 is to be the best.
        iou_type: "bbox" or "segm", and ``iou``: from which a detection matches an object.
        pooled: the threshold of all classes together.
        classes: K points.
    """

    precision: Optional[float]
    iou_type: str
    iou: float
    pooled: float
    classes: Tuple[OperatingPoint, ...]

    def values(self) -> List[float]:
        """Return the K thresholds."""
        return [point.threshold for point in self.classes]

    def save(self, path: Union[str, Path]) -> None:
        """Write them as json; the file appears whole or not at all."""
        write_whole(path, json.dumps(asdict(self), indent=1))

    @classmethod
    def load(cls, path: Union[str, Path]) -> "Thresholds":
        """Read what :meth:`save` wrote.

        Raises:
            InputError: if the file is missing or something else.
        """
        try:
            content = json.loads(Path(path).read_text())
            points = tuple(OperatingPoint(**point) for point in content.pop("classes"))
            return cls(**content, classes=points)
        except FileNotFoundError:
            raise InputError(f"{path}: there is no such file; eql-d2 thresholds writes one.") from None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(f"{path} holds no thresholds of eql-d2 thresholds ({error!r}).") from None


def fit_thresholds(
    annotations: Any,
    results: Results,
    iou_type: str = "bbox",
    *,
    precision: Optional[float] = None,
    iou: float = 0.5,
    min_objects: int = 5,
) -> Thresholds:
    """Choose, for each class, the threshold of the best F1, or the lowest one with at least a precision.

    Detections are matched with objects by lvis or pycocotools, as for AP at one IoU: detections of classes that an
    image of LVIS does not verify, or in crowd regions, are not judged. Equal scores are shown together or not at all.
    A class that does not reach the precision at any score gets a threshold above 1 and is not shown.

    Args:
        annotations: path of an annotation file in LVIS or COCO format, or its parsed content.
        results: detections in the submission format; all of them, down to low scores.
        iou_type: "bbox" or "segm".
        precision: to be reached, in (0, 1]; ``None`` for the best F1.
        iou: from which a detection matches an object, in (0, 1].
        min_objects: classes with fewer objects get the threshold of all classes together.

    Raises:
        InputError: for files that are missing, damaged or do not fit each other, or numbers out of range.
    """
    for name, value in (("precision", precision), ("iou", iou)):
        if value is not None and not 0 < value <= 1:
            raise InputError(f"--{name} is {value}; it lies above 0 and is at most 1.")
    content = read_annotations(annotations)
    source = source_name(annotations, "annotations")
    check_content(content, source, allow_ignore=True)
    if not content.has_annotations:
        raise InputError(f"{source} has no 'annotations', so no threshold can be chosen on it.")
    check_ground_truth(annotations, content)
    check_results(results, content, (iou_type,))
    results = with_encoded_masks(results, {image.id: (image.height, image.width) for image in content.images})
    judged = _judge(annotations, results, iou_type, iou, content.is_lvis)
    scores, hits, objects = (list(part) for part in zip(*(judged[c.id] for c in content.sorted_categories)))
    pooled = _choose(np.concatenate(scores), np.concatenate(hits), sum(objects), precision)
    points = []
    for category, of_class, hit, count in zip(content.sorted_categories, scores, hits, objects):
        is_own = count >= max(min_objects, 1)
        threshold = _choose(of_class, hit, count, precision) if is_own else pooled
        shown = hit[of_class >= threshold]
        points.append(
            OperatingPoint(
                category.id,
                category.name,
                threshold,
                count,
                float(shown.mean()) if len(shown) else None,
                float(shown.sum() / count) if count else None,
                "own" if is_own else "pooled",
            )
        )
    return Thresholds(precision, iou_type, iou, pooled, tuple(points))


def _judge(
    annotations: Any, results: Results, iou_type: str, iou: float, is_lvis: bool
) -> Dict[int, Tuple[np.ndarray, np.ndarray, int]]:
    """Return, by category id, the scores of the judged detections, whether each matches an object, and the objects."""
    if is_lvis:
        evaluator = lvis_evaluator(annotations, results, iou_type, -1)
        names = ("cat_ids", "eval_imgs", "dt_scores", "dt_matches", "dt_ignore", "gt_ignore")
        evaluator.params.iou_thrs = np.array([iou])
        evaluator.params.area_rng, evaluator.params.area_rng_lbl = evaluator.params.area_rng[:1], ["all"]
    else:
        evaluator = coco_evaluator(annotations, results, iou_type, -1)
        names = ("catIds", "evalImgs", "dtScores", "dtMatches", "dtIgnore", "gtIgnore")
        evaluator.params.iouThrs = np.array([iou])
        evaluator.params.areaRng, evaluator.params.areaRngLbl = evaluator.params.areaRng[:1], ["all"]
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        evaluator.evaluate()
    category_ids, of_images, *fields = names
    ids = [int(category_id) for category_id in getattr(evaluator.params, category_ids)]
    found = getattr(evaluator, of_images)
    images_each = len(found) // max(len(ids), 1)
    judged = {}
    for place, category_id in enumerate(ids):
        parts = [image for image in found[place * images_each : (place + 1) * images_each] if image is not None]
        judged[category_id] = _of_class([[image[field] for field in fields] for image in parts])
    return judged


def _of_class(images: Sequence[Sequence[Any]]) -> Tuple[np.ndarray, np.ndarray, int]:
    scores, hits, objects = [np.zeros(0)], [np.zeros(0, dtype=bool)], 0
    for of_image, matches, ignore, gt_ignore in images:
        is_judged = ~np.asarray(ignore, dtype=bool).reshape(-1)
        scores.append(np.asarray(of_image, dtype=float)[is_judged])
        hits.append((np.asarray(matches).reshape(-1) > 0)[is_judged])
        objects += int((~np.asarray(gt_ignore, dtype=bool)).sum())
    return np.concatenate(scores), np.concatenate(hits), objects


def _choose(scores: np.ndarray, hits: np.ndarray, objects: int, precision: Optional[float]) -> float:
    """Return the threshold; above 1 if there is no detection, or none reaches the precision."""
    order = np.argsort(-scores, kind="stable")
    scores, found = scores[order], np.cumsum(hits[order])
    shown = np.arange(1, len(scores) + 1)
    # A threshold can only lie where the next score is lower.
    ends = np.flatnonzero(np.append(scores[1:] < scores[:-1], True)) if len(scores) else np.zeros(0, dtype=int)
    if precision is None:
        # 2 hits / (detections + objects); of equal values the higher threshold.
        value = 2 * found[ends] / (shown[ends] + objects)
        best = ends[value.argmax()] if len(ends) and value.max() > 0 else None
    else:
        reached = ends[found[ends] >= precision * shown[ends]]
        best = reached[-1] if len(reached) else None
    return _NONE if best is None else float(scores[best])
