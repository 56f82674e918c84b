"""Focal loss."""

import pytest
import torch
from fvcore.nn import sigmoid_focal_loss

from eql_d2.errors import InputError
from tests.losses.helpers import assert_equals_slow, make_loss, random_labels, random_logits, step


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


def test_form_of_bags():
    """K + 1 columns, R (K + 1) in the denominator, scores by softmax, no prior: a softmax classifier's shape."""
    loss = make_loss("FOCAL", form="bags")
    assert_equals_slow(loss)
    assert loss.num_logits == 10 and torch.equal(loss.initial_bias(), torch.zeros(10)) and loss.scores_sum_to_one
    logits, labels = random_logits(20, 10, dtype=torch.float32), random_labels(20, 9)
    torch.testing.assert_close(loss.scores(logits), torch.softmax(logits, 1))
    leaf = logits.clone().requires_grad_()
    targets = torch.nn.functional.one_hot(labels, 10).float()
    expected = sigmoid_focal_loss(leaf, targets, alpha=0.25, gamma=2.0, reduction="mean")
    expected.backward()
    value, gradient = step(loss, logits, labels)
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(gradient, leaf.grad)
    value, gradient = step(loss, logits[:0], labels[:0])
    assert value == 0 and gradient.shape == (0, 10)


def test_unknown_form():
    with pytest.raises(InputError, match=r"FOCAL\.FORM is 'softmax'; there are 'sigmoid' and 'bags'"):
        make_loss("FOCAL", form="softmax")
