"""Softmax cross-entropy over K classes and background: Detectron2's own classifier loss."""

from typing import Optional

import torch.nn.functional as F
from torch import Tensor

from eql_d2.losses.base import ClassifierLoss, mean_over_regions, widen
from eql_d2.losses.functional import softmax_cross_entropy
from eql_d2.losses.registry import CLASSIFIER_LOSS_REGISTRY


@CLASSIFIER_LOSS_REGISTRY.register("SOFTMAX")
class SoftmaxLoss(ClassifierLoss):
    """Softmax cross-entropy over K + 1 logits, the last one background.

    The baseline of EQL v2, ACSL and BAGS, and the row "Softmax Loss" of EQL's Table 5 (arXiv 2003.05176).
    """

    scores_sum_to_one = True

    @property
    def num_logits(self) -> int:
        return self.num_classes + 1

    def loss(self, logits: Tensor, gt_classes: Tensor, verified: Optional[Tensor]) -> Tensor:
        return mean_over_regions(softmax_cross_entropy(logits, gt_classes).total, len(logits))

    def scores(self, logits: Tensor) -> Tensor:
        return F.softmax(widen(logits), dim=1)
