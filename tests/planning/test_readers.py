"""Annotations of YOLO and Pascal VOC become those of COCO; what cannot be read is named."""

import json

import pytest

from eql_d2.errors import InputError
from eql_d2.planning.readers import read_split
from tests.conftest import make_lvis_json, write_image

pytest.importorskip("globox")
VOC = """<annotation><filename>{name}</filename><size><width>64</width><height>64</height><depth>3</depth></size>
{objects}</annotation>"""
OBJECT = "<object><name>{}</name><bndbox><xmin>{}</xmin><ymin>{}</ymin><xmax>{}</xmax><ymax>{}</ymax></bndbox></object>"


def test_yolo(yolo):
    for source in (yolo, yolo / "data.yaml"):
        train, val = read_split(source)
        assert train.images == val.images == yolo
        assert [image["file_name"] for image in train.content["images"]] == ["images/train/a.png", "images/train/b.jpg"]
        assert all((train.images / image["file_name"]).is_file() for image in train.content["images"])
        categories = {one["id"]: one["name"] for one in train.content["categories"]}
        assert categories == {1: "cat", 2: "Traffic light"}
        boxes = [(one["image_id"], one["category_id"], one["bbox"]) for one in train.content["annotations"]]
        # The second reaches over the border by 0.05 of 64 pixels.
        assert boxes == [(1, 2, [16, 8, 32, 16]), (1, 1, pytest.approx([54.4, 16, 9.6, 32]))]
        assert [one["bbox"] for one in val.content["annotations"]] == [[0, 0, 64, 64]]


def test_yolo_with_images_beside_the_folder_of_the_list(yolo):
    """File names then start at the folder that holds all, and none leads out of it."""
    (yolo / "lists").mkdir()
    (yolo / "data.yaml").rename(yolo / "lists" / "data.yaml")
    (yolo / "lists" / "data.yaml").write_text(f"train: ../images/train\nval: {yolo}/images/val\nnames: [cat, light]\n")
    train, val = read_split(yolo / "lists")
    assert train.images == val.images == yolo
    assert [image["file_name"] for image in train.content["images"]] == ["images/train/a.png", "images/train/b.jpg"]
    assert [image["file_name"] for image in val.content["images"]] == ["images/val/c.png"]


def test_yolo_polygons(yolo):
    (yolo / "labels/train/a.txt").write_text("1 0.1 0.2 0.5 0.2 0.5 1.2\n\n0 0.5 0.5 0.5 0.5\n")
    train, _ = read_split(yolo)
    width, height = (train.content["images"][0][side] for side in ("width", "height"))
    triangle, box = train.content["annotations"]
    corners = [0.1 * width, 0.2 * height, 0.5 * width, 0.2 * height, 0.5 * width, height]
    assert triangle["segmentation"] == [pytest.approx(corners)]
    assert triangle["bbox"] == pytest.approx([0.1 * width, 0.2 * height, 0.4 * width, 0.8 * height])
    assert "segmentation" not in box and (triangle["category_id"], box["category_id"]) == (2, 1)


def test_yolo_that_cannot_be_read(yolo):
    labels = yolo / "labels/train/a.txt"
    for text, words in (
        ("7 0.5 0.5 0.1 0.1", "a.txt has the label 7, which is not among the names"),
        ("0 0.1 0.1 0.2 0.1 0.2 0.2 0.1", r"a\.txt cannot be read.*odd number.*or a polygon as x, y, x, y"),
        ("0 0.5 0.5 -0.1 0.1", "a.txt cannot be read .*greater than"),
        ("0 0.5 x 0.1 0.1", "a.txt cannot be read"),
    ):
        labels.write_text(text)
        with pytest.raises(InputError, match=words):
            read_split(yolo)
    (yolo / "data.yaml").write_text("train: images/nowhere\nnames: [cat]\n")
    with pytest.raises(InputError, match="images/nowhere, which is not below"):
        read_split(yolo)
    (yolo / "data.yaml").write_text("names: [cat]\n")
    with pytest.raises(InputError, match=r"is no list of a data set: it should be a data\.yaml of YOLO"):
        read_split(yolo)


def test_pascal_voc(tmp_path):
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "JPEGImages").mkdir()
    objects = OBJECT.format("dog", 1, 2, 31, 42) + OBJECT.format("cat", 5, 5, 64, 64)
    for name, content in (("1.jpg", objects), ("2.jpg", "")):
        write_image(tmp_path / "JPEGImages" / name)
        (tmp_path / f"Annotations/{name[0]}.xml").write_text(VOC.format(name=name, objects=content))
    split, none = read_split(tmp_path)
    assert none is None and split.images == tmp_path / "JPEGImages"
    assert [one["name"] for one in split.content["categories"]] == ["cat", "dog"]
    assert [(one["category_id"], one["bbox"]) for one in split.content["annotations"]] == [
        (2, [1, 2, 30, 40]),
        (1, [5, 5, 59, 59]),
    ]
    (tmp_path / "Annotations/1.xml").write_text("<annotation>")
    with pytest.raises(InputError, match=r"1\.xml cannot be read"):
        read_split(tmp_path)


def test_a_json_and_its_images(tmp_path):
    (tmp_path / "train.json").write_text(json.dumps(make_lvis_json()))
    assert read_split(tmp_path / "train.json")[0].images == tmp_path
    (tmp_path / "images").mkdir()
    assert read_split(tmp_path / "train.json")[0].images == tmp_path / "images"
    with pytest.raises(InputError, match=r"--images .*: there is no such folder"):
        read_split(tmp_path / "train.json", tmp_path / "nowhere")
    with pytest.raises(InputError, match="there is no such file"):
        read_split(tmp_path / "val.json")
    with pytest.raises(InputError, match=r"holds neither data\.yaml"):
        read_split(tmp_path)
