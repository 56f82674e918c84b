"""DropLoss."""

import pytest
import torch

from tests.losses.helpers import assert_equals_slow, make_loss, random_logits, step


@pytest.mark.parametrize("lambda_", [0.0, 0.01, 1.0])
def test_equals_slow_formula(lambda_):
    assert_equals_slow(make_loss("DROPLOSS", lambda_=lambda_))


def test_share_of_kept_negatives():
    loss = make_loss("DROPLOSS", lambda_=0.01)
    tail = loss.tail[:-1].bool()
    # Two of the five foreground regions are of a tail class.
    labels = torch.tensor([0, 1, 0, 8, 7] * 10 + [9] * 5000)
    _, gradient = step(loss, torch.zeros(len(labels), 9), labels)
    kept = (gradient[labels == 9] != 0).float().mean(0)
    assert (kept[tail] - 0.4).abs().max() < 4 * (0.4 * 0.6 / 5000) ** 0.5
    assert (kept[~tail] == 1).all()
    assert (gradient[labels == 0][:, tail] == 0).all()
    assert loss.statistics()["negative_weight/rare"] == pytest.approx(0.4 * 5000 / 5050, rel=1e-4)


def test_no_foreground_keeps_all():
    _, gradient = step(make_loss("DROPLOSS", lambda_=1.0), random_logits(6, 9), torch.full((6,), 9))
    assert (gradient > 0).all()
