"""Image-level labels in training examples, and images that cannot be read."""

import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.data import transforms as T

from eql_d2.config import get_cfg
from eql_d2.data.coco import register_coco
from eql_d2.data.lvis import load_lvis, register_lvis
from eql_d2.data.mapper import LongTailDatasetMapper
from eql_d2.errors import InputError


@pytest.fixture
def cfg(save, content, coco_root):
    register_lvis("gappy", save(content), coco_root)
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("gappy",)
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (64,), 64
    return cfg


@pytest.fixture
def records(save, content, coco_root):
    return load_lvis(save(content), coco_root)


def labels(example):
    return {key: value.tolist() for key, value in example["image_labels"].items()}


def test_labels_are_tensors_of_the_record(cfg, records):
    mapper = LongTailDatasetMapper(cfg, True)
    for record in records:
        example = mapper(record)
        assert labels(example) == record["image_labels"]
        assert all(value.dtype == torch.int64 and value.ndim == 1 for value in example["image_labels"].values())


def test_crop_and_flip_change_the_instances_only(cfg, records):
    # A crop to the corner leaves no instance of the image; its labels stay.
    corner = [T.CropTransform(0, 0, 4, 4), T.HFlipTransform(4)]
    mapper = LongTailDatasetMapper(True, augmentations=corner, image_format="BGR", use_instance_mask=True)
    example = mapper(records[0])
    assert example["image"].shape == (3, 4, 4)
    assert len(example["instances"]) < len(records[0]["annotations"])
    assert labels(example) == {"positive": [1], "negative": [0, 2]}


def test_crowd_region_is_positive_but_no_instance(cfg, records):
    example = LongTailDatasetMapper(cfg, True)(records[2])
    assert example["instances"].gt_classes.tolist() == [1]
    assert labels(example)["positive"] == [1, 2]


def test_empty_image_keeps_its_negative_set(cfg, records):
    example = LongTailDatasetMapper(cfg, True)(records[3])
    assert len(example["instances"]) == 0
    assert labels(example) == {"positive": [], "negative": [1, 3]}


def test_record_is_not_modified(cfg, records):
    record = records[0]
    LongTailDatasetMapper(cfg, True)(record)
    assert record == records[0]


def test_no_labels_for_testing_and_for_coco(cfg, records, save, content, coco_root):
    assert "image_labels" not in LongTailDatasetMapper(cfg, False)(records[0])
    record = {key: value for key, value in records[0].items() if key != "image_labels"}
    assert "image_labels" not in LongTailDatasetMapper(cfg, True)(record)


@pytest.mark.parametrize("is_train", [True, False])
def test_missing_image(cfg, records, coco_root, is_train):
    (coco_root / "val2017" / "000000000012.jpg").unlink()
    with pytest.raises(InputError, match=r"000000000012.jpg, listed in gappy \(.*train.json\), is not there"):
        LongTailDatasetMapper(cfg, is_train)(records[0])


@pytest.mark.parametrize(
    "damage", [lambda data: b"", lambda data: b"<html>404</html>", lambda data: data[: len(data) // 2]]
)
@pytest.mark.parametrize("is_train", [True, False])
def test_unreadable_image(cfg, records, coco_root, is_train, damage):
    path = coco_root / "val2017" / "000000000012.jpg"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InputError, match=r"12.jpg, listed in gappy \(.*\), cannot be read as an image") as raised:
        LongTailDatasetMapper(cfg, is_train)(records[0])
    assert "\n" not in str(raised.value)


def test_image_of_another_size(cfg, records):
    record = {**records[0], "height": 65}
    with pytest.raises(InputError, match="is of another size than its json says"):
        LongTailDatasetMapper(cfg, True)(record)


def test_instance_without_a_mask(cfg, records):
    record = records[0]
    del record["annotations"][1]["segmentation"]
    with pytest.raises(InputError, match=r"image 12 has no segmentation; set MODEL.MASK_ON False"):
        LongTailDatasetMapper(cfg, True)(record)
    cfg.MODEL.MASK_ON = False
    assert len(LongTailDatasetMapper(cfg, True)(record)["instances"]) == 2


def test_coco_record(cfg, save, content, coco_root):
    for image in content["images"]:
        image["file_name"] = f"val2017/{image['id']:012d}.jpg"
    register_coco("small_coco", save(content, "coco.json"), coco_root)
    example = LongTailDatasetMapper(cfg, True)(DatasetCatalog.get("small_coco")[0])
    assert "image_labels" not in example and len(example["instances"]) == 2
