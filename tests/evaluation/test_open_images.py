"""Open Images' challenge metric against recorded calls of TensorFlow's official evaluation."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from eql_d2.data.label_hierarchy import LabelHierarchy
from eql_d2.errors import InputError
from eql_d2.evaluation import open_images, open_images_ap
from eql_d2.evaluation.open_images import average_precision, class_ap, sorted_boxes, true_positives

GOLDEN = Path(__file__).parent.parent / "golden"
RANDOM = json.loads((GOLDEN / "oid_random_cases.json").read_text())
OFFICIAL = json.loads((GOLDEN / "oid_tf_cases.json").read_text())
EXPECTED = {1.0: "expected", 0.5: "expected_group_of_weight_0.5", 0.0: "expected_group_of_weight_0"}


def random_case(case, weight):
    return open_images_ap(case["boxes"], case["image_labels"], case["predictions"], case["hierarchy"], weight)


@pytest.mark.parametrize("weight", EXPECTED)
@pytest.mark.parametrize("case", RANDOM["cases"], ids=lambda case: case["name"])
def test_random_cases_equal_the_official_evaluation(case, weight):
    ap, mean = random_case(case, weight)
    expected = case[EXPECTED[weight]]
    assert set(ap) == set(expected["ap_per_class"])
    for label, value in expected["ap_per_class"].items():
        assert (ap[label] is None) == (value is None), label
        assert value is None or ap[label] == pytest.approx(value, abs=1e-9), label
    assert mean == (None if expected["mAP"] is None else pytest.approx(expected["mAP"], abs=1e-9))


def test_few_pairs_at_once_change_nothing(monkeypatch):
    case = RANDOM["cases"][-1]
    whole = random_case(case, 1.0)
    monkeypatch.setattr(open_images, "PAIRS_AT_ONCE", 2)
    assert random_case(case, 1.0) == whole


def xyxy(boxes):
    return np.array(boxes, dtype=float).reshape(-1, 4)[:, [1, 0, 3, 2]]


def plain_boxes(case):
    """Cases that the challenge's metric covers: it knows neither masks nor difficult boxes, and suppresses nothing."""
    other = case.get("detected_masks") is not None or any(case["is_difficult"]) or case["nms_iou_threshold"] < 1
    return not other and case["iou_threshold"] == 0.5


@pytest.mark.parametrize(
    "case", [case for case in OFFICIAL["single_class_single_image"] if plain_boxes(case)], ids=lambda c: c["test"]
)
def test_matching_in_one_image_equals_the_official_evaluation(case):
    boxes, is_group = xyxy(case["groundtruth_boxes_yxyx"]), np.array(case["is_group_of"], dtype=bool)
    detected = xyxy(case["detected_boxes_yxyx"])
    valid = (detected[:, 0] < detected[:, 2]) & (detected[:, 1] < detected[:, 3])
    scores, true = true_positives(
        np.zeros(int(valid.sum()), dtype=np.int64),
        np.array(case["detected_scores"])[valid],
        detected[valid],
        sorted_boxes(np.zeros(int((~is_group).sum()), dtype=np.int64), boxes[~is_group]),
        sorted_boxes(np.zeros(int(is_group.sum()), dtype=np.int64), boxes[is_group]),
        case["group_of_weight"],
    )
    order = np.argsort(-scores, kind="stable")
    expected = np.argsort(-np.array(case["scores"]), kind="stable")
    np.testing.assert_allclose(scores[order], np.array(case["scores"])[expected])
    np.testing.assert_allclose(true[order], np.array(case["tp"])[expected])


def test_the_curve_equals_the_official_one():
    case = OFFICIAL["precision_recall"][0]
    precision, recall = np.array(case["precision"]), np.array(case["recall"])
    envelope = [precision[i:].max() for i in range(len(precision))]
    slow = sum((recall[i] - (recall[i - 1] if i else 0)) * envelope[i] for i in range(len(recall)))
    fast = average_precision(np.array(case["scores"]), np.array(case["labels"]), case["num_gt"])
    assert slow > 0.1 and fast == pytest.approx(slow, abs=1e-12)


def test_hierarchy_expands_as_the_official_tool():
    tree = OFFICIAL["hierarchy_expansion"][0]["hierarchy"]
    hierarchy = LabelHierarchy(tree)
    for case in OFFICIAL["hierarchy_expansion"]:
        cells = case["row"].split(",")
        label = cells[case["label_column"]]
        absent = case["confidence_column"] is not None and float(cells[case["confidence_column"]]) == 0
        others = hierarchy.descendants(label) if absent else hierarchy.ancestors(label)
        expected = [row.split(",")[case["label_column"]] for row in case["expanded"]]
        assert sorted({label, *others}) == sorted(expected)
    assert hierarchy.ancestors("d") == {"c", "f"} and "a" not in hierarchy.labels


def test_a_class_named_twice_keeps_all_its_parents():
    tree = {
        "LabelName": "root",
        "Subcategory": [
            {"LabelName": "food", "Subcategory": [{"LabelName": "fruit"}]},
            {"LabelName": "plant", "Subcategory": [{"LabelName": "fruit", "Subcategory": [{"LabelName": "tomato"}]}]},
        ],
    }
    assert LabelHierarchy(tree).ancestors("tomato") == {"fruit", "plant", "food"}


@pytest.mark.parametrize(
    "tree, word",
    [
        ({"LabelName": "root"}, "no class"),
        ({"LabelName": "root", "Subcategory": [{}]}, "LabelName"),
        ({"LabelName": "root", "Subcategory": {"LabelName": "a"}}, "no list"),
        (
            {
                "LabelName": "root",
                "Subcategory": [{"LabelName": "a", "Subcategory": [{"LabelName": "a"}]}],
            },
            "below itself",
        ),
    ],
)
def test_malformed_hierarchies(tree, word):
    with pytest.raises(InputError, match=word):
        LabelHierarchy(tree)


def test_a_number_that_is_not_finite_is_named():
    tree = {"LabelName": "root", "Subcategory": [{"LabelName": "a"}]}
    row = ("image", "a", 0.5, 0.1, math.nan, 0.1, 0.5)
    with pytest.raises(InputError, match="predictions"):
        open_images_ap([("image", "a", 0.1, 0.2, 0.1, 0.2, 0)], [], [row], tree)
    with pytest.raises(InputError, match="group_of_weight"):
        open_images_ap([], [], [], tree, -1)


def test_without_detections_ap_is_zero_and_without_objects_nothing():
    none = sorted_boxes(np.zeros(0, dtype=np.int64), np.zeros((0, 4)))
    one = sorted_boxes(np.zeros(1, dtype=np.int64), np.array([[0.0, 0, 1, 1]]))
    empty = (np.zeros(0, dtype=np.int64), np.zeros(0), np.zeros((0, 4)))
    assert class_ap(*empty, one, none) == 0
    assert math.isnan(class_ap(*empty, none, none))
    assert math.isnan(class_ap(*empty, none, one, 0.0))


def test_no_more_than_so_many_detections_of_an_image_count(monkeypatch):
    monkeypatch.setattr(open_images, "MAX_DETECTIONS", 2)
    none = sorted_boxes(np.zeros(0, dtype=np.int64), np.zeros((0, 4)))
    corners = np.tile([0.0, 0.0, 1.0, 1.0], (5, 1))
    image = np.array([0, 0, 0, 1, 1])
    scores, true = true_positives(image, np.array([0.1, 0.9, 0.5, 0.2, 0.3]), corners, none, none)
    assert sorted(scores.tolist()) == [0.2, 0.3, 0.5, 0.9] and not true.any()
