"""Image-level labels in training examples, and images that cannot be read."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.data import transforms as T
from detectron2.modeling import build_model
from detectron2.structures import BitMasks, PolygonMasks
from detectron2.utils.events import EventStorage

import eql_d2.modeling  # noqa: F401  (registers the model)
from eql_d2.config import get_cfg
from eql_d2.data.coco import register_coco
from eql_d2.data.lvis import load_lvis, register_lvis
from eql_d2.data.mapper import LongTailDatasetMapper
from eql_d2.data.segmentation import expand
from eql_d2.errors import InputError
from tests.conftest import tiny_config
from tests.data.conftest import SIZE


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


def square_mask(counts="text"):
    """Return the run lengths of :func:`square`'s object of annotation 3, as text or as numbers."""
    mask = np.zeros((SIZE, SIZE), np.uint8, order="F")
    mask[10:30, 11:31] = 1
    encoded = mask_util.encode(mask)
    lengths = encoded["counts"].decode() if counts == "text" else expand([encoded["counts"]])[0].tolist()
    return {"size": [SIZE, SIZE], "counts": lengths}


@pytest.mark.parametrize("counts", ["text", "numbers"])
@pytest.mark.parametrize("mask_format", ["polygon", "bitmask"])
def test_run_lengths_train_as_polygons_do(cfg, save, content, coco_root, counts, mask_format):
    cfg.INPUT.MASK_FORMAT, cfg.INPUT.RANDOM_FLIP = mask_format, "none"
    mapper = LongTailDatasetMapper(cfg, True)
    expected = mapper(load_lvis(save(content), coco_root)[0])["instances"]
    content["annotations"][2]["segmentation"] = square_mask(counts)
    content["annotations"][0]["segmentation"] = square_mask(counts)
    records = load_lvis(save(content), coco_root)
    found = mapper(records[0])["instances"]
    assert found.gt_classes.tolist() == expected.gt_classes.tolist()
    assert isinstance(found.gt_masks, BitMasks), "those of the image are all in one form"
    boxes = expected.gt_boxes.tensor
    crops = [instances.gt_masks.crop_and_resize(boxes, 28) for instances in (found, expected)]
    assert crops[1].float().mean() > 0.2 and (crops[0] != crops[1]).float().mean() < 0.03
    assert mapper.instance_mask_format == mask_format
    assert len(mapper(records[2])["instances"]) == 1, "an image with a polygon beside a crowd"


def test_model_trains_on_images_with_either_form(save, content, coco_root, lvis_folder):
    content["annotations"][2]["segmentation"] = square_mask()
    register_lvis("either", save(content, "either.json"), coco_root)
    settings = ["DATASETS.TRAIN", ("either",), "MODEL.ROI_HEADS.NUM_CLASSES", 4, "MODEL.LONG_TAIL.LOSS", "SOFTMAX"]
    cfg = tiny_config(lvis_folder, "Mask-R-CNN-FPN", "SOFTMAX", *settings, "MODEL.LONG_TAIL.FREQUENCY", "")
    mapper = LongTailDatasetMapper(cfg, True)
    batch = [mapper(record) for record in load_lvis(save(content), coco_root)][:2]
    assert {type(example["instances"].gt_masks) for example in batch} == {BitMasks, PolygonMasks}
    with EventStorage():
        losses = build_model(cfg).train()(batch)
    assert losses["loss_mask"] > 0 and all(torch.isfinite(value).all() for value in losses.values())


@pytest.mark.parametrize("mask", [{"size": [64, 64], "counts": "04"}, [[1, 2, 3, 4, 5, 10.0**9]]])
def test_mask_of_another_program_that_cannot_be_drawn(cfg, records, mask):
    record = records[0]
    record["annotations"][1]["segmentation"] = mask
    with pytest.raises(InputError, match=r"gappy \(.*\): the segmentation of instance 1 of image 12 has "):
        LongTailDatasetMapper(cfg, True)(record)
