"""Softmax losses that add a prior of each class to the logits while training, and treat background apart."""

import torch
from torch import Tensor

from eql_d2.losses.base import Categories, SoftmaxColumns


class AdjustedSoftmaxLoss(SoftmaxColumns):
    """What Softmax-EQL and balanced softmax share: the place of background in a prior of the classes.

    Both add ``log prior_j`` to the logits of class j during training. For detection (``background=True``) there are
    K + 1 columns, the last one background, which takes no part in the prior: its adjustment is that of an average
    foreground class. How often background occurs is set by the region sampler (usually three of four), not by the long
    tail; with a prior of its own, its logit would be trained low by that factor and, since the prior is absent at test,
    every background region would come out as foreground.

    Args:
        categories: as for :class:`~eql_d2.losses.base.ClassifierLoss`.
        background: detection (K + 1 columns) or plain classification (K).
    """

    is_softmax = True

    def __init__(self, categories: Categories, background: bool):
        super().__init__(categories)
        self.background = background

    def with_background(self, foreground: Tensor, background: Tensor) -> Tensor:
        """Append the adjustment of background (a scalar tensor) to ``[K]`` if there is such a column."""
        return torch.cat([foreground, background.reshape(1)]) if self.background else foreground


def mean_adjustment(prior: Tensor, exponent: float) -> Tensor:
    """Return ``exponent * log(mean of prior)``, what an average class adds to its logit."""
    return exponent * torch.log(prior.mean())
