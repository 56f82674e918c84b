"""GOL: the Gumbel distribution, alone and with DropLoss or EQL."""

import math

import pytest
import torch

from eql_d2.data.frequency import CategoryFrequency
from eql_d2.errors import InputError
from eql_d2.losses import DropLoss, EqualizationLoss, GumbelOptimizedLoss
from tests.losses.helpers import assert_equals_slow, assert_golden, golden, golden_frequency, make_loss, step

ARRAYS = golden("gol")


def golden_step(loss, columns):
    logits, labels = torch.from_numpy(ARRAYS["logits"])[:, :columns], torch.from_numpy(ARRAYS["gt_classes"])
    return logits, *step(loss, logits, labels)


def assert_golden_gradient(gradient, name, columns):
    """Entries whose released gradient was computed from a probability below 1e-12 are left out."""
    kept = ~torch.from_numpy(ARRAYS["floored"])[:, :columns]
    assert kept.float().mean() > 0.99
    assert_golden(gradient[kept], ARRAYS[name][kept.numpy()])


def built(cls, **settings):
    return cls(golden_frequency(ARRAYS), **settings)


def test_golden_without_weights():
    loss = built(GumbelOptimizedLoss, weights="none")
    logits, value, gradient = golden_step(loss, 81)
    assert_golden(value, ARRAYS["loss"])
    assert_golden_gradient(gradient, "grad", 81)
    assert_golden(loss.scores(logits), ARRAYS["probs"])


def test_golden_beyond_the_largest_loss():
    loss = built(GumbelOptimizedLoss, weights="none")
    logits = torch.from_numpy(ARRAYS["logits"] + ARRAYS["logits_large_offset"])
    value, gradient = step(loss, logits, torch.from_numpy(ARRAYS["gt_classes"]))
    assert value == ARRAYS["loss_large"] and gradient.abs().sum() == ARRAYS["grad_large_abs_sum"]


@pytest.mark.parametrize(
    "cls, settings, prefix",
    [(GumbelOptimizedLoss, {"weights": "droploss"}, "drop_gumbel"), (DropLoss, {}, "drop_sigmoid")],
)
def test_golden_with_the_released_draws(cls, settings, prefix, monkeypatch):
    """The draws of the released code in the place of the loss's own."""
    monkeypatch.setattr(
        "eql_d2.losses.droploss.random_mask",
        lambda rows, columns, share, like, generator: (torch.from_numpy(ARRAYS["uniform"]) <= share).to(like.dtype),
    )
    loss = built(cls, lambda_=float(ARRAYS["lambda_"]), **settings)
    assert_golden(loss.kept_share(torch.from_numpy(ARRAYS["gt_classes"])), ARRAYS["drop_ratio"])
    logits, value, gradient = golden_step(loss, 80)
    assert_golden(value, ARRAYS[f"{prefix}_loss"])
    assert_golden_gradient(gradient, f"{prefix}_grad", 80)
    assert_golden(loss.scores(logits), ARRAYS[f"{prefix}_probs"])


@pytest.mark.parametrize(
    "cls, settings, prefix",
    [(GumbelOptimizedLoss, {"weights": "eql"}, "eql_gumbel"), (EqualizationLoss, {}, "eql_sigmoid")],
)
def test_golden_with_eql(cls, settings, prefix):
    loss = built(cls, lambda_=float(ARRAYS["lambda_"]), **settings)
    _, value, gradient = golden_step(loss, 80)
    assert_golden(value, ARRAYS[f"{prefix}_loss"])
    assert_golden_gradient(gradient, f"{prefix}_grad", 80)


@pytest.mark.parametrize("weights", ["none", "eql"])
def test_equals_slow_formula(weights):
    assert_equals_slow(make_loss("GOL", weights=weights))


def test_gradients_are_those_of_the_distribution():
    logits = torch.tensor([[-2.0, -2.0]])
    _, gradient = step(
        GumbelOptimizedLoss(CategoryFrequency.from_counts([5], num_images=9), "none"), logits, torch.tensor([0])
    )
    assert gradient[0, 0] == pytest.approx(-math.exp(2), rel=1e-6)
    probability = math.exp(-math.exp(2))
    assert gradient[0, 1] == pytest.approx(math.exp(2) * probability / (1 - probability), rel=1e-5)


def test_the_initial_bias_has_the_prior():
    loss = make_loss("GOL")
    assert loss.initial_bias()[0] == pytest.approx(-2, abs=1e-3)
    torch.testing.assert_close(
        loss.scores(loss.initial_bias()[None])[0, 0], torch.tensor(loss.prior), rtol=1e-4, atol=0
    )


@pytest.mark.parametrize("settings, word", [({"weights": "seesaw"}, "WEIGHTS"), ({"prior": 1.0}, "PRIOR")])
def test_bad_settings(settings, word):
    with pytest.raises(InputError, match=word):
        make_loss("GOL", **settings)
