"""Softmax EQL (SEQL): tail classes are left out of the softmax of other classes' regions at random."""

from typing import Any, Dict, Optional

import torch
import torch.nn.functional as F
from torch import Tensor

from eql_d2.data.frequency import CategoryFrequency
from eql_d2.losses.base import SoftmaxColumns, mean_over_regions
from eql_d2.losses.functional import (
    attach_gradient,
    random_mask,
    rows_that_count,
    softmax_gradient,
    target_index,
)
from eql_d2.losses.registry import CLASSIFIER_LOSS_REGISTRY
from eql_d2.losses.state import RandomLoss

#: Added to the logits of classes that are left out.
LEFT_OUT = -1e7


@CLASSIFIER_LOSS_REGISTRY.register("SEQL")
class RandomSoftmaxEqualizationLoss(RandomLoss, SoftmaxColumns):
    """Softmax EQL (Tan et al., arXiv 2003.05176, equations 9 to 11), the form of EQL for image classification.

    Not Softmax-EQL of the later paper: see :class:`~eql_d2.losses.softmax_eql.GradientSoftmaxEqualizationLoss`.

    ``p_j = exp(z_j) / sum_k w_k exp(z_k)`` with ``w_k = 1 - beta T(f_k) (1 - y_k)``; beta is 1 with probability gamma,
    drawn for each region and class (as in the authors' note on their code), T as in EQL. At test the plain softmax.

    The paper has no background here. In detection (``background=True``) background is no tail class, and with
    ``exclude_background`` its regions leave no class out: the factor E(r) of EQL.

    Logits: K classes, then background unless ``background=False``.

    Args:
        frequency: counts of the training set.
        lambda_: frequency threshold; classes in less than this share of the images are tail. The paper has 1.76e-3 on
            LVIS, 3e-3 on CIFAR-100-LT and 4.3e-4 on ImageNet-LT.
        tail_ratio: choose ``lambda_`` from the counts, so that tail classes have about this share of the image counts
            (EQL, equation 8); 0 for ``lambda_`` as it is given.
        gamma: probability of beta = 1 (to 2^-16); best 0.95 on CIFAR-100-LT, 0.9 on ImageNet-LT.
        exclude_background: background regions keep discouraging tail classes.
        background: detection (K + 1 columns) or plain classification (K, where a region labelled K gives no loss).
        seed: of the random draws.
    """

    needs_frequency = True
    regions_are_independent = True  # one draw for each region and class

    tail: Tensor

    def __init__(
        self,
        frequency: CategoryFrequency,
        lambda_: float = 1.76e-3,
        tail_ratio: float = 0.0,
        gamma: float = 0.95,
        exclude_background: bool = True,
        background: bool = True,
        seed: int = 0,
    ):
        super().__init__(frequency, seed)
        lambda_ = frequency.tail_threshold(lambda_, tail_ratio, "MODEL.LONG_TAIL.SEQL.LAMBDA")
        self.lambda_, self.tail_ratio, self.gamma = lambda_, tail_ratio, gamma
        self.exclude_background, self.background = exclude_background, background
        tail = F.pad(frequency.tail_mask(lambda_).float(), (0, int(background)))
        self.register_buffer("tail", tail, persistent=False)

    def describe(self) -> Dict[str, Any]:
        return {**super().describe(), "num_tail_classes": int(self.tail.sum())}

    def statistics(self) -> Dict[str, Tensor]:
        statistics = super().statistics()
        if self._gt_classes is not None:
            foreground = (self._gt_classes < self.num_classes).float().mean() if self.exclude_background else 1.0
            kept = 1 - foreground * self.gamma * self.tail[: self.num_classes]
            statistics.update(self.group_means("negative_weight", kept))
        return statistics

    def loss(self, logits: Tensor, gt_classes: Tensor, verified: Optional[Tensor]) -> Tensor:
        generator = self.next_generator(logits.device)
        with torch.no_grad():
            index, inside = target_index(gt_classes, self.num_logits)
            applies = (gt_classes < self.num_classes) | (not self.exclude_background)
            rows = rows_that_count(applies)
            left_out = random_mask(len(logits), self.num_logits, self.gamma, logits, generator, rows)
            left_out.mul_(self.tail.to(logits.dtype)).scatter_(1, index[rows], 0.0)
            adjusted = logits.clone()
            offset = LEFT_OUT * applies[rows].to(logits.dtype).unsqueeze(1)
            adjusted[rows] = torch.addcmul(logits[rows], left_out, offset, out=left_out)
            total, gradient, target_gradient = softmax_gradient(adjusted, index, inside.to(logits.dtype), in_place=True)
            gradient.scatter_(1, index, target_gradient)
        return mean_over_regions(attach_gradient(logits, total, gradient), len(logits))
