"""How well the detections of one image fit its ground truth: the measure that images are sorted by."""

from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence

import numpy as np
import pycocotools.mask as mask_util

from eql_d2.visualization.objects import VisualObject

#: Least intersection over union of a match.
IOU_THRESHOLD = 0.5
#: What can be said of a detection.
VERDICTS = {
    "hit": "matches an annotated object of its class",
    "wrong": "matches none",
    "unjudged": "not judged: the image's annotations do not say whether its class is there",
}


@dataclass(frozen=True)
class Match:
    """Detections against the ground truth of one image.

    Attributes:
        hits: detections that match an object; each object is matched at most once.
        wrong: detections that match none.
        missed: objects without a detection.
        unjudged: detections that neither count for nor against.
    """

    hits: int
    wrong: int
    missed: int
    unjudged: int

    @property
    def f1(self) -> float:
        """2 hits / (2 hits + wrong + missed), in [0, 1]; 1 where there is nothing to find and nothing wrong."""
        total = 2 * self.hits + self.wrong + self.missed
        return 2 * self.hits / total if total else 1.0


def match_image(truth: Sequence[VisualObject], detections: Sequence[VisualObject], record: Dict[str, Any]) -> Match:
    """Match detections, the best score first, with objects of the same class at IoU 0.5, and set their verdicts.

    As in LVIS evaluation, a detection that matches nothing is not judged if its class is neither in the positive nor
    in the negative set of the image, or not exhaustively annotated, or if a crowd region of its class holds it. The IoU
    is that of the masks, or of the boxes unless all of both sides have masks.

    Args:
        truth: objects of the image; ``verdict`` stays as it is.
        detections: ``verdict`` becomes "hit", "wrong" or "unjudged".
        record: the dataset dict, for ``height``, ``width``, ``image_labels`` and ``not_exhaustive_category_ids``.
    """
    overlaps = iou_matrix(detections, truth, int(record["height"]), int(record["width"]))
    taken = np.zeros(len(truth), dtype=bool)
    for i in sorted(range(len(detections)), key=lambda i: -(detections[i].score or 0)):
        found = detections[i]
        same = np.array([other.label == found.label for other in truth], dtype=bool)
        crowd = np.array([other.crowd for other in truth], dtype=bool)
        candidates = np.where(same & ~crowd & ~taken, overlaps[i], -1.0)
        best = int(candidates.argmax()) if len(truth) else -1
        if best >= 0 and candidates[best] >= IOU_THRESHOLD:
            taken[best] = True
            found.verdict = "hit"
        elif (overlaps[i][same & crowd] >= IOU_THRESHOLD).any() or not _is_verified(found.label, record):
            found.verdict = "unjudged"
        else:
            found.verdict = "wrong"
    verdicts = [found.verdict for found in detections]
    missed = sum(not other.crowd for other in truth) - int(taken.sum())
    return Match(verdicts.count("hit"), verdicts.count("wrong"), missed, verdicts.count("unjudged"))


def iou_matrix(
    detections: Sequence[VisualObject], truth: Sequence[VisualObject], height: int, width: int
) -> np.ndarray:
    """Return float64 ``[detections, truth]`` IoUs; with a crowd region, the share of the detection that lies in it."""
    if not detections or not truth:
        return np.zeros((len(detections), len(truth)))
    crowd = [int(other.crowd) for other in truth]
    if all(found.has_mask for found in (*detections, *truth)):
        sides: List[List[Any]] = [[o.run_lengths(height, width) for o in side] for side in (detections, truth)]
    else:
        sides = [[_xywh(o) for o in side] for side in (detections, truth)]
    return np.asarray(mask_util.iou(*sides, crowd), dtype=float).reshape(len(detections), len(truth))


def _xywh(found: VisualObject) -> List[float]:
    left, top, right, bottom = found.box
    return [left, top, right - left, bottom - top]


def _is_verified(label: int, record: Dict[str, Any]) -> bool:
    """Whether the annotations of an image tell that an unmatched detection of a class is wrong."""
    labels: Optional[Dict[str, Sequence[int]]] = record.get("image_labels")
    if labels is None:
        return True
    if label in record.get("not_exhaustive_category_ids", ()):
        return False
    return label in labels["positive"] or label in labels["negative"]
