"""The generated set as index masks: what is painted where."""

import cv2
import numpy as np
import pytest

from eql_d2.commands import make_mini_dataset
from eql_d2.data.index_masks import MaskValues, read_mask
from eql_d2.data.semantic import load_masks, read_class_names
from eql_d2.errors import InputError
from eql_d2.mini import generate_mask_dataset, generate_mini_dataset
from eql_d2.mini.generate import MiniParameters, draw_image, plan_split
from eql_d2.mini.masks import BACKGROUND, paint
from eql_d2.mini.shapes import DrawnObject, ObjectRequest
from tests.mini.test_folder import all_files

PARAMETERS = {"num_classes": 9, "num_train": 30, "num_val": 8, "image_size": 64}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return generate_mask_dataset(tmp_path_factory.mktemp("data") / "mini_semseg", **PARAMETERS)


def distances(outline, size):
    """How far inside an outline (negative: outside) the centre of each pixel lies, in pixels."""
    contour = outline.astype(np.float32)
    centres = [[(x + 0.5, y + 0.5) for x in range(size)] for y in range(size)]
    return np.array([[cv2.pointPolygonTest(contour, centre, True) for centre in row] for row in centres])


def test_paint_covers_the_pixels_of_the_outline_and_the_later_hides_the_earlier():
    outlines = [
        np.array([[1.0, 1.0], [6.2, 1.0], [6.2, 5.0], [1.0, 5.0]]),
        np.array([[3.0, 2.0], [11.3, 4.1], [5.2, 10.7]]),
    ]
    painted = paint([DrawnObject(ObjectRequest(label, True, True), one) for label, one in enumerate(outlines)], 12, 7)
    first, second = (distances(one, 12) for one in outlines)
    # The drawing reaches up to a pixel beyond the outline.
    inside, outside = (first > 0, second > 0), (first < -1, second < -1)
    assert (painted[inside[1]] == 1).all() and inside[1].sum() > 20
    assert (painted[inside[0] & outside[1]] == 0).all() and (inside[0] & outside[1]).sum() > 5
    assert (painted[outside[0] & outside[1]] == 7).all() and (outside[0] & outside[1]).sum() > 50


def test_every_object_is_painted_and_the_rest_is_background(folder):
    parameters = MiniParameters(**PARAMETERS, num_test=1)
    records = load_masks(folder / "train", folder / "train_masks", MaskValues(10))
    assert len(records) == 30
    for index, (record, plan) in enumerate(zip(records, plan_split(parameters, "train"))):
        mask = read_mask(record["sem_seg_file_name"], MaskValues(10), (64, 64))
        _, drawn = draw_image(parameters, "train", index, plan)
        assert np.array_equal(mask, paint(drawn, 64, 9))
        # required objects stay visible for the most part
        assert {*plan.annotated, *plan.unverified} <= set(np.unique(mask)) <= {9, *(one.request.label for one in drawn)}
    assert read_class_names(folder / "classes.txt")[-1] == BACKGROUND
    assert records.frequency.image_count[9] == 30


def test_images_are_those_of_the_set_in_lvis_format(folder, tmp_path):
    lvis = generate_mini_dataset(tmp_path / "lvis", **PARAMETERS)
    for split in ("train", "val"):
        assert {p.name: p.read_bytes() for p in (lvis / split).iterdir()} == {
            p.name: p.read_bytes() for p in (folder / split).iterdir()
        }


def test_made_once_and_the_same_again(folder, tmp_path):
    again = generate_mask_dataset(tmp_path / "again", **PARAMETERS)
    assert all_files(again) == all_files(folder)
    assert generate_mask_dataset(folder, **PARAMETERS) == folder
    with pytest.raises(InputError, match="made with seed 0, not 1"):
        generate_mask_dataset(folder, **PARAMETERS, seed=1)


def test_arguments_that_are_no_use(tmp_path):
    with pytest.raises(InputError, match="num_test is of no use for index masks"):
        generate_mask_dataset(tmp_path / "x", num_test=3)
    with pytest.raises(InputError, match="num_classes is 254; with the background, 254 fit"):
        generate_mask_dataset(tmp_path / "x", num_classes=254)
    with pytest.raises(InputError, match="are those of LVIS's format"):
        make_mini_dataset.main(["--output", str(tmp_path / "x"), "--format", "masks", "--statistics"])
