"""IoU and accuracy of semantic segmentation, against Detectron2's evaluator and a loop over pixels."""

import csv
import json
import logging

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import SemSegEvaluator
from detectron2.utils import comm
from PIL import Image

from eql_d2.config import get_cfg
from eql_d2.data.frequency import CategoryFrequency
from eql_d2.data.semantic import register_masks
from eql_d2.errors import InputError
from eql_d2.evaluation.build import build_evaluator
from eql_d2.evaluation.loop import evaluate
from eql_d2.evaluation.sem_seg import (
    SegmentationEvaluator,
    class_scores,
    count_pixels,
    format_segmentation,
    head_body_tail,
    letters_by_images,
    letters_by_pixels,
    segmentation_metrics,
)
from tests.data.masks import write_masks
from tests.engine.ranks import run_ranks

NUM_CLASSES, NUM_IMAGES = 7, 5


def truth_of(number):
    """A mask of an image, with 255 for no label; the last class is in none."""
    rng = np.random.default_rng(number)
    mask = rng.integers(0, NUM_CLASSES - 1, (6, 5 + number))
    mask[rng.random(mask.shape) < 0.2] = 255
    return mask


def scores_of(number):
    """Scores of an image, right more often than not; also of the class that is in no mask."""
    truth = torch.from_numpy(np.where(truth_of(number) == 255, 0, truth_of(number)))
    generator = torch.Generator().manual_seed(number)
    scores = torch.rand((NUM_CLASSES, *truth.shape), generator=generator)
    return scores + 0.4 * torch.nn.functional.one_hot(truth, NUM_CLASSES).permute(2, 0, 1)


def register(folder, name="pixels", classes=None, **values):
    classes = classes or [f"class {label}" for label in range(NUM_CLASSES)]
    register_masks(name, folder / "images", folder / "masks", classes, **values)
    return [{"file_name": record["file_name"]} for record in DatasetCatalog.get(name)]


@pytest.fixture
def inputs(tmp_path):
    folder = write_masks(tmp_path, {f"{number}": truth_of(number) for number in range(NUM_IMAGES)})
    yield register(folder)
    DatasetCatalog.remove("pixels")
    MetadataCatalog.remove("pixels")


def run(evaluator, inputs, order=range(NUM_IMAGES)):
    evaluator.reset()
    for number in order:
        evaluator.process([inputs[number]], [{"sem_seg": scores_of(number)}])
    return evaluator.evaluate()["sem_seg"]


def test_equal_to_detectron2s(inputs, tmp_path):
    evaluator = SegmentationEvaluator("pixels", str(tmp_path / "out"))
    metrics = run(evaluator, inputs)
    peer = SemSegEvaluator(
        "pixels", False, sem_seg_loading_fn=lambda path, dtype: np.asarray(Image.open(path)).astype(int)
    )
    expected = run(peer, inputs)
    for name in ("mIoU", "fwIoU", "mACC", "pACC"):
        assert metrics[name] == pytest.approx(expected[name], rel=1e-12)
    assert list(metrics) == ["mIoU", "fwIoU", "mACC", "pACC"]
    rows = json.loads((tmp_path / "out/per_category_iou.json").read_text())
    for row in rows[:-1]:
        assert row["IoU"] == pytest.approx(expected[f"IoU-{row['name']}"], rel=1e-12)
        assert row["ACC"] == pytest.approx(expected[f"ACC-{row['name']}"], rel=1e-12)
    assert rows[-1]["IoU"] is None and np.isnan(expected[f"IoU-class {NUM_CLASSES - 1}"])
    assert sum(row["test_pixels"] for row in rows) == sum((truth_of(n) != 255).sum() for n in range(NUM_IMAGES))
    assert not (tmp_path / "out/per_category_iou.png").exists()


