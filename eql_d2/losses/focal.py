"""Focal loss over sigmoid outputs, the baseline of Equalized focal loss and a row of EQL's Table 5."""

from typing import Optional

from torch import Tensor

from eql_d2.losses.base import Categories
from eql_d2.losses.functional import focal_cross_entropy
from eql_d2.losses.registry import CLASSIFIER_LOSS_REGISTRY
from eql_d2.losses.sigmoid import SigmoidLoss
from eql_d2.losses.state import mean_count_over_ranks


@CLASSIFIER_LOSS_REGISTRY.register("FOCAL")
class FocalLoss(SigmoidLoss):
    """Focal loss (Lin et al., arXiv 1708.02002): ``-alpha_t (1 - p_t)^gamma log(p_t)``.

    Summed over the K classes and divided by the number of foreground regions, averaged over the ranks (section 4.1).
    BAGS's models 8 and 9 use gamma 2 and alpha 0.25.

    Logits: K classes, no background column.

    Args:
        categories: number of classes K, or a CategoryFrequency (its counts are not used).
        gamma: focusing parameter.
        alpha: weight of positives; negatives have ``1 - alpha``.
        prior: probability of each class before training (section 3.3).
    """

    divides_by_foreground = True

    def __init__(self, categories: Categories, gamma: float = 2.0, alpha: float = 0.25, prior: float = 0.01):
        super().__init__(categories, prior)
        self.gamma, self.alpha = gamma, alpha

    def loss(self, logits: Tensor, gt_classes: Tensor, verified: Optional[Tensor]) -> Tensor:
        total = focal_cross_entropy(logits, gt_classes, self.gamma, self.alpha).total
        num_foreground = (gt_classes < self.num_classes).sum().double()
        return total / mean_count_over_ranks(num_foreground, self.training).to(logits.dtype)
