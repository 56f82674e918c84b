"""The mask head must agree with Detectron2's: parameters, losses, gradients, masks and logged statistics."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead, build_mask_head
from detectron2.structures import BitMasks, Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage

from eql_d2.config import get_cfg
from eql_d2.modeling.mask_head import LongTailMaskHead

NUM_CLASSES = 7
CHANNELS = 6
TOLERANCE = {"rtol": 1e-5, "atol": 1e-5}


def make_heads(num_classes=NUM_CLASSES, **settings):
    """Detectron2's head and ours, with the same weights, none of them near zero."""
    torch.manual_seed(0)
    arguments = {"num_classes": num_classes, "conv_dims": [8, 8, 8], "vis_period": 0, **settings}
    theirs = MaskRCNNConvUpsampleHead(ShapeSpec(channels=CHANNELS), **arguments)
    torch.nn.init.normal_(theirs.predictor.weight)
    torch.nn.init.normal_(theirs.predictor.bias)
    ours = LongTailMaskHead(ShapeSpec(channels=CHANNELS), **arguments)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def make_regions(counts=(3, 0, 2), num_classes=NUM_CLASSES):
    """Regions of several images, some without any, with square ground-truth masks of one class twice."""
    torch.manual_seed(1)
    regions = []
    for count in counts:
        instances = Instances((32, 32))
        corner = 12 * torch.rand(count, 2)
        instances.proposal_boxes = Boxes(torch.cat([corner, corner + 15], dim=1))
        instances.gt_classes = torch.arange(count) % 2 * (num_classes - 1)
        instances.pred_classes = instances.gt_classes
        instances.gt_masks = PolygonMasks([[[4.0, 4.0, 20.0, 4.0, 20.0, 20.0, 4.0, 20.0]] for _ in range(count)])
        regions.append(instances)
    return torch.randn(sum(counts), CHANNELS, 5, 5), regions


def training_step(head, features, regions):
    """Return the loss, the gradients of the features and of every parameter, and the logged statistics."""
    features = features.clone().requires_grad_()
    head.zero_grad()
    with EventStorage() as storage:
        losses = head(features, regions)
        assert list(losses) == ["loss_mask"]
        losses["loss_mask"].backward()
        statistics = {name: value for name, (value, _) in storage.latest().items()}
    gradients = {name: parameter.grad for name, parameter in head.named_parameters()}
    return losses["loss_mask"].detach(), features.grad, gradients, statistics


def assert_same_training(theirs, ours, features, regions, **tolerance):
    tolerance = tolerance or TOLERANCE
    loss, feature_gradient, gradients, statistics = training_step(ours, features, regions)
    expected_loss, expected_feature_gradient, expected_gradients, expected_statistics = training_step(
        theirs, features, regions
    )
    torch.testing.assert_close(loss, expected_loss, **tolerance)
    torch.testing.assert_close(feature_gradient, expected_feature_gradient, **tolerance)
    assert set(gradients) == set(expected_gradients)
    for name, expected in expected_gradients.items():
        torch.testing.assert_close(gradients[name], expected, **tolerance)
    assert statistics == pytest.approx(expected_statistics)
    return loss, gradients, statistics


def test_parameters_are_detectron2s():
    theirs, ours = make_heads()
    assert {name: value.shape for name, value in ours.state_dict().items()} == {
        name: value.shape for name, value in theirs.state_dict().items()
    }


def test_training_equals_detectron2s():
    theirs, ours = make_heads()
    loss, gradients, statistics = assert_same_training(theirs, ours, *make_regions())
    assert loss > 0
    assert set(statistics) == {"mask_rcnn/accuracy", "mask_rcnn/false_positive", "mask_rcnn/false_negative"}
    assert 0 < statistics["mask_rcnn/accuracy"] < 1
    used = gradients["predictor.weight"].flatten(1).abs().sum(dim=1) > 0
    assert used.tolist() == [True] + [False] * (NUM_CLASSES - 2) + [True]


@pytest.mark.parametrize("settings", [{"conv_norm": "BN"}, {"loss_weight": 2.5}, {"conv_dims": [8]}])
def test_training_with_other_settings_equals_detectron2s(settings):
    assert_same_training(*make_heads(**settings), *make_regions())


def test_training_with_bitmasks_and_small_integer_labels():
    features, regions = make_regions()
    for instances in regions:
        instances.gt_masks = BitMasks(torch.rand(len(instances), 32, 32) > 0.5)
        instances.gt_classes = instances.gt_classes.to(torch.int32)
    assert_same_training(*make_heads(), features, regions)


