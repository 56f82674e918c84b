"""AP of Open Images' detection challenge 2019, as TensorFlow's official evaluation computes it, in whole arrays.

Boxes are expanded to the classes above theirs; labels that say a class is absent, to the classes below. Detections of
a class that was not verified in an image count neither as true nor as false. A box marked "group of" is found at most
once, by the detection with the highest score of those that lie in it. AP is the area under the monotone precision curve
at IoU 0.5 (VOC 2010). The rules are those of ``OpenImagesChallengeEvaluator`` (tensorflow/models,
research/object_detection).
"""

from dataclasses import dataclass
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from eql_d2.data.label_hierarchy import LabelHierarchy
from eql_d2.errors import InputError

#: IoU of a match, and the share of a detection that lies in a group-of box, from which it counts.
MATCH_THRESHOLD = 0.5
#: Detections of one class and image that count, by falling score.
MAX_DETECTIONS = 10_000
#: Pairs of a detection and a box that are compared at once; bounds the memory, not the result.
PAIRS_AT_ONCE = 1 << 20


@dataclass(frozen=True, eq=False)
class Boxes:
    """Boxes of one class in many images, sorted by image.

    Attributes:
        image: int64 ``[n]``, ascending.
        corners: float64 ``[n, 4]``: x1, y1, x2, y2.
    """

    image: np.ndarray
    corners: np.ndarray


def open_images_ap(
    boxes: Iterable[Sequence[Any]],
    image_labels: Iterable[Sequence[Any]],
    predictions: Iterable[Sequence[Any]],
    hierarchy: Mapping[str, Any],
    group_of_weight: float = 1.0,
) -> Tuple[Dict[str, Optional[float]], Optional[float]]:
    """Return AP of each class and their mean, from the rows of Open Images' files as they are published.

    Args:
        boxes: rows (ImageID, LabelName, XMin, XMax, YMin, YMax, IsGroupOf), not expanded.
        image_labels: rows (ImageID, LabelName, Confidence): 1 for verified as present, 0 as absent; not expanded.
        predictions: rows (ImageID, LabelName, Score, XMin, XMax, YMin, YMax). They are not expanded: a detector that
            wants credit for Animal must say Animal.
        hierarchy: the nested json, see :class:`~eql_d2.data.label_hierarchy.LabelHierarchy`.
        group_of_weight: what a group-of box that is found counts; 1 in the challenge, 0 leaves them out.

    Returns:
        AP in [0, 1] by label, ``None`` for a class without an object; the mean over the classes that have one, ``None``
        if none has.

    Raises:
        InputError: if the hierarchy is malformed, a number is not finite, or the weight is negative.
    """
    if not 0 <= group_of_weight < float("inf"):
        raise InputError(f"group_of_weight is {group_of_weight}; it is 0 or positive.")
    tree = LabelHierarchy(hierarchy)
    number = {label: k for k, label in enumerate(tree.labels)}
    above = [[number[other] for other in tree.ancestors(label)] for label in tree.labels]
    below = [[number[other] for other in tree.descendants(label)] for label in tree.labels]
    boxes, image_labels = list(boxes), list(image_labels)
    images: Dict[Any, int] = {}
    for row in (*boxes, *image_labels):
        images.setdefault(row[0], len(images))

    truth: List[Tuple[int, int, bool, float, float, float, float]] = []
    verified = np.zeros((len(images), len(number)), dtype=bool)
    for image, label, x1, x2, y1, y2, is_group_of in boxes:
        if label in number:
            for k in (number[label], *above[number[label]]):
                truth.append((images[image], k, bool(is_group_of), x1, y1, x2, y2))
                verified[images[image], k] = True
    for image, label, confidence in image_labels:
        if label in number:
            related = above if confidence else below
            verified[images[image], [number[label], *related[number[label]]]] = True

    detections = [
        (images[image], number[label], score, x1, y1, x2, y2)
        for image, label, score, x1, x2, y1, y2 in predictions
        if image in images and label in number
    ]
    of_truth, of_detections = _finite(truth, 7, "boxes"), _finite(detections, 7, "predictions")
    image, label = of_detections[:, :2].astype(int).T
    found = DetectedBoxes(image, label, of_detections[:, 2], of_detections[:, 3:])
    ap = per_class_ap(
        TrueBoxes(of_truth[:, 0].astype(int), of_truth[:, 1].astype(int), of_truth[:, 3:], of_truth[:, 2] > 0),
        countable(found, verified),
        len(number),
        group_of_weight,
    )
    result = {label: None if np.isnan(ap[k]) else float(ap[k]) for label, k in number.items()}
    return result, None if np.isnan(ap).all() else float(np.nanmean(ap))


