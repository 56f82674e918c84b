"""LDAM: a softmax with label-distribution-aware margins, and deferred re-weighting."""

from typing import Optional

import torch
from torch import Tensor

from eql_d2.data.frequency import CategoryFrequency
from eql_d2.errors import InputError
from eql_d2.losses.base import SoftmaxColumns, widen
from eql_d2.losses.functional import softmax_cross_entropy
from eql_d2.losses.registry import CLASSIFIER_LOSS_REGISTRY


@CLASSIFIER_LOSS_REGISTRY.register("LDAM")
class LabelDistributionAwareMarginLoss(SoftmaxColumns):
    """LDAM (Cao et al., arXiv 1906.07413, equation 13), with the deferred re-weighting of its algorithm 1 LDAM-DRW.

    Softmax cross-entropy of ``scale (z_j - margin_y [j = y])`` with ``margin_j = max_margin (n_min / n_j)^(1/4)``, n_j
    the number of training instances (one at least) and n_min the least of them. It is made for logits that are cosines:
    a normed classifier with temperature 1. After ``reweight_after`` training steps a region of class j weighs
    ``(1 - beta) / (1 - beta^n_j)``, relative to the mean over the classes, and the sum is divided by that of the
    weights, as in the authors' code. At test the softmax of ``scale z``.

    Background, which the paper does not have, has no margin and the weight 1.

    Logits: K classes, then background unless ``background=False``.

    Args:
        frequency: counts of the training set.
        max_margin: margin of the rarest class.
        scale: factor of the logits.
        reweight_after: steps without weights; -1 for no re-weighting at all. The step is in the checkpoint. Each part
            of an accumulated batch (``ACCUMULATE.PARTS``) is a step.
        beta: of the effective number of instances, in [0, 1).
        background: detection (K + 1 columns) or plain classification (K).

    Raises:
        InputError: if beta is not in [0, 1), the scale is not above 0, or the margin is below 0.
    """

    needs_frequency = True
    regions_are_independent = False  # re-weighted, the loss is divided by the sum of the weights

    margin: Tensor
    weight: Tensor
    num_steps: Tensor

    def __init__(
        self,
        frequency: CategoryFrequency,
        max_margin: float = 0.5,
        scale: float = 30.0,
        reweight_after: int = -1,
        beta: float = 0.9999,
        background: bool = True,
    ):
        super().__init__(frequency)
        if not 0 <= beta < 1:
            raise InputError(f"LDAM's BETA is {beta}; it lies in [0, 1).")
        if scale <= 0 or max_margin < 0:
            raise InputError(f"LDAM's SCALE is {scale} and its MAX_MARGIN {max_margin}; they are positive.")
        self.max_margin, self.scale, self.beta = max_margin, scale, beta
        self.reweight_after, self.background = reweight_after, background
        counts = frequency.instance_count.double().clamp(min=1)
        margin = max_margin * (counts.min() / counts) ** 0.25
        weight = (1 - beta) / (1 - beta**counts)
        weight = weight / weight.mean()
        # Background has an entry whether or not it has a column: a region may be labelled so.
        self.register_buffer("margin", torch.cat([margin, margin.new_zeros(1)]).float(), persistent=False)
        self.register_buffer("weight", torch.cat([weight, weight.new_ones(1)]).float(), persistent=False)
        # On the device and never read by the host, which would wait for it.
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.int64))

    def loss(self, logits: Tensor, gt_classes: Tensor, verified: Optional[Tensor]) -> Tensor:
        labels = gt_classes.unsqueeze(1)
        margin = self.margin.to(logits.dtype)[gt_classes].unsqueeze(1)
        adjustment = torch.zeros_like(logits)
        adjustment.scatter_(1, labels.clamp(max=self.num_logits - 1), -self.scale * margin)
        weight = self._weight_of_step().to(logits.dtype)[gt_classes]
        if not self.background:
            weight = weight * (gt_classes < self.num_classes)
        total = softmax_cross_entropy(self.scale * logits, gt_classes, adjustment, weight).total
        return total / weight.sum().clamp(min=torch.finfo(weight.dtype).tiny)

    def scores(self, logits: Tensor) -> Tensor:
        return super().scores(self.scale * widen(logits))

    def _weight_of_step(self) -> Tensor:
        """Return the weight of each class, ``[K + 1]``, and move on to the next step in training."""
        reweighted = (self.num_steps >= self.reweight_after) & (self.reweight_after >= 0)
        if self.training:
            self.num_steps.add_(1)
        return torch.where(reweighted, self.weight, 1.0)
