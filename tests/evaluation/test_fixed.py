"""AP-fixed against a slow and obvious re-implementation."""

import numpy as np
import pytest

from eql_d2.errors import InputError
from eql_d2.evaluation import backends
from eql_d2.evaluation.backends import evaluate_results
from tests.evaluation.helpers import assert_equal, make_detections, make_ground_truth, plain_lvis

LIMIT = 25


def slow_fixed(ground_truth, detections, iou_type, tmp_path):
    """Keep the best ``LIMIT`` of each category by repeated search, then score them without a cap."""
    kept = []
    for category in ground_truth["categories"]:
        pool = [record for record in detections if record["category_id"] == category["id"]]
        for _ in range(min(LIMIT, len(pool))):
            best = pool[0]
            for record in pool:
                if record["score"] > best["score"]:
                    best = record
            pool = [record for record in pool if record is not best]
            kept.append(best)
    metrics, category_ap = plain_lvis(ground_truth, kept, iou_type, tmp_path, max_detections=-1)
    return {name.partition("@")[0]: value for name, value in metrics.items()}, category_ap


@pytest.mark.parametrize("backend", ["hotcoco", "lvis"])
@pytest.mark.parametrize("iou_type", ["bbox", "segm"])
@pytest.mark.parametrize("scores", [None, [0.2, 0.5]], ids=["random", "ties"])
def test_fixed(backend, iou_type, scores, tmp_path, monkeypatch):
    monkeypatch.setattr(backends, "FIXED_DETECTIONS_PER_CATEGORY", LIMIT)
    rng = np.random.default_rng(0)
    ground_truth = make_ground_truth(rng, num_images=4)
    detections = make_detections(rng, ground_truth, per_image=120, scores=scores)
    evaluation = evaluate_results(ground_truth, detections, iou_type, backend=backend, fixed=True)
    assert_equal(evaluation, *slow_fixed(ground_truth, detections, iou_type, tmp_path))
    monkeypatch.setattr(backends, "FIXED_DETECTIONS_PER_CATEGORY", 10_000)
    unlimited = evaluate_results(ground_truth, detections, iou_type, backend=backend, fixed=True)
    assert unlimited.metrics["AP"] != evaluation.metrics["AP"]


@pytest.mark.parametrize("backend", ["hotcoco", "lvis"])
def test_fixed_has_no_cap_per_image(backend):
    rng = np.random.default_rng(1)
    ground_truth = make_ground_truth(rng, num_images=2)
    detections = make_detections(rng, ground_truth, per_image=400)
    fixed = evaluate_results(ground_truth, detections, backend=backend, fixed=True, max_detections=3)
    unlimited = evaluate_results(ground_truth, detections, backend=backend, max_detections=-1)
    capped = evaluate_results(ground_truth, detections, backend=backend, max_detections=3)
    assert fixed.metrics["AP"] == unlimited.metrics["AP"] > capped.metrics["AP"]
    assert {"AR", "ARs", "ARm", "ARl"} < set(fixed.metrics)


def test_coco_has_no_fixed():
    with pytest.raises(InputError, match="LVIS protocol only"):
        evaluate_results({}, [], fixed=True, protocol="coco")
