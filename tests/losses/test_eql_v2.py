"""EQL v2."""

import pytest
import torch

from eql_d2.losses import EqualizationLossV2
from tests.losses.helpers import (
    assert_equals_slow,
    assert_golden,
    golden,
    golden_frequency,
    make_loss,
    random_logits,
    step,
)


def test_golden_over_five_steps():
    arrays = golden("eqlv2")
    settings = {key: float(arrays[key]) for key in ("gamma", "mu", "alpha")}
    loss = EqualizationLossV2(golden_frequency(arrays), **settings)
    for i in range(5):
        logits, labels = (torch.from_numpy(arrays[key][i]) for key in ("logits", "gt_classes"))
        value, gradient = step(loss, logits, labels)
        assert_golden(value, arrays["loss"][i])
        assert_golden(gradient, arrays["grad"][i])
        assert_golden(loss.pos_grad, arrays["pos_grad"][i])
        assert_golden(loss.neg_grad, arrays["neg_grad"][i])
        assert_golden(loss.gradient_ratio(), arrays["pos_neg"][i])
    assert_golden(loss.scores(logits), arrays["last_probs"])


def test_without_the_category_agnostic_column():
    loss = make_loss("EQL_V2", category_agnostic=False)
    assert loss.num_logits == 9
    assert_equals_slow(loss)
    logits = random_logits(3, 9, dtype=torch.float32)
    torch.testing.assert_close(loss.scores(logits)[:, :9], torch.sigmoid(logits))
    assert (loss.scores(logits)[:, 9] == 0).all()


@pytest.mark.parametrize("settings", [{"alpha": 0.0}, {"reweight_negatives": False}])
def test_one_side_alone_is_reweighted(settings):
    loss = make_loss("EQL_V2", **settings)
    assert_equals_slow(loss)
    weights = {"alpha": loss.positive_weight(), "reweight_negatives": loss.negative_weight()}
    (key,) = settings
    torch.testing.assert_close(weights.pop(key), torch.ones(9).double())
    (other,) = weights.values()
    assert (other != 1).any()


def test_category_agnostic_column_at_test():
    logits = random_logits(3, 10, dtype=torch.float32)
    plain = make_loss("EQL_V2", category_agnostic_test=False).scores(logits)
    torch.testing.assert_close(plain, torch.sigmoid(logits))
    product = make_loss("EQL_V2").scores(logits)
    torch.testing.assert_close(product[:, :9], plain[:, :9] * (1 - plain[:, 9:]))


def test_weights_follow_the_ratio():
    loss = make_loss("EQL_V2")
    # Before the first step all weights are 1.
    torch.testing.assert_close(loss.negative_weight(), torch.ones(9).double())
    loss.pos_grad.copy_(torch.tensor([0.0, 0.8, 1.0, *[5.0] * 6]))
    loss.neg_grad.fill_(1.0)
    weight = loss.negative_weight()
    assert weight[0] == pytest.approx(6.8e-5, rel=0.01)
    assert weight[1] == pytest.approx(0.5, abs=1e-6)
    assert weight[2] == pytest.approx(0.917, abs=1e-3)


def test_statistics_are_means_of_groups():
    loss = make_loss("EQL_V2")
    step(loss, random_logits(8, 10), torch.tensor([0, 1, 2, 9, 9, 9, 9, 9]))
    rare = loss.group_of_class[:9] == 0
    assert loss.statistics()["gradient_ratio/rare"] == pytest.approx(float(loss.gradient_ratio()[rare].mean()))
    assert loss.statistics()["negative_weight/rare"] == pytest.approx(float(loss.negative_weight()[rare].mean()))
