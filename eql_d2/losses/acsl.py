"""Adaptive class suppression loss (ACSL): only classes that a region is mistaken for are discouraged."""

from typing import Dict, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from eql_d2.data.frequency import CategoryFrequency
from eql_d2.data.groups import GROUPS
from eql_d2.losses.base import append_background, mean_over_regions, sigmoid_prior_bias, widen
from eql_d2.losses.functional import weighted_sigmoid_cross_entropy
from eql_d2.losses.registry import CLASSIFIER_LOSS_REGISTRY
from eql_d2.losses.state import RandomLoss, random_rank


@CLASSIFIER_LOSS_REGISTRY.register("ACSL")
class AdaptiveClassSuppressionLoss(RandomLoss):
    """ACSL (Wang et al., arXiv 2104.00885).

    Sigmoid cross-entropy in which the negative of class j on a region weighs 1 if its probability is at least xi, else
    0. The authors' code does so on foreground regions only (background being one of the columns); on a background
    region, the rare, common and frequent columns each get their negatives from a random share of the background regions
    (rounded down), whatever the probability. That is the default; ``sample_background=False`` is the paper's formula on
    every region.

    Logits: K classes, then background. The score of a class is its sigmoid, not multiplied by anything.

    Args:
        frequency: gives the groups r, c and f.
        xi: probability from which a class is discouraged.
        sample_background: the released code's treatment of background regions.
        rare_share: share of the background regions that discourage rare classes.
        common_share: of those that discourage common classes.
        frequent_share: of those that discourage frequent classes.
        prior: probability of each column before training; 0.01 in the authors' code.
        seed: of the random draws.
    """

    needs_frequency = True

    shares: Tensor
    group_columns: Tensor

    def __init__(
        self,
        frequency: CategoryFrequency,
        xi: float = 0.7,
        sample_background: bool = True,
        rare_share: float = 0.01,
        common_share: float = 0.1,
        frequent_share: float = 1.0,
        prior: float = 0.01,
        seed: int = 0,
    ):
        super().__init__(frequency, seed)
        self.xi, self.sample_background, self.prior = xi, sample_background, prior
        self.rare_share, self.common_share, self.frequent_share = rare_share, common_share, frequent_share
        # float64: the product with a count must round down as Python's int() does.
        shares = torch.tensor([rare_share, common_share, frequent_share], dtype=torch.float64)
        self.register_buffer("shares", shares, persistent=False)
        masks = torch.stack([frequency.group_mask(letter) for letter in GROUPS])
        self.register_buffer("group_columns", F.pad(masks.float(), (0, 1)), persistent=False)
        self._mean_weight: Optional[Tensor] = None

    @property
    def num_logits(self) -> int:
        return self.num_classes + 1

    def initial_bias(self) -> Tensor:
        return sigmoid_prior_bias(self.num_logits, self.prior)

    def statistics(self) -> Dict[str, Tensor]:
        statistics = super().statistics()
        if self._mean_weight is not None:
            statistics.update(self.group_means("negative_weight", self._mean_weight[:-1]))
        return statistics

    def sampled_background(self, gt_classes: Tensor) -> Tensor:
        """Return which background regions discourage rare, common and frequent columns, bool ``[3, R]``."""
        background = gt_classes == self.num_classes
        order = random_rank(background.expand(len(GROUPS), -1), self.next_generator(gt_classes.device))
        quota = (self.shares * background.sum()).floor().unsqueeze(1)
        return (order < quota) & background

    def negative_weight(self, logits: Tensor, gt_classes: Tensor) -> Tensor:
        """Return the weight of each negative, 0 or 1, ``[R, K + 1]``."""
        weight = torch.sigmoid(logits).ge_(self.xi)
        if self.sample_background:
            weight.mul_((gt_classes < self.num_classes).to(weight.dtype).unsqueeze(1))
            sampled = self.sampled_background(gt_classes).to(weight.dtype)
            weight.addmm_(sampled.t(), self.group_columns.to(weight.dtype))
        return weight

    def loss(self, logits: Tensor, gt_classes: Tensor, verified: Optional[Tensor]) -> Tensor:
        with torch.no_grad():
            weight = self.negative_weight(logits, gt_classes)
            self._mean_weight = weight.sum(0) / max(len(logits), 1)
        return mean_over_regions(weighted_sigmoid_cross_entropy(logits, gt_classes, weight).total, len(logits))

    def scores(self, logits: Tensor) -> Tensor:
        scores = torch.sigmoid(widen(logits))
        return append_background(scores[:, :-1], scores[:, -1])
