"""Federated loss."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers

from eql_d2.data.frequency import CategoryFrequency
from eql_d2.losses import FederatedLoss
from tests.losses.helpers import (
    assert_equals_slow,
    long_tailed_frequency,
    make_loss,
    random_labels,
    random_logits,
    step,
)


def detectron2_layers(frequency, num_sampled_classes, power=0.5):
    """Detectron2's predictor with its federated loss."""
    return FastRCNNOutputLayers(
        ShapeSpec(channels=4),
        box2box_transform=Box2BoxTransform((10, 10, 5, 5)),
        num_classes=frequency.num_classes,
        use_fed_loss=True,
        use_sigmoid_ce=True,
        get_fed_loss_cls_weights=lambda: frequency.image_count.float() ** power,
        fed_loss_num_classes=num_sampled_classes,
    )


@pytest.mark.parametrize("num_sampled_classes", [1, 4, 100])
def test_equals_slow_formula(num_sampled_classes):
    assert_equals_slow(make_loss("FEDERATED", num_sampled_classes=num_sampled_classes))


def test_value_equals_detectron2_where_nothing_is_drawn():
    labels = random_labels(30, 9)
    logits = random_logits(30, 9, dtype=torch.float32)
    layers = detectron2_layers(long_tailed_frequency(), num_sampled_classes=1)
    expected = layers.sigmoid_cross_entropy_loss(torch.nn.functional.pad(logits, (0, 1)), labels)
    value, _ = step(make_loss("FEDERATED", num_sampled_classes=1), logits, labels)
    torch.testing.assert_close(value, expected)


@pytest.mark.parametrize("labels", [[0, 9, 9], [2, 5, 2], [9, 9]])
def test_sampling_law_is_detectron2s(labels):
    """How often each class takes part, ours and Detectron2's, over many draws."""
    num_draws, labels = 4000, torch.tensor(labels)
    frequency = CategoryFrequency.from_counts([900, 400, 100, 64, 49, 25, 9, 4, 1], num_images=1000)
    loss, layers = FederatedLoss(frequency, num_sampled_classes=5), detectron2_layers(frequency, 5)
    ours = torch.stack([loss.sample_classes(labels) for _ in range(num_draws)]).float()
    theirs = torch.zeros(num_draws, 10)
    torch.manual_seed(0)
    for row in theirs:
        row[layers.get_fed_loss_classes(labels, 5, 9, layers.fed_loss_cls_weights)] = 1
    theirs = theirs[:, :9]
    assert torch.equal(ours.sum(1), theirs.sum(1))
    # Four and a half standard deviations of the difference of two shares.
    assert (ours.mean(0) - theirs.mean(0)).abs().max() < 4.5 * (0.5 / num_draws) ** 0.5


def test_class_without_images_is_never_drawn():
    frequency = CategoryFrequency.from_counts([0, 5, 5], num_images=10)
    loss = FederatedLoss(frequency, num_sampled_classes=3)
    classes = torch.stack([loss.sample_classes(torch.tensor([3])) for _ in range(50)])
    assert not classes[:, 0].any()
    assert loss.sample_classes(torch.tensor([0])).tolist()[0]
