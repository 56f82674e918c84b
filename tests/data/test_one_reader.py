"""Loader, counter, re-scorer and checker see the same in one json: all four ask :mod:`eql_d2.data.annotations`."""

import json
import logging
import subprocess
import sys
from argparse import Namespace

import pytest
from detectron2.data import MetadataCatalog

from eql_d2.data.annotations import check_content, read_annotations
from eql_d2.data.catalog import category_frequency
from eql_d2.data.check import check_dataset
from eql_d2.data.coco import register_coco
from eql_d2.data.frequency import CategoryFrequency
from eql_d2.data.lvis import load_lvis, register_lvis
from eql_d2.data.registration import open_table
from eql_d2.engine.setup import setup
from eql_d2.errors import InputError
from eql_d2.evaluation.backends import evaluate_results
from eql_d2.evaluation.rescore import rescore
from tests.conftest import CONFIGS, ROOT
from tests.data.conftest import annotation

IDS = [1, 4, 7, 9]


@pytest.fixture
def odd(content):
    """Gaps in ids and categories out of order, an id twice in a negative set, crowd regions, a category without an
    instance, annotations of an image that is not listed, an instance without a valid polygon, ``ignore`` 0, a record
    of no annotation's image, and letters for some categories only."""
    content["categories"][0]["frequency"] = "f"
    content["annotations"] += [
        annotation(6, 99, 1),
        annotation(7, 99, 9),
        annotation(8, 25, 1, segmentation=[[1, 2, 3, 4]]),
        annotation(9, 12, 7, iscrowd=1, ignore=0),
        annotation(10, 30, 1, segmentation=[]),
    ]
    content["images"][0]["neg_category_ids"] = [9]
    content["images"][1]["neg_category_ids"] = [1, 1]
    return content


def detection(image_id, category_id, score=0.5):
    return {"image_id": image_id, "category_id": category_id, "bbox": [9, 10, 20, 20], "score": score}


@pytest.mark.parametrize("letters", [None, "rcfr"])
def test_counts_groups_and_format_are_the_same_everywhere(save, odd, tmp_path, letters):
    for category, letter in zip(sorted(odd["categories"], key=lambda category: category["id"]), letters or ()):
        category["frequency"] = letter
    path = save(odd)
    groups = list(letters or "rrrr")
    register_lvis("odd", path, tmp_path)
    counter, loader = CategoryFrequency.from_json(path), category_frequency(["odd"])
    for frequency in (loader, counter, CategoryFrequency.from_annotations(odd)):
        assert frequency.image_count.tolist() == [2, 2, 0, 0] and frequency.instance_count.tolist() == [3, 3, 0, 0]
        assert frequency.num_images == 4 and list(frequency.groups) == groups
    assert MetadataCatalog.get("odd").thing_dataset_id_to_contiguous_id == {id_: k for k, id_ in enumerate(IDS)}
    assert MetadataCatalog.get("odd").frequency_groups == groups

    (tmp_path / "results.json").write_text(json.dumps([detection(25, 1), detection(12, 4)]))
    table = tmp_path / "ap.json"
    results, train_json = tmp_path / "results.json", tmp_path / "train.json"
    printed = {
        backend: rescore(results, train_json, per_category=table, backend=backend, train_json=train_json)
        for backend in ("hotcoco", "lvis")
    }
    assert printed["hotcoco"] == printed["lvis"] and printed["lvis"].startswith("LVIS")
    rows = json.loads(table.read_text())
    assert [row["id"] for row in rows] == IDS and [row["group"] for row in rows] == groups
    assert [(row["train_images"], row["train_instances"]) for row in rows] == [(2, 3), (2, 3), (0, 0), (0, 0)]
    assert evaluate_results(path, str(results)).groups == groups, "of the json itself"

    report = check_dataset(path, None)
    findings = {finding.what.split(" (")[0]: finding for finding in report.findings.values()}
    assert report.summary[0].endswith("LVIS format") and report.summary[1].startswith("4 images, 4 categories")
    assert findings["categories without an instance"].examples == ["category 7: owl", "category 9: emu"]
    assert findings["annotations whose image_id is not in 'images'"].count == open_table(path).header.num_orphans == 2
    assert findings["instances with a polygon of less than 3 points"].count == open_table(path).header.num_left_out == 1
    assert any("frequency letters" in what for what in findings) == (letters is None)


def test_image_level_sets(save, odd, tmp_path):
    labels = {record["image_id"]: record["image_labels"] for record in load_lvis(save(odd), tmp_path)}
    assert labels == {
        30: {"positive": [0, 1, 2], "negative": [3]},  # a crowd is there, too
        12: {"positive": [1, 2], "negative": [0]},
        25: {"positive": [0], "negative": []},
        40: {"positive": [], "negative": [1, 3]},
    }


