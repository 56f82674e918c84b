"""Precision and recall of every category, and the averages that papers print. Needs numpy only."""

from dataclasses import dataclass
from typing import Dict, Sequence

import numpy as np

from eql_d2.data.groups import GROUPS

AREAS = ("all", "small", "medium", "large")
IOU_THRESHOLDS = np.linspace(0.5, 0.95, 10)
#: Dave et al., arXiv 2102.01066: detections that AP-fixed keeps of each category, over the whole set.
FIXED_DETECTIONS_PER_CATEGORY = 10_000
NOT_AVAILABLE = "n/a"


@dataclass(frozen=True, eq=False)
class Curves:
    """What an evaluator computes of each category.

    Attributes:
        precision: float64 ``[10 IoU thresholds, K, 4 areas]``, the mean over the 101 recalls; -1 for a category without
            ground truth of that size.
        recall: float64 ``[10 IoU thresholds, K, 4 areas]``; -1 likewise.

    The K categories are those of the annotation file, by ascending id.
    """

    precision: np.ndarray
    recall: np.ndarray


def mean_of_valid(values: np.ndarray) -> float:
    """Return the mean of the entries above -1, NaN if there is none: the entries at -1 have no ground truth."""
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else float("nan")


def summarize(curves: Curves, groups: Sequence[str], max_detections: int) -> Dict[str, float]:
    """Average precision and recall as ``lvis`` 0.5.3 does.

    Args:
        curves: of one IoU type.
        groups: letter r, c or f of each category, K of them.
        max_detections: the cap on detections, for the names of the recalls; negative for no cap.

    Returns:
        AP, AP50, AP75, APs, APm, APl, APr, APc, APf, AR@N, ARs@N, ARm@N, ARl@N in [0, 1]; NaN without ground truth.
    """
    precision, recall = curves.precision, curves.recall
    letters = np.asarray(groups)
    metrics = {"AP": mean_of_valid(precision[..., 0])}
    for threshold in (0.5, 0.75):
        row = int(np.flatnonzero(np.isclose(IOU_THRESHOLDS, threshold))[0])
        metrics[f"AP{threshold * 100:.0f}"] = mean_of_valid(precision[row, :, 0])
    for i, area in enumerate(AREAS[1:], 1):
        metrics[f"AP{area[0]}"] = mean_of_valid(precision[..., i])
    for group in GROUPS:
        metrics[f"AP{group}"] = mean_of_valid(precision[:, letters == group, 0])
    cap = f"@{max_detections}" if max_detections >= 0 else ""
    for i, area in enumerate(AREAS):
        metrics[f"AR{area[0] if i else ''}{cap}"] = mean_of_valid(recall[..., i])
    return metrics


def category_ap(curves: Curves) -> np.ndarray:
    """Return AP of each category at all areas, float64 ``[K]`` in [0, 1]; NaN without ground truth."""
    precision = np.ascontiguousarray(curves.precision[..., 0].T)
    return np.where((precision > -1).all(axis=1), precision.mean(axis=1), np.nan)


def format_value(value: float, scale: float = 100.0, digits: int = 2) -> str:
    """Return ``value * scale`` for a table, "n/a" for NaN."""
    return NOT_AVAILABLE if np.isnan(value) else f"{value * scale:.{digits}f}"
