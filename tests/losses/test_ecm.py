"""Effective class-margin loss."""

import torch

from eql_d2.losses import EffectiveClassMarginLoss
from tests.losses.helpers import (
    assert_equals_slow,
    assert_golden,
    golden,
    golden_frequency,
    make_loss,
    random_logits,
    step,
)


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


def test_equals_the_authors_code():
    """In float64, in which their class weights keep their digits: loss, gradient, weights and scores."""
    arrays = golden("ecm")
    loss = EffectiveClassMarginLoss(golden_frequency(arrays), background_ratio=float(arrays["fg_bg_ratio"]))
    logits, labels = (torch.from_numpy(arrays[key]) for key in ("logits", "gt_classes"))
    value, gradient = step(loss, logits, labels)
    assert_golden(value, arrays["loss_float64"])
    assert_golden(gradient, arrays["grad_float64"])
    assert_golden(loss.weight, arrays["class_weight_float64"])
    assert_golden(loss.margin, arrays["positive_shift"].astype(float) - arrays["negative_shift"])
    assert_golden(loss.scores(logits)[:, :-1], arrays["probs"][:, :-1])
