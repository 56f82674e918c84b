"""Equalized focal loss."""

import torch

from eql_d2.losses import EqualizedFocalLoss
from tests.losses.helpers import assert_golden, golden, make_loss, random_labels, random_logits, step


def test_golden_over_five_steps():
    arrays = golden("efl")
    loss = EqualizedFocalLoss(40, **{key: float(arrays[key]) for key in ("gamma_b", "alpha", "scale")})
    for i in range(5):
        logits, labels = (torch.from_numpy(arrays[key][i]) for key in ("logits", "labels"))
        assert (labels < 40).sum() == arrays["normalizer"][i]
        value, gradient = step(loss, logits, labels)
        assert_golden(value, arrays["loss"][i])
        assert_golden(gradient, arrays["grad"][i])
        assert_golden(loss.pos_grad, arrays["pos_grad"][i])
        assert_golden(loss.neg_grad, arrays["neg_grad"][i])
        assert_golden(loss.gradient_ratio(), arrays["ratio"][i])


def test_first_step_is_focal_loss():
    logits, labels = random_logits(20, 9), random_labels(20, 9)
    equalized, focal = step(make_loss("EFL"), logits, labels), step(make_loss("FOCAL"), logits, labels)
    torch.testing.assert_close(equalized, focal)
