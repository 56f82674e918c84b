"""Equalized quality focal loss: EFL whose positives aim at how well their box fits."""

from typing import Dict, Optional, Union

import torch
from torch import Tensor

from eql_d2.losses.base import Categories
from eql_d2.losses.efl import EqualizedFocalLoss
from eql_d2.losses.functional import LossTerms, focal_cross_entropy
from eql_d2.losses.registry import CLASSIFIER_LOSS_REGISTRY


@CLASSIFIER_LOSS_REGISTRY.register("EQFL")
class EqualizedQualityFocalLoss(EqualizedFocalLoss):
    """Equalized quality focal loss, which the authors of EFL (arXiv 2201.02593) released beside it.

    The focusing parameters ``gamma_j`` and weights ``gamma_j / gamma_b`` of
    :class:`~eql_d2.losses.efl.EqualizedFocalLoss`, in quality focal loss (arXiv 2006.04388): a positive of quality q
    has ``|q - p|^gamma_j`` times the cross-entropy with the target q, a negative ``p^gamma_j`` times that with 0.
    There is no alpha. The gradient at a positive's own class counts as positive, whatever its sign.

    Logits: K classes, no background column.

    Args:
        categories: number of classes K, or a CategoryFrequency (only its groups are used, for the log).
        gamma_b: focusing parameter of a balanced class.
        scale: s, the focusing parameter that a class with ratio 0 has on top.
        prior: probability of each class before training.
    """

    uses_quality = True

    def __init__(self, categories: Categories, gamma_b: float = 2.0, scale: float = 8.0, prior: float = 0.001):
        super().__init__(categories, gamma_b=gamma_b, scale=scale, prior=prior)
        self._quality: Optional[Tensor] = None

    def forward(
        self,
        logits: Tensor,
        gt_classes: Tensor,
        verified: Optional[Tensor] = None,
        has_ignored: bool = False,
        quality: Optional[Tensor] = None,
    ) -> Union[Tensor, Dict[str, Tensor]]:
        """Same as :meth:`ClassifierLoss.forward <eql_d2.losses.base.ClassifierLoss.forward>`.

        Args:
            quality: ``[R]`` in [0, 1], overlap (IoU) of each foreground region's box with its object; looked at there
                only, and taken as a constant. 1 everywhere if not given.
        """
        quality = torch.ones_like(gt_classes, dtype=logits.dtype) if quality is None else quality.detach()
        self._quality = quality[gt_classes >= 0] if has_ignored else quality
        return super().forward(logits, gt_classes, verified, has_ignored)

    def terms(self, logits: Tensor, gt_classes: Tensor, gamma: Tensor) -> LossTerms:
        weight = gamma / self.gamma_b
        return focal_cross_entropy(logits, gt_classes, gamma, 0.0, weight, with_sums=True, quality=self._quality)
