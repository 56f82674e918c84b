"""Class-balanced loss."""

import pytest
import torch

from eql_d2.errors import InputError
from tests.losses.helpers import assert_equals_slow, long_tailed_frequency, make_loss


def test_equals_slow_formula():
    assert_equals_slow(make_loss("CLASS_BALANCED", beta=0.9, min_weight=0.0, max_weight=float("inf")))


def test_weights_of_bags_model_7():
    weight = make_loss("CLASS_BALANCED").class_weight
    raw = [0.001 / (1 - 0.999**n) for n in long_tailed_frequency().instance_count.tolist()]
    expected = [min(max(w * 9 / sum(raw), 0.1), 5.0) for w in raw] + [1.0]
    torch.testing.assert_close(weight, torch.tensor(expected))
    assert 0.1 in expected


def test_beta_zero_weighs_all_alike():
    assert (make_loss("CLASS_BALANCED", beta=0.0).class_weight == 1).all()


def test_bad_settings():
    with pytest.raises(InputError, match="BETA is 1"):
        make_loss("CLASS_BALANCED", beta=1.0)
    with pytest.raises(InputError, match="MIN_WEIGHT is 3"):
        make_loss("CLASS_BALANCED", min_weight=3.0, max_weight=2.0)
