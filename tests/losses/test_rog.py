"""ROG: golden vectors of the authors' code, the ranking in loops, and bad settings."""

import pytest
import torch

from eql_d2.errors import InputError
from eql_d2.losses import SigmoidLoss, add_regularizer
from tests.losses.helpers import assert_golden, golden, make_loss, random_labels, random_logits, step
from tests.losses.test_regularizer import regularized


def term(regularizer, logits, labels):
    """The value of a regulariser alone, and its gradient."""
    return step(regularizer_of(regularizer), logits, labels)


def regularizer_of(regularizer):
    """A regulariser with the signature of a loss."""
    return lambda logits, labels, verified: regularizer(logits, labels)


def test_golden_over_four_steps():
    """In step 2 every positive is above every negative."""
    arrays = golden("rog")
    settings = {"gamma": float(arrays["gamma"]), "lambda_": float(arrays["rank_lambda"])}
    loss = SigmoidLoss(80)
    add_regularizer(loss, "ROG", {**settings, "delta": float(arrays["delta"])})
    for i in range(4):
        logits, labels = (torch.from_numpy(arrays[key][i]) for key in ("logits", "gt_classes"))
        value, gradient = term(loss.regularizer, logits, labels.long())
        assert_golden(value, arrays["loss"][i])
        assert_golden(gradient, arrays["grad"][i])
        assert_golden(loss.regularizer.instance_seen, arrays["instance_seen"][i][:80])


def slow(regularizer, seen, logits, labels):
    """Value and gradient as the definition reads, with loops over classes, regions and logits."""
    num_classes, lambda_, delta = regularizer.num_classes, regularizer.lambda_, regularizer.delta
    for y in labels:
        if y < num_classes:
            seen[y] += 1
    raw = [max(c, 1) ** -regularizer.gamma for c in seen]
    weight = [w * num_classes / sum(raw) for w in raw]
    negatives = [(r, j) for r, y in enumerate(labels) for j in range(num_classes) if j != y]
    value, gradient = 0.0, torch.zeros(len(labels), num_classes, dtype=torch.float64)
    present = {y for y in labels if y < num_classes}

    def step_function(x):
        return min(max(x / (2 * delta) + 0.5, 0.0), 1.0)

    for m in present:
        regions = [r for r, y in enumerate(labels) if y == m]
        for i in regions:
            own = float(logits[i, m])
            above = sum(step_function(float(logits[k, m]) - own) for k in regions)
            false = {n: step_function(float(logits[n]) - own) for n in negatives}
            error = sum(false.values()) / (above + sum(false.values()))
            share = 1 / (len(regions) * len(present))
            value += share * error
            gradient[i, m] -= lambda_ * weight[m] * share * error
            for n, one in false.items():
                gradient[n] += lambda_ * weight[m] * share * one / (above + sum(false.values()))
    return value, gradient


@pytest.mark.parametrize("settings", [{}, {"lambda_": 1.0, "gamma": 0.5, "delta": 2.0}, {"gamma": 0.0}])
def test_equals_slow_formula(settings):
    regularizer = regularized("ROG", **settings).regularizer
    seen = [0] * 9
    for i in range(3):
        logits, labels = random_logits(12, 9, seed=i), random_labels(12, 9, seed=i)
        # Equal logits meet the bends of H.
        logits[0] = logits[1] + regularizer.delta
        value, gradient = term(regularizer, logits, labels)
        expected, expected_gradient = slow(regularizer, seen, logits, labels.tolist())
        assert value == pytest.approx(expected, rel=1e-9)
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-9, atol=1e-12)


def test_many_classes_in_single_precision():
    regularizer, wide = (regularized("ROG", num_classes=20_000).regularizer for _ in range(2))
    logits, labels = random_logits(8, 20_000, dtype=torch.float32), torch.tensor([0, 1, 1, 19_999, *[20_000] * 4])
    value, gradient = term(regularizer, logits, labels)
    expected, expected_gradient = term(wide, logits.double(), labels)
    torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("name", ["SIGMOID", "SOFTMAX", "SEESAW", "EQL_V2", "BAGS"])
def test_it_raises_positives_above_negatives_beside_any_loss(name):
    loss = make_loss(name)
    add_regularizer(loss, "ROG", {"lambda_": 5.0})
    labels = torch.arange(12) % 10
    logits = loss.initial_bias().expand(12, -1).clone()
    errors = []
    for _ in range(40):
        logits -= 3 * step(loss, logits, labels)[1]
        errors.append(float(loss.statistics()["loss_rog"]))
    assert errors[-1] < 0.3 * errors[0]


@pytest.mark.parametrize("key, value", [("lambda_", -1.0), ("gamma", -0.5), ("delta", 0.0)])
def test_bad_settings(key, value):
    with pytest.raises(InputError, match=rf"ROG.{key.strip('_').upper()} is {value}"):
        regularized("ROG", **{key: value})
