"""tools/evaluate_lvis.py: its table and files, and one clear sentence for each thing a user can mend."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from eql_d2.errors import InputError
from eql_d2.evaluation.backends import evaluate_results
from eql_d2.evaluation.rescore import rescore
from tests.evaluation.helpers import make_detections, make_ground_truth

ROOT = Path(__file__).parents[2]


@pytest.fixture
def files(tmp_path):
    """Annotations and results on disk, and their content."""
    rng = np.random.default_rng(0)
    ground_truth = make_ground_truth(rng)
    detections = make_detections(rng, ground_truth)
    paths = tmp_path / "gt.json", tmp_path / "results.json"
    for path, content in zip(paths, (ground_truth, detections)):
        path.write_text(json.dumps(content))
    return paths, ground_truth, detections


def run_tool(*arguments):
    """Run the tool in a process of its own."""
    command = [sys.executable, "tools/evaluate_lvis.py", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_tool_writes_table_csv_and_plot(files, tmp_path):
    (gt, results), ground_truth, detections = files
    ground_truth["categories"][1]["name"] = 'a "name", with comma'
    gt.write_text(json.dumps(ground_truth))
    table, plot = tmp_path / "out" / "ap.csv", tmp_path / "ap.png"
    run = run_tool(results, "--annotations", gt, "--fixed")
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == rescore(results, gt, fixed=True, per_category=table, plot=plot, train_json=gt)
    for task, label in (("bbox", "box"), ("segm", "mask")):
        evaluation = evaluate_results(ground_truth, detections, task)
        assert f"| {label} | {100 * evaluation.metrics['AP']:.2f} |" in run.stdout
        with table.open() as file:
            rows = list(csv.DictReader(file))
        for row, ap, category in zip(rows, evaluation.category_ap, ground_truth["categories"]):
            assert row["name"] == category["name"]
            assert (row[f"{task}_AP"] == "") if np.isnan(ap) else float(row[f"{task}_AP"]) == 100 * ap
    images = {a["image_id"] for a in ground_truth["annotations"] if a["category_id"] == 2}
    assert int(rows[0]["train_images"]) == len(images)
    assert rows[-1]["bbox_AP"] == "" and "| AP-fixed |" in run.stdout
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.rglob("*.tmp*"))


def test_groups_without_ground_truth_print_as_not_available(files):
    # APr, APc, and, as no instance is large, APl and ARl.
    (gt, results), ground_truth, _ = files
    for category in ground_truth["categories"]:
        category["frequency"] = "f"
    gt.write_text(json.dumps(ground_truth))
    table = rescore(results, gt, ["bbox"])
    assert table.count("n/a") == 4 and "-1" not in table and "nan" not in table


def test_coco_annotations_are_told_apart(files):
    (gt, results), ground_truth, detections = files
    for image in ground_truth["images"]:
        del image["neg_category_ids"], image["not_exhaustive_category_ids"]
    for category in ground_truth["categories"]:
        del category["frequency"]
    gt.write_text(json.dumps(ground_truth))
    table = rescore(results, gt, ["bbox"])
    expected = evaluate_results(ground_truth, detections, protocol="coco", max_detections=100).metrics["AP"]
    assert table.startswith("COCO") and f"| box | {100 * expected:.2f} |" in table


def test_letters_alone_make_it_lvis(files):
    (gt, results), ground_truth, detections = files
    for image in ground_truth["images"]:
        del image["neg_category_ids"], image["not_exhaustive_category_ids"]
    gt.write_text(json.dumps(ground_truth))
    expected = evaluate_results(ground_truth, detections).metrics["AP"]
    table = rescore(results, gt, ["bbox"])
    assert table.startswith("LVIS") and f"| box | {100 * expected:.2f} |" in table


def test_json_table(files, tmp_path):
    (gt, results), ground_truth, _ = files
    rescore(results, gt, ["bbox"], per_category=tmp_path / "ap.json")
    rows = json.loads((tmp_path / "ap.json").read_text())
    assert [row["id"] for row in rows] == [category["id"] for category in ground_truth["categories"]]
    assert rows[-1]["bbox_AP"] is None and rows[0]["group"] == "r" and rows[0]["image_count"] is None


def test_tool_ends_with_one_line_and_status_2(files, tmp_path):
    (gt, _), _, _ = files
    run = run_tool(tmp_path / "absent.json", "--annotations", gt)
    assert run.returncode == 2 and run.stdout == ""
    assert run.stderr == f"error: {tmp_path / 'absent.json'}: there is no such file; it should hold the detections.\n"


@pytest.mark.parametrize("backend", ["hotcoco", "lvis"])
def test_damaged_results(files, tmp_path, backend):
    (gt, results), _, detections = files
    bad = tmp_path / "bad.json"

    def message(content, **options):
        bad.write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(InputError) as info:
            rescore(bad, gt, backend=backend, **options)
        assert str(bad) in str(info.value) and "\n" not in str(info.value)
        return str(info.value)

    text = results.read_text()
    assert "complete" in message(text[: len(text) // 2])
    assert "complete" in message(text[:50])
    assert "json list" in message({"annotations": []})
    assert "Expected `object`" in message([*detections, 2])
    assert "image_id 999" in message([*detections, {**detections[0], "image_id": 999}])
    assert "no category_id" in message([{**detections[0], "category_id": 0}])
    without_score = {key: value for key, value in detections[3].items() if key != "score"}
    assert "missing required field `score` - at `$[1]`" in message([detections[0], without_score])
    assert "`null` - at `$[1].score`" in message([detections[0], {**detections[1], "score": None}])
    assert "no NaN and no infinity" in message([{**detections[0], "score": float("nan")}])
    assert "no NaN and no infinity" in message([{**detections[0], "score": float("-inf")}])
    assert "out of range - at `$[0].score`" in message(
        '[{"image_id": 11, "category_id": 2, "score": 1e999, "bbox": [1, 2, 3, 4]}]'
    )
    for box in ([0, 0, 1e308, 1], [0, 0, 1, -1e10]):
        assert "at `$[1].bbox[" in message([detections[0], {**detections[1], "bbox": box}])
    assert "length 4 - at `$[0].bbox`" in message([{**detections[0], "bbox": [1, 2, 3]}])
    assert "no whole number" in message([{**detections[0], "category_id": 2.5}])
    mask_only = [{key: value for key, value in detections[1].items() if key != "bbox"}]
    assert "first one has" in message([detections[0], *mask_only], iou_type=["bbox"])
    boxes = [{key: value for key, value in record.items() if key != "segmentation"} for record in detections]
    assert "no 'segmentation'" in message(boxes, iou_type=["segm"])
    assert "neither 'bbox' nor" in message([{"image_id": 11, "category_id": 2, "score": 0.5}])


@pytest.mark.parametrize("backend", ["hotcoco", "lvis"])
def test_oddities_that_the_reference_accepts_are_counted_and_named(files, tmp_path, backend, caplog):
    _, ground_truth, detections = files
    odd = [
        {**detections[0], "category_id": 999},
        {**detections[1], "category_id": 998.0},
        {**detections[2], "score": 1.5},
        {**detections[3], "bbox": [1, 2, -3, 4]},
    ]
    results = tmp_path / "odd.json"
    results.write_text(json.dumps(odd + detections[4:]))
    twice = tmp_path / "twice.json"
    annotations = ground_truth["annotations"]
    twice.write_text(json.dumps({**ground_truth, "annotations": [*annotations, {**annotations[2], "id": 10**6}]}))
    rescore(results, twice, ["bbox"], backend=backend)
    # Detectron2's formatter, if an earlier test has installed it, has abbreviated the beginning of the name.
    messages = [record.getMessage() for record in caplog.records if ".eql_d2" in record.name]
    assert [message.split(": ", 1)[0] for message in messages] == [str(twice)] + 3 * [str(results)]
    assert "1 annotations are there twice" in messages[0] and f"annotation {10**6}" in messages[0]
    assert "2 detections have a category_id that is not in" in messages[1] and "first: 999 in image" in messages[1]
    assert "1 detections have a score outside [0, 1]" in messages[2] and "first: 1.5 in image" in messages[2]
    assert "1 detections have a box of negative" in messages[3] and "first: [1.0, 2.0, -3.0, 4.0]" in messages[3]


@pytest.mark.parametrize("backend", ["hotcoco", "lvis"])
def test_detections_in_memory(files, backend):
    (gt, _), _, detections = files
    of_numpy = [
        {**one, "score": np.float32(one["score"]), "bbox": np.array(one["bbox"]), "image_id": np.int64(one["image_id"])}
        for one in detections
    ]
    plain = [{**one, "score": float(np.float32(one["score"]))} for one in detections]
    results = [evaluate_results(gt, detections, backend=backend) for detections in (of_numpy, plain)]
    np.testing.assert_equal(results[0].metrics, results[1].metrics)
    for score in (None, float("nan"), float("inf")):
        with pytest.raises(InputError, match=r"results .*\(NaN and infinity count as `null`\)"):
            evaluate_results(gt, [detections[0], {**detections[1], "score": score}], backend=backend)
    for value in (2**70, object(), {1, 2}, {(1, 2): 3}):
        with pytest.raises(InputError, match=r"results hold what json cannot|results is no json list"):
            evaluate_results(gt, [{**detections[0], "category_id": value}], backend=backend)


@pytest.mark.parametrize("backend", ["hotcoco", "lvis"])
def test_damaged_annotations(files, tmp_path, backend):
    (gt, results), ground_truth, _ = files
    bad = tmp_path / "bad.json"

    def message(content):
        bad.write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(InputError) as info:
            rescore(results, bad, ["bbox"], backend=backend)
        assert str(bad) in str(info.value) and "\n" not in str(info.value)
        return str(info.value)

    assert "empty" in message("")
    message(gt.read_text()[:-20])
    message([])
    assert "no 'annotations'" in message({**ground_truth, "annotations": []})
    assert "`categories`" in message({key: value for key, value in ground_truth.items() if key != "categories"})
    first, *others = ground_truth["annotations"]

    def of_first(**changed):
        return message({**ground_truth, "annotations": [{**first, **changed}, *others]})

    assert "annotation id 2 occurs more than once" in of_first(id=2)
    assert "at `$.annotations[0].bbox[2]`" in of_first(bbox=[0, 0, 1e308, 1])
    for value in (float("nan"), float("inf")):
        assert "not valid json" in of_first(bbox=[0, 0, value, 1])
    assert "1 annotations have no 'area' (the first: annotation 1)" in of_first(area=None)
    assert "at `$.annotations[0].area`" in of_first(area=-1)
    bad.unlink()
    with pytest.raises(InputError, match="no such file"):
        rescore(results, bad, ["bbox"], backend=backend)


def test_wrong_options(files, tmp_path):
    (gt, results), _, _ = files
    with pytest.raises(InputError, match=r"must end in \.csv or \.json"):
        rescore(results, gt, per_category=tmp_path / "ap.xls")
    with pytest.raises(InputError, match="image_count"):
        rescore(results, gt, plot=tmp_path / "ap.png")
    with pytest.raises(InputError, match="must be one of"):
        rescore(results, gt, backend="vernier")