def slow_scores(truths, predictions, label):
    """IoU and accuracy of a class, pixel by pixel."""
    both = either = present = 0
    for truth, predicted in zip(truths, predictions):
        for true_row, predicted_row in zip(truth.tolist(), predicted.tolist()):
            for t, p in zip(true_row, predicted_row):
                if t == 255:
                    continue
                both += t == label == p
                either += label in (t, p)
                present += t == label
    return (both / either, both / present) if present else (np.nan, np.nan)


def test_equal_to_a_loop_over_pixels():
    truths = [truth_of(number) for number in range(NUM_IMAGES)]
    predictions = [scores_of(number).argmax(0).numpy() for number in range(NUM_IMAGES)]
    confusion = sum(count_pixels(*pair, NUM_CLASSES) for pair in zip(truths, predictions))
    scores = class_scores(confusion)
    for label in range(NUM_CLASSES):
        expected = slow_scores(truths, predictions, label)
        np.testing.assert_allclose((scores["IoU"][label], scores["ACC"][label]), expected, rtol=1e-12)


def frequency():
    # Of the pixels, the first class has half; the images worth are 1000 x share.
    return CategoryFrequency.from_counts(
        [900, 100, 101, 10, 11, 1, 0], [5000, 1001, 1000, 101, 100, 2798, 0], num_images=1000
    )


def test_groups(inputs, tmp_path, caplog):
    caplog.set_level(logging.INFO, "detectron2.eql_d2.evaluation")
    assert letters_by_images(frequency()) == ["f", "c", "f", "r", "c", "r", "r"]
    assert letters_by_pixels(frequency()) == ["f", "f", "c", "c", "r", "f", "r"]
    assert letters_by_images(frequency(), 0, 900) == ["c"] * 6 + ["r"]
    evaluator = SegmentationEvaluator("pixels", str(tmp_path / "out"), frequency(), head_body_ends=(2, 5))
    metrics = run(evaluator, inputs)
    iou = class_scores(evaluator._confusion)["IoU"] * 100
    assert metrics["mIoUr"] == pytest.approx((iou[3] + iou[5]) / 2)  # the last class is in no mask
    assert metrics["mIoUc"] == pytest.approx((iou[1] + iou[4]) / 2)
    assert metrics["mIoUf"] == pytest.approx((iou[0] + iou[2]) / 2)
    assert metrics["mIoUr-pixels"] == pytest.approx(iou[4])
    assert metrics["mIoUf-pixels"] == pytest.approx((iou[0] + iou[1] + iou[5]) / 3)
    assert metrics["mIoU-head"] == pytest.approx((iou[0] + iou[1]) / 2)
    assert metrics["mIoU-tail"] == pytest.approx(iou[5])
    accuracy = class_scores(evaluator._confusion)["ACC"] * 100
    assert metrics["mACC-body"] == pytest.approx(accuracy[2:5].mean())
    lines = format_segmentation(metrics).splitlines()
    assert lines[0] == "|  | all | r | c | f | r-pixels | c-pixels | f-pixels | head | body | tail |"
    assert lines[2].startswith(f"| mIoU | {metrics['mIoU']:.2f} | {metrics['mIoUr']:.2f} | ")
    assert lines[-1] == f"| pACC | {metrics['pACC']:.2f} |" + "  |" * 9
    assert "Results on pixels in percent" in caplog.text
    with (tmp_path / "out/per_category_iou.csv").open() as file:
        row = list(csv.DictReader(file))[3]
    assert {
        key: row[key] for key in ("name", "group", "pixel_group", "head_body_tail", "train_images", "train_pixels")
    } == {
        "name": "class 3",
        "group": "r",
        "pixel_group": "c",
        "head_body_tail": "body",
        "train_images": "10",
        "train_pixels": "101",
    }
    assert (tmp_path / "out/per_category_iou.png").stat().st_size > 1000


def test_head_body_and_tail():
    assert head_body_tail(150, (20, 75)) == ["head"] * 20 + ["body"] * 55 + ["tail"] * 75
    for ends in ((20,), (75, 20), (0, 5), (5, 150), (5, 5)):
        with pytest.raises(InputError, match=r"HEAD_BODY_ENDS is \("):
            head_body_tail(150, ends)


