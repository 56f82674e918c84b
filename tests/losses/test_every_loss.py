"""What holds for every registered loss."""

import copy
import math
import pickle

import pytest
import torch

from eql_d2.config import get_cfg
from eql_d2.data.frequency import CategoryFrequency
from eql_d2.errors import InputError
from eql_d2.losses import CLASSIFIER_LOSS_REGISTRY, build_classifier_loss, default_settings
from eql_d2.losses.registry import argument_name
from eql_d2.losses.state import RandomLoss, StatefulLoss
from tests.losses.helpers import (
    LOSS_NAMES,
    NUM_CLASSES,
    assert_equals_slow,
    make_loss,
    random_labels,
    random_logits,
    step,
)
from tests.losses.slow import SLOW_LOSSES

losses_that_may_leave_background_out = pytest.mark.parametrize(
    "name", [name for name in LOSS_NAMES if "background" in default_settings(name)]
)
every_loss = pytest.mark.parametrize("name", LOSS_NAMES)
stateful_losses = pytest.mark.parametrize(
    "name", [name for name, cls in CLASSIFIER_LOSS_REGISTRY if issubclass(cls, StatefulLoss)]
)
random_losses = pytest.mark.parametrize(
    "name", [name for name, cls in CLASSIFIER_LOSS_REGISTRY if issubclass(cls, RandomLoss)]
)


def run(loss, num_steps, first=0, num_regions=20):
    """Values and gradients of some steps."""
    results = []
    for i in range(first, first + num_steps):
        labels = random_labels(num_regions, loss.num_classes, seed=i)
        results.append(step(loss, random_logits(num_regions, loss.num_logits, seed=i, dtype=torch.float32), labels))
    return results


def assert_identical(first, second):
    """The same bits."""
    for (value, gradient), (other_value, other_gradient) in zip(first, second):
        assert torch.equal(value, other_value)
        assert torch.equal(gradient, other_gradient)


def test_every_loss_has_a_slow_twin():
    assert set(SLOW_LOSSES) == set(LOSS_NAMES)


@pytest.mark.parametrize("verified", [False, True])
@pytest.mark.parametrize("name", [name for name, cls in CLASSIFIER_LOSS_REGISTRY if cls.regions_are_independent])
def test_regions_may_come_in_parts(name, verified):
    """Loss, gradient and state over three steps are those of all regions in one call; one part has no region left."""
    # SEQL's draws then all come out the same; FOCAL's regions are independent in this form alone.
    settings = {"SEQL": {"gamma": 1.0}, "FOCAL": {"form": "bags"}}.get(name, {})
    whole = make_loss(name, **settings)
    split, parts = copy.deepcopy(whole), (slice(0, 7), slice(7, 9), slice(9, 20))
    for i in range(3):
        labels = random_labels(20, NUM_CLASSES, seed=i)
        labels[7:9] = -1
        logits = random_logits(20, whole.num_logits, seed=i).requires_grad_()
        sets = random_logits(20, NUM_CLASSES, seed=50 + i) > 1 if verified else None
        expected = whole(logits, labels, sets, has_ignored=True)
        with split.in_parts(labels):
            losses = [
                split(logits[part], labels[part], None if sets is None else sets[part], has_ignored=True)
                for part in parts
            ]
        found = sum(loss * int((labels[part] >= 0).sum()) for loss, part in zip(losses, parts)) / 18
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
        gradients = [torch.autograd.grad(value, logits, retain_graph=True)[0] for value in (found, expected)]
        torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)
        for key, value in whole.state_dict().items():
            if key != "random_step":
                torch.testing.assert_close(split.state_dict()[key], value, rtol=1e-9, atol=1e-12)
        assert torch.equal(split._gt_classes, labels[labels >= 0])


@every_loss
def test_equals_slow_formula(name):
    assert_equals_slow(make_loss(name))


