"""Balanced group softmax."""

import numpy as np
import pytest
import torch

from eql_d2.data.frequency import CategoryFrequency
from eql_d2.errors import InputError
from eql_d2.losses import BalancedGroupSoftmax
from tests.losses.helpers import (
    assert_equals_slow,
    assert_golden,
    golden,
    golden_frequency,
    make_loss,
    random_labels,
    random_logits,
    step,
)


def join(arrays, suffix, binary):
    """The golden file's separate arrays in the order of the logits here: classes, others, foreground, background."""
    names = [f"class_{suffix}", f"others_{suffix}", f"foreground_{binary}", f"background_{binary}"]
    return np.concatenate([arrays[name].reshape(len(arrays["gt_classes"]), -1) for name in names], axis=1)


def test_golden():
    arrays = golden("bags")
    loss = BalancedGroupSoftmax(golden_frequency(arrays), group_bounds=arrays["group_bounds"].tolist(), beta=1e6)
    assert loss.group_of_label[:-1].tolist() == arrays["group_of_class"].tolist()
    logits = torch.from_numpy(join(arrays, "logits", "logit"))
    value, gradient = step(loss, logits, torch.from_numpy(arrays["gt_classes"]))
    assert_golden(value, arrays["loss"])
    assert_golden(gradient, join(arrays, "grad", "grad"))
    assert_golden(loss.scores(logits), arrays["probs"])


@pytest.mark.parametrize("settings", [{"beta": 1.0}, {"beta": 0.0}, {"group_bounds": (100,)}, {"group_bounds": ()}])
def test_equals_slow_formula(settings):
    assert_equals_slow(make_loss("BAGS", **settings), num_regions=25)


def test_equals_slow_formula_group_by_group(monkeypatch):
    """As on a GPU."""
    monkeypatch.setattr(BalancedGroupSoftmax, "_of_all_columns", lambda *args: None)
    assert_equals_slow(make_loss("BAGS"), num_regions=25)


@pytest.mark.parametrize("distance", [50, 100, 1000])
def test_groups_far_below_the_others(distance):
    """Each softmax is of its own group's logits: what is subtracted from all of them changes nothing."""
    loss, other = make_loss("BAGS"), make_loss("BAGS")
    logits, labels = random_logits(20, loss.num_logits), random_labels(20, 9)
    lower = logits.clone()
    lower[:, loss.in_group[0].bool()] -= distance
    torch.testing.assert_close(step(other, lower, labels), step(loss, logits, labels), rtol=1e-9, atol=1e-12)


def test_others_are_beta_times_the_own_regions():
    loss = make_loss("BAGS", beta=3.0)
    labels = torch.tensor([0, 0, 8, *[9] * 60])
    own = loss.group_of_label[labels] == torch.arange(loss.num_groups).unsqueeze(1)
    kept = loss.kept_regions(labels)
    assert kept[-1].all()
    for group in range(loss.num_groups):
        count = int(own[group].sum())
        assert (kept[group] & own[group]).sum() == count
        assert (kept[group] & ~own[group]).sum() == min(3 * count, len(labels) - count)


def test_class_at_the_bound_is_in_the_higher_group():
    frequency = CategoryFrequency.from_counts([9, 10, 99, 100], num_images=200)
    loss = BalancedGroupSoftmax(frequency, group_bounds=(10, 100))
    assert loss.group_of_label.tolist() == [0, 1, 1, 2, -1]


def test_groups_without_a_class_have_no_column():
    frequency = CategoryFrequency.from_counts([5, 5000], num_images=6000)
    loss = BalancedGroupSoftmax(frequency)
    assert loss.num_groups == 2
    assert loss.num_logits == 2 + 2 + 2
    assert loss.describe()["group_sizes"] == [1, 1]


def test_lvis_width_and_groups():
    counts = [5] * 294 + [50] * 453 + [500] * 302 + [5000] * 181
    loss = BalancedGroupSoftmax(CategoryFrequency.from_counts(counts, num_images=57_263))
    assert loss.num_logits == 1236
    assert loss.describe()["group_sizes"] == [294, 453, 302, 181]


def test_statistics_count_the_kept_regions():
    loss = make_loss("BAGS", beta=2.0)
    labels = random_labels(30, 9)
    step(loss, torch.zeros(30, loss.num_logits), labels)
    expected = loss._kept.sum(1).tolist()
    statistics = loss.statistics()
    assert [int(statistics[f"num_regions/group{i}"]) for i in range(loss.num_groups)] == expected[:-1]


def test_bad_settings():
    with pytest.raises(InputError, match="GROUP_BOUNDS"):
        make_loss("BAGS", group_bounds=(100, 10))
    with pytest.raises(InputError, match="BETA is -1"):
        make_loss("BAGS", beta=-1.0)
