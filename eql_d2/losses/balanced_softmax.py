"""Balanced softmax and the logit-adjusted loss: class counts as a prior of the softmax."""

from typing import Optional

import torch
from torch import Tensor

from eql_d2.data.frequency import CategoryFrequency
from eql_d2.losses.adjusted_softmax import AdjustedSoftmaxLoss, mean_adjustment
from eql_d2.losses.base import mean_over_regions
from eql_d2.losses.functional import softmax_cross_entropy
from eql_d2.losses.registry import CLASSIFIER_LOSS_REGISTRY


@CLASSIFIER_LOSS_REGISTRY.register("BALANCED_SOFTMAX")
class BalancedSoftmaxLoss(AdjustedSoftmaxLoss):
    """Balanced softmax (Ren et al., arXiv 2007.10740), with ``tau`` the logit-adjusted loss (Menon et al., 2007.07314).

    Softmax cross-entropy of ``z_j + tau log n_j``; n_j is the number of training instances, and a class without any
    counts as one. At test the plain softmax. Background: see
    :class:`~eql_d2.losses.adjusted_softmax.AdjustedSoftmaxLoss`.

    Logits: K classes, then background unless ``background=False``.

    Args:
        frequency: counts of the training set.
        tau: strength of the adjustment; 1 is balanced softmax, 0 is softmax.
        background: detection (K + 1 columns) or plain classification (K).
    """

    needs_frequency = True

    adjustment: Tensor

    def __init__(self, frequency: CategoryFrequency, tau: float = 1.0, background: bool = True):
        super().__init__(frequency, background)
        self.tau = tau
        counts = frequency.instance_count.double().clamp(min=1)
        reference = mean_adjustment(counts, tau)
        # Relative to the average class, which leaves the softmax as it is and the numbers small.
        foreground = tau * torch.log(counts) - reference
        adjustment = self.with_background(foreground, torch.zeros_like(reference))
        self.register_buffer("adjustment", adjustment.float(), persistent=False)

    def loss(self, logits: Tensor, gt_classes: Tensor, verified: Optional[Tensor]) -> Tensor:
        return mean_over_regions(softmax_cross_entropy(logits, gt_classes, self.adjustment).total, len(logits))
