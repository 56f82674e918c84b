"""AP of a results file, by whichever evaluator is installed; all give the same numbers."""

import importlib.util
from dataclasses import dataclass
from typing import Any, Dict, List, Mapping

import numpy as np

from eql_d2.errors import InputError
from eql_d2.evaluation import hotcoco_backend, reference_backend
from eql_d2.evaluation.metrics import (
    FIXED_DETECTIONS_PER_CATEGORY,
    category_ap,
    resolve_groups,
    summarize,
)
from eql_d2.evaluation.results_file import Results, check_record, first_record, source_name

BACKENDS = ("auto", "hotcoco", "lvis")
IOU_TYPES = ("bbox", "segm")
PROTOCOLS = ("lvis", "coco")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The metrics of one IoU type.

    Attributes:
        iou_type: "bbox" or "segm".
        metrics: AP, AP50, AP75, APs, APm, APl, APr, APc, APf, AR@N, ARs@N, ARm@N, ARl@N in [0, 1]; NaN where a group
            has no ground truth. Without a cap the recalls are AR, ARs, ARm, ARl.
        categories: the K category records of the annotation file, by ascending id.
        groups: the letter r, c or f of each category.
        category_ap: float64 ``[K]`` in [0, 1]; NaN for a category without ground truth.
    """

    iou_type: str
    metrics: Dict[str, float]
    categories: List[Dict[str, Any]]
    groups: List[str]
    category_ap: np.ndarray


def choose_backend(name: str = "auto") -> str:
    """Return "hotcoco" or "lvis" for a name in ``MODEL.LONG_TAIL.EVALUATOR``.

    Raises:
        InputError: if the name is unknown or its package is not installed.
    """
    if name not in BACKENDS:
        raise InputError(f"MODEL.LONG_TAIL.EVALUATOR is {name!r}; it must be one of {', '.join(BACKENDS)}.")
    installed = importlib.util.find_spec("hotcoco") is not None
    if name == "auto":
        return "hotcoco" if installed else "lvis"
    if name == "hotcoco" and not installed:
        raise InputError("MODEL.LONG_TAIL.EVALUATOR is 'hotcoco', which is not installed; 'auto' falls back on lvis.")
    return name


def evaluate_results(
    annotations: Any,
    results: Results,
    iou_type: str = "bbox",
    *,
    backend: str = "auto",
    max_detections: int = 300,
    fixed: bool = False,
    groups: Mapping[int, str] = (),
    protocol: str = "lvis",
) -> Evaluation:
    """Compute AP and AR as ``lvis`` 0.5.3 (or pycocotools) does.

    Detections of area 0 and of categories that the annotation file does not list count towards the cap and are then
    ignored, as lvis does it. Mask evaluation uses the area of the mask even if a detection has a box too.

    Args:
        annotations: path of an annotation file in LVIS format, or its parsed content.
        results: path of a results file in the official format (a json list of ``image_id``, ``category_id``,
            ``score``, ``bbox`` and/or ``segmentation``), or the list itself. Nothing in it is changed.
        iou_type: "bbox" or "segm".
        backend: "auto", "hotcoco" or "lvis"; "lvis" means pycocotools for the COCO protocol.
        max_detections: detections that count of each image over all classes (LVIS), or of each image and class
            (COCO); negative for all of them. LVIS's own value is 300.
        fixed: AP-fixed (Dave et al., arXiv 2102.01066): no cap per image, but the 10,000 best detections of each
            category over the whole set. LVIS protocol only.
        groups: letter r, c or f by category id; where absent, the letters in the annotation file or LVIS's bounds.
        protocol: "lvis" (federated: only verified categories count) or "coco".

    Returns:
        The metrics, and AP of each category.

    Raises:
        InputError: for files that are missing, damaged or do not fit each other.
    """
    for value, allowed, what in ((iou_type, IOU_TYPES, "IoU type"), (protocol, PROTOCOLS, "protocol")):
        if value not in allowed:
            raise InputError(f"{value!r} is no {what}; there are {' and '.join(allowed)}.")
    if fixed and protocol != "lvis":
        raise InputError("AP-fixed is defined for the LVIS protocol only; leave it out for a COCO-format set.")
    record = first_record(results)
    if record is not None:
        check_record(record, iou_type, source_name(results, "results"))
    program = hotcoco_backend if choose_backend(backend) == "hotcoco" else reference_backend
    cap = -1 if fixed else max_detections
    if protocol == "coco":
        curves = program.coco_curves(annotations, results, iou_type, cap)
    else:
        per_category = FIXED_DETECTIONS_PER_CATEGORY if fixed else 0
        curves = program.lvis_curves(annotations, results, iou_type, cap, per_category)
    letters = resolve_groups(curves, groups)
    return Evaluation(iou_type, summarize(curves, letters, cap), curves.categories, letters, category_ap(curves))
