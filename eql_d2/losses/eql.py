"""Equalization loss (EQL): rare classes are spared the discouraging gradients of other classes' foreground regions."""

from typing import Any, Dict, Optional

import torch
from torch import Tensor

from eql_d2.data.frequency import CategoryFrequency
from eql_d2.errors import InputError
from eql_d2.losses.base import mean_over_regions
from eql_d2.losses.functional import weighted_sigmoid_cross_entropy
from eql_d2.losses.registry import CLASSIFIER_LOSS_REGISTRY
from eql_d2.losses.sigmoid import SigmoidLoss


def threshold_weight(frequency: Tensor, lambda_: float) -> Tensor:
    """T_lambda(f) = 1 if f < lambda, else 0; the comparison is strict (EQL, below equation 7)."""
    return (frequency < lambda_).to(frequency.dtype)


def exponential_weight(frequency: Tensor, a: float = 400.0, n: float = 2.0) -> Tensor:
    """1 - (a f)^n, clipped to [0, 1] (EQL, section 4.4; the paper does not clip, but a weight must be)."""
    return (1 - (a * frequency) ** n).clamp(0, 1)


def gompertz_weight(frequency: Tensor, a: float = 1.0, b: float = 80.0, c: float = 3000.0) -> Tensor:
    """1 - a exp(-b exp(-c f)), clipped to [0, 1] (EQL, section 4.4)."""
    return (1 - a * torch.exp(-b * torch.exp(-c * frequency))).clamp(0, 1)


@CLASSIFIER_LOSS_REGISTRY.register("EQL")
class EqualizationLoss(SigmoidLoss):
    """Equalization loss (Tan et al., arXiv 2003.05176, equations 6 and 7).

    Sigmoid cross-entropy in which class j of region r has the weight ``w = 1 - E(r) T(f_j) (1 - y_j)``: E(r) is 1 on
    foreground regions, T is 1 for tail classes, y is the target. By the rule of the LVIS challenge (section 4.2) the
    weight is 1 for classes in the positive or negative set of the region's image.

    Args:
        frequency: counts of the training set; f_j = images of class j / all training images.
        lambda_: frequency threshold; classes with f_j < lambda_ are tail. 1.76e-3 takes in LVIS v0.5's rare and common
            classes.
        tail_ratio: choose ``lambda_`` from the counts, so that tail classes have about this share of the image counts
            (EQL, equation 8); 0 for ``lambda_`` as it is given.
        weight_function: ``"threshold"`` (uses ``lambda_``), ``"exponential"`` or ``"gompertz"`` (section 4.4).
        exponential_a: a of ``1 - (a f)^n``.
        exponential_n: n of ``1 - (a f)^n``.
        gompertz_a: a of ``1 - a exp(-b exp(-c f))``.
        gompertz_b: b of the same.
        gompertz_c: c of the same.
        exclude_background: E(r): keep the negative gradients of background regions. ``False`` drops E(r) (Table 4).
        image_level_exemption: weight 1 for verified classes. The authors' repository does without.
        prior: probability of each class before training.

    Raises:
        InputError: for an unknown weight function, or a tail ratio that no threshold gives.
    """

    needs_frequency = True
    uses_verified = True

    tail_weight: Tensor

    def __init__(
        self,
        frequency: CategoryFrequency,
        lambda_: float = 1.76e-3,
        tail_ratio: float = 0.0,
        weight_function: str = "threshold",
        exponential_a: float = 400.0,
        exponential_n: float = 2.0,
        gompertz_a: float = 1.0,
        gompertz_b: float = 80.0,
        gompertz_c: float = 3000.0,
        exclude_background: bool = True,
        image_level_exemption: bool = True,
        prior: float = 0.001,
    ):
        super().__init__(frequency, prior)
        if weight_function == "threshold":
            lambda_ = frequency.tail_threshold(lambda_, tail_ratio, "MODEL.LONG_TAIL.EQL.LAMBDA")
        self.lambda_, self.tail_ratio = lambda_, tail_ratio
        self.weight_function = weight_function
        self.exponential_a, self.exponential_n = exponential_a, exponential_n
        self.gompertz_a, self.gompertz_b, self.gompertz_c = gompertz_a, gompertz_b, gompertz_c
        self.exclude_background = exclude_background
        self.image_level_exemption = image_level_exemption
        functions = {
            "threshold": lambda f: threshold_weight(f, lambda_),
            "exponential": lambda f: exponential_weight(f, exponential_a, exponential_n),
            "gompertz": lambda f: gompertz_weight(f, gompertz_a, gompertz_b, gompertz_c),
        }
        if weight_function not in functions:
            raise InputError(
                f"EQL's WEIGHT_FUNCTION is {weight_function!r}; it must be one of {', '.join(sorted(functions))}."
            )
        tail_weight = functions[weight_function](frequency.frequency)
        # Not in the checkpoint: it follows from the data set, and the authors' checkpoints have no such buffer.
        self.register_buffer("tail_weight", tail_weight.float(), persistent=False)
        self._tail_ratio = frequency.tail_ratio(lambda_)

    def describe(self) -> Dict[str, Any]:
        return {
            **super().describe(),
            "num_tail_classes": int((self.tail_weight > 0).sum()),
            "tail_ratio": self._tail_ratio,  # what came out, whether or not it was asked for
        }

    def statistics(self) -> Dict[str, Tensor]:
        statistics = super().statistics()
        if self._gt_classes is not None:
            foreground = (self._gt_classes < self.num_classes).float()
            spared = foreground.mean() if self.exclude_background else torch.ones_like(foreground).mean()
            statistics.update(self.group_means("negative_weight", 1 - spared * self.tail_weight))
        return statistics

    def loss(self, logits: Tensor, gt_classes: Tensor, verified: Optional[Tensor]) -> Tensor:
        with torch.no_grad():
            weight = self.negative_weight(gt_classes, logits, verified)
        return mean_over_regions(weighted_sigmoid_cross_entropy(logits, gt_classes, weight).total, len(logits))

    def negative_weight(self, gt_classes: Tensor, like: Tensor, verified: Optional[Tensor] = None) -> Tensor:
        """Return w of equation 7 where y = 0, ``[R, K]``; where y = 1, w is 1 whatever is returned here.

        Args:
            gt_classes: int64 ``[R]``.
            like: gives the dtype.
            verified: bool ``[R, K]`` or ``None``.
        """
        spared = torch.ones_like(gt_classes, dtype=like.dtype)
        if self.exclude_background:
            spared *= gt_classes < self.num_classes
        weight = torch.outer(spared, -self.tail_weight.to(like.dtype)).add_(1)
        if verified is not None and self.image_level_exemption:
            weight.masked_fill_(verified, 1)
        return weight
