"""Focal loss over sigmoid outputs, the baseline of Equalized focal loss and a row of EQL's Table 5."""

from typing import Optional

import torch
from torch import Tensor

from eql_d2.errors import InputError
from eql_d2.losses.base import Categories, mean_over_regions, widen
from eql_d2.losses.functional import focal_cross_entropy
from eql_d2.losses.registry import CLASSIFIER_LOSS_REGISTRY
from eql_d2.losses.sigmoid import SigmoidLoss
from eql_d2.losses.state import mean_count_over_ranks


@CLASSIFIER_LOSS_REGISTRY.register("FOCAL")
class FocalLoss(SigmoidLoss):
    """Focal loss (Lin et al., arXiv 1708.02002): ``-alpha_t (1 - p_t)^gamma log(p_t)``.

    Form "sigmoid": summed over the K classes and divided by the number of foreground regions, averaged over the ranks
    (section 4.1). Logits: K classes, no background column.

    Form "bags", of BAGS's models 8 and 9 (arXiv 2006.10408) as their code is meant: background is one more column, the
    sum is divided by the number of entries ``R (K + 1)``, the bias starts at zero and the scores are a *softmax*, so
    that a softmax classifier can go on with it. (By reading, the released call also hands one-hot targets to an
    operator that wants one integer for each region, which makes every region a negative of nearly all columns; that is
    not repeated here.) Logits: K classes, then background.

    Args:
        categories: number of classes K, or a CategoryFrequency (its counts are not used).
        gamma: focusing parameter.
        alpha: weight of positives; negatives have ``1 - alpha``.
        prior: probability of each class before training (section 3.3); not used by the form "bags".
        form: "sigmoid" or "bags".

    Raises:
        InputError: for another form.
    """

    def __init__(
        self,
        categories: Categories,
        gamma: float = 2.0,
        alpha: float = 0.25,
        prior: float = 0.01,
        form: str = "sigmoid",
    ):
        super().__init__(categories, prior)
        if form not in ("sigmoid", "bags"):
            raise InputError(f"MODEL.LONG_TAIL.FOCAL.FORM is {form!r}; there are 'sigmoid' and 'bags'.")
        self.gamma, self.alpha, self.form = gamma, alpha, form
        self.scores_sum_to_one = form == "bags"
        self.divides_by_foreground = form == "sigmoid"
        self.regions_are_independent = form == "bags"

    @property
    def num_logits(self) -> int:
        return self.num_classes + (self.form == "bags")

    def initial_bias(self) -> Tensor:
        return torch.zeros(self.num_logits) if self.form == "bags" else super().initial_bias()

    def loss(self, logits: Tensor, gt_classes: Tensor, verified: Optional[Tensor]) -> Tensor:
        total = focal_cross_entropy(logits, gt_classes, self.gamma, self.alpha).total
        if self.form == "bags":
            return mean_over_regions(total, len(logits)) / self.num_logits
        num_foreground = (gt_classes < self.num_classes).sum().double()
        return total / mean_count_over_ranks(num_foreground, self.training).to(logits.dtype)

    def scores(self, logits: Tensor) -> Tensor:
        return torch.softmax(widen(logits), dim=1) if self.form == "bags" else super().scores(logits)
