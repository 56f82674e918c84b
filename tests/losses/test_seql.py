"""Softmax EQL."""

import pytest
import torch

from tests.losses.helpers import assert_equals_slow, make_loss, random_logits, step


@pytest.mark.parametrize(
    "settings", [{"gamma": 0.5}, {"gamma": 1.0}, {"exclude_background": False}, {"background": False}]
)
def test_equals_slow_formula(settings):
    assert_equals_slow(make_loss("SEQL", lambda_=0.01, **settings))


def test_gamma_zero_is_softmax():
    logits, labels = random_logits(20, 10), torch.arange(20) % 10
    torch.testing.assert_close(
        step(make_loss("SEQL", gamma=0.0), logits, labels), step(make_loss("SOFTMAX"), logits, labels)
    )


def test_share_of_classes_left_out():
    loss = make_loss("SEQL", lambda_=0.01, gamma=0.75)
    tail = loss.tail.bool()
    labels = torch.tensor([0, 9]).repeat(4000)
    _, gradient = step(loss, torch.zeros(8000, 10), labels)
    left_out = (gradient == 0).float()
    share = left_out[labels == 0].mean(0)
    # Four standard deviations of 4000 draws.
    assert (share[tail] - 0.75).abs().max() < 4 * (0.75 * 0.25 / 4000) ** 0.5
    assert (share[~tail] == 0).all()
    # E(r): background regions leave nothing out.
    assert (left_out[labels == 9] == 0).all()


def test_a_tail_class_is_never_left_out_of_its_own_region():
    loss = make_loss("SEQL", lambda_=0.01, gamma=1.0)
    _, gradient = step(loss, torch.zeros(1, 10), torch.tensor([8]))
    assert gradient[0, 8] < 0
    assert (gradient[0, :8][loss.tail[:8].bool()] == 0).all()


def test_target_far_below_a_class_that_is_left_out():
    """The loss of the target is exact where the largest logit is left out, and where it is not."""
    loss = make_loss("SEQL", lambda_=0.01, gamma=1.0)
    logits = torch.full((2, 10), -80.0, dtype=torch.float64)
    logits[0, 7], logits[1, 0] = 80.0, 80.0
    assert loss.tail[7] == 1
    assert loss.tail[0] == 0
    value, _ = step(loss, logits[:1], torch.tensor([8]))
    assert value < 3
    value, gradient = step(loss, logits[1:], torch.tensor([8]))
    assert value == pytest.approx(160, rel=1e-6)
    assert gradient[0, 8] == pytest.approx(-1)
