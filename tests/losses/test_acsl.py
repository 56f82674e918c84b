"""Adaptive class suppression loss."""

import pytest
import torch

from eql_d2.losses import AdaptiveClassSuppressionLoss
from tests.losses.helpers import (
    assert_equals_slow,
    assert_golden,
    golden,
    golden_frequency,
    make_loss,
    random_logits,
    step,
)


@pytest.mark.parametrize("name", ["acsl_fg", "acsl_bg"])
def test_golden(name):
    arrays = golden(name)
    frequency = golden_frequency(arrays, groups=arrays["frequency"].tolist())
    loss = AdaptiveClassSuppressionLoss(frequency, xi=float(arrays["xi"]))
    value, gradient = step(loss, *(torch.from_numpy(arrays[key]) for key in ("logits", "gt_classes")))
    assert_golden(value, arrays["loss"])
    assert_golden(gradient, arrays["grad"])


@pytest.mark.parametrize(
    "settings", [{"sample_background": False}, {"rare_share": 0.5, "common_share": 0.7}, {"xi": 0.3}]
)
def test_equals_slow_formula(settings):
    assert_equals_slow(make_loss("ACSL", **settings))


@pytest.mark.parametrize("num_background", [0, 1, 9, 99, 100, 700, 999])
def test_number_of_sampled_regions_rounds_down(num_background):
    loss = make_loss("ACSL")
    labels = torch.tensor([3] * 5 + [9] * num_background)[torch.randperm(5 + num_background)]
    sampled = loss.sampled_background(labels)
    assert sampled.sum(1).tolist() == [int(num_background * share) for share in (0.01, 0.1, 1.0)]
    assert not sampled[:, labels != 9].any()


def test_every_background_region_is_as_likely():
    loss = make_loss("ACSL", rare_share=0.25)
    labels = torch.full((20,), 9)
    share = torch.stack([loss.sampled_background(labels)[0] for _ in range(2000)]).float().mean(0)
    assert (share - 0.25).abs().max() < 4.5 * (0.25 * 0.75 / 2000) ** 0.5


def test_only_confused_classes_are_discouraged():
    loss = make_loss("ACSL")
    logits = torch.full((1, 10), -5.0)
    logits[0, 4], logits[0, 9] = 3.0, 2.0
    _, gradient = step(loss, logits, torch.tensor([1]))
    assert (gradient[0] != 0).tolist() == [False, True, False, False, True, False, False, False, False, True]
    assert loss.statistics()["negative_weight/rare"] == 0


def test_scores_have_no_objectness_product():
    logits = random_logits(3, 10, dtype=torch.float32)
    torch.testing.assert_close(make_loss("ACSL").scores(logits), torch.sigmoid(logits))
