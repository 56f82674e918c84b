"""Outlines, labels and panels."""

import cv2
import numpy as np
import pytest

from eql_d2.evaluation.mask_encoding import encode_mask
from eql_d2.visualization import drawing
from eql_d2.visualization.objects import VisualObject, object_of_record
from tests.conftest import square

GREY = np.full((100, 200, 3), 128, np.uint8)


def covered(group: str) -> float:
    """Return the share of an outline of a group's style that is painted, read from the picture in greys."""
    found = VisualObject(0, (20, 20, 180, 80))
    picture = drawing.draw_objects(GREY, [found], ["a"], [group], size=1000)
    grey = cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY).astype(int)
    row = grey[395:405, 160:840]  # the lower side
    return (abs(row - 128) > 20).any(axis=0).mean()


def test_groups_differ_without_colour():
    assert covered("r") == 1
    assert 0.6 < covered("c") < 0.95
    assert covered("f") < 1 and abs(covered("f") - covered("c")) > 0.05
    found = [VisualObject(0, (20, 20, 180, 80))]
    pictures = [drawing.draw_objects(GREY, found, ["a"], [group], 400) for group in "rcf"]
    inside = [int(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY)[100, 200]) for picture in pictures]
    assert inside[1] == inside[2] == 128 != inside[0]  # a rare object is tinted


def test_dashes_follow_the_outline():
    strokes = drawing._dashes(np.array([[0.0, 0], [10, 0], [10, 10], [0, 10]]), [3, 2])
    assert len(strokes) == 8  # 40 pixels around
    assert [np.linalg.norm(np.diff(stroke, axis=0), axis=1).sum() for stroke in strokes] == pytest.approx([3] * 8)
    assert strokes[2].tolist() == [[10, 0], [10, 3]]
    assert drawing._dashes(np.zeros((4, 2)), [3, 2])  # an object without extent


def test_masks_polygons_and_boxes_of_the_same_shape_are_drawn_alike():
    mask = np.zeros((100, 200), bool)
    mask[20:60, 30:90] = True
    records = [
        {"category_id": 0, "mask": mask},
        {"category_id": 0, "segmentation": encode_mask(mask)},
        {"category_id": 0, "segmentation": [[30, 20, 90, 20, 90, 60, 30, 60]]},
        {"category_id": 0, "bbox": [30, 20, 90, 60]},
    ]
    objects = [object_of_record(record) for record in records]
    assert [found.box for found in objects] == [(30, 20, 90, 60)] * 4
    pictures = [drawing.draw_objects(GREY, [found], ["a"], ["r"], 600).astype(int) for found in objects]
    assert (pictures[0] == pictures[1]).all() and (pictures[2] == pictures[3]).all()
    assert (abs(pictures[0] - pictures[2]).max(axis=2) > 60).mean() < 0.02  # a pixel more or less along the edge


def test_labels_have_all_letters_and_do_not_cover_each_other():
    found = VisualObject(0, (20, 20, 180, 80), score=0.5, verdict="hit")
    assert drawing.label_text(found, ["jalapeño"], ["r"]) == "✓ jalapeño (r) 0.50"
    assert drawing._text_size("ñ", 16) != drawing._text_size("", 16)
    taken = []
    corners = [drawing._free_place((50, 20), (180, 40), (100, 200), taken) for _ in range(4)]
    assert len(set(corners)) == 4 and all(0 <= x <= 150 and 0 <= y <= 80 for x, y in corners)


def test_a_panel_is_the_image_enlarged_with_a_margin():
    objects = [object_of_record({"category_id": 0, "segmentation": [square(4, 4, 10)]})]
    image = np.zeros((20, 30, 3), np.uint8)
    panel = drawing.draw_panel(image, objects, ["star"], ["r"], "ground truth", 90)
    assert panel.shape == (64, 94, 3) and panel.dtype == np.uint8 and (panel[0] == 255).all()
    assert not image.any()
    assert cv2.imdecode(np.frombuffer(drawing.encode_jpeg(panel), np.uint8), 1).shape == panel.shape


def test_an_image_without_objects_is_only_scaled():
    assert (drawing.draw_objects(GREY, [], [], [], 100) == 128).all()