class TrueBoxes(NamedTuple):
    """Expanded boxes of all classes: ``image`` and ``label`` int ``[n]``, ``corners`` float64 ``[n, 4]`` (x1, y1, x2,
    y2), ``is_group_of`` bool ``[n]``."""

    image: np.ndarray
    label: np.ndarray
    corners: np.ndarray
    is_group_of: np.ndarray


class DetectedBoxes(NamedTuple):
    """Detections of all classes: ``image`` and ``label`` int ``[n]``, ``score`` float64 ``[n]``, ``corners`` ``[n, 4]``
    (x1, y1, x2, y2)."""

    image: np.ndarray
    label: np.ndarray
    score: np.ndarray
    corners: np.ndarray


def countable(detections: DetectedBoxes, verified: np.ndarray) -> DetectedBoxes:
    """Leave out detections without an area and of classes that are not verified in their image.

    Args:
        detections: of all classes.
        verified: bool ``[images, K]``.
    """
    corners = detections.corners
    kept = (corners[:, 0] < corners[:, 2]) & (corners[:, 1] < corners[:, 3])
    kept &= verified[detections.image, detections.label]
    return DetectedBoxes(*(column[kept] for column in detections))


def per_class_ap(
    truth: TrueBoxes, detections: DetectedBoxes, num_classes: int, group_of_weight: float = 1.0
) -> np.ndarray:
    """Return AP of each class in [0, 1], float64 ``[K]``; NaN without an object.

    Args:
        truth: expanded.
        detections: those that count, see :func:`countable`.
        num_classes: K.
        group_of_weight: what a group-of box counts.
    """
    ap = np.empty(num_classes)
    of_truth, of_detections = (_rows_of_classes(rows.label, num_classes) for rows in (truth, detections))
    for k in range(num_classes):
        boxes, found = of_truth[k], of_detections[k]
        groups = boxes[truth.is_group_of[boxes]]
        boxes = boxes[~truth.is_group_of[boxes]]
        ap[k] = class_ap(
            detections.image[found],
            detections.score[found],
            detections.corners[found],
            sorted_boxes(truth.image[boxes], truth.corners[boxes]),
            sorted_boxes(truth.image[groups], truth.corners[groups]),
            group_of_weight,
        )
    return ap


def _rows_of_classes(labels: np.ndarray, num_classes: int) -> List[np.ndarray]:
    """Return the rows of each class, ascending."""
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.searchsorted(labels[order], np.arange(1, num_classes)))


def _finite(rows: List[Tuple], columns: int, what: str) -> np.ndarray:
    array = np.array(rows, dtype=np.float64).reshape(-1, columns)
    if not np.isfinite(array).all():
        bad = rows[int(np.argwhere(~np.isfinite(array))[0, 0])]
        raise InputError(f"A row of {what} has a number that is not finite: {bad}.")
    return array


def sorted_boxes(image: np.ndarray, corners: np.ndarray) -> Boxes:
    """Return boxes sorted by image; those of one image keep their order."""
    order = np.argsort(image, kind="stable")
    return Boxes(image[order], corners[order])


def class_ap(
    image: np.ndarray,
    scores: np.ndarray,
    corners: np.ndarray,
    boxes: Boxes,
    groups: Boxes,
    group_of_weight: float = 1.0,
) -> float:
    """Return AP of one class over all images, NaN without an object.

    Args:
        image: int64 ``[n]``, the image of each detection, of those in which the class is verified.
        scores: ``[n]``.
        corners: ``[n, 4]``: x1, y1, x2, y2.
        boxes: ground truth, each one object.
        groups: ground truth that is marked as group-of.
        group_of_weight: what a group-of box counts.
    """
    num_objects = len(boxes.image) + group_of_weight * len(groups.image)
    if num_objects == 0:
        return float("nan")
    return average_precision(*true_positives(image, scores, corners, boxes, groups, group_of_weight), num_objects)


