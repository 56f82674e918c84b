"""Semantic segmentation sets: folders, names, registration, loaders."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco import load_sem_seg

from eql_d2.config import get_cfg
from eql_d2.data.build import build_test_loader, build_train_loader, build_train_mapper, repeat_factors
from eql_d2.data.builtin import ADE20K_FULL_NAMES, register_builtin, register_from_config
from eql_d2.data.catalog import category_frequency, describe_dataset
from eql_d2.data.fit import fit_to_data
from eql_d2.data.index_masks import MaskValues
from eql_d2.data.mapper import SegmentationMapper
from eql_d2.data.semantic import is_segmentation_set, load_masks, read_class_names, register_masks, segmentation_records
from eql_d2.errors import InputError
from tests.data.masks import NAMES, write_image, write_mask, write_masks


@pytest.fixture(autouse=True)
def catalogs():
    before = set(DatasetCatalog.keys())
    yield
    for name in set(DatasetCatalog.keys()) - before:
        DatasetCatalog.remove(name)
        MetadataCatalog.remove(name)


@pytest.fixture
def folder(tmp_path):
    return write_masks(tmp_path)


def config(folder, name="zoo"):
    cfg = get_cfg()
    cfg.MODEL.LONG_TAIL.SEM_SEG.DATASETS = [
        {
            "name": name,
            **{key: str(folder / key) for key in ("images", "masks")},
            "classes": str(folder / "classes.txt"),
        }
    ]
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = (name,)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 3
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.RANDOM_FLIP = (6,), "none"
    cfg.SOLVER.IMS_PER_BATCH, cfg.DATALOADER.NUM_WORKERS, cfg.SEED = 2, 0, 1
    return cfg


def test_records(folder):
    records = load_masks(folder / "images", folder / "masks", MaskValues(3))
    assert [dict(record, mask_values=None) for record in records] == [
        {
            "file_name": str(folder / f"images/{name}.jpg"),
            "sem_seg_file_name": str(folder / f"masks/{name}.png"),
            "image_id": number,
            "height": height,
            "width": width,
            "mask_values": None,
        }
        for number, (name, height, width) in enumerate([("a", 2, 4), ("b", 2, 3), ("deep/c", 3, 2)])
    ]
    assert [record["image_id"] for record in records[1:]] == [1, 2]
    images, labels = records.labels()
    assert (images.tolist(), labels.tolist()) == ([0, 0, 2, 2], [0, 1, 0, 2])


def test_images_without_a_mask_are_left_out_and_masks_without_an_image_refused(folder, caplog):
    write_image(folder / "images/new.png", 2, 2)
    assert len(load_masks(folder / "images", folder / "masks", MaskValues(3))) == 3
    assert "1 of 4 images have no mask" in caplog.text
    write_mask(folder / "masks/lost.png", [[0]])
    with pytest.raises(InputError, match=r"lost\.png is a mask without an image; there should be .*images/lost with"):
        load_masks(folder / "images", folder / "masks", MaskValues(3))


def test_folders_that_are_none(folder, tmp_path):
    with pytest.raises(InputError, match="absent: there is no such folder; it should hold index masks"):
        load_masks(folder / "images", tmp_path / "absent", MaskValues(3))
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty holds no images"):
        load_masks(tmp_path / "empty", folder / "masks", MaskValues(3))
    write_image(folder / "images/a.png", 2, 4)
    with pytest.raises(InputError, match="have the same name but for the suffix"):
        load_masks(folder / "images", folder / "masks", MaskValues(3))


def test_names_of_classes(tmp_path):
    path = tmp_path / "classes.txt"
    path.write_text("a\n\n b \n")
    assert read_class_names(path) == ["a", "b"]
    path.write_text("\n")
    with pytest.raises(InputError, match="names no class"):
        read_class_names(path)
    with pytest.raises(InputError, match="the name of a class in each line"):
        read_class_names(tmp_path / "absent.txt")


def test_registration_from_a_config(folder):
    cfg = config(folder)
    register_from_config(cfg)
    register_from_config(cfg)
    metadata = MetadataCatalog.get("zoo")
    assert (metadata.stuff_classes, metadata.ignore_label, metadata.evaluator_type) == (list(NAMES), 255, "sem_seg")
    assert (metadata.sem_seg_root, metadata.image_root) == (str(folder / "masks"), str(folder / "images"))
    assert is_segmentation_set("zoo") and not is_segmentation_set("other")
    assert describe_dataset("zoo") == f"zoo ({folder / 'masks'})"
    frequency = category_frequency(["zoo"])
    assert (frequency.image_count.tolist(), frequency.instance_count.tolist()) == ([2, 1, 1], [10, 2, 1])
    cfg.MODEL.LONG_TAIL.SEM_SEG.DATASETS[0]["ignore"] = 254
    with pytest.raises(InputError, match="'zoo' is already registered for another data set"):
        register_from_config(cfg)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"name": None}, "it must be a mapping with classes, images, masks, name"),
        ({"ignore": "255"}, "whole numbers first_label and ignore"),
        ({"palette": 1}, "whole numbers first_label and ignore"),
        ({"ignore": 2}, "The value 2 of pixels without a label is also that of class 2"),
        ({"masks": "$NOT_SET/masks"}, "NOT_SET, which is not set"),
    ],
)
def test_entries_that_are_none(folder, change, words):
    cfg = config(folder)
    entry = {**cfg.MODEL.LONG_TAIL.SEM_SEG.DATASETS[0], **change}
    cfg.MODEL.LONG_TAIL.SEM_SEG.DATASETS = [{key: value for key, value in entry.items() if value is not None}]
    with pytest.raises(InputError, match=words):
        register_from_config(cfg)


def test_train_loader(folder):
    cfg = config(folder)
    register_from_config(cfg)
    loader = iter(build_train_loader(cfg))
    seen = {example["image_id"]: example for batch in (next(loader), next(loader)) for example in batch}
    assert sorted(seen) == [0, 2]  # the image without a label is left out
    expected = torch.tensor([[0, 0, 0, 0], [0, 1, 1, 255]]).repeat_interleave(3, 0).repeat_interleave(3, 1)
    assert seen[0]["sem_seg"].dtype == torch.int64 and torch.equal(seen[0]["sem_seg"], expected)
    assert seen[0]["image"].shape == (3, 6, 12)
    assert "sem_seg_file_name" not in seen[0] and "instances" not in seen[0]


def test_test_loader_reads_no_mask(folder):
    cfg = config(folder)
    register_from_config(cfg)
    write_mask(folder / "masks/a.png", [[77]])
    examples = [example for batch in build_test_loader(cfg, "zoo") for example in batch]
    assert [(example["height"], example["width"]) for example in examples] == [(2, 4), (2, 3), (3, 2)]
    assert "sem_seg" not in examples[0]


def test_the_model_must_fit(folder):
    cfg = config(folder)
    register_from_config(cfg)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 54
    with pytest.raises(InputError, match=r"MODEL.SEM_SEG_HEAD.NUM_CLASSES is 54, but zoo .* has 3 categories"):
        build_train_loader(cfg)
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = 3, 0
    with pytest.raises(InputError, match=r"IGNORE_VALUE is 0, but pixels of zoo .* without a label have 255"):
        build_test_loader(cfg, "zoo")
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 0
    fit_to_data(cfg)
    assert (cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.MODEL.ROI_HEADS.NUM_CLASSES) == (3, 80)


def test_jitter_pads_with_no_label_and_what_cannot_be_mixed(tmp_path):
    folder = write_masks(tmp_path, {"a": [[0, 1], [846, 65535]]}, np.uint16, ".tif")
    register_masks("wide", folder / "images", folder / "masks", [f"{k}" for k in range(847)], ignore=65535)
    cfg = config(folder, "wide")
    cfg.MODEL.LONG_TAIL.SEM_SEG.DATASETS = []
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE = 847, 65535
    cfg.MODEL.LONG_TAIL.AUGMENT.SCALE_JITTER, cfg.MODEL.LONG_TAIL.AUGMENT.SIZE = (0.5, 0.5), 8
    (example, _) = next(iter(build_train_loader(cfg)))
    expected = torch.full((8, 8), 65535)
    expected[:2, :4], expected[2:4, :2] = torch.tensor([0, 0, 1, 1]), 846
    assert torch.equal(example["sem_seg"], expected) and example["image"].shape == (3, 8, 8)
    cfg.MODEL.LONG_TAIL.AUGMENT.COPY_PASTE = 0.5
    with pytest.raises(InputError, match=r"COPY_PASTE pastes objects, and index masks have none"):
        build_train_loader(cfg)
    cfg.DATASETS.TRAIN = ("wide", "lvis_v1_train")
    with pytest.raises(InputError, match="some are of semantic segmentation, and some not"):
        build_train_mapper(cfg, [])


def test_repeat_factors_are_those_of_the_images_with_a_class(folder):
    cfg = config(folder)
    register_from_config(cfg)
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.5
    # a has classes in 2/3 and 1/3 of the images, b none, c in 2/3 and 1/3
    expected = [(0.5 * 3) ** 0.5, 1, (0.5 * 3) ** 0.5]
    assert repeat_factors(cfg, segmentation_records("zoo")).tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    "mask, words", [([[0, 9]], "value 9"), ([[0], [0]], "its image 2 x 1"), (None, "no such file")]
)
def test_what_is_wrong_is_said_where_it_is_met(tmp_path, mask, words):
    folder = write_masks(tmp_path, {"a": [[0, 1]]})
    (record,) = load_masks(folder / "images", folder / "masks", MaskValues(3))
    if mask is None:
        (folder / "masks/a.png").unlink()
    else:
        write_mask(folder / "masks/a.png", mask)
    with pytest.raises(InputError, match=words):
        SegmentationMapper(config(folder), True)(record)


def test_a_set_of_detectron2s_loader(folder):
    DatasetCatalog.register("plain", lambda: load_sem_seg(str(folder / "masks"), str(folder / "images")))
    MetadataCatalog.get("plain").set(stuff_classes=list(NAMES), ignore_label=255, evaluator_type="sem_seg")
    assert category_frequency(["plain"]).instance_count.tolist() == [5, 2, 0]  # it does not look into folders
    cfg = config(folder, "plain")
    cfg.MODEL.LONG_TAIL.SEM_SEG.DATASETS = []
    assert next(iter(build_train_loader(cfg)))[0]["sem_seg"].max() == 255
    MetadataCatalog.get("bare").evaluator_type = "sem_seg"
    DatasetCatalog.register("bare", lambda: [{"file_name": "a.jpg"}])
    with pytest.raises(InputError, match="The metadata of bare has no stuff_classes"):
        segmentation_records("bare")
    MetadataCatalog.get("bare").stuff_classes = ["a"]
    with pytest.raises(InputError, match="bare has a record without sem_seg_file_name"):
        segmentation_records("bare")
    DatasetCatalog.register("none", list)
    MetadataCatalog.get("none").set(stuff_classes=["a"], evaluator_type="sem_seg")
    with pytest.raises(InputError, match=r"none has .* or none at all"):
        category_frequency(["none"])


def test_ade20k(tmp_path, monkeypatch):
    tmp_path = tmp_path / "beside_ADE20K_2021_17_01"  # a name that does not tell which of the sets it is
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    base, full = tmp_path / "ADEChallengeData2016", tmp_path / "ADE20K_2021_17_01"
    write_image(base / "images/training/x.jpg", 1, 3)
    write_mask(base / "annotations/training/x.png", [[0, 1, 150]])
    write_mask(base / "annotations_detectron2/training/x.png", [[255, 0, 149]])
    write_image(full / "images_detectron2/validation/y.jpg", 1, 3)
    write_mask(full / "annotations_detectron2/validation/y.tif", [[65535, 0, 846]], np.uint16)
    register_builtin(["ade20k_sem_seg_train", "ade20k_150_train", "ade20k_full_sem_seg_val", "ade20k_150_other"])
    assert "ade20k_150_other" not in DatasetCatalog
    released, copied = (category_frequency([f"ade20k_{kind}_train"]) for kind in ("150", "sem_seg"))
    assert released.instance_count.tolist() == copied.instance_count.tolist() == [1, *[0] * 148, 1]
    assert MetadataCatalog.get("ade20k_150_train").stuff_classes[0] == "wall"
    assert category_frequency(["ade20k_full_sem_seg_val"]).instance_count.tolist() == [1, *[0] * 845, 1]
    assert MetadataCatalog.get("ade20k_full_sem_seg_val").ignore_label == 65535
    (tmp_path / ADE20K_FULL_NAMES).write_text("wall\n")
    with pytest.raises(InputError, match="names 1 classes; there should be 847"):
        register_builtin(["ade20k_full_sem_seg_train"])


def test_registered_by_another_program(folder):
    DatasetCatalog.register("taken", list)
    with pytest.raises(InputError, match="'taken' is already registered"):
        register_masks("taken", folder / "images", folder / "masks", NAMES)
    assert register_masks("taken", folder / "images", folder / "masks", NAMES, replace=True)
    assert len(DatasetCatalog.get("taken")) == 3
    assert not register_masks("taken", folder / "images", folder / "masks", NAMES)
