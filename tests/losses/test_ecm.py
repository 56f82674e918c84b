"""Effective class-margin loss."""

import torch

from tests.losses.helpers import assert_equals_slow, make_loss, random_logits


def test_equals_slow_formula():
    assert_equals_slow(make_loss("ECM", background_ratio=1.5))


def test_rarer_classes_have_a_larger_margin():
    loss = make_loss("ECM")
    # What is added to the logit falls with the count: a rare class must reach further for the same loss.
    assert (loss.margin[:-1].diff() < 0).all()
    assert ((loss.weight > 0) & (loss.weight <= 1)).all()


def test_scores_are_plain_sigmoids_times_foreground():
    logits = random_logits(3, 10, dtype=torch.float32)
    probability = torch.sigmoid(logits)
    expected = torch.cat([probability[:, :9] * (1 - probability[:, 9:]), probability[:, 9:]], dim=1)
    torch.testing.assert_close(make_loss("ECM").scores(logits), expected)
