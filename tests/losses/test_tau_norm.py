"""tau-normalisation."""

import pytest
import torch

from eql_d2.errors import InputError
from eql_d2.losses import tau_normalize


def test_norms():
    weight, bias = torch.randn(4, 6), torch.randn(4)
    norms = weight.norm(dim=1)
    for tau in (0.0, 0.5, 1.0):
        new_weight, new_bias = tau_normalize(weight, bias, tau)
        torch.testing.assert_close(new_weight.norm(dim=1), norms ** (1 - tau))
        torch.testing.assert_close(direction(new_weight), direction(weight))
        assert (new_bias == 0).all()


def direction(weight):
    """Unit vectors."""
    return weight / weight.norm(dim=1, keepdim=True)


def test_background_is_kept():
    weight, bias = torch.randn(4, 6), torch.randn(4)
    new_weight, new_bias = tau_normalize(weight, bias, 1.0, num_classes=3)
    assert torch.equal(new_weight[3], weight[3])
    assert new_bias.tolist() == [0, 0, 0, bias[3].item()]


def test_arguments_are_not_changed_and_zero_stays():
    weight = torch.zeros(2, 3)
    weight[0] = 2.0
    new_weight, new_bias = tau_normalize(weight, None, 1.0)
    assert (weight[0] == 2).all()
    assert new_bias is None
    assert (new_weight[1] == 0).all()


def test_bad_tau():
    with pytest.raises(InputError, match="tau is 2"):
        tau_normalize(torch.ones(2, 2), None, 2.0)
