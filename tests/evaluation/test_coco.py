"""COCO-format sets against a plain call of pycocotools."""

import contextlib
import copy
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from eql_d2.evaluation.backends import evaluate_results
from tests.evaluation.helpers import TOLERANCE, make_detections, make_ground_truth


def make_coco_ground_truth(rng):
    """Return parsed COCO annotations, one of six a crowd region."""
    content = make_ground_truth(rng, letters=None)
    for image in content["images"]:
        del image["neg_category_ids"], image["not_exhaustive_category_ids"]
    for annotation in content["annotations"]:
        annotation["iscrowd"] = int(annotation["id"] % 6 == 0)
    return content


def plain_coco(ground_truth, detections, iou_type, max_detections):
    """Return AP, AP50, AP75, APs, APm, APl and the recall at the last cap as pycocotools prints them."""
    detections = copy.deepcopy(detections)
    if iou_type == "segm":
        for detection in detections:
            del detection["bbox"]
    with contextlib.redirect_stdout(io.StringIO()):
        annotations = COCO()
        annotations.dataset = {**copy.deepcopy(ground_truth), "info": {}}
        annotations.createIndex()
        evaluation = COCOeval(annotations, annotations.loadRes(detections), iou_type)
        evaluation.params.maxDets = [1, max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
    precision, recall = evaluation.eval["precision"][..., -1], evaluation.eval["recall"][..., -1]
    means = [precision[..., 0], precision[0, ..., 0], precision[5, ..., 0]]
    means += [precision[..., i] for i in (1, 2, 3)] + [recall[..., 0]]
    return [values[values > -1].mean() if (values > -1).any() else np.nan for values in means]


@pytest.mark.parametrize("cap", [7, 100])
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("backend", ["hotcoco", "lvis"])
def test_coco_metrics(backend, iou_type, cap):
    rng = np.random.default_rng(0)
    ground_truth = make_coco_ground_truth(rng)
    detections = make_detections(rng, ground_truth, per_image=60, scores=np.linspace(0, 1, 30))
    options = {"backend": backend, "protocol": "coco", "max_detections": cap}
    metrics = evaluate_results(ground_truth, detections, iou_type, **options).metrics
    names = ["AP", "AP50", "AP75", "APs", "APm", "APl", f"AR@{cap}"]
    expected = plain_coco(ground_truth, detections, iou_type, cap)
    np.testing.assert_allclose([metrics[name] for name in names], expected, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("backend", ["hotcoco", "lvis"])
def test_coco_groups(backend):
    rng = np.random.default_rng(1)
    ground_truth = make_coco_ground_truth(rng)
    detections = make_detections(rng, ground_truth)
    letters = {category["id"]: "rcf"[k % 3] for k, category in enumerate(ground_truth["categories"])}
    options = {"backend": backend, "protocol": "coco", "max_detections": -1}
    evaluation = evaluate_results(ground_truth, detections, groups=letters, **options)
    for group in "rcf":
        own = [ap for ap, letter in zip(evaluation.category_ap, evaluation.groups) if letter == group]
        assert evaluation.metrics[f"AP{group}"] == pytest.approx(np.nanmean(own))


@pytest.mark.parametrize("backend", ["hotcoco", "lvis"])
def test_coco_without_detections(backend):
    ground_truth = make_coco_ground_truth(np.random.default_rng(2))
    assert evaluate_results(ground_truth, [], backend=backend, protocol="coco").metrics["AP"] == 0
