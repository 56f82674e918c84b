"""Index masks painted from the instances of a json: what is on top, what has no label, what is written."""

import json

import numpy as np
import pycocotools.mask as mask_util
import pytest
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from eql_d2.commands import write_masks
from eql_d2.commands.check_dataset import main as check_dataset
from eql_d2.config import get_cfg
from eql_d2.data.builtin import register_from_config
from eql_d2.data.catalog import category_frequency
from eql_d2.data.check_masks import OFFICIAL_COUNTS
from eql_d2.data.painted_masks import paint_dataset, paint_mask
from eql_d2.errors import InputError
from tests.data.masks import write_image, write_mask
from tests.mini.test_folder import all_files


def rectangle(x, y, width, height):
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def record(*annotations, size=8):
    return {"image_id": 1, "height": size, "width": size, "annotations": list(annotations)}


def instance(label, box, **more):
    return {"category_id": label, "segmentation": rectangle(*box), **more}


def slow_paint(annotations, size, ignore, background):
    """Each pixel by itself: the smallest of its instances, the last of several."""
    mask = []
    for y in range(size):
        mask.append([])
        for x in range(size):
            here = [
                (box[2] * box[3], -number, label, crowd)
                for number, (label, box, crowd) in enumerate(annotations)
                if box[0] <= x < box[0] + box[2] and box[1] <= y < box[1] + box[3]
            ]
            instances = [entry for entry in here if not entry[3]]
            mask[-1].append(min(instances)[2] if instances else ignore if here else background)
    return mask


_BOXES = st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(1, 4), st.integers(1, 4))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), _BOXES, st.sampled_from([0, 0, 0, 1])), max_size=6))
def test_painted_as_by_a_loop(annotations):
    for ignore, background in ((255, 255), (255, 6), (65535, 65535)):
        painted = paint_mask(
            record(*(instance(label, box, iscrowd=crowd) for label, box, crowd in annotations)), ignore, background
        )
        assert painted.dtype == (np.uint8 if ignore == 255 else np.uint16)
        assert painted.tolist() == slow_paint(annotations, 8, ignore, background)


def test_run_lengths_are_painted_too():
    square = np.zeros((8, 8), np.uint8, order="F")
    square[2:4, 1:5] = 1
    painted = paint_mask(record({"category_id": 3, "segmentation": mask_util.encode(square)}), 255, 255)
    assert painted.tolist() == np.where(square, 3, 255).tolist()


@pytest.mark.parametrize(
    "annotation, words",
    [
        ({"category_id": 0}, "of image 1 is missing, and a box is no mask"),
        (instance(0, (0, 0, 1e7, 1)), "of image 1 has the coordinates 0.* to 1"),
        ({"category_id": 0, "segmentation": {"size": [3, 3], "counts": [9]}}, r"of image 1 has the size \[3, 3\]"),
    ],
)
def test_what_cannot_be_painted(annotation, words):
    with pytest.raises(InputError, match=words):
        paint_mask(record(annotation), 255, 255)


def write_json(folder, federated, num_classes=3):
    """Two images below ``train``, in LVIS or COCO format; the category ids have gaps."""
    boxes = {1: [(10, (0, 0, 6, 6), 0), (30, (1, 1, 2, 2), 0)], 2: [(20, (2, 2, 3, 3), 0), (10, (0, 0, 4, 4), 1)]}
    content = {
        "images": [{"id": i, "file_name": f"train/{i}.jpg", "height": 8, "width": 8} for i in boxes],
        "categories": [{"id": 10 * (k + 1), "name": f"class {k}"} for k in range(num_classes)],
        "annotations": [],
    }
    for image, entries in boxes.items():
        write_image(folder / f"images/train/{image}.jpg", 8, 8)
        for category, box, crowd in entries:
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": image,
                    "category_id": category,
                    "bbox": list(box),
                    "area": box[2] * box[3],
                    "segmentation": rectangle(*box),
                    "iscrowd": crowd,
                }
            )
    if federated:
        for image in content["images"]:
            image.update(neg_category_ids=[], not_exhaustive_category_ids=[])
    (folder / "train.json").write_text(json.dumps(content))
    return folder / "train.json", folder / "images"


def read(path):
    return np.asarray(Image.open(path)).tolist()


