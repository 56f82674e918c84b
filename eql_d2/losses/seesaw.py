"""Seesaw loss: mitigation by class counts and compensation by mistakes, beside a separate objectness."""

import math
from contextlib import contextmanager
from typing import Dict, Iterator, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from eql_d2.losses.base import Categories, append_background, mean_over_regions, widen
from eql_d2.losses.functional import attach_gradient, rows_that_count, softmax_gradient, target_index
from eql_d2.losses.registry import CLASSIFIER_LOSS_REGISTRY
from eql_d2.losses.state import StatefulLoss


@CLASSIFIER_LOSS_REGISTRY.register("SEESAW")
class SeesawLoss(StatefulLoss):
    """Seesaw loss (Wang et al., arXiv 2008.10032), with the separate objectness of its detectors.

    Softmax cross-entropy over the K classes in which the negative class j of a region of class i is scaled by
    ``M_ij C_ij``: ``M_ij = min(1, N_j / N_i)^p`` with N the number of regions of each class so far (this step
    included), and ``C_ij = max(1, p_j / p_i)^q`` with the region's own probabilities, which are constants to the
    gradient. Only foreground regions count; the sum is divided by the number of all regions. A softmax over two more
    columns tells foreground from background. The loss is the sum of both.

    N is summed over all ranks (mmdetection counts each process on its own). At test a class's score is its probability
    times that of foreground.

    Logits: K classes, then foreground, then background; the K classes alone with ``background=False``, where the loss
    is the first softmax's (the paper's form for image classification).

    Args:
        categories: number of classes K, or a CategoryFrequency (only its groups are used, for the log; the counts are
            those of the regions seen).
        p: exponent of the mitigation factor.
        q: exponent of the compensation factor.
        eps: least p_i in the compensation factor, as in mmdetection.
        background: detection, with the two columns of objectness, or plain classification (K columns).
    """

    scores_sum_to_one = True
    is_softmax = True

    num_seen: Tensor

    def __init__(
        self, categories: Categories, p: float = 0.8, q: float = 2.0, eps: float = 0.01, background: bool = True
    ):
        super().__init__(categories)
        self.background = background
        self.p, self.q, self.eps = p, q, eps
        self.register_sum("num_seen", self.num_classes)
        self._parts: Optional[Tuple[Tensor, Tensor]] = None
        self._is_counted = False

    @property
    def num_logits(self) -> int:
        return self.num_classes + 2 * self.background

    def statistics(self) -> Dict[str, Tensor]:
        statistics = super().statistics()
        if self._parts is not None:
            statistics["loss_classes"], statistics["loss_objectness"] = self._parts
        return statistics

    @contextmanager
    def in_parts(self, gt_classes: Tensor) -> Iterator[None]:
        self._count(gt_classes[gt_classes >= 0])  # each part sees the counts with all parts
        with super().in_parts(gt_classes):
            self._is_counted = True
            try:
                yield
            finally:
                self._is_counted = False
        self._parts = None  # of the last part alone

    def _count(self, gt_classes: Tensor) -> None:
        counts = torch.zeros(self.num_classes + 1, dtype=torch.float64, device=gt_classes.device)
        counts.index_add_(0, gt_classes, torch.ones_like(gt_classes, dtype=torch.float64))
        self.accumulate(num_seen=counts[: self.num_classes])

    def seesaw_adjustment(self, logits: Tensor, index: Tensor) -> Tensor:
        """Return ``log(M_ij C_ij)``, ``[R, K]``, new, but for a constant of each row, which a softmax does not see.

        Args:
            logits: ``[R, K]``.
            index: int64 ``[R, 1]``, the classes i of the regions.
        """
        largest = logits.amax(dim=1, keepdim=True)
        factor = torch.softmax(logits, dim=1)
        # Log-probabilities up to a constant of each row, which the ratio of two of them does not see.
        least = largest + math.log(self.eps) - factor.amax(dim=1, keepdim=True).log()
        own = torch.maximum(logits.gather(1, index), least)
        torch.sub(logits, own, out=factor).clamp_(min=0).mul_(self.q)  # zero at the targets
        log_seen = torch.log(self.num_seen.clamp(min=1)).to(logits.dtype)
        return factor.add_(torch.minimum(log_seen, log_seen[index]), alpha=self.p)  # min(0, l_j - l_i) + l_i

    def loss(self, logits: Tensor, gt_classes: Tensor, verified: Optional[Tensor]) -> Tensor:
        num_classes = self.num_classes
        if not self._is_counted:
            self._count(gt_classes)
        with torch.no_grad():
            index, is_foreground = target_index(gt_classes, num_classes)
            weight = is_foreground.to(logits.dtype)
            gradient = torch.zeros_like(logits)
            rows = rows_that_count(is_foreground.squeeze(1))
            of_rows, index = logits[:, :num_classes][rows], index[rows]
            adjusted = self.seesaw_adjustment(of_rows, index).add_(of_rows)
            loss_classes, of_classes, target_gradient = softmax_gradient(adjusted, index, weight[rows], True)
            gradient[:, :num_classes][rows] = of_classes.scatter_(1, index, target_gradient)
            loss_objectness = loss_classes.new_zeros(())
            if self.background:
                is_background = (~is_foreground).long()
                loss_objectness, objectness, target_gradient = softmax_gradient(
                    logits[:, num_classes:], is_background, torch.ones_like(weight)
                )
                gradient[:, num_classes:] = objectness.scatter_(1, is_background, target_gradient)
            num_regions = len(logits)
            self._parts = mean_over_regions(loss_classes, num_regions), mean_over_regions(loss_objectness, num_regions)
        return mean_over_regions(attach_gradient(logits, loss_classes + loss_objectness, gradient), len(logits))

    def scores(self, logits: Tensor) -> Tensor:
        if not self.background:
            return append_background(F.softmax(widen(logits), dim=1))
        classes, objectness = widen(logits).split([self.num_classes, 2], dim=1)
        foreground, background = F.softmax(objectness, dim=1).unbind(1)
        return append_background(F.softmax(classes, dim=1) * foreground.unsqueeze(1), background)
