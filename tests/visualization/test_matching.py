"""The measure that images are sorted by."""

import pytest

from eql_d2.errors import InputError
from eql_d2.visualization.comparison import SORTS, Choice, ImageComparison, sort_comparisons
from eql_d2.visualization.matching import Match, iou_matrix, match_image
from eql_d2.visualization.objects import VisualObject, object_of_record

LVIS = {
    "height": 100,
    "width": 100,
    "image_labels": {"positive": [0, 1], "negative": [2]},
    "not_exhaustive_category_ids": [1],
}


def box(label, left, score=None, crowd=False, side=10):
    return VisualObject(label, (left, 0, left + side, side), score=score, crowd=crowd)


def test_the_best_score_takes_the_object():
    truth = [box(0, 0)]
    found = [box(0, 2, score=0.4), box(0, 0, score=0.9)]
    assert match_image(truth, found, LVIS) == Match(hits=1, wrong=1, missed=0, unjudged=0)
    assert [one.verdict for one in found] == ["wrong", "hit"]


def test_classes_that_the_image_says_nothing_of_are_not_judged():
    found = [box(0, 50, 0.9), box(1, 50, 0.9), box(2, 50, 0.9), box(3, 50, 0.9)]
    match = match_image([box(0, 0)], found, LVIS)
    assert [one.verdict for one in found] == ["wrong", "unjudged", "wrong", "unjudged"]
    assert match == Match(hits=0, wrong=2, missed=1, unjudged=2) and match.f1 == 0
    coco = {"height": 100, "width": 100}
    assert match_image([box(0, 0)], found, coco).wrong == 4


def test_another_class_and_a_low_overlap_do_not_match():
    assert match_image([box(0, 0)], [box(2, 0, 0.9)], LVIS).hits == 0
    assert match_image([box(0, 0)], [box(0, 4, 0.9)], LVIS).hits == 0  # IoU 6 / 14
    assert match_image([box(0, 0)], [box(0, 3, 0.9)], LVIS).hits == 1  # IoU 7 / 13


def test_crowd_regions_excuse_and_are_not_missed():
    truth = [box(0, 0, crowd=True, side=60)]
    match = match_image(truth, [box(0, 5, 0.9), box(0, 20, 0.8), box(0, 80, 0.7)], LVIS)
    assert match == Match(hits=0, wrong=1, missed=0, unjudged=2)


def test_masks_count_only_if_both_sides_have_them():
    half = {"category_id": 0, "segmentation": [[0, 0, 10, 0, 0, 10]]}
    triangle = object_of_record(half)
    assert iou_matrix([triangle], [box(0, 0)], 100, 100)[0, 0] == 1
    assert iou_matrix([triangle], [triangle], 100, 100)[0, 0] == 1
    whole = object_of_record({"category_id": 0, "segmentation": [[0, 0, 10, 0, 10, 10, 0, 10]]})
    assert 0.4 < iou_matrix([triangle], [whole], 100, 100)[0, 0] < 0.6
    assert iou_matrix([], [whole], 100, 100).shape == (0, 1)


def test_f1():
    assert Match(0, 0, 0, 3).f1 == 1 and Match(2, 1, 1, 0).f1 == pytest.approx(4 / 6)


def test_orders():
    right, half, wrong = Match(2, 0, 0, 0), Match(1, 1, 1, 0), Match(0, 2, 2, 0)
    images = [
        ImageComparison(0, (half, half)),
        ImageComparison(1, (right, wrong)),
        ImageComparison(2, (right, right)),
        ImageComparison(3, (wrong, half)),
    ]
    orders = {by: [one.index for one in sort_comparisons(images, by)] for by in SORTS}
    assert orders["dataset"] == [0, 1, 2, 3] and orders["worst"][0] == 3 and orders["best"][0] == 2
    assert orders["difference"][:2] == [1, 3]
    with pytest.raises(InputError, match="--sort difference compares models"):
        sort_comparisons([ImageComparison(0, (right,))], "difference")


def test_choices_say_what_they_show():
    assert "as many" in Choice().describe() and "3 best" in Choice(3).describe()
    assert "0.5" in Choice(threshold=0.5).describe()
    assert Choice(labels=frozenset([1])).keep([box(0, 0), box(1, 0)]) == [box(1, 0)]
