"""Run lengths straight from the masks within boxes: the text that Detectron2 and pycocotools make of them."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
import torch
from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.structures import Boxes, Instances, ROIMasks

from eql_d2.data.segmentation import MAX_PIXELS, compress, expand
from eql_d2.evaluation import mask_encoding
from eql_d2.evaluation.instances import instances_to_results
from eql_d2.evaluation.mask_encoding import encode_box_masks, encode_mask

MASKS = {
    "noise": lambda rng, shape: rng.random(shape),
    "sigmoid": lambda rng, shape: 1 / (1 + np.exp(-rng.normal(0, 8, shape))),
    "binary": lambda rng, shape: rng.random(shape) > 0.5,
    "quarters": lambda rng, shape: rng.integers(0, 5, shape) / 4,
    "at one half": lambda rng, shape: 0.5 + rng.integers(-3, 4, shape) * 2.0**-24,
    "near one half": lambda rng, shape: 0.5 + rng.normal(0, 1e-5, shape),
    "even": lambda rng, shape: np.broadcast_to(rng.choice([0.0, 0.5, 1.0], (shape[0], 1, 1)), shape),
}


def random_boxes(rng, count, height, width):
    """Return float32 boxes that touch the image, some of them beyond its border, on whole or half pixels, or empty."""
    corners = rng.uniform(-0.3, 1, (count, 2)) * [width, height]
    sides = np.exp(rng.uniform(np.log(rng.choice([1e-4, 0.5, 5])), np.log(400), (count, 2)))
    if rng.random() < 0.5:
        corners, sides = np.round(corners), np.round(2 * sides) / 2
    boxes = torch.tensor(np.concatenate([corners, corners + sides], axis=1), dtype=torch.float32)
    return boxes[((boxes[:, :2] < torch.tensor([width, height])) & (boxes[:, 2:] > 0)).all(dim=1)]


def pasted(masks, boxes, height, width):
    """Return the records by way of arrays as large as the image."""
    return [encode_mask(mask.numpy()) for mask in paste_masks_in_image(masks, boxes, (height, width), 0.5)]


@pytest.mark.parametrize("kind", MASKS)
@pytest.mark.parametrize("largest", [5, 60, 300])
def test_random_masks_are_equal_to_the_last_character(kind, largest):
    rng = np.random.default_rng(list(MASKS).index(kind) * 1000 + largest)
    for _ in range(25):
        height, width = map(int, rng.integers(1, largest, 2))
        boxes = random_boxes(rng, 12, height, width)
        size = int(rng.choice([1, 2, 7, 14, 28]))
        masks = torch.tensor(MASKS[kind](rng, (len(boxes), size, size)), dtype=torch.float32)
        if len(boxes):
            assert encode_box_masks(masks, boxes, height, width) == pasted(masks, boxes, height, width)


def test_pixels_too_near_to_tell_are_sampled(monkeypatch):
    """Else the equality above would be luck: without it, rounding decides."""
    height = width = 64
    # Along x from 0 to 1 at the middle of a 2 x 2 mask, so that pixel 32 lies at one half, but for rounding.
    masks = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]]).repeat(200, 1, 1)
    centre = torch.linspace(20.3, 40.7, 200)[:, None]
    side = centre.round() + 0.5 - centre + 30
    boxes = torch.cat([centre.round() + 0.5 - side, centre * 0, centre.round() + 0.5 + side, centre * 0 + 50], dim=1)
    expected = pasted(masks, boxes, height, width)
    assert encode_box_masks(masks, boxes, height, width) == expected
    monkeypatch.setattr(mask_encoding, "_sample", lambda masks, boxes, owner, *place: np.zeros(len(owner), dtype=bool))
    assert encode_box_masks(masks, boxes, height, width) != expected


def test_degenerate_boxes_and_what_is_no_probability():
    masks = torch.rand(6, 28, 28, generator=torch.Generator().manual_seed(0))
    masks[3, 4:9] = float("nan")
    masks[4] *= 3
    masks[5] -= 0.7
    box = [5.5, 7.0, 30.25, 20.0]
    boxes = torch.tensor([[5.5, 7.0, 5.5, 20.0], [5.5, 7.0, 5.5, 7.0], [9.0, 9.0, 8.5, 20.0], box, box, box])
    assert encode_box_masks(masks, boxes, 40, 50) == pasted(masks, boxes, 40, 50)


def test_many_columns_take_several_passes(monkeypatch):
    rng = np.random.default_rng(0)
    masks, boxes = torch.rand(40, 28, 28), random_boxes(rng, 40, 100, 100)
    whole = encode_box_masks(masks[: len(boxes)], boxes, 100, 100)
    monkeypatch.setattr(mask_encoding, "_COLUMNS", 50)
    monkeypatch.setattr(mask_encoding, "_SAMPLES", 3)
    assert encode_box_masks(masks[: len(boxes)], boxes, 100, 100) == whole


def test_no_mask_and_half_precision():
    assert encode_box_masks(torch.zeros(0, 28, 28), torch.zeros(0, 4), 10, 10) == []
    masks, boxes = torch.rand(4, 28, 28).half(), torch.tensor([[1.0, 1.0, 30.0, 20.0]]).repeat(4, 1)
    assert encode_box_masks(masks, boxes, 40, 40) == pasted(masks.float(), boxes, 40, 40)


def test_records_of_masks_within_boxes():
    masks, boxes = torch.rand(5, 28, 28), torch.tensor([[1.0, 2.0, 30.0, 20.0]]).repeat(5, 1)
    fields = {"pred_boxes": Boxes(boxes), "scores": torch.rand(5), "pred_classes": torch.arange(5)}
    whole = paste_masks_in_image(masks, boxes, (40, 50), 0.5)
    records = [
        instances_to_results(Instances((40, 50), pred_masks=form, **fields), 7, range(5))
        for form in (whole, ROIMasks(masks))
    ]
    assert records[0] == records[1] and records[0][0]["segmentation"]["size"] == [40, 50]


def test_compressed_run_lengths_are_those_of_pycocotools():
    rng = np.random.default_rng(0)
    limits = [2 ** (5 * k - 1) + d for k in range(1, 7) for d in (-1, 0, 1)]
    masks = [[MAX_PIXELS], [0, 1, MAX_PIXELS - 1], [*limits, *limits[::-1], 0, *limits]]
    masks += [rng.integers(0, 4**k, rng.integers(1, 40)).tolist() for k in range(1, 13) for _ in range(5)]
    lengths, ends = np.concatenate(masks), np.cumsum([len(mask) for mask in masks])
    texts = compress(lengths, ends)
    for mask, text in zip(masks, texts):
        assert text == mask_util.frPyObjects({"size": [1, sum(mask)], "counts": mask}, 1, sum(mask))["counts"].decode()
    again = expand([text.encode() for text in texts])
    np.testing.assert_array_equal(again[0], lengths)
    np.testing.assert_array_equal(again[1], ends)
