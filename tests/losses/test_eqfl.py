"""Equalized quality focal loss, and regions that are left out."""

import pytest
import torch

from eql_d2.losses import EqualizedFocalLoss, EqualizedQualityFocalLoss
from tests.losses.helpers import LOSS_NAMES, assert_golden, golden, make_loss, random_labels, random_logits, step


@pytest.mark.parametrize("name, cls", [("eqfl", EqualizedQualityFocalLoss), ("efl_ignore", EqualizedFocalLoss)])
def test_golden_over_five_steps(name, cls):
    arrays = golden(name)
    settings = {key: float(arrays[key]) for key in ("gamma_b", "alpha", "scale") if key in arrays}
    loss = cls(80, **settings)
    for i in range(5):
        logits, labels = (torch.from_numpy(arrays[key][i]) for key in ("logits", "gt_classes"))
        assert (labels == -1).any() and ((labels >= 0) & (labels < 80)).sum() == arrays["normalizer"][i]
        logits.requires_grad_()
        quality = {"quality": torch.from_numpy(arrays["quality"][i])} if "quality" in arrays else {}
        value = loss(logits, labels, has_ignored=True, **quality)
        value.backward()
        assert_golden(value, arrays["loss"][i])
        assert_golden(logits.grad, arrays["grad"][i])
        assert (logits.grad[labels == -1] == 0).all()
        assert_golden(loss.pos_grad, arrays["pos_grad"][i])
        assert_golden(loss.neg_grad, arrays["neg_grad"][i])
        assert_golden(loss.gradient_ratio(), arrays["ratio"][i])


def test_without_quality_positives_aim_at_one():
    logits, labels = random_logits(20, 9), random_labels(20, 9)
    plain = step(make_loss("EQFL"), logits, labels)
    leaf = logits.clone().requires_grad_()
    value = make_loss("EQFL")(leaf, labels, quality=torch.ones(20))
    value.backward()
    assert value > 0
    torch.testing.assert_close((value.detach(), leaf.grad), plain)


@pytest.mark.parametrize("name", LOSS_NAMES)
def test_ignored_regions_are_as_if_they_were_not_there(name):
    loss, other = make_loss(name), make_loss(name)
    logits, labels = random_logits(20, loss.num_logits), random_labels(20, 9)
    labels[::3] = -1
    kept = labels >= 0
    leaf = logits.clone().requires_grad_()
    value = loss(leaf, labels, has_ignored=True)
    value.backward()
    expected, gradient = step(other, logits[kept], labels[kept])
    torch.testing.assert_close(value.detach(), expected)
    torch.testing.assert_close(leaf.grad[kept], gradient)
    assert (leaf.grad[~kept] == 0).all()
