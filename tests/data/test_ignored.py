"""Boxes of another data set that come with the records, and what the augmentations make of them."""

import numpy as np
import pytest
import torch
from detectron2.data import transforms as T

from eql_d2.config import get_cfg
from eql_d2.data.build import build_train_loader
from eql_d2.data.coco import register_coco
from eql_d2.data.ignored import IgnoredBoxes, own_ignored_boxes
from eql_d2.data.lvis import load_lvis, register_lvis
from eql_d2.data.mapper import LongTailDatasetMapper
from eql_d2.errors import InputError
from eql_d2.visualization.data import visualize_data
from tests.data.conftest import SIZE

BOXES = {12: [[4, 6, 20, 10], [30, 30, 8, 8]], 25: [[0, 0, 64, 64]]}


def other_json(names="{:012d}.jpg", categories=("person", "dog")):
    """Return a COCO json of the images 12, 25 and 99, the boxes of which are of both categories in turn."""
    images = [{"id": i, "height": SIZE, "width": SIZE, "file_name": names.format(i)} for i in (99, 25, 12)]
    annotations = [
        {"id": 10 * i + n, "image_id": i, "category_id": n + 1, "bbox": box, "iscrowd": n}
        for i, boxes in BOXES.items()
        for n, box in enumerate([*boxes, [5, 5, 0, 9]][:2])
    ]
    return {"images": images, "annotations": annotations, "categories": [
        {"id": n + 1, "name": name} for n, name in enumerate(categories)
    ]}  # fmt: skip


@pytest.fixture
def cfg(save, content, coco_root):
    register_lvis("gappy", save(content), coco_root)
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = ("gappy",)
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = (SIZE,), "none"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.DATALOADER.NUM_WORKERS = 4, 0
    cfg.SOLVER.IMS_PER_BATCH = 1
    cfg.MODEL.LONG_TAIL.IGNORED.BOXES = [{"dataset": "gappy", "json": save(other_json(), "coco.json")}]
    return cfg


def corners(boxes):
    return [[x, y, x + w, y + h] for x, y, w, h in boxes if w > 0 and h > 0]


def test_boxes_by_image_and_by_category(save, content, coco_root):
    records = load_lvis(save(content), coco_root)
    path = save(other_json(), "coco.json")
    for match in ("id", "file_name"):
        boxes = IgnoredBoxes(path, match)
        assert len(boxes) == 3  # one has no width
        for record in records:
            assert boxes.of(record).tolist() == corners(BOXES.get(record["image_id"], []))
    dogs = IgnoredBoxes(path, categories=["dog"])
    assert [dogs.of(record).tolist() for record in records] == [[[30, 30, 38, 38]], [], [], []]


def test_a_file_name_finds_the_image_where_ids_differ(save, content, coco_root):
    other = other_json()
    for image in other["images"]:
        image["id"] += 1000
    for one in other["annotations"]:
        one["image_id"] += 1000
    path = save(other, "coco.json")
    records = load_lvis(save(content), coco_root)
    assert not any(len(IgnoredBoxes(path).of(record)) for record in records)
    assert len(IgnoredBoxes(path, "file_name").of(records[0])) == 2
    with pytest.raises(InputError, match=r"has a box in no image of .*matched by id"):
        IgnoredBoxes(path).attach(records, "gappy")


def test_the_loader_gives_them_and_the_image_stays(cfg):
    found = {}
    for batch in build_train_loader(cfg):
        found[batch[0]["image_id"]] = batch[0]["ignored_boxes"]
        if len(found) == 3:  # image 40 has no instance
            break
    assert all(boxes.dtype == torch.float32 for boxes in found.values())
    assert {key: boxes.tolist() for key, boxes in found.items()} == {
        key: corners(BOXES.get(key, [])) for key in (12, 25, 30)
    }
    cfg.MODEL.LONG_TAIL.IGNORED.BOXES = []
    assert "ignored_boxes" not in next(iter(build_train_loader(cfg)))[0]


def test_crowd_regions_and_group_of_boxes_of_the_set_itself(cfg, save, content, coco_root):
    cfg.MODEL.LONG_TAIL.IGNORED.CROWD = True
    record = load_lvis(save(content), coco_root)[2]  # image 30: annotation 2 is a crowd
    assert LongTailDatasetMapper(cfg, True)(record)["ignored_boxes"].tolist() == corners([[10, 10, 20, 20]])
    record["annotations"][0]["is_group_of"] = 1
    record["annotations"][1]["is_group_of"] = -1
    record["ignored_boxes"] = np.float32([[1, 2, 3, 4]])
    boxes = LongTailDatasetMapper(cfg, True)(record)["ignored_boxes"]
    assert boxes.tolist() == [[1, 2, 3, 4], *corners([[9, 10, 20, 20], [10, 10, 20, 20]])]
    assert own_ignored_boxes(()).shape == (0, 4)


