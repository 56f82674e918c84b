"""Evaluation of a merged file, against files in which what is verified was written out by hand."""

import copy
import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from eql_d2.data.lvis import register_lvis
from eql_d2.errors import InputError
from eql_d2.evaluation import LVISEvaluator, checks, evaluate_sources, evaluate_tasks
from eql_d2.evaluation.rescore import rescore
from eql_d2.evaluation.sources import OF_SOURCES
from tests.conftest import NUM_CLASSES, make_lvis_json, square

SOURCES = [
    {"name": "lvis", "exhaustive_category_ids": [], "has_masks": True},
    {"name": "coco", "exhaustive_category_ids": [1, 2, 3], "has_masks": False},
]
TASKS = ("bbox", "segm")


@pytest.fixture
def merged():
    content = make_lvis_json(num_images=8)
    content["sources"] = SOURCES
    for image in content["images"]:
        image["source"] = "coco" if image["id"] % 3 == 0 else "lvis"
    for annotation in content["annotations"]:
        if annotation["image_id"] % 3 == 0:
            del annotation["segmentation"]
    return content


def detections(content, seed=0):
    """Noisy copies of the objects, and boxes of any category anywhere."""
    random = np.random.default_rng(seed)
    found = []
    for one in content["annotations"]:
        for _ in range(2):
            x, y, w, h = (np.array(one["bbox"]) + random.normal(0, 3, 4)).round(2).tolist()
            found.append({"image_id": one["image_id"], "category_id": one["category_id"], "bbox": [x, y, w, h]})
        for category_id in range(1, NUM_CLASSES + 1):
            found.append({"image_id": one["image_id"], "category_id": category_id, "bbox": [1.0, 2.0, 30.0, 30.0]})
    for one in found:
        one["score"] = round(float(random.random()), 4)
        one["segmentation"] = [square(one["bbox"][0], one["bbox"][1], one["bbox"][2])]
    return found


def by_hand(content, results, keep):
    """Return the json of some images as LVIS would write it, and the detections in them."""
    part = copy.deepcopy(content)
    exhaustive = {source["name"]: source["exhaustive_category_ids"] for source in part.pop("sources")}
    part["images"] = [image for image in part["images"] if keep(image)]
    ids = [image["id"] for image in part["images"]]
    part["annotations"] = [one for one in part["annotations"] if one["image_id"] in ids]
    for image in part["images"]:
        shown = [one["category_id"] for one in part["annotations"] if one["image_id"] == image["id"]]
        absent = {*exhaustive[image.pop("source")], *image["neg_category_ids"]} - set(shown)
        image["neg_category_ids"] = sorted(absent)
    return part, [one for one in results if one["image_id"] in ids]


@pytest.mark.parametrize("backend", ["hotcoco", "lvis"])
def test_each_source_and_the_whole_are_what_they_are_by_hand(merged, backend, tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "_BLOCK", 1 << 10)  # a results file is read block by block
    results = detections(merged)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(results))
    (tmp_path / "merged.json").write_text(json.dumps(merged))
    keeps = {
        "": lambda image: True,
        "lvis": lambda image: image["source"] == "lvis",
        "coco": lambda image: image["source"] == "coco",
    }
    for arguments in ((merged, results), (tmp_path / "merged.json", path)):
        found = evaluate_sources(*arguments, TASKS, backend=backend)
        assert list(found) == ["", "lvis", "coco"]
        for name, keep in keeps.items():
            expected = evaluate_tasks(*by_hand(merged, results, keep), ("bbox",), backend=backend)
            assert found[name]["bbox", False].metrics == pytest.approx(expected["bbox", False].metrics, nan_ok=True)
        masks = evaluate_tasks(*by_hand(merged, results, keeps["lvis"]), ("segm",), backend=backend)["segm", False]
        for name in ("", "lvis"):  # the other source has no masks
            assert found[name]["segm", False].metrics == pytest.approx(masks.metrics, nan_ok=True)
        assert ("segm", False) not in found["coco"]
    # What is verified counts: without it the false positives in the images of coco would be forgiven.
    forgiven = copy.deepcopy(merged)
    forgiven["sources"][1]["exhaustive_category_ids"] = []
    lenient = evaluate_sources(forgiven, results, ("bbox",), backend=backend)
    assert lenient["coco"]["bbox", False].metrics["AP"] > found["coco"]["bbox", False].metrics["AP"]


def test_detections_without_boxes(merged, tmp_path):
    results = [{key: value for key, value in one.items() if key != "bbox"} for one in detections(merged)]
    (tmp_path / "results.json").write_text(json.dumps(results))
    found = evaluate_sources(merged, tmp_path / "results.json", TASKS)
    for name, task in (("coco", "bbox"), ("lvis", "segm")):
        part = by_hand(merged, results, lambda image, name=name: image["source"] == name)
        expected = evaluate_tasks(*part, (task,))[task, False].metrics
        assert found[name][task, False].metrics == pytest.approx(expected, nan_ok=True)


def test_a_file_without_sources_is_evaluated_as_ever(merged):
    part, results = by_hand(merged, detections(merged), lambda image: True)
    found = evaluate_sources(part, results, ("bbox",))
    assert list(found) == [""]
    expected = evaluate_tasks(part, results, ("bbox",))["bbox", False].metrics
    assert found[""]["bbox", False].metrics == pytest.approx(expected, nan_ok=True)


def test_one_source_is_the_whole(merged):
    for image in merged["images"]:
        image["source"] = "coco"
    merged["sources"] = SOURCES[1:]
    assert list(evaluate_sources(merged, detections(merged), ("bbox",))) == [""]
    with pytest.raises(InputError, match="no image of a source with masks"):
        evaluate_sources(merged, detections(merged), ("segm",))


def test_other_ways_to_evaluate_say_that_they_do_not_know_sources(merged):
    with pytest.raises(InputError, match="merged of several sources"):
        evaluate_tasks(merged, detections(merged), ("bbox",))
    merged["images"][0]["source"] = "voc"
    with pytest.raises(InputError, match="image 1 has source 'voc'"):
        evaluate_sources(merged, detections(merged), ("bbox",))


def test_the_evaluator_and_the_tool_name_the_sources(merged, tmp_path):
    results = detections(merged)
    (tmp_path / "merged.json").write_text(json.dumps(merged))
    (tmp_path / "results.json").write_text(json.dumps(results))
    register_lvis("merged_val", tmp_path / "merged.json", tmp_path)
    try:
        evaluator = LVISEvaluator("merged_val", str(tmp_path / "out"))
        (tmp_path / "out").mkdir()
        metrics = evaluator.score(tmp_path / "results.json")
    finally:
        DatasetCatalog.remove("merged_val")
        MetadataCatalog.remove("merged_val")
    expected = evaluate_sources(merged, results, TASKS)
    for name in ("lvis", "coco"):
        for metric in OF_SOURCES:
            value = 100 * expected[name]["bbox", False].metrics[metric]
            assert metrics["bbox"][f"{metric}[{name}]"] == pytest.approx(value, nan_ok=True)
    assert "AP[lvis]" in metrics["segm"] and "AP[coco]" not in metrics["segm"]
    assert metrics["bbox"]["AP"] == pytest.approx(100 * expected[""]["bbox", False].metrics["AP"])
    text = rescore(tmp_path / "results.json", tmp_path / "merged.json", ["bbox"])
    assert "Source lvis" in text and "Source coco" in text
