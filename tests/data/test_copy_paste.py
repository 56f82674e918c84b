"""Large-scale jitter and copy-paste: what becomes of pixels, masks, boxes and image-level labels."""

import numpy as np
import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from detectron2.utils.events import EventStorage

from eql_d2.data.build import build_train_loader, build_train_mapper, long_tail_dataset_dicts
from eql_d2.data.builtin import register_from_config
from eql_d2.data.copy_paste import paste
from eql_d2.data.mapper import LongTailDatasetMapper
from eql_d2.engine.trainer import Trainer
from eql_d2.errors import InputError
from tests.conftest import tiny_config

NODE = "MODEL.LONG_TAIL.AUGMENT"
JITTER = [f"{NODE}.SCALE_JITTER", (0.5, 2.0), f"{NODE}.SIZE", 96]


def config(folder, *opts):
    cfg = tiny_config(folder, "Mask-R-CNN-FPN", "EQL", *opts)
    register_from_config(cfg)
    return cfg


def records(cfg):
    return long_tail_dataset_dicts(cfg.DATASETS.TRAIN)


def objects(*squares, size=8):
    """Instances of (class, left, top, side), with the masks and boxes of squares."""
    instances = Instances((size, size))
    masks = torch.zeros(len(squares), size, size, dtype=torch.bool)
    for mask, (_, x, y, side) in zip(masks, squares):
        mask[y : y + side, x : x + side] = True
    instances.gt_masks = BitMasks(masks)
    instances.gt_boxes = instances.gt_masks.get_bounding_boxes()
    instances.gt_classes = torch.tensor([label for label, *_ in squares])
    return instances


def test_pasting_by_hand():
    example = {
        "image": torch.zeros(3, 8, 8, dtype=torch.uint8),
        "instances": objects((0, 0, 0, 4), (1, 3, 3, 1), (2, 5, 5, 3)),
        "image_labels": {"positive": torch.tensor([0, 1, 2]), "negative": torch.tensor([3, 4])},
    }
    own_box = [4.5, 4.5, 8.0, 8.0]
    example["instances"].gt_boxes.tensor[2] = torch.tensor(own_box)
    paste(example, torch.full((3, 8, 8), 9, dtype=torch.uint8), objects((4, 2, 0, 4)))
    found = example["instances"]
    assert found.gt_classes.tolist() == [0, 2, 4]  # class 1 is covered whole
    assert found.gt_boxes.tensor.tolist() == [[0, 0, 2, 4], own_box, [2, 0, 6, 4]]
    assert found.gt_masks.tensor.sum((1, 2)).tolist() == [8, 9, 16]
    covered = torch.zeros(8, 8, dtype=torch.bool)
    covered[0:4, 2:6] = True
    assert torch.equal(example["image"], (covered * 9).to(torch.uint8).expand(3, 8, 8))
    assert example["image_labels"]["positive"].tolist() == [0, 1, 2, 4]
    assert example["image_labels"]["negative"].tolist() == [3]


def test_jitter_gives_squares_and_boxes_of_the_masks(lvis_folder):
    cfg = config(lvis_folder, *JITTER)
    mapper = LongTailDatasetMapper(cfg, True)
    widths = set()
    np.random.seed(0)
    for _ in range(10):
        example = mapper(records(cfg)[0])
        assert example["image"].shape == (3, 96, 96)
        instances = example["instances"]
        assert torch.equal(instances.gt_boxes.tensor, instances.gt_masks.get_bounding_boxes().tensor)
        widths.update(round(float(box[2] - box[0])) for box in instances.gt_boxes)
    assert min(widths) < 30 and max(widths) > 60  # the object has 30 of 64 pixels
    # Evaluation is as it was.
    assert LongTailDatasetMapper(cfg, False)(records(cfg)[0])["image"].shape == (3, 64, 64)