def test_resize_flip_and_crop_against_loops(cfg, save, content, coco_root):
    record = load_lvis(save(content), coco_root)[0]
    boxes = [[4, 6, 24, 16], [30, 30, 38, 38], [50, 50, 64, 64]]
    record["ignored_boxes"] = np.float32(boxes)
    augmentations = [
        T.ResizeTransform(SIZE, SIZE, 2 * SIZE, 2 * SIZE),
        T.HFlipTransform(128),
        T.CropTransform(0, 0, 90, 70),
    ]
    mapper = LongTailDatasetMapper(True, augmentations=augmentations, image_format="BGR", use_instance_mask=True)
    expected = []
    for left, top, right, bottom in boxes:
        left, right = 128 - 2 * right, 128 - 2 * left
        box = [max(left, 0), max(2 * top, 0), min(right, 90), min(2 * bottom, 70)]
        if box[0] < box[2] and box[1] < box[3]:
            expected.append(box)
    assert len(expected) == 2
    example = mapper(record)
    assert example["ignored_boxes"].tolist() == expected
    assert record["ignored_boxes"].tolist() == boxes


def test_jitter_and_paste_keep_them_in_the_square(cfg):
    node = cfg.MODEL.LONG_TAIL.AUGMENT
    node.SCALE_JITTER, node.SIZE, node.COPY_PASTE, cfg.MODEL.MASK_ON = (0.5, 2.0), 48, 1.0, True
    seen = 0
    for batch in build_train_loader(cfg):
        boxes = batch[0]["ignored_boxes"]
        assert ((boxes >= 0) & (boxes <= 48)).all() and (boxes[:, 2:] > boxes[:, :2]).all()
        if batch[0]["image_id"] == 25:  # the whole image is ignored: the padding is not
            height, width = batch[0]["instances"].image_size
            assert (height, width) == (48, 48)
            assert len(boxes) == 1 and boxes[0, 2] - boxes[0, 0] == boxes[0, 3] - boxes[0, 1]
            seen += 1
        if seen == 5:
            break


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"colour": "red"}, "it must be a mapping with dataset, json"),
        ({"categories": "dog"}, "it must be a mapping with dataset, json"),
        ({"dataset": "gapy"}, "did you mean gappy"),
        ({"match": "name"}, "match is 'name'"),
        ({"categories": ["cow"]}, "categories has 'cow', which .*coco.json does not have; its 2 categories"),
        ({"json": "/nowhere.json"}, "nowhere.json: there is no such file"),
    ],
)
def test_entries_that_cannot_be_used(cfg, changes, message):
    (entry,) = cfg.MODEL.LONG_TAIL.IGNORED.BOXES
    cfg.MODEL.LONG_TAIL.IGNORED.BOXES = [{**entry, **changes}]
    with pytest.raises(InputError, match=message):
        build_train_loader(cfg)
    cfg.MODEL.LONG_TAIL.IGNORED.BOXES = [entry, entry]
    with pytest.raises(InputError, match="two entries for 'gappy'"):
        build_train_loader(cfg)


def test_they_are_drawn_in_both_views(cfg, save, content, coco_root, tmp_path):
    entry = {"dataset": "gappy2", "json": save(other_json(), "coco.json")}
    config = tmp_path / "config.yaml"
    config.write_text(
        f"MODEL: {{LONG_TAIL: {{DATASETS: [[gappy2, {save(content)}, {coco_root}]], IGNORED: {{BOXES: [{entry}]}}}}}}\n"
        f"DATASETS: {{TRAIN: [gappy2], TEST: []}}\nINPUT: {{MIN_SIZE_TRAIN: [64]}}\n"
        "SEED: 0\nSOLVER: {IMS_PER_BATCH: 1}\n"
    )
    for source in ("annotation", "dataloader"):
        (page,) = visualize_data(tmp_path / source, str(config), source=source)
        assert "2 ignored regions (grey, dashed)" in page.read_text()


def test_a_set_of_plain_dicts_gets_them_too(save, content, coco_root):
    register_coco("plain", save(other_json(), "coco.json"), coco_root)
    records = [dict(record) for record in load_lvis(save(content), coco_root)]
    attached = IgnoredBoxes(save(other_json(), "coco.json")).attach(records, "plain")
    assert [len(record["ignored_boxes"]) for record in attached] == [2, 1, 0, 0]
    assert "ignored_boxes" not in records[0]
