"""Focal loss."""

import torch
from fvcore.nn import sigmoid_focal_loss

from tests.losses.helpers import make_loss, random_labels, random_logits, step


def test_equals_fvcore():
    logits, labels = random_logits(20, 9, dtype=torch.float32), random_labels(20, 9)
    leaf = logits.clone().requires_grad_()
    targets = torch.nn.functional.one_hot(labels, 10)[:, :9].float()
    total = sigmoid_focal_loss(leaf, targets, alpha=0.25, gamma=2.0, reduction="sum")
    expected = total / (labels < 9).sum()
    expected.backward()
    value, gradient = step(make_loss("FOCAL"), logits, labels)
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(gradient, leaf.grad)


def test_gamma_zero_is_weighted_sigmoid():
    logits, labels = random_logits(20, 9), random_labels(20, 9)
    focal, _ = step(make_loss("FOCAL", gamma=0.0, alpha=0.5), logits, labels)
    sigmoid, _ = step(make_loss("SIGMOID"), logits, labels)
    torch.testing.assert_close(focal * (labels < 9).sum(), sigmoid * 20 / 2)