def test_no_region_gives_a_zero_loss_and_zero_gradients():
    for counts in ((0, 0), (0,)):
        loss, gradients, _ = assert_same_training(*make_heads(), *make_regions(counts))
        assert loss == 0
        assert all(torch.equal(gradient, torch.zeros_like(gradient)) for gradient in gradients.values())


def test_gradients_of_the_last_layer():
    """Against finite differences, in float64; a class that is used twice gets the sum of both."""
    _, ours = make_heads(num_classes=3)
    ours.double()
    features = torch.randn(4, 8, 3, 3, dtype=torch.float64, requires_grad=True)
    classes = torch.tensor([0, 2, 0, 1])

    def logits(features, weight, bias):
        return torch.func.functional_call(
            ours, {"predictor.weight": weight, "predictor.bias": bias}, (features, classes), {}
        )

    ours.forward = ours.class_logits
    assert torch.autograd.gradcheck(logits, (features, ours.predictor.weight, ours.predictor.bias))


@pytest.mark.parametrize("counts", [(3, 0, 2), (0, 0), (4,)])
def test_inference_equals_detectron2s(counts):
    theirs, ours = make_heads()
    features, regions = make_regions(counts)
    with torch.no_grad():
        theirs.eval()(features, regions)
        expected = [instances.pred_masks for instances in regions]
        for instances in regions:
            instances.remove("pred_masks")
        returned = ours.eval()(features, regions)
    assert returned is regions
    for instances, masks in zip(returned, expected):
        assert instances.pred_masks.shape == (len(instances), 1, 10, 10)
        torch.testing.assert_close(instances.pred_masks, masks, **TOLERANCE)


def test_class_logits_are_the_channels_of_their_classes():
    theirs, ours = make_heads()
    features, _ = make_regions((5,))
    classes = torch.tensor([6, 0, 3, 3, 1])
    with torch.no_grad():
        expected = theirs.layers(features)[torch.arange(5), classes].unsqueeze(1)
        torch.testing.assert_close(ours.class_logits(ours.features(features), classes), expected, **TOLERANCE)


def test_all_channels_are_not_computed():
    _, ours = make_heads()
    ours.predictor.register_forward_hook(lambda *_: pytest.fail("the last layer ran over all classes"))
    training_step(ours, *make_regions())
    ours.eval()(*make_regions())


def test_class_agnostic_head_takes_detectron2s_path(monkeypatch):
    theirs, ours = make_heads(num_classes=1)
    monkeypatch.setattr(ours, "class_logits", lambda *_: pytest.fail("a class-agnostic head has no class to choose"))
    features, regions = make_regions()
    for instances in regions:
        # Labels of a data set with many classes: they say nothing to a head with one mask.
        instances.gt_classes = instances.gt_classes + 100
        instances.pred_classes = instances.gt_classes
    assert_same_training(theirs, ours, features, regions)
    with torch.no_grad():
        expected = [instances.pred_masks for instances in theirs.eval()(features, regions)]
        masks = [instances.pred_masks for instances in ours.eval()(features, regions)]
    for mask, expected_mask in zip(masks, expected):
        torch.testing.assert_close(mask, expected_mask)


def test_autocast():
    theirs, ours = make_heads()
    features, regions = make_regions()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, gradients, _ = assert_same_training(theirs, ours, features, regions, rtol=2e-2, atol=2e-2)
    assert loss.dtype == torch.float32
    assert gradients["predictor.weight"].dtype == torch.float32


def test_visualisation_of_training_masks():
    _, ours = make_heads(vis_period=1)
    features, regions = make_regions((2,))
    with EventStorage() as storage:
        ours(features, regions)
        images = [image.shape for _, image, _ in storage._vis_data]
    assert images == [(3, 10, 20)] * 2


@pytest.mark.parametrize("class_agnostic, channels", [(False, 11), (True, 1)])
def test_built_from_a_config(class_agnostic, channels):
    cfg = get_cfg()
    cfg.MODEL.ROI_MASK_HEAD.NAME = "LongTailMaskHead"
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 11
    cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK = class_agnostic
    cfg.MODEL.ROI_MASK_HEAD.NUM_CONV = 2
    head = build_mask_head(cfg, ShapeSpec(channels=4, width=14, height=14))
    assert isinstance(head, LongTailMaskHead)
    assert head.predictor.out_channels == channels