@pytest.mark.parametrize("federated", [True, False])
def test_a_json_becomes_masks(tmp_path, federated):
    files = write_json(tmp_path, federated)
    assert paint_dataset(*files, tmp_path / "out") == (2, ["class 0", "class 1", "class 2"])
    assert sorted(map(str, all_files(tmp_path / "out"))) == ["classes.txt", "masks/train/1.png", "masks/train/2.png"]
    expected = [(0, (0, 0, 6, 6), 0), (2, (1, 1, 2, 2), 0)]
    assert read(tmp_path / "out/masks/train/1.png") == slow_paint(expected, 8, 255, 255)
    expected = [(1, (2, 2, 3, 3), 0), (0, (0, 0, 4, 4), 1)]
    assert read(tmp_path / "out/masks/train/2.png") == slow_paint(expected, 8, 255, 255)


def test_background_only_where_everything_is_annotated(tmp_path):
    files = write_json(tmp_path, federated=False)
    _, names = paint_dataset(*files, tmp_path / "out", with_background=True)
    assert names[-1] == "background"
    expected = [(1, (2, 2, 3, 3), 0), (0, (0, 0, 4, 4), 1)]
    assert read(tmp_path / "out/masks/train/2.png") == slow_paint(expected, 8, 255, 3)
    files = write_json(tmp_path, federated=True)
    with pytest.raises(InputError, match=r"annotated in part .* there is no background"):
        paint_dataset(*files, tmp_path / "other", with_background=True)


def test_many_classes_and_many_processes(tmp_path):
    files = write_json(tmp_path, True, num_classes=300)
    paint_dataset(*files, tmp_path / "out", workers=2)
    assert read(tmp_path / "out/masks/train/1.png")[7][7] == 65535
    paint_dataset(*files, tmp_path / "again")
    assert all_files(tmp_path / "out") == all_files(tmp_path / "again")


def test_a_json_without_annotations(tmp_path):
    json_file, images = write_json(tmp_path, True)
    content = json.loads(json_file.read_text())
    del content["annotations"]
    json_file.write_text(json.dumps(content))
    with pytest.raises(InputError, match="has no annotations, of which masks could be painted"):
        paint_dataset(json_file, images, tmp_path / "out")


def test_the_command_prints_an_entry_that_registers_and_checks(tmp_path, capsys, monkeypatch):
    json_file, images = write_json(tmp_path, True)
    arguments = ["--json", str(json_file), "--images", str(images), "--output", str(tmp_path / "painted")]
    write_masks.main(arguments)
    first, printed = capsys.readouterr().out.split("\n", 1)
    assert "holds 2 masks of 3 classes" in first
    cfg = get_cfg()
    cfg.MODEL.LONG_TAIL.SEM_SEG.DATASETS = yaml.safe_load(printed)
    register_from_config(cfg)
    try:
        assert category_frequency(["painted"]).image_count.tolist() == [1, 1, 1]
        assert check_dataset(["painted"]) == 0
        lines = capsys.readouterr().out
        assert "painted: 2 masks of 3 classes, 45 labelled pixels; classes in 1 to 1 images, of 4 to 32 pixels" in lines
        assert "No errors found." in lines
        write_mask(tmp_path / "painted/masks/train/1.png", np.full((8, 8), 3))
        write_image(tmp_path / "images/train/2.jpg", 9, 8)
        monkeypatch.setitem(OFFICIAL_COUNTS, "painted", 3)
        assert check_dataset(["painted"]) == 1
        lines = capsys.readouterr().out
        assert "painted should have 3 images, found 2" in lines
        assert "ERROR: masks that cannot be used: 2" in lines
        assert "1.png has the value 3; its 3 classes" in lines and "its image 8 x 9" in lines
        (tmp_path / "images/train/2.jpg").write_bytes(b"none")
        write_mask(tmp_path / "painted/masks/train/1.png", np.full((8, 8), 255))
        assert check_dataset(["painted"]) == 1
        lines = capsys.readouterr().out
        assert "ERROR: image files that cannot be read: 1" in lines
        assert "note: images without a labelled pixel" in lines
        assert "note: classes without a pixel (they cannot be learnt or evaluated): 3" in lines
    finally:
        DatasetCatalog.remove("painted")
        MetadataCatalog.remove("painted")
