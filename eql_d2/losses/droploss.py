"""DropLoss: background regions discourage tail classes only as often as those are seen in the batch."""

from typing import Dict, Optional

import torch
from torch import Tensor

from eql_d2.data.frequency import CategoryFrequency
from eql_d2.losses.base import append_background, mean_over_regions, sigmoid_prior_bias, widen
from eql_d2.losses.functional import random_mask, weighted_sigmoid_cross_entropy
from eql_d2.losses.registry import CLASSIFIER_LOSS_REGISTRY
from eql_d2.losses.state import RandomLoss


@CLASSIFIER_LOSS_REGISTRY.register("DROPLOSS")
class DropLoss(RandomLoss):
    """DropLoss (Hsieh et al., arXiv 2104.06402).

    EQL in which background regions, too, spare tail classes, at random: the negative of a tail class on a background
    region is kept with the probability that a foreground region of the batch is of a tail class, drawn for each region
    and class as in the authors' code. Foreground regions never discourage a tail class. Where the batch has no
    foreground region, background keeps all its negatives (also as in the authors' code).

    Logits: K classes, no background column.

    Args:
        frequency: counts of the training set.
        lambda_: frequency threshold; classes in less than this share of the images are tail.
        tail_ratio: choose ``lambda_`` from the counts, so that tail classes have about this share of the image counts
            (EQL, equation 8); 0 for ``lambda_`` as it is given.
        prior: probability of each class before training.
        seed: of the random draws.
    """

    needs_frequency = True

    tail: Tensor

    def __init__(
        self,
        frequency: CategoryFrequency,
        lambda_: float = 1.76e-3,
        tail_ratio: float = 0.0,
        prior: float = 0.001,
        seed: int = 0,
    ):
        super().__init__(frequency, seed)
        lambda_ = frequency.tail_threshold(lambda_, tail_ratio, f"MODEL.LONG_TAIL.{self.name}.LAMBDA")
        self.lambda_, self.tail_ratio, self.prior = lambda_, tail_ratio, prior
        # One more entry, for background, so that labels can look it up.
        tail = torch.cat([frequency.tail_mask(lambda_).float(), torch.zeros(1)])
        self.register_buffer("tail", tail, persistent=False)

    @property
    def num_logits(self) -> int:
        return self.num_classes

    def initial_bias(self) -> Tensor:
        return sigmoid_prior_bias(self.num_logits, self.prior)

    def kept_share(self, gt_classes: Tensor) -> Tensor:
        """Return the share of tail classes among the foreground regions, a scalar; 1 if there is no such region."""
        num_foreground = (gt_classes < self.num_classes).sum()
        share = self.tail[gt_classes].sum() / num_foreground.clamp(min=1)
        return torch.where(num_foreground > 0, share, torch.ones_like(share))

    def statistics(self) -> Dict[str, Tensor]:
        statistics = super().statistics()
        if self._gt_classes is not None:
            background = (self._gt_classes == self.num_classes).float().mean()
            spared = 1 - background * self.kept_share(self._gt_classes)
            statistics.update(self.group_means("negative_weight", 1 - spared * self.tail[:-1]))
        return statistics

    def negative_weights(self, gt_classes: Tensor, like: Tensor) -> Tensor:
        """Draw the weights of this step's negatives, ``[R, K]`` in the dtype of ``like``: 1, or 0 where one is dropped.

        Args:
            gt_classes: int64 ``[R]``.
            like: gives dtype and device.
        """
        generator = self.next_generator(like.device)
        size = len(gt_classes), self.num_classes
        kept = random_mask(*size, self.kept_share(gt_classes), like, generator)
        kept.mul_((gt_classes == self.num_classes).to(like.dtype).unsqueeze(1))
        # Tail classes: what was drawn; other classes: 1.
        tail = self.tail[:-1].to(like.dtype)
        return kept.mul_(tail).add_(1 - tail)

    def loss(self, logits: Tensor, gt_classes: Tensor, verified: Optional[Tensor]) -> Tensor:
        with torch.no_grad():
            weight = self.negative_weights(gt_classes, logits)
        return mean_over_regions(weighted_sigmoid_cross_entropy(logits, gt_classes, weight).total, len(logits))

    def scores(self, logits: Tensor) -> Tensor:
        return append_background(torch.sigmoid(widen(logits)))
