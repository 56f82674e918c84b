"""Sigmoid cross-entropy without a background column: the baseline of EQL."""

from typing import Optional

import torch
from torch import Tensor

from eql_d2.losses.base import (
    Categories,
    ClassifierLoss,
    append_background,
    mean_over_regions,
    sigmoid_prior_bias,
    widen,
)
from eql_d2.losses.functional import weighted_sigmoid_cross_entropy
from eql_d2.losses.registry import CLASSIFIER_LOSS_REGISTRY


@CLASSIFIER_LOSS_REGISTRY.register("SIGMOID")
class SigmoidLoss(ClassifierLoss):
    """Sigmoid cross-entropy over K logits (EQL, arXiv 2003.05176, equations 3 and 4).

    There is no background column: on a background region the target of all K classes is 0. The loss is summed over
    classes and averaged over regions.

    Args:
        categories: number of classes K, or a CategoryFrequency (its counts are not used).
        prior: probability of each class before training, which sets the initial bias. 0.001 in the authors' code.
    """

    def __init__(self, categories: Categories, prior: float = 0.001):
        super().__init__(categories)
        self.prior = prior

    @property
    def num_logits(self) -> int:
        return self.num_classes

    def initial_bias(self) -> Tensor:
        return sigmoid_prior_bias(self.num_logits, self.prior)

    def loss(self, logits: Tensor, gt_classes: Tensor, verified: Optional[Tensor]) -> Tensor:
        return mean_over_regions(weighted_sigmoid_cross_entropy(logits, gt_classes).total, len(logits))

    def scores(self, logits: Tensor) -> Tensor:
        return append_background(torch.sigmoid(widen(logits)))
