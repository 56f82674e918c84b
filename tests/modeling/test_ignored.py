"""Ignored regions: exactly which anchors and proposals are sampled, against loops over boxes."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.modeling.proposal_generator import RPN
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

import eql_d2.modeling  # noqa: F401
from eql_d2.errors import InputError
from eql_d2.modeling.ignored import IgnoredRegions, LongTailRPN
from tests.conftest import ARCHITECTURES, NUM_CLASSES, tiny_config
from tests.modeling.test_heads import example

ALL = 10**6  # more than there are regions: everything that may be sampled is
# The object of the first image is [8, 8, 32, 32]; one of its ignored boxes covers a part of it.
IGNORED = [[[20.0, 20.0, 60.0, 60.0], [0.0, 40.0, 16.0, 64.0]], []]


def batch(ignored=IGNORED):
    """Two images with an object and one without, with ignored boxes in the first and the last."""
    examples = [example(), example(classes=(1,), seed=1), example(classes=(), seed=2)]
    for one, boxes in zip(examples, [*ignored, ignored[0]]):
        one["ignored_boxes"] = torch.tensor(boxes).reshape(-1, 4)
    return examples


def area(box):
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def overlap(one, other):
    return area([*map(max, one[:2], other[:2]), *map(min, one[2:], other[2:])])


def slow_iou(one, other):
    both = overlap(one, other)
    return both / (area(one) + area(other) - both) if both else 0.0


def slow_is_left_out(box, objects, ignored, threshold, iou):
    """Whether a box is no object's and an ignored box covers the share of its area."""
    if any(slow_iou(box, found) >= iou for found in objects):
        return False
    return area(box) > 0 and any(overlap(box, one) / area(box) >= threshold for one in ignored)


def rounded(boxes):
    return sorted(tuple(round(x, 3) for x in box) for box in boxes)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 1.0])
