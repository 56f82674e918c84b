"""Precision and recall by hotcoco, in Rust. It parses the json files too: no Python object for each detection."""

import os
from typing import Any, List, Optional

import numpy as np

from eql_d2.errors import InputError
from eql_d2.evaluation.metrics import AREAS, IOU_THRESHOLDS, Curves
from eql_d2.evaluation.results_file import Results, for_iou_type, source_name

#: Larger than any number of detections: no cap.
_NO_CAP = 2**31 - 1
#: Categories that are accumulated at once: 32 kB each, so that they stay in a processor's cache.
_CATEGORIES = 256


def lvis_curves(annotations: Any, results: Results, iou_type: str, max_detections: int, per_category: int) -> Curves:
    """Evaluate in the LVIS protocol; arguments as in :func:`eql_d2.evaluation.backends.evaluate_results`."""
    ground_truth = load_ground_truth(annotations)
    with for_iou_type(results, iou_type) as prepared:
        detections = _load_detections(ground_truth, prepared, max_detections, source_name(results, "results"))
    if per_category:
        _drop_beyond(detections, per_category)
    detections = _with_positive_area(detections)
    if max_detections < 0 or max_detections > 300:
        # Mark them as capped, or hotcoco applies its default of 300 once more.
        detections = detections.cap_detections_per_image(None)
    return _curves(ground_truth, detections, iou_type, lvis_style=True)


def coco_curves(annotations: Any, results: Results, iou_type: str, max_detections: int) -> Curves:
    """Evaluate in the COCO protocol; arguments as in :func:`eql_d2.evaluation.backends.evaluate_results`."""
    ground_truth = load_ground_truth(annotations)
    with for_iou_type(results, iou_type) as prepared:
        detections = _load_detections(ground_truth, prepared, -1, source_name(results, "results"))
    return _curves(ground_truth, detections, iou_type, max_detections if max_detections >= 0 else _NO_CAP)


def load_ground_truth(annotations: Any):
    """Return hotcoco's data set of an annotation file (a path) or of its parsed content, both checked before.

    Raises:
        InputError: if hotcoco refuses it all the same.
    """
    import hotcoco

    try:
        return hotcoco.COCO(os.fspath(annotations) if isinstance(annotations, (str, os.PathLike)) else annotations)
    except (ValueError, OSError) as error:
        source = source_name(annotations, "annotations")
        raise InputError(f"{source} is no annotation file in LVIS or COCO format ({_one_line(error)}).") from None


def _load_detections(ground_truth, results: Results, cap: int, source: str):
    """Return hotcoco's data set of detections, checked before: the best ``cap`` of each image (all if negative).

    Raises:
        InputError: if hotcoco refuses the file all the same.
    """
    import hotcoco

    try:
        results = os.fspath(results) if isinstance(results, (str, os.PathLike)) else list(results)
        return hotcoco.LVISResults(ground_truth, results, max_dets=cap)
    except (ValueError, TypeError, KeyError, OSError) as error:
        raise InputError(f"{source} is no valid results file ({_one_line(error)}); is the file complete?") from None


def _drop_beyond(detections, limit: int) -> None:
    """Mark all but the best ``limit`` detections of each category, ties in the order of the file, by an area of 0."""
    surplus: List[int] = []
    for category in detections.stats()["per_category"]:
        if category["ann_count"] <= limit:
            continue
        ids = np.sort(detections.get_ann_ids(cat_ids=[category["id"]]))
        scores = np.array([annotation["score"] for annotation in detections.load_anns(ids.tolist())])
        surplus.extend(ids[np.argsort(-scores, kind="stable")[limit:]].tolist())
    if surplus:
        detections.update_anns(ids=surplus, area=np.zeros(len(surplus)))


def _with_positive_area(detections):
    """Drop empty masks and boxes without width, as lvis does after the cap per image: they would be false positives."""
    positive = [float(np.nextafter(0.0, 1.0)), float("inf")]
    if len(detections.get_ann_ids(area_rng=positive)) == len(detections.get_ann_ids()):
        return detections
    return detections.filter(area_rng=positive, drop_empty_images=False)


def _curves(ground_truth: Any, detections: Any, iou_type: str, cap: Optional[int] = None, **options: Any) -> Curves:
    """Run hotcoco's evaluation and take precision and recall at the largest cap out of it.

    Categories without an object, of which there is nothing to compute, are left out, and the others taken some hundred
    at a time: hotcoco holds 101 precisions of each at every threshold and area, gigabytes of 20,000 categories.

    Args:
        ground_truth, detections: hotcoco's data sets.
        iou_type: "bbox" or "segm".
        cap: detections that count; hotcoco's own if ``None``.
        options: of hotcoco's evaluation.
    """
    import hotcoco

    objects = {category["id"]: category["ann_count"] for category in ground_truth.stats()["per_category"]}
    category_ids = np.array(sorted(objects), dtype=np.int64)
    present = np.flatnonzero([objects[category_id] > 0 for category_id in category_ids.tolist()])
    shape = len(IOU_THRESHOLDS), len(category_ids), len(AREAS)
    curves = Curves(np.full(shape, -1.0), np.full(shape, -1.0))
    for start in range(0, len(present), _CATEGORIES):
        part = present[start : start + _CATEGORIES]
        evaluation: Any = hotcoco.COCOeval(ground_truth, detections, iou_type, **options)
        evaluation.params.cat_ids = category_ids[part].tolist()
        if cap is not None:
            evaluation.params.max_dets = [cap]
        evaluation.evaluate()
        evaluation.accumulate()
        curves.precision[:, part] = evaluation.eval["precision"][..., -1].mean(axis=1)
        curves.recall[:, part] = evaluation.eval["recall"][..., -1]
    return curves


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
