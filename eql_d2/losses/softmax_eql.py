"""Softmax-EQL: accumulated positive gradients as a prior of the softmax."""

from typing import Dict, Optional

import torch
from torch import Tensor

from eql_d2.errors import InputError
from eql_d2.losses.adjusted_softmax import AdjustedSoftmaxLoss, mean_adjustment
from eql_d2.losses.base import Categories, mean_over_regions
from eql_d2.losses.functional import softmax_cross_entropy
from eql_d2.losses.registry import CLASSIFIER_LOSS_REGISTRY
from eql_d2.losses.state import StatefulLoss

#: Least accumulated gradient, from the authors' code: classes without a positive region so far count as this.
MIN_GRADIENT = 1e-4
#: Added before the logarithm of the second form, from the authors' code.
MIN_SHARE = 1e-9
FORMS = ("v1", "v2")


@CLASSIFIER_LOSS_REGISTRY.register("SOFTMAX_EQL")
class GradientSoftmaxEqualizationLoss(AdjustedSoftmaxLoss, StatefulLoss):
    """Softmax-EQL (Tan et al., arXiv 2210.05566).

    Not the softmax form of EQL that the first paper has: see
    :class:`~eql_d2.losses.seql.RandomSoftmaxEqualizationLoss`.

    Softmax cross-entropy of ``z_j + a_j``, where G_j is the accumulated absolute gradient of class j over its positive
    regions, each step's gradient being that of the mean over the regions of all ranks:

    - ``v1``: ``a_j = pi log(max(G_j, 1e-4))``. The authors' code adds ``pi log(G_j / G_y)`` to the negatives only,
      which is the same softmax.
    - ``v2``, in the authors' code only: ``a_j = log((G_j / (sum G + 1e-4))^pi + 1e-9)``.

    At test the plain softmax. The paper uses it for classification; for background in detection see
    :class:`~eql_d2.losses.adjusted_softmax.AdjustedSoftmaxLoss`: no gradient is collected for it, and it is adjusted
    like a class with the average G.

    Logits: K classes, then background unless ``background=False``.

    Args:
        categories: number of classes K, or a CategoryFrequency (only its groups are used, for the log).
        pi: exponent of the accumulated gradient.
        form: ``"v1"`` or ``"v2"``.
        background: detection (K + 1 columns) or plain classification (K).

    Raises:
        InputError: for an unknown form.
    """

    pos_grad: Tensor
    neg_grad: Tensor

    def __init__(self, categories: Categories, pi: float = 1.0, form: str = "v1", background: bool = True):
        super().__init__(categories, background)
        if form not in FORMS:
            raise InputError(f"SOFTMAX_EQL's FORM is {form!r}; it must be one of {', '.join(FORMS)}.")
        self.pi, self.form = pi, form
        self.register_sum("pos_grad", self.num_classes)
        self.register_sum("neg_grad", self.num_classes)

    def adjustment(self) -> Tensor:
        """Return a, relative to background where there is such a column, float64 ``[num_logits]``."""
        if self.form == "v1":
            gradient = self.pos_grad.clamp(min=MIN_GRADIENT)
            foreground, average = self.pi * torch.log(gradient), mean_adjustment(gradient, self.pi)
        else:
            share = self.pos_grad / (self.pos_grad.sum() + MIN_GRADIENT)
            foreground, average = (torch.log(s**self.pi + MIN_SHARE) for s in (share, share.mean()))
        return self.with_background(foreground - average, torch.zeros_like(average))

    def statistics(self) -> Dict[str, Tensor]:
        statistics = super().statistics()
        statistics.update(self.group_means("gradient_ratio", self.pos_grad / self.neg_grad.clamp(min=MIN_GRADIENT)))
        return statistics

    def loss(self, logits: Tensor, gt_classes: Tensor, verified: Optional[Tensor]) -> Tensor:
        terms = softmax_cross_entropy(logits, gt_classes, self.adjustment(), with_sums=True)
        columns = slice(self.num_classes)
        num_regions = logits.new_tensor(float(len(logits)))
        self.accumulate(num_regions, pos_grad=terms.positive[columns], neg_grad=terms.negative[columns])
        return mean_over_regions(terms.total, len(logits))
