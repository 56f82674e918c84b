"""Sigmoid cross-entropy without a background column."""

import math

import pytest
import torch
import torch.nn.functional as F

from eql_d2.errors import InputError
from eql_d2.losses import SigmoidLoss
from tests.losses.helpers import make_loss, random_labels, random_logits, step


def test_equals_pytorch():
    loss = make_loss("SIGMOID")
    logits, labels = random_logits(20, 9, dtype=torch.float32), random_labels(20, 9)
    leaf = logits.clone().requires_grad_()
    targets = F.one_hot(labels, 10)[:, :9].float()
    expected = F.binary_cross_entropy_with_logits(leaf, targets, reduction="sum") / 20
    expected.backward()
    value, gradient = step(loss, logits, labels)
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(gradient, leaf.grad)


def test_prior():
    bias = SigmoidLoss(4, prior=0.001).initial_bias()
    torch.testing.assert_close(bias, torch.full((4,), -math.log(999.0)))
    with pytest.raises(InputError, match="PRIOR is 1"):
        SigmoidLoss(4, prior=1.0).initial_bias()


def test_background_score_is_zero():
    assert (make_loss("SIGMOID").scores(torch.ones(3, 9))[:, -1] == 0).all()
