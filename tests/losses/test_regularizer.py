"""Regularisers: what holds for each of them, beside the losses."""

import copy

import pytest
import torch

from eql_d2.config import get_cfg
from eql_d2.errors import InputError
from eql_d2.losses import REGULARIZER_REGISTRY, add_regularizer, default_settings
from eql_d2.losses.registry import argument_name
from tests.losses.helpers import NUM_CLASSES, make_loss, random_labels, random_logits, step

NAMES = sorted(name for name, _ in REGULARIZER_REGISTRY)
every_regularizer = pytest.mark.parametrize("name", NAMES)


def regularized(name, loss="SOFTMAX", num_classes=NUM_CLASSES, **settings):
    """A loss with the regulariser ``name``, in training mode."""
    built = make_loss(loss, num_classes)
    add_regularizer(built, name, settings)
    return built


def run(loss, num_steps, first=0):
    """Losses and gradients of some steps; each class has a region in each."""
    results = []
    for i in range(first, first + num_steps):
        labels = torch.cat([torch.arange(loss.num_classes), random_labels(20, loss.num_classes, seed=i)])
        results.append(step(loss, random_logits(len(labels), loss.num_logits, seed=i, dtype=torch.float32), labels))
    return results


@every_regularizer
def test_config_node_equals_constructor(name):
    node = get_cfg().MODEL.LONG_TAIL.REGULARIZER
    expected = default_settings(name, REGULARIZER_REGISTRY)
    assert {argument_name(key): value for key, value in node[name].items()} == expected
    assert set(node) == {"NAME", *NAMES}
    loss = regularized(name, **dict(node[name]))
    described = loss.describe()
    assert described["regularizer"] == name
    assert {key: described[f"regularizer.{key}"] for key in expected} == expected


@every_regularizer
def test_it_is_added_and_scores_stay(name):
    loss, plain = regularized(name), make_loss("SOFTMAX")
    (value, gradient), (without, plain_gradient) = run(loss, 1)[0], run(plain, 1)[0]
    torch.testing.assert_close(value - without, loss.statistics()[f"loss_{name.lower()}"])
    assert not torch.equal(gradient, plain_gradient)
    # Background's column is not touched.
    torch.testing.assert_close(gradient[:, -1], plain_gradient[:, -1])
    logits = random_logits(5, loss.num_logits)
    assert torch.equal(loss.scores(logits), plain.scores(logits))


@every_regularizer
def test_no_foreground_and_no_regions(name):
    loss = regularized(name)
    run(loss, 1)
    logits = random_logits(6, loss.num_logits)
    for labels in (torch.full((6,), NUM_CLASSES), torch.zeros(0, dtype=torch.int64)):
        value, gradient = step(loss, logits[: len(labels)], labels)
        expected, plain = step(make_loss("SOFTMAX"), logits[: len(labels)], labels)
        torch.testing.assert_close((value, gradient), (expected, plain))


@every_regularizer
def test_extreme_logits_and_bad_steps(name):
    loss = regularized(name)
    run(loss, 1)
    signs = random_logits(16, loss.num_logits, dtype=torch.float32).sign()
    for scale in (80.0, -80.0):
        value, gradient = step(loss, scale * signs, random_labels(16, NUM_CLASSES))
        assert torch.isfinite(value) and torch.isfinite(gradient).all()
    loss(torch.full_like(signs, torch.nan), random_labels(16, NUM_CLASSES))
    assert all(torch.isfinite(buffer).all() for buffer in loss.regularizer.buffers())


@every_regularizer
def test_resumed_run_is_identical_and_evaluation_leaves_the_state(name):
    whole, resumed = regularized(name), regularized(name)
    run(whole, 2)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    for (value, gradient), (other, other_gradient) in zip(run(resumed, 2, first=2), run(whole, 2, first=2)):
        assert torch.equal(value, other) and torch.equal(gradient, other_gradient)
    before = copy.deepcopy(whole.state_dict())
    whole.eval()
    run(whole, 1)
    assert all(torch.equal(value, before[key]) for key, value in whole.state_dict().items())


@every_regularizer
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(name, dtype):
    logits = random_logits(30, NUM_CLASSES + 1, dtype=torch.float32).to(dtype)
    labels = torch.cat([torch.arange(NUM_CLASSES), random_labels(21, NUM_CLASSES)])
    value, gradient = step(regularized(name), logits, labels)
    wide, wide_gradient = step(regularized(name), logits.float(), labels)
    assert torch.equal(value, wide) and torch.equal(gradient, wide_gradient.to(dtype))


def test_unknown_names_and_settings():
    loss = make_loss("SOFTMAX")
    with pytest.raises(InputError, match=r"REGULARIZER.NAME is 'PBC'.*Did you mean 'PCB'"):
        add_regularizer(loss, "PBC", {})
    with pytest.raises(InputError, match="regulariser 'PCB' has no setting 'beta'"):
        add_regularizer(loss, "PCB", {"BETA": 1})
    add_regularizer(loss, "", {})
    assert loss.regularizer is None
