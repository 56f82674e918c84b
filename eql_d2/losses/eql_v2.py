"""EQL v2, also called Sigmoid-EQL: the gradients that a class has seen so far set the weights of its next ones."""

from typing import Dict, Optional

import torch
from torch import Tensor

from eql_d2.losses.base import Categories, append_background, mean_over_regions, sigmoid_prior_bias, widen
from eql_d2.losses.functional import weighted_sigmoid_cross_entropy
from eql_d2.losses.registry import CLASSIFIER_LOSS_REGISTRY
from eql_d2.losses.state import StatefulLoss, accumulated_ratio

#: Ratio before the first step: so large that all weights are 1 (authors' code).
INITIAL_RATIO = 100.0


@CLASSIFIER_LOSS_REGISTRY.register("EQL_V2")
class EqualizationLossV2(StatefulLoss):
    """EQL v2 (Tan et al., arXiv 2012.08548); Sigmoid-EQL in arXiv 2210.05566.

    Sigmoid cross-entropy with the weight ``q_j = 1 + alpha (1 - f(g_j))`` on positives and ``r_j = f(g_j)`` on
    negatives; ``f(g) = sigmoid(gamma (g - mu))``, and g_j is the ratio of the accumulated absolute gradients of class j
    over its positive and its negative regions. As in the authors' code, gradients are collected with the weights of
    their step, summed over regions without averaging, and never decayed.

    The extra, category-agnostic column is trained as background (target 1 on background regions, weight 1, its
    gradient is not collected), and at test the scores are multiplied by one minus its probability.

    Logits: K classes; with ``category_agnostic`` one more column K.

    Args:
        categories: number of classes K, or a CategoryFrequency (only its groups are used, for the log).
        gamma: slope of f.
        mu: ratio at which f is one half.
        alpha: how much more the positives of a class with ratio 0 weigh; with 0 the negatives alone are re-weighted.
        reweight_negatives: whether negatives weigh r_j; without, they weigh 1 and the positives alone are re-weighted.
        category_agnostic: train the extra column.
        category_agnostic_test: multiply the scores by one minus its probability.
        prior: probability of each column before training, the extra one included, as in the authors' code.
    """

    pos_grad: Tensor
    neg_grad: Tensor

    def __init__(
        self,
        categories: Categories,
        gamma: float = 12.0,
        mu: float = 0.8,
        alpha: float = 4.0,
        reweight_negatives: bool = True,
        category_agnostic: bool = True,
        category_agnostic_test: bool = True,
        prior: float = 0.001,
    ):
        super().__init__(categories)
        self.gamma, self.mu, self.alpha = gamma, mu, alpha
        self.reweight_negatives = reweight_negatives
        self.category_agnostic = category_agnostic
        self.category_agnostic_test = category_agnostic_test
        self.prior = prior
        self.register_sum("pos_grad", self.num_classes)
        self.register_sum("neg_grad", self.num_classes)

    @property
    def num_logits(self) -> int:
        return self.num_classes + self.category_agnostic

    def initial_bias(self) -> Tensor:
        return sigmoid_prior_bias(self.num_logits, self.prior)

    def gradient_ratio(self) -> Tensor:
        """Return g, float64 ``[K]``."""
        return accumulated_ratio(self.pos_grad, self.neg_grad, INITIAL_RATIO)

    def mapped_ratio(self) -> Tensor:
        """Return f(g), float64 ``[K]``."""
        return torch.sigmoid(self.gamma * (self.gradient_ratio() - self.mu))

    def negative_weight(self) -> Tensor:
        """Return r = f(g), or 1 where negatives are not re-weighted, float64 ``[K]``."""
        mapped = self.mapped_ratio()
        return mapped if self.reweight_negatives else torch.ones_like(mapped)

    def positive_weight(self) -> Tensor:
        """Return q = 1 + alpha (1 - f(g)), float64 ``[K]``."""
        return 1 + self.alpha * (1 - self.mapped_ratio())

    def statistics(self) -> Dict[str, Tensor]:
        statistics = super().statistics()
        statistics.update(self.group_means("negative_weight", self.negative_weight()))
        statistics.update(self.group_means("gradient_ratio", self.gradient_ratio()))
        return statistics

    def loss(self, logits: Tensor, gt_classes: Tensor, verified: Optional[Tensor]) -> Tensor:
        negative, positive = self.negative_weight(), self.positive_weight()
        if self.category_agnostic:
            negative, positive = (torch.cat([weight, weight.new_ones(1)]) for weight in (negative, positive))
        terms = weighted_sigmoid_cross_entropy(logits, gt_classes, negative, positive, with_sums=True)
        columns = slice(self.num_classes)
        self.accumulate(pos_grad=terms.positive[columns], neg_grad=terms.negative[columns])
        return mean_over_regions(terms.total, len(logits))

    def scores(self, logits: Tensor) -> Tensor:
        scores = torch.sigmoid(widen(logits))
        if not self.category_agnostic:
            return append_background(scores)
        foreground, background = scores[:, :-1], scores[:, -1]
        if self.category_agnostic_test:
            foreground = foreground * (1 - background).unsqueeze(1)
        return append_background(foreground, background)
