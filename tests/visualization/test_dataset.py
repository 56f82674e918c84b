"""Data sets and detections to draw: what is read, and one sentence for what is wrong."""

import json

import pytest

from eql_d2.errors import InputError
from eql_d2.visualization.dataset import AnnotatedSet
from eql_d2.visualization.detections import Detections
from tests.visualization.helpers import detection


@pytest.fixture
def annotated(lvis_folder):
    return AnnotatedSet.from_files(lvis_folder / "train.json", lvis_folder / "images")


def test_classes_of_a_group_or_a_name(annotated):
    assert annotated.select("") is None
    assert annotated.select("rare") == {3, 4} and annotated.select("frequent") == {0, 1}
    assert annotated.select("class_2") == {2}
    with pytest.raises(InputError, match=r"--only 'clas_2'.*did you mean class_2"):
        annotated.select("clas_2")


def test_order_is_that_of_the_json_or_of_a_seed(annotated):
    assert annotated.order(None) == [0, 1, 2, 3]
    assert annotated.order(5) == annotated.order(5) and sorted(annotated.order(5)) == [0, 1, 2, 3]


def test_what_is_missing_is_named(annotated, lvis_folder):
    with pytest.raises(InputError, match=r"absent.*no such folder"):
        AnnotatedSet.from_files(lvis_folder / "train.json", lvis_folder / "absent")
    with pytest.raises(InputError, match=r"absent\.json"):
        AnnotatedSet.from_files(lvis_folder / "absent.json", lvis_folder / "images")
    (lvis_folder / "images" / "000000000001.png").unlink()
    with pytest.raises(InputError, match=r"000000000001\.png, listed in .*train\.json, is not there"):
        annotated.read_image(annotated.records[0])
    with pytest.raises(InputError, match="No data set is registered"):
        AnnotatedSet.from_name("mini_valid")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"category_id": 77}, "category_id 77"),
        ({"image_id": 99}, "the image 99, which is not in"),
        ({"score": "high"}, r"no results file in LVIS or COCO format.*score"),
        ({"bbox": None, "segmentation": None}, "no bbox and no segmentation"),
    ],
)
def test_bad_results_are_refused(annotated, tmp_path, change, message):
    path = tmp_path / "results.json"
    path.write_text(json.dumps([detection(1, 1, 0.5), {**detection(1, 1, 0.5), **change}]))
    with pytest.raises(InputError, match=message):
        Detections.read(path, "a", annotated)


def test_results_that_are_no_json(annotated, tmp_path):
    with pytest.raises(InputError, match="no such file"):
        Detections.read(tmp_path / "absent.json", "a", annotated)
    (tmp_path / "results.json").write_text('[{"image_id"')
    with pytest.raises(InputError, match="not valid json"):
        Detections.read(tmp_path / "results.json", "a", annotated)


def test_the_best_detections_by_number_or_by_score(annotated, tmp_path):
    path = tmp_path / "results.json"
    boxes = [{**detection(1, 2, score), "segmentation": None} for score in (0.2, 0.9, 0.5)]
    mask = {"size": [64, 64], "counts": [0, 64, 64 * 63]}
    path.write_text(json.dumps([*boxes, {**detection(2, 1, 0.1), "segmentation": mask}]))
    found = Detections.read(path, "a", annotated)
    record = annotated.records[0]
    assert [one.score for one in found.best(record, annotated.labels, 2)] == [0.9, 0.5]
    assert [one.score for one in found.best(record, annotated.labels, 0, threshold=0.5)] == [0.9, 0.5]
    one = found.best(record, annotated.labels, 1)[0]
    assert one.label == 1 and one.box == (10, 12, 40, 42) and not one.has_mask
    assert found.best(annotated.records[1], annotated.labels, 5)[0].has_mask
    assert found.best(annotated.records[2], annotated.labels, 5) == []


def test_a_mask_of_another_size_is_refused(annotated, tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps([{**detection(1, 1, 0.5), "segmentation": {"size": [10, 20], "counts": [200]}}]))
    with pytest.raises(InputError, match=r"size \[10, 20\].*\[64, 64\]"):
        Detections.read(path, "a", annotated).best(annotated.records[0], annotated.labels, 1)
