"""Softmax cross-entropy."""

import torch
import torch.nn.functional as F

from tests.losses.helpers import make_loss, random_labels, random_logits, step


def test_equals_pytorch():
    loss = make_loss("SOFTMAX")
    logits, labels = random_logits(20, 10, dtype=torch.float32), random_labels(20, 9)
    leaf = logits.clone().requires_grad_()
    expected = F.cross_entropy(leaf, labels)
    expected.backward()
    value, gradient = step(loss, logits, labels)
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(gradient, leaf.grad)
    torch.testing.assert_close(loss.scores(logits), F.softmax(logits, 1))