FATAL = {
    "unknown category": lambda c: c["annotations"][0].update(category_id=2),
    "annotation id twice": lambda c: c["annotations"][1].update(id=1),
    "image id twice": lambda c: c["images"].append(c["images"][0]),
    "category id twice": lambda c: c["categories"].append(c["categories"][0]),
    "unknown id in a negative set": lambda c: c["images"][0].update(neg_category_ids=[2]),
}


@pytest.mark.parametrize("what", FATAL)
def test_what_is_wrong_is_refused_everywhere(save, odd, tmp_path, what):
    FATAL[what](odd)
    path = save(odd)
    (tmp_path / "results.json").write_text("[]")
    messages = set()
    for read in (
        lambda: load_lvis(path, tmp_path),
        lambda: CategoryFrequency.from_json(path),
        lambda: rescore(tmp_path / "results.json", tmp_path / "train.json"),
    ):
        with pytest.raises(InputError) as error:
            read()
        messages.add(str(error.value))
    assert len(messages) == 1
    assert check_dataset(path, None).has_errors


def test_ignore_is_for_evaluation_only(save, odd, tmp_path):
    odd["annotations"][4]["ignore"] = 1  # the first object of image 25
    path = save(odd)
    for read in (lambda: load_lvis(path, tmp_path), lambda: CategoryFrequency.from_json(path)):
        with pytest.raises(InputError, match="'ignore' 1"):
            read()
    assert any("'ignore'" in finding.what for finding in check_dataset(path, None).findings.values())
    check_content(read_annotations(path), path, allow_ignore=True)
    metrics = [evaluate_results(path, [detection(25, 1)], backend=name).metrics for name in ("hotcoco", "lvis")]
    assert metrics[0] == pytest.approx(metrics[1], nan_ok=True)


def test_annotations_of_an_unlisted_image_are_not_counted(save, content, tmp_path):
    content["categories"] = [{"id": 1, "name": "cat"}]
    for image in content["images"]:
        image.update(neg_category_ids=[], not_exhaustive_category_ids=[])
    content["annotations"] = [annotation(i, image, 1) for i, image in enumerate([30, 12, 98, 99])]
    path = save(content)
    register_lvis("subset", path, tmp_path)
    assert category_frequency(["subset"]).instance_count.tolist() == [2]
    assert CategoryFrequency.from_json(path).instance_count.tolist() == [2]


def test_format_by_letters_and_not_by_a_text(save, content, tmp_path):
    for image in content["images"]:
        del image["neg_category_ids"], image["not_exhaustive_category_ids"]
    results = tmp_path / "results.json"
    results.write_text(json.dumps([detection(25, 1)]))
    save({**content, "info": {"neg_category_ids": []}}, "coco.json")
    for category in content["categories"]:
        category["frequency"] = "r"
    save(content, "lvis.json")
    for name, is_lvis in (("coco", False), ("lvis", True)):
        path = tmp_path / f"{name}.json"
        assert open_table(path).header.is_lvis == read_annotations(path).is_lvis == is_lvis
        assert rescore(results, path).startswith(name.upper())
        assert check_dataset(path, None).summary[0].endswith(f"{name.upper()} format")
    register_coco("plain", tmp_path / "coco.json", tmp_path)


def test_counts_of_the_whole_give_the_groups_of_a_part(save, content, tmp_path):
    for category, image_count in zip(content["categories"], (5, 50, 500, 5000)):
        category["image_count"] = image_count
    path = save(content)
    expected = dict(zip((9, 1, 7, 4), "rcff"))
    frequency = CategoryFrequency.from_json(path)
    assert list(frequency.groups) == [expected[id_] for id_ in IDS] == evaluate_results(path, []).groups
    assert frequency.image_count.tolist() == [1, 2, 0, 0]


def test_reader_needs_neither_torch_nor_detectron2():
    script = (
        "import sys, eql_d2.data.annotations, eql_d2.data.groups, eql_d2.evaluation.rescore; "
        "assert not {'torch', 'detectron2'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_warnings_reach_the_log_of_the_run(save, odd, tmp_path):
    logger = logging.getLogger("detectron2")
    handlers, level, propagate = list(logger.handlers), logger.level, logger.propagate
    (tmp_path / "images").mkdir()
    opts = ["MODEL.LONG_TAIL.DATASETS", str([["logged", save(odd), str(tmp_path / "images")]])]
    opts += ["DATASETS.TRAIN", "('logged',)", "OUTPUT_DIR", str(tmp_path / "out"), "MODEL.DEVICE", "cpu"]
    config = str(CONFIGS / "Base-Mask-R-CNN-FPN.yaml")
    try:
        cfg = setup(Namespace(config_file=config, opts=opts, eval_only=False))
        category_frequency(cfg.DATASETS.TRAIN)
        for handler in logger.handlers:
            handler.flush()
    finally:
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate = propagate
    text = (tmp_path / "out" / "log.txt").read_text()
    assert "2 annotations are of images that are not in 'images' and are left out" in text
    assert "1 instances have no polygon of at least 3 points and are left out" in text
    assert "2 of 4 categories are in no image and cannot be learnt" in text