def test_every_pixel_is_of_one_image_and_every_label_of_an_object(lvis_folder):
    """Of the images, half show class 0 and half class 1: what is pasted is of the class that was drawn."""
    cfg = config(lvis_folder, *JITTER, f"{NODE}.COPY_PASTE", 1.0, f"{NODE}.COPY_PASTE_SOURCE", "rare")
    dataset = records(cfg)
    mapper = build_train_mapper(cfg, dataset)
    np.random.seed(1)
    pasted = 0
    for turn in range(24):
        example = mapper(dataset[turn % 2])
        instances = example["instances"]
        assert isinstance(instances.gt_masks, BitMasks) and len(instances)
        assert int(instances.gt_masks.tensor.sum(0).max()) == 1  # nothing lies under a pasted object
        assert set(instances.gt_classes.tolist()) <= set(example["image_labels"]["positive"].tolist())
        assert not set(example["image_labels"]["positive"].tolist()) & set(example["image_labels"]["negative"].tolist())
        pasted += 1 - turn % 2 in instances.gt_classes.tolist()  # the class that the image itself does not show
    assert 6 <= pasted <= 18


@pytest.mark.parametrize("source", ["uniform", "rare"])
@pytest.mark.parametrize("mask_on", [True, False])
def test_a_model_trains_on_it(lvis_folder, source, mask_on):
    opts = [f"{NODE}.COPY_PASTE", 1.0, f"{NODE}.COPY_PASTE_SOURCE", source, "MODEL.MASK_ON", mask_on]
    cfg = config(lvis_folder, *JITTER, *opts)
    batch = next(iter(build_train_loader(cfg)))
    assert all(example["instances"].has("gt_masks") == mask_on for example in batch)
    with EventStorage():
        losses = Trainer.build_model(cfg).train()(batch)
    assert all(torch.isfinite(loss) for loss in losses.values()) and ("loss_mask" in losses) == mask_on


def test_an_image_without_an_object(lvis_folder):
    cfg = config(lvis_folder, *JITTER, f"{NODE}.COPY_PASTE", 1.0, f"{NODE}.COPY_PASTE_SOURCE", "rare")
    dataset = records(cfg)
    mapper, empty = build_train_mapper(cfg, dataset), {**dataset[0], "annotations": []}
    np.random.seed(0)
    counts = {len(mapper(empty)["instances"]) for _ in range(8)}
    assert 1 in counts and counts <= {0, 1}  # jitter may cut the other one's object away
    assert len(LongTailDatasetMapper(cfg, True)(empty)["instances"]) == 0


def test_off_changes_nothing(lvis_folder):
    cfg = config(lvis_folder)
    mapper = build_train_mapper(cfg, records(cfg))
    assert type(mapper) is LongTailDatasetMapper and mapper.instance_mask_format == "polygon"
    assert [type(augmentation).__name__ for augmentation in mapper.augmentations.augs] == [
        "ResizeShortestEdge",
        "RandomFlip",
    ]


@pytest.mark.parametrize(
    "opts, words",
    [
        ([f"{NODE}.SCALE_JITTER", (2.0, 0.1)], r"SCALE_JITTER is \(2.0, 0.1\)"),
        ([*JITTER, f"{NODE}.SIZE", 0], r"SIZE is 0"),
        ([*JITTER, "INPUT.CROP.ENABLED", True], r"set INPUT.CROP.ENABLED False"),
        ([f"{NODE}.COPY_PASTE", 0.5], r"needs images of one size; set AUGMENT.SCALE_JITTER"),
        ([*JITTER, f"{NODE}.COPY_PASTE", 1.5], r"COPY_PASTE is 1.5; it is a probability"),
        (
            [*JITTER, f"{NODE}.COPY_PASTE", 1.0, f"{NODE}.COPY_PASTE_SOURCE", "tail"],
            r"'tail'; there are 'uniform' and 'rare'",
        ),
    ],
)
def test_bad_input(lvis_folder, opts, words):
    cfg = config(lvis_folder, *opts)
    with pytest.raises(InputError, match=words):
        build_train_mapper(cfg, records(cfg))


def test_boxes_are_tensors_of_floats():
    """What pasting leaves is what Detectron2's matcher takes."""
    example = {"image": torch.zeros(3, 8, 8, dtype=torch.uint8), "instances": objects((0, 0, 0, 4))}
    paste(example, torch.zeros(3, 8, 8, dtype=torch.uint8), objects((1, 4, 4, 4)))
    assert isinstance(example["instances"].gt_boxes, Boxes)
    assert example["instances"].gt_boxes.tensor.dtype == torch.float32 and "image_labels" not in example
