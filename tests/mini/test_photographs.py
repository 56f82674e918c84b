"""The set of photographs: its format, its long tail, and that every photograph is where the annotations say."""

import json

import cv2
import numpy as np
import pytest
from lvis import LVIS
from pycocotools import mask as mask_utils

from eql_d2.commands import make_mini_dataset
from eql_d2.errors import InputError
from eql_d2.mini.photographs import SPLITS, draw_photographs, generate_photograph_dataset

#: Training photographs of each of twelve classes: 125, so one fills no image.
COUNTS = (70, 20, 11, 10, 4, 3, 2, 1, 1, 1, 1, 1)
NUM_TEST = 6


def gray_of(label):
    """Every photograph is of one gray that tells its class."""
    return 20 * (label + 1)


@pytest.fixture(scope="module")
def objects(tmp_path_factory):
    y_train = np.repeat(np.arange(len(COUNTS)), COUNTS)
    y_test = np.repeat(np.arange(len(COUNTS)), 3)
    images = {f"x_{s}": np.zeros((len(y), 32, 32, 3), np.uint8) for s, y in (("train", y_train), ("test", y_test))}
    for split, labels in (("train", y_train), ("test", y_test)):
        images[f"x_{split}"][:] = gray_of(labels)[:, None, None, None]
    path = tmp_path_factory.mktemp("objects") / "objects.npz"
    names = np.array([f"class {j}" for j in range(len(COUNTS))])
    np.savez(path, y_train=y_train, y_test=y_test, classes=names, **images)
    return path


@pytest.fixture(scope="module")
def folder(objects, tmp_path_factory):
    return generate_photograph_dataset(tmp_path_factory.mktemp("data") / "photographs", objects, NUM_TEST)


@pytest.fixture(scope="module")
def content(folder):
    return {split: json.loads((folder / f"{split}.json").read_text()) for split in SPLITS}


def test_every_training_photograph_is_used_once_and_test_is_balanced(content):
    labels = {s: [a["category_id"] - 1 for a in content[s]["annotations"]] for s in SPLITS}
    # 31 images of four; the one left over is of the largest class.
    assert np.bincount(labels["train"]).tolist() == [COUNTS[0] - 1, *COUNTS[1:]]
    assert np.bincount(labels["test"]).tolist() == [2] * len(COUNTS)
    for split in SPLITS:
        images = [annotation["image_id"] for annotation in content[split]["annotations"]]
        assert set(np.unique(images, return_counts=True)[1]) == {4}
        assert sorted(set(images)) == [image["id"] for image in content[split]["images"]]


def test_groups_count_images_with_bounds_of_10_and_60(content):
    categories = content["train"]["categories"]
    assert categories == content["test"]["categories"]
    for label, category in enumerate(categories):
        images = {a["image_id"] for a in content["train"]["annotations"] if a["category_id"] == label + 1}
        assert category["image_count"] == len(images)
        assert category["frequency"] == ("r" if len(images) <= 10 else "c" if len(images) <= 60 else "f")
        assert category["name"] == f"class {label}"


def test_lvis_api_reads_it_and_negatives_are_absent(folder, content):
    for split in SPLITS:
        dataset = LVIS(str(folder / f"{split}.json"))
        for image in content[split]["images"]:
            present = {a["category_id"] for a in dataset.load_anns(dataset.get_ann_ids(img_ids=[image["id"]]))}
            assert len(set(image["neg_category_ids"])) == 8 and not present & set(image["neg_category_ids"])
            assert image["not_exhaustive_category_ids"] == []


def test_masks_hold_their_photograph_and_are_less_than_their_boxes(folder, content):
    for split in SPLITS:
        for image in content[split]["images"]:
            pixels = cv2.imread(str(folder / split / image["file_name"]), cv2.IMREAD_GRAYSCALE)
            assert pixels.shape == (160, 160)
            mine = [a for a in content[split]["annotations"] if a["image_id"] == image["id"]]
            boxes = np.array([a["bbox"] for a in mine])
            assert boxes[:, :2].min() >= 0 and (boxes[:, :2] + boxes[:, 2:]).max() <= 160
            assert boxes[:, 2:].max() <= 72 and boxes[:, 2:].max(axis=1).min() >= 35
            overlap = mask_utils.iou(boxes, boxes, [0] * len(boxes))
            assert (overlap[~np.eye(len(boxes), dtype=bool)] == 0).all()
            for annotation in mine:
                rle = mask_utils.frPyObjects(annotation["segmentation"], 160, 160)[0]
                inside = pixels[cv2.erode(mask_utils.decode(rle), np.ones((5, 5), np.uint8)).astype(bool)]
                assert abs(float(np.median(inside)) - gray_of(annotation["category_id"] - 1)) <= 3
                assert annotation["area"] == mask_utils.area(rle)
                assert 0.5 < annotation["area"] / np.prod(annotation["bbox"][2:]) < 0.95


def test_the_same_photographs_give_the_same_bytes_and_others_are_refused(objects, folder, tmp_path):
    again = generate_photograph_dataset(tmp_path / "again", objects, NUM_TEST)
    files = sorted(path.relative_to(folder) for path in folder.rglob("*.*"))
    assert len(files) == 3 + 31 + NUM_TEST
    assert all((folder / name).read_bytes() == (again / name).read_bytes() for name in files)
    arrays = dict(np.load(objects))
    arrays["x_test"][0, 0, 0, 0] += 1
    np.savez(tmp_path / "other.npz", **arrays)
    with pytest.raises(InputError, match="made with objects"):
        generate_photograph_dataset(again, tmp_path / "other.npz", NUM_TEST)


def test_four_of_the_largest_find_room():
    class Largest(np.random.Generator):
        def uniform(self, low=0.0, high=1.0, size=None):
            return np.full(size, high) if size else high

    images = [np.full((32, 32, 3), 255, np.uint8)] * 4
    _, outlines = draw_photographs(images, 160, Largest(np.random.PCG64(0)))
    corners = np.array([[outline.min(axis=0), outline.max(axis=0)] for outline in outlines])
    assert np.ptp(corners, axis=1).min() == pytest.approx(71, abs=0.01)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_test": 10}, r"has 3 photographs of 'class \d+' in test; 10 test images need 4"),
        ({"image_size": 63}, "image_size is 63; it must be at least 64"),
        ({"seed": 1.5}, r"seed is 1\.5; it must be a whole number"),
    ],
)
def test_bad_arguments_are_named(objects, tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        generate_photograph_dataset(tmp_path / "photographs", objects, **arguments)
    assert list(tmp_path.iterdir()) == []


def test_the_command(objects, tmp_path, capsys):
    output = ["--output", str(tmp_path / "photographs"), "--objects", str(objects)]
    make_mini_dataset.main([*output, "--test-images", str(NUM_TEST), "--statistics"])
    rows = {line[:40].strip(): line[40:].split() for line in capsys.readouterr().out.splitlines()}
    assert rows["images"] == ["31", "6"] and rows["instances per image"] == ["4.00", "4.00"]
    with pytest.raises(InputError, match="--classes is of no use with --objects"):
        make_mini_dataset.main([*output, "--classes", "7"])