def test_the_rpn_samples_every_anchor_but_these(lvis_folder, threshold):
    cfg = tiny_config(lvis_folder, "Mask-R-CNN-FPN", "EQL", "MODEL.RPN.BATCH_SIZE_PER_IMAGE", ALL)
    rpn = build_model(cfg).proposal_generator
    assert type(rpn) is LongTailRPN
    rpn.positive_fraction = 1.0
    inputs = batch()
    regions = IgnoredRegions.of_batch(inputs, threshold, torch.device("cpu"))
    grid = [[x, y, x + s, y + s] for s in (8.0, 16.0, 40.0) for x in range(-8, 64, 4) for y in range(-8, 64, 4)]
    anchors = [Boxes(torch.tensor(grid[: len(grid) // 2])), Boxes(torch.tensor(grid[len(grid) // 2 :]))]
    targets = [one["instances"] for one in inputs]
    without, _ = rpn.label_and_sample_anchors(anchors, targets)
    rpn.ignored = regions
    labels, _ = rpn.label_and_sample_anchors(anchors, targets)
    num_left_out = 0
    for before, after, one in zip(without, labels, inputs):
        objects, ignored = one["instances"].gt_boxes.tensor.tolist(), one["ignored_boxes"].tolist()
        for anchor, old, new in zip(grid, before.tolist(), after.tolist()):
            is_left_out = old == 0 and slow_is_left_out(anchor, (), ignored, threshold, 1)
            assert new == (-1 if is_left_out else old), (anchor, objects)
            num_left_out += is_left_out
    assert num_left_out > 20


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("threshold", [0.4, 1.0])
def test_the_heads_sample_every_proposal_but_these(lvis_folder, architecture, threshold):
    cfg = tiny_config(lvis_folder, architecture, "EQL", "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", ALL)
    heads = build_model(cfg).roi_heads
    heads.positive_fraction = 1.0
    generator = torch.Generator().manual_seed(0)
    inputs, proposals, targets = batch(), [], []
    for one in inputs:
        corners = torch.rand(300, 2, 2, generator=generator).mul(64).sort(dim=1).values.flatten(1)
        proposals.append(Instances((64, 64), proposal_boxes=Boxes(corners), objectness_logits=torch.zeros(300)))
        targets.append(one["instances"])
    regions = IgnoredRegions.of_batch(inputs, threshold, torch.device("cpu"))
    with EventStorage(), heads.image_labels(None, regions):
        sampled = heads.label_and_sample_proposals(proposals, targets)
    for one, of_image, found in zip(inputs, proposals, sampled):
        objects, ignored = one["instances"].gt_boxes.tensor.tolist(), one["ignored_boxes"].tolist()
        boxes = of_image.proposal_boxes.tensor.tolist()
        kept = [box for box in boxes if not slow_is_left_out(box, objects, ignored, threshold, 0.5)]
        assert rounded(found.proposal_boxes.tensor.tolist()) == rounded(kept + objects)
        assert (len(kept) < len(boxes)) == bool(ignored)
        is_object = [any(slow_iou(box, target) >= 0.5 for target in objects) for box in found.proposal_boxes.tensor]
        assert [label < NUM_CLASSES for label in found.gt_classes] == is_object


def test_each_stage_of_a_cascade_drops_what_is_background_to_it(lvis_folder):
    heads = build_model(tiny_config(lvis_folder, "Cascade-Mask-R-CNN-FPN")).roi_heads
    boxes = torch.tensor([[10.0, 8.0, 34.0, 32.0], [12.0, 12.0, 36.0, 36.0], [40.0, 40.0, 56.0, 56.0], [0, 0, 8, 8.0]])
    one = example()
    one["ignored_boxes"] = torch.tensor([[0.0, 0.0, 64.0, 64.0]])
    regions = IgnoredRegions.of_batch([one], 0.5, torch.device("cpu"))
    for stage, iou in enumerate((0.5, 0.6, 0.7)):
        proposals = [Instances((64, 64), proposal_boxes=Boxes(boxes.clone()))]
        with EventStorage(), heads.image_labels(None, regions):
            (left,) = heads._match_and_label_boxes(proposals, stage, [one["instances"]])
        objects = one["instances"].gt_boxes.tensor.tolist()
        expected = [b for b in boxes.tolist() if not slow_is_left_out(b, objects, [[0, 0, 64, 64]], 0.5, iou)]
        assert left.proposal_boxes.tensor.tolist() == expected
        assert (left.gt_classes < NUM_CLASSES).all()


def losses_and_state(model, inputs):
    torch.manual_seed(3)
    with EventStorage():
        losses = model(inputs)
    return {name: value.item() for name, value in losses.items()}, torch.get_rng_state()


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_without_ignored_boxes_nothing_changes(lvis_folder, architecture):
    """Bit for bit what Detectron2's own RPN and samplers do, random numbers included."""
    model = build_model(tiny_config(lvis_folder, architecture)).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 0.0
    plain = [example(), example(classes=(1,), seed=1), example(classes=(), seed=2)]
    far = batch([[[63.0, 63.0, 64.0, 64.0]], []])  # covers half of no region
    found = [losses_and_state(model, inputs) for inputs in (plain, batch([[], []]), far)]
    model.proposal_generator.__class__ = RPN
    found.append(losses_and_state(model, plain))
    for losses, state in found[1:]:
        assert losses == found[0][0]
        assert torch.equal(state, found[0][1])
    assert model.roi_heads._ignored is None and model.proposal_generator.ignored is None


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_an_image_that_is_ignored_whole_trains(lvis_folder, architecture):
    model = build_model(tiny_config(lvis_folder, architecture)).train()
    inputs = batch([[[-100.0, -100.0, 200.0, 200.0]], []])
    with EventStorage():
        losses = model(inputs)
        empty = model([inputs[2]])  # no object, and no background either
    assert all(torch.isfinite(value) for value in (*losses.values(), *empty.values()))
    sum(empty.values()).backward()


@pytest.mark.parametrize("assignment", ["iou", "atss"])
def test_anchors_of_a_one_stage_detector(lvis_folder, assignment):
    opts = ("MODEL.LONG_TAIL.RETINANET.ASSIGNMENT", assignment)
    cfg = tiny_config(lvis_folder, "RetinaNet-FPN", "SIGMOID", *opts)
    model = build_model(cfg).train()
    inputs = batch()
    features = [model.backbone(model.preprocess_image(inputs).tensor)[name] for name in model.head_in_features]
    anchors = model.anchor_generator(features)
    targets = [one["instances"] for one in inputs]
    before, _ = model.label_anchors(anchors, targets)
    model._ignored = IgnoredRegions.of_batch(inputs, 0.5, torch.device("cpu"))
    after, _ = model.label_anchors(anchors, targets)
    num_left_out = 0
    for old, new, one in zip(before, after, inputs):
        ignored = one["ignored_boxes"].tolist()
        for anchor, a, b in zip(Boxes.cat(anchors).tensor.tolist(), old.tolist(), new.tolist()):
            is_left_out = a == NUM_CLASSES and slow_is_left_out(anchor, (), ignored, 0.5, 1)
            assert b == (-1 if is_left_out else a)
            num_left_out += is_left_out
    assert num_left_out
    losses, _ = losses_and_state(model, inputs)
    assert all(map(torch.isfinite, map(torch.tensor, losses.values())))


def test_settings_that_cannot_be_used(lvis_folder):
    with pytest.raises(InputError, match="THRESHOLD is 0"):
        build_model(tiny_config(lvis_folder, "Mask-R-CNN-FPN", "EQL", "MODEL.LONG_TAIL.IGNORED.THRESHOLD", 0.0))
    model = build_model(tiny_config(lvis_folder)).train()
    model.proposal_generator.__class__ = RPN
    with pytest.raises(InputError, match=r"needs MODEL\.PROPOSAL_GENERATOR\.NAME RPN"):
        model(batch())
