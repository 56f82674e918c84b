"""Effective class-margin loss (ECM): margins and weights that follow from the number of images of each class."""

from typing import Optional

import torch
from torch import Tensor

from eql_d2.data.frequency import CategoryFrequency
from eql_d2.losses.base import ClassifierLoss, append_background, mean_over_regions, sigmoid_prior_bias, widen
from eql_d2.losses.functional import weighted_sigmoid_cross_entropy
from eql_d2.losses.registry import CLASSIFIER_LOSS_REGISTRY


@CLASSIFIER_LOSS_REGISTRY.register("ECM")
class EffectiveClassMarginLoss(ClassifierLoss):
    """Effective class-margin loss (Cho and Krähenbühl, arXiv 2301.09724).

    With n_j images of class j and m_j of all others, the surrogate score of class j is ``exp(z + a_j) / (exp(z + a_j) +
    exp(-z + b_j))``, ``a_j = -log(m^(1/4) / (n^(1/4) + m^(1/4)))`` and ``b_j = -log(n^(1/4) / (n^(1/4) + m^(1/4)))``.
    That is a sigmoid of ``2 z + log(n_j / m_j) / 4``, of which the binary cross-entropy is taken with the weight
    ``(m_j / n_j) log(1 + n_j / m_j)`` on both targets. At test the plain sigmoid, times one minus that of background.

    As in the authors' code, background is a column whose count is ``background_ratio`` times that of all classes, and a
    class without images counts as one image.

    Logits: K classes, then background.

    Args:
        frequency: counts of the training set; images are counted.
        background_ratio: background regions for each foreground region; 6.3313 in the authors' code, measured on
            Mask R-CNN.
        prior: probability of each column before training; the authors' value is not known, this is EQL's.
    """

    needs_frequency = True

    margin: Tensor
    weight: Tensor

    def __init__(self, frequency: CategoryFrequency, background_ratio: float = 6.3313, prior: float = 0.001):
        super().__init__(frequency)
        self.background_ratio, self.prior = background_ratio, prior
        counts = frequency.image_count.double().clamp(min=1)
        counts = torch.cat([counts, background_ratio * counts.sum().reshape(1)])
        odds = counts / (counts.sum() - counts)
        self.register_buffer("margin", (torch.log(odds) / 4).float(), persistent=False)
        self.register_buffer("weight", (torch.log1p(odds) / odds).float(), persistent=False)

    @property
    def num_logits(self) -> int:
        return self.num_classes + 1

    def initial_bias(self) -> Tensor:
        return sigmoid_prior_bias(self.num_logits, self.prior)

    def loss(self, logits: Tensor, gt_classes: Tensor, verified: Optional[Tensor]) -> Tensor:
        surrogate = torch.add(self.margin.to(logits.dtype), logits, alpha=2)
        total = weighted_sigmoid_cross_entropy(surrogate, gt_classes, self.weight, self.weight).total
        return mean_over_regions(total, len(logits))

    def scores(self, logits: Tensor) -> Tensor:
        scores = torch.sigmoid(widen(logits))
        return append_background(scores[:, :-1] * (1 - scores[:, -1:]), scores[:, -1])
