"""Equalization loss."""

import math

import pytest
import torch

from eql_d2.data.frequency import CategoryFrequency
from eql_d2.errors import InputError
from eql_d2.losses import EqualizationLoss
from eql_d2.losses.eql import exponential_weight, gompertz_weight, threshold_weight
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

#: EQL's Table 2: lambda in 1e-3, tail ratio in percent, and the number of tail classes on LVIS v0.5. The row of
#: lambda = 1.5e-3 is left out: its 7.82 comes out for no number of images.
TABLE_2 = [
    (0, 0, 0),
    (0.176, 0.93, 454),
    (0.5, 3.14, 694),
    (0.8, 4.88, 792),
    (1.76, 9.08, 915),
    (2.0, 9.83, 929),
    (3.0, 13.12, 977),
    (5.0, 18.17, 1023),
]


def lvis_frequency() -> CategoryFrequency:
    """Image counts of the LVIS v0.5 training set (facts from LVIS, CC BY 4.0), over all of its images."""
    arrays = golden("lvis_v0.5_image_count")
    return CategoryFrequency.from_counts(
        arrays["image_count"].astype(int), num_images=57_263, groups=arrays["groups"].tolist()
    )


def test_golden():
    arrays = golden("eql")
    loss = EqualizationLoss(golden_frequency(arrays), lambda_=float(arrays["lambda_"]))
    logits = torch.from_numpy(arrays["logits"])
    value, gradient = step(loss, logits, torch.from_numpy(arrays["gt_classes"]))
    assert_golden(value, arrays["loss"])
    assert_golden(gradient, arrays["grad"])
    assert_golden(loss.scores(logits)[:, :-1], arrays["probs"])


@pytest.mark.parametrize("settings", [{}, {"exclude_background": False}, {"image_level_exemption": False}])
def test_equals_slow_formula_with_image_level_sets(settings):
    assert_equals_slow(make_loss("EQL", lambda_=0.01, **settings), verified=True)


@pytest.mark.parametrize(("lambda_", "tail_ratio", "num_tail_classes"), TABLE_2)
def test_table_2(lambda_, tail_ratio, num_tail_classes):
    loss = EqualizationLoss(lvis_frequency(), lambda_=lambda_ * 1e-3)
    assert 100 * loss.describe()["tail_ratio"] == pytest.approx(tail_ratio, abs=0.03)
    assert loss.describe()["num_tail_classes"] == num_tail_classes


def test_groups_of_lvis():
    frequency = lvis_frequency()
    derived = CategoryFrequency.from_counts(frequency.image_count, num_images=57_263)
    assert list(derived.groups) == list(frequency.groups)


def test_verified_changes_exactly_these_gradients():
    """Tail class, foreground region of another class, in one of the image's sets: these get their gradient back."""
    loss = make_loss("EQL", lambda_=0.01)
    tail = loss.tail_weight.bool()
    labels = random_labels(40, 9)
    verified = torch.rand(40, 9, generator=torch.Generator().manual_seed(1)) < 0.4
    logits = random_logits(40, 9)
    _, without = step(loss, logits, labels)
    _, with_sets = step(loss, logits, labels, verified)
    is_target = torch.zeros(40, 10, dtype=torch.bool).scatter_(1, labels.unsqueeze(1), True)[:, :9]
    expected = verified & tail & (labels < 9).unsqueeze(1) & ~is_target
    assert expected.any()
    assert torch.equal(without != with_sets, expected)
    assert (without[expected] == 0).all()
    torch.testing.assert_close(with_sets[expected], torch.sigmoid(logits)[expected] / 40)


def test_exclude_background():
    """E(r) = 0 on background: tail classes keep the gradients of background regions. Without E(r) they lose them."""
    labels, logits = random_labels(40, 9), random_logits(40, 9)
    background, tail = labels == 9, make_loss("EQL", lambda_=0.01).tail_weight.bool()
    _, gradient = step(make_loss("EQL", lambda_=0.01), logits, labels)
    assert (gradient[background][:, tail] > 0).all()
    _, gradient = step(make_loss("EQL", lambda_=0.01, exclude_background=False), logits, labels)
    assert (gradient[background][:, tail] == 0).all()
    assert (gradient[background][:, ~tail] > 0).all()


def test_weight_functions():
    f = torch.tensor([1.76e-4, 1.76e-3, 2.5e-3, 3.5e-3, 0.5], dtype=torch.float64)
    assert threshold_weight(f, 1.76e-3).tolist() == [1, 0, 0, 0, 0]
    expected = [0.995, 0.504, 0, 0, 0]
    torch.testing.assert_close(exponential_weight(f), torch.tensor(expected).double(), atol=1e-3, rtol=0)
    expected = [1 - math.exp(-80 * math.exp(-3000 * x)) for x in f.tolist()]
    torch.testing.assert_close(gompertz_weight(f), torch.tensor(expected).double())
    torch.testing.assert_close(
        gompertz_weight(f)[:2], torch.tensor([1.000, 0.335], dtype=torch.float64), atol=1e-3, rtol=0
    )


@pytest.mark.parametrize("name", ["exponential", "gompertz"])
def test_soft_weight_functions_scale_the_gradient(name):
    loss = make_loss("EQL", weight_function=name)
    logits = random_logits(1, 9)
    _, gradient = step(loss, logits, torch.tensor([0]))
    expected = (1 - loss.tail_weight.double()) * torch.sigmoid(logits)[0]
    torch.testing.assert_close(gradient[0, 1:], expected[1:])


def test_unknown_weight_function():
    with pytest.raises(InputError, match="WEIGHT_FUNCTION is 'cosine'"):
        make_loss("EQL", weight_function="cosine")


def test_negative_weight_statistics():
    loss = make_loss("EQL", lambda_=0.01)
    loss(torch.zeros(4, 9), torch.tensor([0, 9, 9, 9]))
    statistics = loss.statistics()
    assert statistics["negative_weight/rare"] == pytest.approx(0.75)
    assert statistics["negative_weight/frequent"] > 0.75
