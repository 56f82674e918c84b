"""Inverse-frequency weights."""

import pytest
import torch

from tests.losses.helpers import assert_equals_slow, long_tailed_frequency, make_loss


@pytest.mark.parametrize("power", [1.0, 0.5])
def test_equals_slow_formula(power):
    assert_equals_slow(make_loss("INVERSE_FREQUENCY", power=power))


def test_weights_of_bags_model_6():
    weight = make_loss("INVERSE_FREQUENCY").class_weight
    raw = [1 / n for n in long_tailed_frequency().instance_count.tolist()]
    expected = [min(max(w * 9 / sum(raw), 0.1), 5.0) for w in raw] + [1.0]
    torch.testing.assert_close(weight, torch.tensor(expected))
    assert {0.1, 5.0} <= set(expected)


def test_square_root_is_milder():
    plain = make_loss("INVERSE_FREQUENCY", min_weight=0.0, max_weight=float("inf")).class_weight
    root = make_loss("INVERSE_FREQUENCY", power=0.5, min_weight=0.0, max_weight=float("inf")).class_weight
    assert root[8] / root[0] == pytest.approx(float(plain[8] / plain[0]) ** 0.5, rel=1e-5)