def test_nothing_to_score():
    metrics = segmentation_metrics(np.zeros((3, 3), np.int64), {"{}": "rcf"})
    assert len(metrics) == 10 and np.isnan(list(metrics.values())).all()


def test_a_perfect_model_and_masks_that_start_at_one(tmp_path):
    folder = write_masks(tmp_path, {"a": [[0, 1], [150, 1]], "b": [[0, 0]]})
    inputs = register(folder, "released", [f"{k}" for k in range(150)], first_label=1, ignore=0)
    labels = [torch.tensor([[7, 0], [149, 0]]), torch.tensor([[3, 3]])]
    evaluator = SegmentationEvaluator("released")
    for image, truth in zip(inputs, labels):
        evaluator.process([image], [{"sem_seg": torch.nn.functional.one_hot(truth, 150).permute(2, 0, 1).float()}])
    assert evaluator.evaluate()["sem_seg"] == {"mIoU": 100, "fwIoU": 100, "mACC": 100, "pACC": 100}


@pytest.mark.parametrize(
    "change, words",
    [
        (lambda scores: scores[1:], "gives 6 scores for each pixel of .*0.jpg; 'pixels' has 7 classes"),
        (lambda scores: scores * float("nan"), "hold NaN or infinity"),
        (lambda scores: scores[:, 1:], r"5 x 6 pixels \(width x height\), and its image 5 x 5"),
    ],
)
def test_predictions_that_are_none(inputs, change, words):
    evaluator = SegmentationEvaluator("pixels")
    with pytest.raises(InputError, match=words):
        evaluator.process([inputs[0]], [{"sem_seg": change(scores_of(0))}])


def test_other_images_and_not_all_of_them(inputs):
    evaluator = SegmentationEvaluator("pixels")
    with pytest.raises(InputError, match=r"other\.jpg is no image of 'pixels'"):
        evaluator.process([{"file_name": "other.jpg"}], [{"sem_seg": scores_of(0)}])
    with pytest.raises(InputError, match="predictions of 2 images, and 'pixels' has 5"):
        run(evaluator, inputs, [0, 3])
    assert run(evaluator, inputs, [0, 1, 1, 2, 3, 4]) == run(evaluator, inputs)
    with pytest.raises(InputError, match="The training set has 2 categories, but 'pixels' has 7"):
        SegmentationEvaluator("pixels", None, CategoryFrequency.from_counts([1, 1], num_images=2))


def test_built_from_a_config(inputs, tmp_path):
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("pixels",)
    node = cfg.MODEL.LONG_TAIL.SEM_SEG
    node.RARE_MAX_IMAGES, node.COMMON_MAX_IMAGES, node.HEAD_BODY_ENDS = 0, 4, (1, 2)
    evaluator = build_evaluator(cfg, "pixels", str(tmp_path / "out"))

    def model(images):
        return [{"sem_seg": scores_of(inputs.index({"file_name": image["file_name"]}))} for image in images]

    metrics = evaluate(model, [[image] for image in inputs], evaluator)["sem_seg"]
    assert len(metrics) == 4 + 6 * 3
    assert np.isnan(metrics["mIoUr"]) and metrics["mIoUf"] > 0  # every class is in all images, but the last in none


def _score_on_one_of_two(folder, expected):
    inputs = register(folder, "shared")
    evaluator = SegmentationEvaluator("shared")
    for number in range(comm.get_rank(), NUM_IMAGES, 2):
        evaluator.process([inputs[number]], [{"sem_seg": scores_of(number)}])
    found = evaluator.evaluate()
    assert found == ({"sem_seg": expected} if comm.is_main_process() else {})


def test_two_processes(inputs, tmp_path):
    expected = run(SegmentationEvaluator("pixels"), inputs)
    run_ranks(_score_on_one_of_two, 2, tmp_path / "meeting", tmp_path, expected)