@losses_that_may_leave_background_out
def test_without_background(name):
    """K columns, the slow formula over them, and scores of the K classes that sum to one."""
    loss = make_loss(name, background=False)
    assert loss.num_logits == NUM_CLASSES
    assert not loss.has_background_logits
    assert_equals_slow(loss)
    scores = loss.scores(random_logits(5, NUM_CLASSES))
    assert (scores[:, NUM_CLASSES] == 0).all()
    torch.testing.assert_close(scores.sum(1), torch.ones(5, dtype=torch.float64))
    assert make_loss(name).has_background_logits


@every_loss
def test_a_loss_says_whether_it_looks_at_image_level_labels(name):
    logits, labels = random_logits(20, make_loss(name).num_logits), random_labels(20, NUM_CLASSES)
    verified = torch.ones(20, NUM_CLASSES, dtype=torch.bool)
    (_, without), (_, with_labels) = (step(make_loss(name), logits, labels, sets) for sets in (None, verified))
    assert torch.equal(without, with_labels) != make_loss(name).uses_verified


@every_loss
def test_a_few_entries_at_once_change_nothing(name, monkeypatch):
    whole = run(make_loss(name).double(), 2)
    monkeypatch.setattr("eql_d2.losses.functional.ENTRIES_AT_ONCE", 3 * NUM_CLASSES + 5)
    torch.testing.assert_close(run(make_loss(name).double(), 2), whole)


@every_loss
def test_config_node_equals_constructor(name):
    node = getattr(get_cfg().MODEL.LONG_TAIL, name)
    assert {argument_name(key): value for key, value in node.items()} == default_settings(name)
    loss = build_classifier_loss(name, make_loss_frequency(), dict(node))
    assert loss.settings() == default_settings(name)
    assert loss.describe()["num_logits"] == loss.num_logits


def make_loss_frequency():
    """Counts of some classes."""
    return CategoryFrequency.from_counts([5, 50, 500], num_images=1000)


@every_loss
def test_extreme_logits(name):
    loss = make_loss(name)
    signs = torch.randn(16, loss.num_logits, generator=torch.Generator().manual_seed(3)).sign()
    for scale in (80.0, -80.0):
        value, gradient = step(loss, scale * signs, random_labels(16, NUM_CLASSES))
        assert torch.isfinite(value)
        assert torch.isfinite(gradient).all()
        scores = loss.scores(scale * signs)
        assert torch.isfinite(scores).all()
    for key, value in loss.state_dict().items():
        assert torch.isfinite(value).all(), key


@every_loss
def test_only_background(name):
    loss = make_loss(name)
    logits = random_logits(16, loss.num_logits, dtype=torch.float32)
    value, gradient = step(loss, logits, torch.full((16,), NUM_CLASSES))
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()
    assert gradient.abs().sum() > 0
    # No foreground class is encouraged.
    foreground = gradient[:, :NUM_CLASSES]
    assert (foreground >= 0).all()


@every_loss
def test_no_regions(name):
    loss = make_loss(name)
    value, gradient = step(loss, torch.zeros(0, loss.num_logits), torch.zeros(0, dtype=torch.int64))
    assert value == 0
    assert gradient.shape == (0, loss.num_logits)
    assert loss.scores(torch.zeros(0, loss.num_logits)).shape == (0, NUM_CLASSES + 1)


@every_loss
def test_one_class(name):
    loss = CLASSIFIER_LOSS_REGISTRY.get(name)(CategoryFrequency.from_counts([3], num_images=10))
    value, gradient = step(loss, random_logits(6, loss.num_logits), torch.tensor([0, 1, 0, 1, 1, 1]))
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()
    assert gradient[0, 0] <= 0
    assert loss.scores(torch.zeros(2, loss.num_logits)).shape == (2, 2)


@every_loss
def test_class_without_images(name):
    frequency = CategoryFrequency.from_counts([0, 20, 400], num_images=1000)
    loss = CLASSIFIER_LOSS_REGISTRY.get(name)(frequency)
    for i in range(3):
        labels = torch.tensor([0, 1, 2, 3, 3, 1])
        value, gradient = step(loss, random_logits(6, loss.num_logits, seed=i), labels)
        assert torch.isfinite(value)
        assert torch.isfinite(gradient).all()
    # Its own region still pulls it up.
    assert gradient[0, 0] < 0


