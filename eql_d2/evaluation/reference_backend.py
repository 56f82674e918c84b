"""Precision and recall by the reference programs: lvis 0.5.3 for the LVIS protocol, pycocotools for COCO's."""

import contextlib
import io
import json
import logging
import os
import types
from typing import Any, Dict, List

import numpy as np

from eql_d2.errors import InputError
from eql_d2.evaluation.metrics import Curves
from eql_d2.evaluation.results_file import Results, encode_segmentation, load_detections


def lvis_curves(annotations: Any, results: Results, iou_type: str, max_detections: int, per_category: int) -> Curves:
    """Evaluate in the LVIS protocol; arguments as in :func:`eql_d2.evaluation.backends.evaluate_results`."""
    evaluation = lvis_evaluator(annotations, results, iou_type, max_detections, per_category)
    evaluation.evaluate()
    evaluation.accumulate()
    order = np.argsort(evaluation.params.cat_ids)
    return Curves(evaluation.eval["precision"].mean(axis=1)[:, order], evaluation.eval["recall"][:, order])


def lvis_evaluator(
    annotations: Any, results: Results, iou_type: str, max_detections: int, per_category: int = 0
) -> Any:
    """Return a ``lvis.LVISEval`` of which nothing is computed yet; arguments as for :func:`lvis_curves`."""
    lvis = import_lvis()
    content = load_annotations(annotations, iou_type == "segm")
    detections = _prepare(results, iou_type)
    if per_category:
        detections = _best_of_each_category(detections, per_category)
    ground_truth = lvis.LVIS.__new__(lvis.LVIS)
    ground_truth.logger = logging.getLogger("lvis.lvis")
    # lvis insists on a letter for each category; the groups are formed elsewhere.
    sets = ("neg_category_ids", "not_exhaustive_category_ids")
    ground_truth.dataset = {
        **content,
        "categories": [{**category, "frequency": "f"} for category in content["categories"]],
        "images": [{**image, **{key: image.get(key) or [] for key in sets}} for image in content["images"]],
    }
    ground_truth._create_index()
    if not detections:
        # lvis fails on an empty list. It drops a detection of area 0, so this one stands for none.
        detections = [
            {"image_id": content["images"][0]["id"], "category_id": content["categories"][0]["id"], "score": 0.0}
        ]
        detections[0]["bbox"] = [0.0, 0.0, 0.0, 0.0]
    return lvis.LVISEval(ground_truth, lvis.LVISResults(ground_truth, detections, max_detections), iou_type)


def coco_curves(annotations: Any, results: Results, iou_type: str, max_detections: int) -> Curves:
    """Evaluate in the COCO protocol; arguments as in :func:`eql_d2.evaluation.backends.evaluate_results`."""
    evaluation = coco_evaluator(annotations, results, iou_type, max_detections)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.evaluate()
        evaluation.accumulate()
    order = np.argsort(evaluation.params.catIds)
    precision, recall = evaluation.eval["precision"][..., -1], evaluation.eval["recall"][..., -1]
    return Curves(precision.mean(axis=1)[:, order], recall[:, order])


def coco_evaluator(annotations: Any, results: Results, iou_type: str, max_detections: int) -> Any:
    """Return a ``pycocotools`` ``COCOeval`` of which nothing is computed yet; arguments as for :func:`coco_curves`."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    content = load_annotations(annotations, iou_type == "segm")
    detections = _prepare(results, iou_type)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        ground_truth = COCO()
        ground_truth.dataset = content
        ground_truth.createIndex()
        content.setdefault("info", {})
        if detections:
            prepared = ground_truth.loadRes(detections)
        else:
            prepared = COCO()
            prepared.dataset = {"images": content["images"], "categories": content["categories"], "annotations": []}
            prepared.createIndex()
        evaluation = COCOeval(ground_truth, prepared, iou_type)
        evaluation.params.maxDets = [max_detections if max_detections >= 0 else max(len(detections), 1)]
    return evaluation


def import_lvis() -> types.ModuleType:
    """Import lvis, which uses ``np.float`` and takes over the root logger, without harm to anybody else.

    ``np.float`` left NumPy with 1.24. lvis gets a namespace of its own that has it; numpy is not changed.

    Raises:
        InputError: if lvis is not installed.
    """
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        import lvis
        import lvis.eval
    except ImportError as error:
        raise InputError(f"MODEL.LONG_TAIL.EVALUATOR 'lvis' needs the package lvis ({error}).") from None
    finally:
        # lvis calls logging.basicConfig when it is imported.
        root.handlers[:] = handlers
        root.setLevel(level)
    lvis.eval.np = types.SimpleNamespace(**{**vars(np), "float": float})
    logging.getLogger("lvis.results").setLevel(logging.ERROR)  # it warns of every list of detections
    return lvis


def load_annotations(annotations: Any, with_masks: bool = True) -> Dict[str, Any]:
    """Return the parsed annotation file, or a copy of parsed content, checked before; its records may be changed.

    Args:
        annotations: a path or parsed content.
        with_masks: whether masks are evaluated. They are run lengths then; polygons that are none are left out.
    """
    content = annotations
    if isinstance(annotations, (str, os.PathLike)):
        try:
            with open(annotations, "rb") as file:
                content = json.load(file)
        except (ValueError, RecursionError) as error:  # in a field that the reader passes over
            raise InputError(f"{annotations} is not valid json ({error}); is the download complete?") from None
    lists = {key: [dict(record) for record in content[key]] for key in ("images", "annotations", "categories")}
    sizes = {image["id"]: (image["height"], image["width"]) for image in lists["images"]}
    for annotation in lists["annotations"]:
        annotation["iscrowd"] = annotation.get("iscrowd") or 0
        if with_masks and annotation["image_id"] in sizes:
            annotation["segmentation"] = encode_segmentation(annotation["segmentation"], *sizes[annotation["image_id"]])
    return {**content, **lists}


def _prepare(results: Results, iou_type: str) -> List[Dict[str, Any]]:
    """Return the detections as dicts of their own, without boxes for mask evaluation."""
    detections = load_detections(results)
    if iou_type == "segm":
        # Else the reference takes the area, which decides small, medium or large, from the box.
        for detection in detections:
            detection.pop("bbox", None)
    return detections


def _best_of_each_category(detections: List[Dict[str, Any]], limit: int) -> List[Dict[str, Any]]:
    """Return at most ``limit`` detections of each category, the best scores, ties in the order of the file."""
    of_category: Dict[int, List[Dict[str, Any]]] = {}
    for detection in detections:
        of_category.setdefault(detection["category_id"], []).append(detection)
    best = (sorted(group, key=lambda record: record["score"], reverse=True)[:limit] for group in of_category.values())
    return [detection for group in best for detection in group]
