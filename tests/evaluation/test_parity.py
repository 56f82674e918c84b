"""Both back ends against a plain call of lvis 0.5.3, on every case that tells evaluators apart."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as mask_util

from eql_d2.errors import InputError
from eql_d2.evaluation import hotcoco_backend
from eql_d2.evaluation.backends import evaluate_results
from tests.evaluation.helpers import (
    HEIGHT,
    WIDTH,
    assert_equal,
    box_mask,
    box_polygon,
    make_detections,
    make_ground_truth,
    plain_lvis,
)

BACKENDS = ("hotcoco", "lvis")
EMPTY_MASK = box_mask([0, 0, 0, 0])


def check(ground_truth, detections, tmp_path, iou_types=("bbox", "segm"), max_detections=300):
    """Compare both back ends with plain lvis, from files and from memory."""
    gt_path, results_path = tmp_path / "gt.json", tmp_path / "results.json"
    gt_path.write_text(json.dumps(ground_truth))
    results_path.write_text(json.dumps(detections))
    before = json.dumps(detections)
    for iou_type in iou_types:
        expected = plain_lvis(ground_truth, detections, iou_type, tmp_path, max_detections)
        for backend in BACKENDS:
            options = {"backend": backend, "max_detections": max_detections}
            assert_equal(evaluate_results(gt_path, results_path, iou_type, **options), *expected)
            assert_equal(evaluate_results(ground_truth, detections, iou_type, **options), *expected)
    assert json.dumps(detections) == before


@pytest.mark.parametrize("seed", range(3))
def test_random_data(seed, tmp_path):
    rng = np.random.default_rng(seed)
    ground_truth = make_ground_truth(rng)
    check(ground_truth, make_detections(rng, ground_truth), tmp_path)


def test_categories_in_parts_and_without_objects(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    ground_truth = make_ground_truth(rng)
    detections = make_detections(rng, ground_truth)
    absent = ground_truth["categories"][1]["id"]
    ground_truth["annotations"] = [one for one in ground_truth["annotations"] if one["category_id"] != absent]
    ground_truth["categories"].reverse()
    whole = evaluate_results(ground_truth, detections, "segm")
    monkeypatch.setattr(hotcoco_backend, "_CATEGORIES", 2)
    check(ground_truth, detections, tmp_path)
    parts = evaluate_results(ground_truth, detections, "segm")
    np.testing.assert_array_equal(list(parts.metrics.values()), list(whole.metrics.values()))
    np.testing.assert_array_equal(parts.category_ap, whole.category_ap)
    assert np.isnan(whole.category_ap[[one.id for one in whole.categories].index(absent)])


@pytest.mark.parametrize("scores", [[0.5], [0.1, 0.2, 0.3], np.float32([0.1, 0.7, 0.9])], ids=["equal", "ties", "f32"])
def test_ties(scores, tmp_path):
    rng = np.random.default_rng(3)
    ground_truth = make_ground_truth(rng)
    check(ground_truth, make_detections(rng, ground_truth, scores=scores), tmp_path)


def test_order_of_file_decides_ties(tmp_path):
    rng = np.random.default_rng(4)
    ground_truth = make_ground_truth(rng)
    detections = make_detections(rng, ground_truth, scores=[0.25, 0.5])
    check(ground_truth, detections, tmp_path)
    check(ground_truth, detections[::-1], tmp_path)
    forward = evaluate_results(ground_truth, detections).metrics["AP"]
    assert evaluate_results(ground_truth, detections[::-1]).metrics["AP"] != forward


@pytest.mark.parametrize("cap", [5, 20])
def test_cap_with_ties_at_the_cut(cap, tmp_path):
    rng = np.random.default_rng(5)
    ground_truth = make_ground_truth(rng)
    detections = make_detections(rng, ground_truth, scores=[0.2, 0.4, 0.6])
    check(ground_truth, detections, tmp_path, max_detections=cap)
    assert (
        evaluate_results(ground_truth, detections, max_detections=cap).metrics["AP"]
        < evaluate_results(ground_truth, detections).metrics["AP"]
    )


@pytest.mark.parametrize("cap", [300, 450])
def test_600_detections_per_image(cap, tmp_path):
    rng = np.random.default_rng(6)
    ground_truth = make_ground_truth(rng, num_images=3)
    detections = make_detections(rng, ground_truth, per_image=600, scores=np.linspace(0, 1, 20))
    check(ground_truth, detections, tmp_path, ("bbox",), max_detections=cap)


def test_empty_masks_and_boxes_without_width(tmp_path):
    rng = np.random.default_rng(7)
    ground_truth = make_ground_truth(rng)
    detections = make_detections(rng, ground_truth)
    for detection in detections[::3]:
        detection["segmentation"] = EMPTY_MASK
        detection["bbox"] = [*detection["bbox"][:2], 0.0, detection["bbox"][3]]
        detection["score"] = 1.0
    # With a cap, so that it shows that they count towards it.
    check(ground_truth, detections, tmp_path, max_detections=20)


def test_unknown_categories_count_towards_the_cap(tmp_path):
    rng = np.random.default_rng(8)
    ground_truth = make_ground_truth(rng)
    detections = make_detections(rng, ground_truth)
    for detection in detections[::4]:
        detection.update(category_id=1000, score=0.99)
    check(ground_truth, detections, tmp_path, max_detections=15)


def test_images_without_detections(tmp_path):
    rng = np.random.default_rng(9)
    ground_truth = make_ground_truth(rng)
    detections = [record for record in make_detections(rng, ground_truth) if record["image_id"] % 3]
    check(ground_truth, detections, tmp_path)


def one_image(boxes, categories=(1,), **image):
    """Return annotations of one image that shows category 1 in every box."""
    image = {"neg_category_ids": [], "not_exhaustive_category_ids": [], **image}
    return {
        "images": [{"id": 1, "height": HEIGHT, "width": WIDTH, **image}],
        "annotations": [
            {
                "id": i + 1,
                "image_id": 1,
                "category_id": 1,
                "bbox": box,
                "area": float(box[2] * box[3]),
                "segmentation": [box_polygon(box)],
            }
            for i, box in enumerate(boxes)
        ],
        "categories": [{"id": i, "name": str(i), "frequency": "r"} for i in categories],
    }


def detect(boxes, category_id=1):
    """Return a detection for each box, scores falling."""
    return [
        {
            "image_id": 1,
            "category_id": category_id,
            "bbox": box,
            "score": 1 / (i + 1),
            "segmentation": box_mask(box),
        }
        for i, box in enumerate(boxes)
    ]


@pytest.mark.parametrize("height", [10, 11, 12, 13, 14, 15, 16, 17, 18, 19])
def test_iou_exactly_on_a_threshold(height, tmp_path):
    ground_truth = one_image([[10, 20, 20, 20]])
    detections = detect([[10, 20, 20, height]])
    check(ground_truth, detections, tmp_path)
    # IoU = height / 20 meets the thresholds 0.5, 0.55, ... up to itself.
    assert evaluate_results(ground_truth, detections).metrics["AP"] == pytest.approx((height - 9) / 10)


@pytest.mark.parametrize("side", [31, 32, 33, 95, 96, 97])
def test_area_exactly_on_a_bound(side, tmp_path):
    ground_truth = one_image([[5, 5, side, side]])
    check(ground_truth, detect([[5, 5, side, side], [40, 10, 32, 32], [6, 6, 96, 96]]), tmp_path)


def test_mask_only_box_only_and_both(tmp_path):
    rng = np.random.default_rng(10)
    ground_truth = make_ground_truth(rng)
    both = make_detections(rng, ground_truth)
    for record in both:  # so that the areas of box and mask differ
        record["bbox"][2] += 20
    masks = [{key: value for key, value in record.items() if key != "bbox"} for record in both]
    boxes = [{key: value for key, value in record.items() if key != "segmentation"} for record in both]
    for results, iou_types in ((both, ("bbox", "segm")), (masks, ("bbox", "segm")), (boxes, ("bbox",))):
        check(ground_truth, results, tmp_path, iou_types)
    for backend in BACKENDS:
        assert_equal(
            evaluate_results(ground_truth, both, "segm", backend=backend),
            *plain_lvis(ground_truth, masks, "segm", tmp_path),
        )


@pytest.mark.parametrize("box_last", [True, False])
def test_masks_of_a_file_with_boxes_anywhere_in_the_record(box_last, tmp_path, monkeypatch):
    monkeypatch.setattr("eql_d2.evaluation.results_file._BLOCK", 97)  # cuts in every part of a record
    rng = np.random.default_rng(11)
    ground_truth = make_ground_truth(rng)
    keys = ["image_id", "score", "category_id", "segmentation", "bbox"]
    detections = make_detections(rng, ground_truth)
    detections = [{key: record[key] for key in (keys if box_last else keys[::-1])} for record in detections]
    check(ground_truth, detections, tmp_path, ("segm",))


def encoded_as(detections, form):
    """Return the detections with the same masks in another form; all of them are boxes with whole corners."""
    converted = []
    for record in detections:
        x, y, w, h = record["bbox"]
        if form == "polygons":
            # The degenerate one has no area and is left out.
            mask = [[x, y, x + w, y, x + w, y + h, x, y + h], [x, y, x + w, y + h]]
        else:
            binary = mask_util.decode(record["segmentation"])
            flat = binary.flatten(order="F")
            changes = np.flatnonzero(np.diff(np.concatenate([[0], flat]))).tolist()
            mask = {"size": list(binary.shape), "counts": np.diff([0, *changes, flat.size]).tolist()}
            if form == "bytes":
                mask = mask_util.frPyObjects(mask, *mask["size"])
        converted.append({**record, "segmentation": mask})
    return converted


@pytest.mark.parametrize("with_boxes", [True, False], ids=["boxes", "masks only"])
@pytest.mark.parametrize("form", ["polygons", "numbers", "bytes", "mixed"])
def test_forms_of_masks(tmp_path, form, with_boxes):
    rng = np.random.default_rng(15)
    ground_truth = make_ground_truth(rng)
    detections = make_detections(rng, ground_truth)
    if form == "mixed":
        other = detections[:100] + encoded_as(detections[100:200], "polygons") + encoded_as(detections[200:], "numbers")
    else:
        other = encoded_as(detections, form)
    if not with_boxes:
        detections, other = ([{k: v for k, v in one.items() if k != "bbox"} for one in d] for d in (detections, other))
    before = copy.deepcopy(other)
    sources = [other]
    if form != "bytes":  # which json does not hold
        sources.append(tmp_path / "results.json")
        sources[1].write_text(json.dumps(other, indent=1))
    for task in ("segm", "bbox"):
        expected = evaluate_results(ground_truth, detections, task, backend="lvis")
        for source in sources:
            for backend in BACKENDS:
                found = evaluate_results(ground_truth, source, task, backend=backend)
                assert_equal(found, expected.metrics, expected.category_ap)
    assert other == before


@pytest.mark.parametrize("mask", [3, [["a"] * 6], {"size": [120, 160]}, {"counts": [3]}])
def test_masks_that_are_none(mask):
    ground_truth = one_image([[10, 10, 30, 30]])
    for backend in BACKENDS:
        with pytest.raises(InputError, match="image_id 1 is neither"):
            evaluate_results(ground_truth, [{**detect([[10, 10, 30, 30]])[0], "segmentation": mask}], backend=backend)


def test_not_exhaustive_category_without_ground_truth(tmp_path):
    ground_truth = one_image([[10, 10, 30, 30]], (1, 2), neg_category_ids=[2], not_exhaustive_category_ids=[2])
    check(ground_truth, detect([[10, 10, 30, 28]]) + detect([[60, 60, 20, 20]], category_id=2), tmp_path)


def test_groups_without_ground_truth_are_not_a_number():
    ground_truth = one_image([[10, 10, 30, 30]])
    for backend in BACKENDS:
        metrics = evaluate_results(ground_truth, detect([[10, 10, 30, 30]]), backend=backend).metrics
        assert [metrics["APr"], metrics["APs"]] == pytest.approx([1, 1])
        assert np.isnan([metrics["APc"], metrics["APf"], metrics["APm"], metrics["APl"], metrics["ARl@300"]]).all()


def test_no_detections_give_zero():
    ground_truth = one_image([[10, 10, 30, 30]])
    for backend in BACKENDS:
        assert evaluate_results(ground_truth, [], backend=backend).metrics["AP"] == 0


def test_letters_given_or_derived(tmp_path):
    rng = np.random.default_rng(12)
    with_letters = make_ground_truth(rng)
    without = json.loads(json.dumps(with_letters))
    for category in without["categories"]:
        del category["frequency"]
    detections = make_detections(rng, with_letters)
    expected = plain_lvis(with_letters, detections, "bbox", tmp_path)
    letters = {category["id"]: category["frequency"] for category in with_letters["categories"]}
    counts = {"r": 1, "c": 11, "f": 101}
    for backend in BACKENDS:
        assert_equal(evaluate_results(without, detections, groups=letters, backend=backend), *expected)
        assert set(evaluate_results(without, detections, backend=backend).groups) == {"r"}  # of 10 images
    for category in without["categories"]:
        category["image_count"] = counts[letters[category["id"]]]
    for backend in BACKENDS:
        assert_equal(evaluate_results(without, detections, backend=backend), *expected)


def test_real_annotations(tmp_path):
    """The official LVIS annotations of real photographs, where EQL_D2_REAL_DATA names them; else generated ones."""
    folder = os.environ.get("EQL_D2_REAL_DATA")
    if folder:
        ground_truth = json.loads(Path(folder, "annotations", "lvis_v0.5_val_65.json").read_text())
        ground_truth["images"] = ground_truth["images"][:20]
        kept = {image["id"] for image in ground_truth["images"]}
        ground_truth["annotations"] = [a for a in ground_truth["annotations"] if a["image_id"] in kept]
    else:
        ground_truth = make_ground_truth(np.random.default_rng(13), num_images=20, num_classes=30, letters="rcf" * 10)
    check(ground_truth, jitter(ground_truth, np.random.default_rng(14)), tmp_path)


def jitter(ground_truth, rng):
    """Return detections made of the annotations, moved, some with another class of the same image."""
    sizes = {image["id"]: (image["height"], image["width"]) for image in ground_truth["images"]}
    category_ids = [category["id"] for category in ground_truth["categories"]]
    detections = []
    for annotation in ground_truth["annotations"]:
        size = sizes[annotation["image_id"]]
        for _ in range(3):
            box = (np.array(annotation["bbox"]) + rng.normal(0, 3, 4)).clip(0)
            shift = rng.normal(0, 2)
            polygons = [[value + shift for value in polygon] for polygon in annotation["segmentation"]]
            mask = mask_util.merge(mask_util.frPyObjects(polygons, *size))
            same = rng.random() < 0.8
            detections.append(
                {
                    "image_id": annotation["image_id"],
                    "category_id": annotation["category_id"] if same else int(rng.choice(category_ids)),
                    "bbox": box.tolist(),
                    "score": float(rng.random()),
                    "segmentation": {"size": list(size), "counts": mask["counts"].decode()},
                }
            )
    return detections


def test_lvis_leaves_numpy_and_the_root_logger_alone():
    script = (
        "import logging, numpy\n"
        "from eql_d2.evaluation.reference_backend import import_lvis\n"
        "had_float = hasattr(numpy, 'float')\n"
        "import_lvis()\n"
        "assert not logging.getLogger().handlers and logging.getLogger().level == logging.WARNING\n"
        "assert hasattr(numpy, 'float') == had_float\n"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, cwd=Path(__file__).parents[2])


def test_rescoring_imports_neither_torch_nor_lvis():
    script = "import sys, eql_d2.evaluation.rescore as _; assert not {'torch', 'detectron2', 'lvis'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])
