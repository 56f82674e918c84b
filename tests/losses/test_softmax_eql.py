"""Softmax-EQL."""

import pytest
import torch

from eql_d2.errors import InputError
from eql_d2.losses import GradientSoftmaxEqualizationLoss
from tests.losses.helpers import (
    assert_equals_slow,
    assert_golden,
    golden,
    make_loss,
    random_labels,
    random_logits,
    step,
)


@pytest.mark.parametrize(("name", "form"), [("softmax_eql", "v1"), ("softmax_eql_v2", "v2")])
def test_golden_over_five_steps(name, form):
    arrays = golden(name)
    loss = GradientSoftmaxEqualizationLoss(40, pi=float(arrays["tau"]), form=form, background=False)
    for i in range(5):
        value, gradient = step(loss, *(torch.from_numpy(arrays[key][i]) for key in ("logits", "labels")))
        assert_golden(value, arrays["loss"][i])
        assert_golden(gradient, arrays["grad"][i])
        assert_golden(loss.pos_grad, arrays["pos_grad"][i])
        assert_golden(loss.neg_grad, arrays["neg_grad"][i])


@pytest.mark.parametrize("form", ["v1", "v2"])
@pytest.mark.parametrize("background", [True, False])
@pytest.mark.parametrize("pi", [1.0, 0.5])
def test_equals_slow_formula(form, background, pi):
    assert_equals_slow(make_loss("SOFTMAX_EQL", form=form, background=background, pi=pi))


@pytest.mark.parametrize("form", ["v1", "v2"])
def test_first_step_is_softmax(form):
    logits, labels = random_logits(20, 10), random_labels(20, 9)
    torch.testing.assert_close(
        step(make_loss("SOFTMAX_EQL", form=form), logits, labels), step(make_loss("SOFTMAX"), logits, labels)
    )


def test_background_is_adjusted_like_an_average_class():
    loss = make_loss("SOFTMAX_EQL")
    loss.pos_grad.copy_(torch.tensor([1.0, 4.0, 7.0, *[4.0] * 6]))
    adjustment = loss.adjustment()
    assert adjustment[9] == 0
    assert adjustment[1] == pytest.approx(0)
    assert adjustment[0] < 0 < adjustment[2]


def test_label_without_a_column_gives_no_loss():
    loss = GradientSoftmaxEqualizationLoss(9, background=False)
    value, gradient = step(loss, random_logits(3, 9), torch.tensor([9, 9, 9]))
    assert value == 0
    assert (gradient == 0).all()


def test_unknown_form():
    with pytest.raises(InputError, match="FORM is 'v3'"):
        GradientSoftmaxEqualizationLoss(9, form="v3")