@every_loss
@pytest.mark.parametrize("num_classes", [1230, 20_000])
def test_many_classes(name, num_classes):
    loss = make_loss(name, num_classes)
    logits = random_logits(8, loss.num_logits, dtype=torch.float32)
    labels = torch.tensor([0, 1, num_classes // 2, num_classes - 1, *[num_classes] * 4])
    value, gradient = step(loss, logits, labels)
    assert torch.isfinite(value)
    assert torch.isfinite(gradient).all()
    # A float64 run of the same draws agrees: sums over many classes keep their precision.
    wide_value, wide_gradient = step(make_loss(name, num_classes), logits.double(), labels)
    torch.testing.assert_close(value.double(), wide_value, rtol=1e-5, atol=0)
    torch.testing.assert_close(gradient.double(), wide_gradient, rtol=1e-4, atol=1e-7)


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(name, dtype):
    logits = random_logits(12, make_loss(name).num_logits, dtype=torch.float32).to(dtype)
    labels = random_labels(12, NUM_CLASSES)
    value, gradient = step(make_loss(name), logits, labels)
    wide_value, wide_gradient = step(make_loss(name), logits.float(), labels)
    assert value.dtype == torch.float32
    assert gradient.dtype == dtype
    assert torch.equal(value, wide_value)
    assert torch.equal(gradient, wide_gradient.to(dtype))
    assert make_loss(name).scores(logits).dtype == torch.float32


@every_loss
def test_autocast_changes_nothing(name):
    plain, mixed = make_loss(name), make_loss(name)
    expected = run(plain, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = run(mixed, 2)
    assert_identical(actual, expected)
    for key, value in plain.state_dict().items():
        assert torch.equal(mixed.state_dict()[key], value), key


@every_loss
def test_gradcheck(name):
    # The compensation factor of Seesaw is a constant to its gradient, which finite differences do not know.
    loss = make_loss(name, num_classes=5, **({"q": 0.0} if name == "SEESAW" else {}))
    run(loss, 2)
    # Outside of training, state and random draws stand still.
    loss.eval()
    labels = random_labels(6, 5, seed=1)
    logits = random_logits(6, loss.num_logits, seed=4).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: loss(z, labels), (logits,))


@every_loss
def test_scores(name):
    loss = make_loss(name)
    # As small as cosines, which some losses multiply by a large factor.
    logits = random_logits(7, loss.num_logits, dtype=torch.float32) / 10
    scores = loss.scores(logits)
    assert scores.shape == (7, NUM_CLASSES + 1)
    assert scores.dtype == torch.float32
    assert ((scores >= 0) & (scores <= 1)).all()
    if loss.scores_sum_to_one:
        torch.testing.assert_close(scores.sum(1), torch.ones(7))
    # A higher logit gives a higher score of its class.
    raised = logits.clone()
    raised[:, 2] += 0.1
    assert (loss.scores(raised)[:, 2] > scores[:, 2]).all()


@every_loss
def test_training_lowers_the_loss(name):
    loss = make_loss(name)
    labels = random_labels(24, NUM_CLASSES)
    logits = loss.initial_bias().expand(24, -1).clone()
    assert loss.initial_bias().shape == (loss.num_logits,)
    first = None
    for _ in range(60):
        value, gradient = step(loss, logits, labels)
        first = value if first is None else first
        logits -= 3 * gradient
    assert value < 0.6 * first
    foreground = labels < NUM_CLASSES
    best = loss.scores(logits)[:, :NUM_CLASSES].argmax(1)
    assert (best[foreground] == labels[foreground]).float().mean() > 0.8


@every_loss
def test_resumed_run_is_identical(name):
    whole = make_loss(name)
    run(whole, 3)
    checkpoint = copy.deepcopy(whole.state_dict())
    resumed = make_loss(name)
    assert set(resumed.state_dict()) == set(checkpoint)
    resumed.load_state_dict(checkpoint)
    assert_identical(run(resumed, 2, first=3), run(whole, 2, first=3))
    for key, value in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[key], value), key


@every_loss
def test_same_seed_same_run(name):
    assert_identical(run(make_loss(name), 3), run(make_loss(name), 3))


@every_loss
def test_global_generator_is_untouched(name):
    loss = make_loss(name)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    run_labels = random_labels(8, NUM_CLASSES)
    loss(torch.zeros(8, loss.num_logits), run_labels)
    assert torch.equal(torch.get_rng_state(), before)


@random_losses
def test_another_seed_or_step_draws_anew(name):
    settings = {"SEQL": {"gamma": 0.5}, "ACSL": {"rare_share": 0.5}, "BAGS": {"beta": 3.0}}.get(name, {})
    settings = {"FEDERATED": {"num_sampled_classes": 6}}.get(name, settings)
    labels = torch.tensor([0, 8, 4] + [NUM_CLASSES] * 30)

    def values(seed):
        loss = make_loss(name, seed=seed, **settings)
        return [float(loss(random_logits(33, loss.num_logits), labels)) for _ in range(6)]

    assert len(set(values(0))) > 1
    assert values(0) != values(1)


@stateful_losses
def test_state_is_frozen_outside_of_training(name):
    loss = make_loss(name)
    run(loss, 1)
    before = copy.deepcopy(loss.state_dict())
    loss.eval()
    run(loss, 2)
    for key, value in before.items():
        assert torch.equal(loss.state_dict()[key], value), key


@stateful_losses
def test_non_finite_step_leaves_the_state(name):
    loss = make_loss(name)
    run(loss, 1)
    before = copy.deepcopy(loss.state_dict())
    logits = random_logits(8, loss.num_logits, dtype=torch.float32)
    logits[3] = math.nan
    if name != "SEESAW":  # Its state is counts of labels, which a bad logit does not touch.
        loss(logits, random_labels(8, NUM_CLASSES))
        for key, value in before.items():
            assert torch.equal(loss.state_dict()[key], value), key
    run(loss, 1)
    assert any(not torch.equal(loss.state_dict()[key], value) for key, value in before.items())


@every_loss
def test_statistics(name):
    loss = make_loss(name)
    run(loss, 2)
    statistics = loss.statistics()
    groups = ("rare", "common", "frequent", "background")
    assert sum(float(statistics[f"num_regions/{group}"]) for group in groups) == 20
    for key, value in statistics.items():
        assert value.ndim == 0, key
        assert torch.isfinite(value), key
        assert not value.requires_grad, key
    if hasattr(loss, "pos_grad"):
        assert {f"gradient_ratio/{group}" for group in groups[:3]} <= set(statistics)


@every_loss
def test_copy_and_pickle(name):
    loss = make_loss(name)
    run(loss, 1)
    expected = run(copy.deepcopy(loss), 1, first=1)
    assert_identical(run(pickle.loads(pickle.dumps(loss)), 1, first=1), expected)


@every_loss
def test_wrong_shapes(name):
    loss = make_loss(name)
    labels = random_labels(4, NUM_CLASSES)
    with pytest.raises(ValueError, match="takes logits of shape"):
        loss(torch.zeros(4, loss.num_logits + 1), labels)
    with pytest.raises(ValueError, match="verified must be"):
        loss(torch.zeros(4, loss.num_logits), labels, torch.zeros(4, 3, dtype=torch.bool))


@every_loss
def test_number_of_classes_is_enough_or_refused(name):
    loss_class = CLASSIFIER_LOSS_REGISTRY.get(name)
    if loss_class.needs_frequency:
        with pytest.raises(InputError, match="CategoryFrequency"):
            loss_class(5)
    else:
        assert loss_class(5).num_classes == 5
    with pytest.raises(InputError):
        CLASSIFIER_LOSS_REGISTRY.get(name)(0)


def test_unknown_names_are_explained():
    with pytest.raises(InputError, match="Did you mean 'EQL_V2'"):
        CLASSIFIER_LOSS_REGISTRY.get("EQLV2")
    with pytest.raises(InputError, match="has no setting 'lamda'"):
        build_classifier_loss("EQL", make_loss_frequency(), {"LAMDA": 1})