def true_positives(
    image: np.ndarray,
    scores: np.ndarray,
    corners: np.ndarray,
    boxes: Boxes,
    groups: Boxes,
    group_of_weight: float = 1.0,
) -> Tuple[np.ndarray, np.ndarray]:
    """Match the detections of one class and say which are true; arguments as in :func:`class_ap`.

    A detection looks at its best box only. It is true if IoU reaches the threshold and no detection with a higher score
    has taken the box. Those that are not true look for the group-of box that holds the largest share of them; a
    group-of box which has any becomes one true detection, with the highest of their scores.

    Returns:
        scores ``[m]`` and how much each is true ``[m]``: 1, ``group_of_weight`` or 0. Detections of a group-of box are
        one entry together, none where the weight is 0.
    """
    order = np.lexsort((-scores, image))
    image, scores, corners = image[order], scores[order], corners[order]
    first = np.searchsorted(image, image, side="left")
    within = np.arange(len(image)) - first < MAX_DETECTIONS
    image, scores, corners = image[within], scores[within], corners[within]

    iou, best = _best_boxes(image, corners, boxes, _iou)
    candidates = np.flatnonzero(iou >= MATCH_THRESHOLD)  # those of one image by falling score
    _, of_candidate = np.unique(best[candidates], return_index=True)
    is_true = np.zeros(len(image), dtype=bool)
    is_true[candidates[of_candidate]] = True

    rest = np.flatnonzero(~is_true)
    share, group = _best_boxes(image[rest], corners[rest], groups, _share_inside)
    in_group = share >= MATCH_THRESHOLD
    counted = np.ones(len(image), dtype=bool)
    counted[rest[in_group]] = False
    scores_true, true = scores[counted], is_true[counted].astype(np.float64)
    if group_of_weight > 0 and in_group.any():
        found, first_of = np.unique(group[in_group], return_index=True)  # an image's are by falling score
        scores_true = np.concatenate([scores_true, scores[rest[in_group]][first_of]])
        true = np.concatenate([true, np.full(len(found), group_of_weight)])
    return scores_true, true


def _best_boxes(image: np.ndarray, corners: np.ndarray, boxes: Boxes, overlap) -> Tuple[np.ndarray, np.ndarray]:
    """Return the largest overlap of each detection with a box of its image, and that box; -1 where it has none.

    Of several boxes that overlap alike the first one is taken.
    """
    largest, best = np.full(len(image), -1.0), np.full(len(image), -1)
    start = np.searchsorted(boxes.image, image, side="left")
    count = np.searchsorted(boxes.image, image, side="right") - start
    some = np.flatnonzero(count)
    ends = np.cumsum(count[some])
    begin = 0
    while begin < len(some):
        before = ends[begin - 1] if begin else 0
        end = max(int(np.searchsorted(ends, before + PAIRS_AT_ONCE, side="right")), begin + 1)
        part = some[begin:end]
        counts = count[part]
        starts = np.cumsum(counts) - counts
        pair_box = np.arange(counts.sum()) - np.repeat(starts - start[part], counts)
        overlaps = overlap(np.repeat(corners[part], counts, axis=0), boxes.corners[pair_box])
        largest[part] = np.maximum.reduceat(overlaps, starts)
        is_best = overlaps == np.repeat(largest[part], counts)
        best[part] = np.minimum.reduceat(np.where(is_best, pair_box, len(boxes.image)), starts)
        begin = end
    return largest, best


def _intersection(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    low, high = np.maximum(one[:, :2], other[:, :2]), np.minimum(one[:, 2:], other[:, 2:])
    return np.clip(high - low, 0, None).prod(axis=1)


def _area(corners: np.ndarray) -> np.ndarray:
    return (corners[:, 2:] - corners[:, :2]).prod(axis=1)


def _iou(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    intersection = _intersection(one, other)
    return intersection / (_area(one) + _area(other) - intersection)


def _share_inside(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return _intersection(one, other) / _area(one)


def average_precision(scores: np.ndarray, true: np.ndarray, num_objects: float) -> float:
    """Return the area under the precision curve, made monotone, over recall.

    Args:
        scores: ``[n]``; the order of equal ones is that of the array.
        true: ``[n]``, how much each detection is true; one that is not at all counts as one false detection.
        num_objects: what recall is a share of, positive.
    """
    true = true[np.argsort(-scores, kind="stable")]
    cumulative = np.cumsum(true)
    precision = cumulative / (cumulative + np.cumsum(true <= 0))
    recall = np.concatenate([[0.0], cumulative / num_objects])
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall) * envelope))
