"""DropLoss."""

import pytest
import torch

from eql_d2.losses import DropLoss, EqualizationLoss, droploss
from tests.losses.helpers import (
    assert_equals_slow,
    assert_golden,
    golden,
    golden_frequency,
    make_loss,
    random_logits,
    step,
)


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


def test_equals_the_authors_code(monkeypatch):
    """With the random numbers of the golden file: an entry is kept where the number is at most the share of tail."""
    arrays = golden("gol")
    logits, labels = torch.from_numpy(arrays["logits"][:, :-1]), torch.from_numpy(arrays["gt_classes"])
    uniform, asked = torch.from_numpy(arrays["uniform"]), []

    def given(num_rows, num_columns, share, like, generator):
        asked.append(share)
        return (uniform <= share).to(like.dtype)

    monkeypatch.setattr(droploss, "random_mask", given)
    loss = DropLoss(golden_frequency(arrays), lambda_=float(arrays["lambda_"]))
    value, gradient = step(loss, logits, labels)
    assert_golden(torch.stack(asked), arrays["drop_ratio"][None])
    assert_golden(value, arrays["drop_sigmoid_loss"])
    assert_golden(gradient, arrays["drop_sigmoid_grad"])
    assert_golden(loss.scores(logits), arrays["drop_sigmoid_probs"])
    # Some of the negatives that background gives to tail classes were dropped, some were kept.
    of_tail = gradient[labels == 80][:, loss.tail[:-1].bool()]
    assert (of_tail == 0).any() and (of_tail > 0).any()


def test_eql_of_the_same_file():
    arrays = golden("gol")
    loss = EqualizationLoss(golden_frequency(arrays), lambda_=float(arrays["lambda_"]))
    value, gradient = step(loss, torch.from_numpy(arrays["logits"][:, :-1]), torch.from_numpy(arrays["gt_classes"]))
    assert_golden(value, arrays["eql_sigmoid_loss"])
    assert_golden(gradient, arrays["eql_sigmoid_grad"])
