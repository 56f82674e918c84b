"""Softmax cross-entropy with a weight for each class: what the re-weighting baselines share."""

from typing import Optional

import torch
from torch import Tensor

from eql_d2.data.frequency import CategoryFrequency
from eql_d2.errors import InputError
from eql_d2.losses.base import mean_over_regions
from eql_d2.losses.functional import softmax_cross_entropy
from eql_d2.losses.softmax import SoftmaxLoss


class ReweightedSoftmaxLoss(SoftmaxLoss):
    """Softmax cross-entropy in which a region weighs as its class does; background, where there is one, weighs 1.

    The sum is divided by the number of regions, not by the sum of weights (as in BAGS's re-weighting baselines).

    Logits: K classes, then background unless ``background=False``.

    Args:
        frequency: counts of the training set.
        min_weight: least weight.
        max_weight: largest weight.
        background: detection (K + 1 columns) or plain classification (K).

    Raises:
        InputError: if the bounds are not in order.
    """

    needs_frequency = True

    class_weight: Tensor

    def __init__(self, frequency: CategoryFrequency, min_weight: float, max_weight: float, background: bool):
        super().__init__(frequency, background)
        if not 0 <= min_weight <= max_weight:
            raise InputError(f"MIN_WEIGHT is {min_weight} and MAX_WEIGHT {max_weight}; 0 <= MIN_WEIGHT <= MAX_WEIGHT.")
        self.min_weight, self.max_weight = min_weight, max_weight

    def register_weight(self, raw_weight: Tensor) -> None:
        """Set the weights to ``raw_weight [K]`` divided by its mean, then clipped."""
        weight = (raw_weight / raw_weight.mean()).clamp(self.min_weight, self.max_weight)
        self.register_buffer("class_weight", torch.cat([weight, weight.new_ones(1)]).float(), persistent=False)

    def loss(self, logits: Tensor, gt_classes: Tensor, verified: Optional[Tensor]) -> Tensor:
        terms = softmax_cross_entropy(logits, gt_classes, region_weight=self.class_weight[gt_classes])
        return mean_over_regions(terms.total, len(logits))
