"""LOCE: how well each class is recognised, by its mean score, as a margin of the softmax."""

import math
from typing import Dict, Optional, Union

import torch
import torch.nn.functional as F
from torch import Tensor

from eql_d2.errors import InputError
from eql_d2.losses.base import Categories, SoftmaxColumns, mean_over_regions
from eql_d2.losses.functional import softmax_cross_entropy, target_index
from eql_d2.losses.registry import CLASSIFIER_LOSS_REGISTRY
from eql_d2.losses.state import StatefulLoss, sum_over_ranks

#: A class whose mean score is below this counts as this: its logarithm stays finite (authors' 1e-7, of the draws).
MIN_SCORE = 1e-7


@CLASSIFIER_LOSS_REGISTRY.register("LOCE")
class EquilibriumLoss(SoftmaxColumns, StatefulLoss):
    """Equilibrium loss of LOCE (Feng et al., arXiv 2108.07507).

    Softmax cross-entropy of ``z_j + log mu_j``, mu_j the mean score of class j: what is recognised well is pushed down
    where it is wrong, what is not is spared. An object that has regions gives one observation, the mean over its
    regions of their own class's probability (without the margin). A class with q observations in a step, those of all
    ranks, has ``mu <- alpha^q mu + (1 - alpha^q) mean``, before the loss is computed. At test the plain softmax.

    Where further regions can be had (``MODEL.LONG_TAIL.FEATURE_MEMORY``), classes with a low mean score are wanted.

    Logits: K classes, then background unless ``background=False``.

    Args:
        categories: number of classes K, or a CategoryFrequency (only its groups are used, for the log).
        alpha: what an observation leaves of a mean score, in [0, 1).
        initial_score: mean score of each class at first, above 0.
        background_score: that of background, which stays, above 0.
        background: detection (K + 1 columns) or plain classification (K).

    Raises:
        InputError: for an argument that is out of its range.
    """

    is_softmax = True
    uses_objects = True
    regions_are_independent = False  # the mean scores of a step's own regions are in its margins

    mean_score: Tensor

    def __init__(
        self,
        categories: Categories,
        alpha: float = 0.9,
        initial_score: float = 0.01,
        background_score: float = 0.01,
        background: bool = True,
    ):
        super().__init__(categories)
        if not 0 <= alpha < 1:
            raise InputError(f"MODEL.LONG_TAIL.LOCE.ALPHA is {alpha}; it lies in [0, 1).")
        if min(initial_score, background_score) <= 0:
            raise InputError(
                f"MODEL.LONG_TAIL.LOCE's INITIAL_SCORE is {initial_score} and its BACKGROUND_SCORE {background_score}; "
                f"they are above 0."
            )
        self.alpha, self.initial_score, self.background_score = alpha, initial_score, background_score
        self.background = background
        self.register_buffer("mean_score", torch.full((self.num_classes,), initial_score, dtype=torch.float64))
        self._objects: Optional[Tensor] = None
        self._num_objects = 0

    def forward(
        self,
        logits: Tensor,
        gt_classes: Tensor,
        verified: Optional[Tensor] = None,
        has_ignored: bool = False,
        objects: Optional[Tensor] = None,
    ) -> Union[Tensor, Dict[str, Tensor]]:
        """Same as :meth:`ClassifierLoss.forward <eql_d2.losses.base.ClassifierLoss.forward>`.

        Args:
            objects: int64 ``[R]`` in ``0..R-1``, the same for regions of one object and another for others; looked at
                for foreground regions only. Without it each region is an object.
        """
        objects = torch.arange(len(gt_classes), device=logits.device) if objects is None else objects
        self._num_objects = len(objects)
        self._objects = objects[gt_classes >= 0] if has_ignored else objects
        return super().forward(logits, gt_classes, verified, has_ignored)

    def class_demand(self) -> Tensor:
        """Return what each class's share of the regions from memory is proportional to, float64 ``[K]``."""
        return 1 / (self.mean_score + MIN_SCORE)

    def statistics(self) -> Dict[str, Tensor]:
        return {**super().statistics(), **self.group_means("mean_score", self.mean_score)}

    def loss(self, logits: Tensor, gt_classes: Tensor, verified: Optional[Tensor]) -> Tensor:
        if self.training:
            self._update(logits.detach(), gt_classes)
        margin = self.mean_score.clamp(min=MIN_SCORE).log()
        if self.background:
            margin = F.pad(margin, (0, 1), value=math.log(self.background_score))
        return mean_over_regions(softmax_cross_entropy(logits, gt_classes, margin).total, len(logits))

    @torch.no_grad()
    def _update(self, logits: Tensor, gt_classes: Tensor) -> None:
        """Take in the objects of all ranks: a collective. A step that is not finite anywhere changes nothing."""
        assert self._objects is not None
        index, _ = target_index(gt_classes, self.num_logits)
        own = (logits.gather(1, index) - logits.logsumexp(1, keepdim=True)).exp().squeeze(1).double()
        is_foreground = (gt_classes < self.num_classes).double()
        num_regions = own.new_zeros(self._num_objects).index_add_(0, self._objects, is_foreground)
        # Each region of an object is a share of the one observation.
        share = is_foreground / num_regions[self._objects].clamp(min=1)
        sums = own.new_zeros(2, self.num_classes + 1)
        sums[0].index_add_(0, gt_classes, share)
        sums[1].index_add_(0, gt_classes, own * share)
        # Background's entries are of no use but to tell whether all is finite.
        sums = sum_over_ranks(sums)
        count, total = torch.where(torch.isfinite(sums).all(), sums, 0.0)[:, : self.num_classes]
        left = self.alpha**count
        mean = total / count.clamp(min=1)
        self.mean_score.copy_(torch.where(count > 0, left * self.mean_score + (1 - left) * mean, self.mean_score))
