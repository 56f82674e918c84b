"""Balanced softmax and logit adjustment."""

import pytest
import torch
import torch.nn.functional as F

from tests.losses.helpers import (
    assert_equals_slow,
    long_tailed_frequency,
    make_loss,
    random_labels,
    random_logits,
    step,
)


@pytest.mark.parametrize("settings", [{"tau": 0.5}, {"background": False}])
def test_equals_slow_formula(settings):
    assert_equals_slow(make_loss("BALANCED_SOFTMAX", **settings))


def test_tau_zero_is_softmax():
    logits, labels = random_logits(20, 10), random_labels(20, 9)
    torch.testing.assert_close(
        step(make_loss("BALANCED_SOFTMAX", tau=0.0), logits, labels), step(make_loss("SOFTMAX"), logits, labels)
    )


def test_classification_is_log_prior():
    logits, labels = random_logits(20, 9), random_labels(20, 9, background=0)
    prior = long_tailed_frequency().instance_count.double()
    expected = F.cross_entropy(logits + torch.log(prior / prior.sum()), labels)
    value, _ = step(make_loss("BALANCED_SOFTMAX", background=False), logits, labels)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
