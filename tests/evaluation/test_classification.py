"""Accuracy of image classifiers, against scikit-learn where it has the metric."""

import csv
import json

import numpy as np
import pytest
import torch
from detectron2.data import MetadataCatalog

from eql_d2.data.frequency import CategoryFrequency
from eql_d2.errors import InputError
from eql_d2.evaluation.classification import (
    ClassificationEvaluator,
    expected_calibration_error,
    shot_groups,
)

sklearn_metrics = pytest.importorskip("sklearn.metrics")
NUM_CLASSES, NUM_IMAGES = 12, 300
COUNTS = [500, 300, 101, 100, 60, 40, 20, 19, 10, 5, 2, 1]


def predictions(seed=0):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, NUM_CLASSES - 1, (NUM_IMAGES,), generator=generator)  # the last class has no test image
    logits = torch.randn(NUM_IMAGES, NUM_CLASSES, generator=generator)
    logits[torch.arange(NUM_IMAGES), labels] += 1.5
    return labels, torch.softmax(2 * logits, 1)


def evaluate(labels, scores, folder=None, frequency=None):
    evaluator = ClassificationEvaluator("made_up_classes", folder, frequency)
    for part in torch.arange(len(labels)).split(64):
        inputs = [{"image_id": int(i), "gt_class": int(labels[i])} for i in part]
        evaluator.process(inputs, [{"scores": scores[i]} for i in part])
    return evaluator.evaluate()


def frequency():
    return CategoryFrequency.from_counts(COUNTS, num_images=sum(COUNTS))


def test_against_scikit_learn():
    labels, scores = predictions()
    metrics = evaluate(labels, scores, frequency=frequency())["classification"]
    truth, best = labels.numpy(), scores.argmax(1).numpy()
    everything = np.arange(NUM_CLASSES)
    assert metrics["top1"] == pytest.approx(100 * sklearn_metrics.accuracy_score(truth, best))
    top5 = sklearn_metrics.top_k_accuracy_score(truth, scores.numpy(), k=5, labels=everything)
    assert metrics["top5"] == pytest.approx(100 * top5)
    recall = sklearn_metrics.recall_score(truth, best, labels=everything[:-1], average=None)
    assert metrics["balanced"] == pytest.approx(100 * recall.mean())
    assert metrics["Many"] == pytest.approx(100 * recall[:3].mean())
    assert metrics["Medium"] == pytest.approx(100 * recall[3:7].mean())
    assert metrics["Few"] == pytest.approx(100 * recall[7:].mean())


def test_bounds_of_the_shots():
    assert shot_groups([101, 100, 20, 19, 0]) == ["Many", "Medium", "Medium", "Few", "Few"]


def test_calibration_error_is_the_slow_sum_over_bins():
    random = np.random.RandomState(0)
    confidence = np.concatenate([random.rand(500), [0.0, 1.0, 0.2, 1 / 15]])
    correct = random.rand(504) < confidence**2
    expected = 0.0
    for b in range(15):
        inside = [i for i in range(504) if (b / 15 < confidence[i] <= (b + 1) / 15) or (b == 0 and confidence[i] == 0)]
        if inside:
            gap = abs(np.mean(confidence[inside]) - np.mean(correct[inside]))
            expected += len(inside) / 504 * gap
    assert expected_calibration_error(confidence, correct) == pytest.approx(expected)
    assert expected_calibration_error(np.ones(4), np.array([True, True, False, False])) == pytest.approx(0.5)


def test_tables(tmp_path):
    MetadataCatalog.pop("made_up_classes", None)
    MetadataCatalog.get("made_up_classes").thing_classes = [f"class {k}" for k in range(NUM_CLASSES)]
    labels, scores = predictions()
    evaluate(labels, scores, str(tmp_path), frequency())
    rows = json.loads((tmp_path / "per_category_accuracy.json").read_text())
    assert [row["train_images"] for row in rows] == COUNTS
    assert rows[0]["name"] == "class 0"
    assert [rows[i]["group"] for i in (2, 3, 7)] == ["Many", "Medium", "Few"]
    assert rows[-1]["accuracy"] is None
    own = labels == 4
    assert rows[4]["accuracy"] == pytest.approx(100 * float((scores.argmax(1)[own] == 4).float().mean()))
    assert sum(row["test_images"] for row in rows) == NUM_IMAGES
    with (tmp_path / "per_category_accuracy.csv").open() as file:
        assert [row["accuracy"] for row in csv.DictReader(file)][-1] == ""


def test_without_training_counts():
    metrics = evaluate(*predictions())["classification"]
    assert list(metrics) == ["top1", "top5", "balanced", "ECE"]


def test_an_image_that_two_ranks_saw_counts_once():
    labels, scores = predictions()
    twice = torch.cat([torch.arange(NUM_IMAGES), torch.arange(10)])
    evaluator = ClassificationEvaluator("made_up_classes")
    inputs = [{"image_id": int(i), "gt_class": int(labels[i])} for i in twice]
    evaluator.process(inputs, [{"scores": scores[i]} for i in twice])
    assert evaluator.evaluate() == evaluate(labels, scores)


def test_bad_input():
    with pytest.raises(InputError, match="no prediction"):
        ClassificationEvaluator("made_up_classes").evaluate()
    with pytest.raises(InputError, match="12 categories, the model gives 3 scores"):
        evaluate(torch.tensor([0]), torch.rand(1, 3), frequency=frequency())
