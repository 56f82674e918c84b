"""The fused losses, beyond what the tests of the losses show."""

import pytest
import torch
import torch.nn.functional as F

from eql_d2.losses.functional import attach_gradient, random_mask, softmax_cross_entropy, weighted_sigmoid_cross_entropy
from tests.losses.helpers import assert_equals_slow, make_loss, random_labels, random_logits


def test_attach_gradient():
    logits = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    gradient = torch.randn(3, 4, dtype=torch.float64)
    value = attach_gradient(logits, torch.tensor(2.5, dtype=torch.float64), gradient)
    assert value == 2.5
    (3 * value).backward(retain_graph=True)
    torch.testing.assert_close(logits.grad, 3 * gradient)
    # A second backward adds the same again: nothing was overwritten.
    value.backward()
    torch.testing.assert_close(logits.grad, 4 * gradient)


def test_second_derivative_is_refused():
    logits = torch.randn(3, 4, requires_grad=True)
    value = attach_gradient(logits, torch.tensor(1.0), torch.ones(3, 4))
    (gradient,) = torch.autograd.grad(value * value, logits, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize("num_columns", [9, 10])
def test_column_sums_are_those_of_the_gradient(num_columns):
    logits, labels = random_logits(30, num_columns).requires_grad_(), random_labels(30, 9)
    weights = torch.rand(2, num_columns, dtype=torch.float64)
    is_target = F.one_hot(labels, 10)[:, :num_columns].bool()
    results = (
        weighted_sigmoid_cross_entropy(logits, labels, weights[0], weights[1], with_sums=True),
        softmax_cross_entropy(logits, labels, weights[0], torch.rand(30), with_sums=True),
    )
    for terms in results:
        (gradient,) = torch.autograd.grad(terms.total, logits)
        torch.testing.assert_close(terms.positive, (gradient.abs() * is_target).sum(0))
        torch.testing.assert_close(terms.negative, (gradient.abs() * ~is_target).sum(0))


def test_logits_are_not_changed():
    logits, labels = random_logits(30, 10), random_labels(30, 9)
    before = logits.clone()
    weighted_sigmoid_cross_entropy(logits, labels)
    softmax_cross_entropy(logits, labels)
    softmax_cross_entropy(logits, labels, torch.zeros(30, 10, dtype=torch.float64))
    assert torch.equal(logits, before)


@pytest.mark.parametrize("probability", [0.0, 0.05, 0.5, 0.95, 1.0])
def test_random_mask(probability):
    mask = random_mask(300, 401, probability, torch.zeros(()), torch.Generator().manual_seed(1))
    assert mask.shape == (300, 401)
    assert set(mask.unique().tolist()) <= {0.0, 1.0}
    tolerance = 4 * (probability * (1 - probability) / mask.numel()) ** 0.5
    assert abs(mask.mean().item() - probability) <= tolerance
    # The four entries of one random number are independent of each other.
    if 0 < probability < 1:
        centered = mask - probability
        for lag in (1, 2, 3):
            correlation = (centered[:, :-lag] * centered[:, lag:]).mean() / (probability * (1 - probability))
            assert abs(correlation) < 4.5 / mask.numel() ** 0.5


@pytest.mark.parametrize("name", ["SEESAW", "SEQL"])
def test_rows_that_do_not_count_may_be_computed(name, monkeypatch):
    """As on a GPU, which is not waited for."""
    monkeypatch.setattr(f"eql_d2.losses.{name.lower()}.rows_that_count", lambda counts: slice(None))
    assert_equals_slow(make_loss(name))


def test_the_rows_of_a_random_mask_are_those_of_all():
    """So that what is drawn does not depend on which regions count."""
    whole, some = (
        random_mask(20, 9, 0.5, torch.zeros(()), torch.Generator().manual_seed(1), rows)
        for rows in (slice(None), torch.tensor([3, 4, 17]))
    )
    assert torch.equal(some, whole[[3, 4, 17]])
