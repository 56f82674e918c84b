"""GOL: probabilities by the Gumbel distribution instead of the logistic one, alone or with DropLoss or EQL."""

import math
from typing import Optional

import torch
from torch import Tensor

from eql_d2.data.frequency import CategoryFrequency
from eql_d2.errors import InputError
from eql_d2.losses.base import append_background, mean_over_regions, widen
from eql_d2.losses.droploss import DropLoss
from eql_d2.losses.functional import weighted_gumbel_cross_entropy
from eql_d2.losses.registry import CLASSIFIER_LOSS_REGISTRY

#: What spares tail classes: nothing, DropLoss (the paper's GOL) or EQL.
WEIGHTS = ("none", "droploss", "eql")
#: The loss of a batch counts up to this, and has no gradient beyond (authors' code, without weights).
LARGEST_LOSS = 20.0


@CLASSIFIER_LOSS_REGISTRY.register("GOL")
class GumbelOptimizedLoss(DropLoss):
    """Gumbel optimised loss (Alexandridis et al., arXiv 2207.10936).

    One-vs-all cross-entropy with ``P(z) = exp(-exp(-z))``, the distribution function of the Gumbel distribution, in the
    place of the sigmoid. A positive's gradient grows exponentially with how wrong it is, that of a negative fades
    doubly exponentially. Logits are clamped to [-4, 10] in the loss, as in the authors' code; scores are not.

    With DropLoss (the paper's GOL) or EQL, negatives of tail classes are spared as these do, and there is no background
    column. Alone there is one, trained as one more class, and a batch whose loss exceeds 20 gives no gradient (authors'
    code). The authors' gradient, computed through rounded probabilities, is too small for positives with logits in
    [-4, -3.3]; here it is exact.

    Logits: K classes; without weights one more column K, background.

    Args:
        frequency: counts of the training set.
        weights: "droploss", "eql" or "none".
        lambda_: frequency threshold of DropLoss and EQL; classes in less than this share of the images are tail.
        tail_ratio: choose ``lambda_`` from the counts, so that tail classes have about this share of the image counts
            (EQL, equation 8); 0 for ``lambda_`` as it is given.
        prior: probability of each column before training; the default is P(-2).
        seed: of DropLoss's random draws.

    Raises:
        InputError: for other weights or a prior outside of (0, 1).
    """

    def __init__(
        self,
        frequency: CategoryFrequency,
        weights: str = "droploss",
        lambda_: float = 1.76e-3,
        tail_ratio: float = 0.0,
        prior: float = 6.18e-4,
        seed: int = 0,
    ):
        super().__init__(frequency, lambda_, tail_ratio, prior, seed)
        if weights not in WEIGHTS:
            raise InputError(f"MODEL.LONG_TAIL.GOL.WEIGHTS is {weights!r}; there are {', '.join(map(repr, WEIGHTS))}.")
        if not 0 < prior < 1:
            raise InputError(f"MODEL.LONG_TAIL.GOL.PRIOR is {prior}; a prior probability lies between 0 and 1.")
        self.weights = weights

    @property
    def num_logits(self) -> int:
        return self.num_classes + (self.weights == "none")

    def initial_bias(self) -> Tensor:
        return torch.full((self.num_logits,), -math.log(-math.log(self.prior)))

    def kept_share(self, gt_classes: Tensor) -> Tensor:
        """Return the share of a tail class's negatives on background that count: all of them but with DropLoss."""
        share = super().kept_share(gt_classes)
        return share if self.weights == "droploss" else torch.ones_like(share)

    def loss(self, logits: Tensor, gt_classes: Tensor, verified: Optional[Tensor]) -> Tensor:
        if self.weights == "none":
            loss = mean_over_regions(weighted_gumbel_cross_entropy(logits, gt_classes).total, len(logits))
            return loss.clamp(max=LARGEST_LOSS)
        with torch.no_grad():
            weight = self.negative_weights(gt_classes, logits)
        return mean_over_regions(weighted_gumbel_cross_entropy(logits, gt_classes, weight).total, len(logits))

    def scores(self, logits: Tensor) -> Tensor:
        scores = torch.exp(-torch.exp(-widen(logits)))
        return scores if self.weights == "none" else append_background(scores)
