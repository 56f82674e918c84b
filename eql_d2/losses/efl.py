"""Equalized focal loss: the focusing of each class grows with the imbalance of its gradients so far."""

from typing import Dict, Optional

import torch
from torch import Tensor

from eql_d2.losses.base import Categories, append_background, sigmoid_prior_bias, widen
from eql_d2.losses.functional import LossTerms, focal_cross_entropy
from eql_d2.losses.registry import CLASSIFIER_LOSS_REGISTRY
from eql_d2.losses.state import StatefulLoss, accumulated_ratio, mean_count_over_ranks


@CLASSIFIER_LOSS_REGISTRY.register("EFL")
class EqualizedFocalLoss(StatefulLoss):
    """Equalized focal loss (Li et al., arXiv 2201.02593).

    Focal loss in which class j has the focusing parameter ``gamma_j = gamma_b + scale (1 - g_j)`` and the weight
    ``gamma_j / gamma_b``; g_j in [0, 1] is the ratio of the accumulated absolute gradients of the loss itself over the
    positive and the negative regions of class j. Both factors are constants to the gradient. With g = 1, as before the
    first step, this is focal loss.

    The sum is divided by the number of foreground regions, averaged over the ranks. The authors take the gradients by
    a hook at the logits; here they follow from the formula, are summed over the ranks and divided by the number of
    foreground regions of all ranks, so the state does not depend on how regions are spread over ranks.

    Logits: K classes, no background column.

    Args:
        categories: number of classes K, or a CategoryFrequency (only its groups are used, for the log).
        gamma_b: focusing parameter of a balanced class.
        scale: s, the focusing parameter that a class with ratio 0 has on top.
        alpha: weight of positives; negatives have ``1 - alpha``.
        prior: probability of each class before training.
    """

    divides_by_foreground = True
    regions_are_independent = False

    pos_grad: Tensor
    neg_grad: Tensor

    def __init__(
        self,
        categories: Categories,
        gamma_b: float = 2.0,
        scale: float = 8.0,
        alpha: float = 0.25,
        prior: float = 0.001,
    ):
        super().__init__(categories)
        self.gamma_b, self.scale, self.alpha, self.prior = gamma_b, scale, alpha, prior
        self.register_sum("pos_grad", self.num_classes)
        self.register_sum("neg_grad", self.num_classes)

    @property
    def num_logits(self) -> int:
        return self.num_classes

    def initial_bias(self) -> Tensor:
        return sigmoid_prior_bias(self.num_logits, self.prior)

    def gradient_ratio(self) -> Tensor:
        """Return g, float64 ``[K]`` in [0, 1]."""
        return accumulated_ratio(self.pos_grad, self.neg_grad, 1.0).clamp(0, 1)

    def statistics(self) -> Dict[str, Tensor]:
        statistics = super().statistics()
        ratio = self.gradient_ratio()
        statistics.update(self.group_means("negative_weight", 1 + self.scale * (1 - ratio) / self.gamma_b))
        statistics.update(self.group_means("gradient_ratio", ratio))
        return statistics

    def loss(self, logits: Tensor, gt_classes: Tensor, verified: Optional[Tensor]) -> Tensor:
        gamma = (self.gamma_b + self.scale * (1 - self.gradient_ratio())).to(logits.dtype)
        terms = self.terms(logits, gt_classes, gamma)
        num_foreground = (gt_classes < self.num_classes).sum().double()
        self.accumulate(normalizer=num_foreground, pos_grad=terms.positive, neg_grad=terms.negative)
        return terms.total / mean_count_over_ranks(num_foreground, self.training).to(logits.dtype)

    def terms(self, logits: Tensor, gt_classes: Tensor, gamma: Tensor) -> LossTerms:
        """Return the sum over regions and classes, and the gradients' sums, for focusing parameters ``gamma [K]``."""
        return focal_cross_entropy(logits, gt_classes, gamma, self.alpha, gamma / self.gamma_b, with_sums=True)

    def scores(self, logits: Tensor) -> Tensor:
        return append_background(torch.sigmoid(widen(logits)))
