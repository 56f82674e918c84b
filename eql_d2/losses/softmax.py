"""Softmax cross-entropy over K classes and background: Detectron2's own classifier loss."""

from typing import Optional

from torch import Tensor

from eql_d2.losses.base import Categories, SoftmaxColumns, mean_over_regions
from eql_d2.losses.functional import softmax_cross_entropy
from eql_d2.losses.registry import CLASSIFIER_LOSS_REGISTRY


@CLASSIFIER_LOSS_REGISTRY.register("SOFTMAX")
class SoftmaxLoss(SoftmaxColumns):
    """Softmax cross-entropy.

    The baseline of EQL v2, ACSL and BAGS, and the row "Softmax Loss" of EQL's Table 5 (arXiv 2003.05176).

    Logits: K classes, then background unless ``background=False``.

    Args:
        categories: number of classes K, or a CategoryFrequency (its counts are not used).
        background: detection (K + 1 columns) or plain classification (K).
    """

    is_softmax = True

    def __init__(self, categories: Categories, background: bool = True):
        super().__init__(categories)
        self.background = background

    def loss(self, logits: Tensor, gt_classes: Tensor, verified: Optional[Tensor]) -> Tensor:
        return mean_over_regions(softmax_cross_entropy(logits, gt_classes).total, len(logits))
