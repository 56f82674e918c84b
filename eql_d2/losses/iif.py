"""IIF: the logits of a class are multiplied by its inverse image frequency, in training and at test."""

from typing import Dict, Optional

import torch
from torch import Tensor

from eql_d2.data.frequency import CategoryFrequency
from eql_d2.errors import InputError
from eql_d2.losses.base import SoftmaxColumns, mean_over_regions, widen
from eql_d2.losses.functional import softmax_cross_entropy
from eql_d2.losses.registry import CLASSIFIER_LOSS_REGISTRY


def _smooth(count: Tensor, total: float) -> Tensor:
    return torch.log((total + 1) / (count + 1)) + 1


#: The factor of a class by the number of its images (or instances) and that of all (authors' code).
VARIANTS = {
    "raw": lambda count, total: torch.log(total / count),
    "base2": lambda count, total: torch.log2(total / count),
    "base10": lambda count, total: torch.log10(total / count),
    "smooth": _smooth,
    "prob": lambda count, total: -torch.logit(count / total),
    "normit": lambda count, total: -torch.special.ndtri(count / total),
    "gombit": lambda count, total: -torch.log(-torch.log1p(-count / total)),
}
COUNTS = ("images", "instances")


@CLASSIFIER_LOSS_REGISTRY.register("IIF")
class InverseImageFrequencyLoss(SoftmaxColumns):
    """Inverse image frequency (Alexandridis et al., arXiv 2209.04861).

    Softmax cross-entropy of ``phi_j z_j``, and the softmax of the same at test. phi_j is log(N / n_j) for a class in
    n_j of N training images (``raw``), or another decreasing function of n_j / N; it is 1 for background. The factors
    are larger than 1: a negative logit of a rare class becomes more negative still.

    Logits: K classes, then background unless ``background=False``.

    Args:
        frequency: counts of the training set; a class without any counts as one.
        variant: "raw", "base2", "base10" (other bases of the logarithm), "smooth" (log((N + 1) / (n_j + 1)) + 1),
            "prob", "normit" or "gombit" (minus the logit, the probit and the complementary log-log of n_j / N).
        counts: "images", or "instances" (n_j and N count those: the authors' IOF).
        background: detection (K + 1 columns) or plain classification (K).

    Raises:
        InputError: for another variant or other counts, or if a class is in every image, where a factor has no limit.
    """

    needs_frequency = True

    factor: Tensor

    def __init__(
        self, frequency: CategoryFrequency, variant: str = "raw", counts: str = "images", background: bool = True
    ):
        super().__init__(frequency)
        self.background = background
        for key, value, known in (("VARIANT", variant, tuple(VARIANTS)), ("COUNTS", counts, COUNTS)):
            if value not in known:
                raise InputError(f"MODEL.LONG_TAIL.IIF.{key} is {value!r}; there are {', '.join(map(repr, known))}.")
        self.variant, self.counts = variant, counts
        count = (frequency.image_count if counts == "images" else frequency.instance_count).double().clamp(min=1)
        total = float(frequency.num_images if counts == "images" else count.sum())
        factor = VARIANTS[variant](count, total)
        if not torch.isfinite(factor).all():
            label = int((~torch.isfinite(factor)).nonzero()[0])
            raise InputError(
                f"MODEL.LONG_TAIL.IIF.VARIANT {variant!r} has no finite factor for the class with label {label}, which "
                f"has {int(count[label])} of all {int(total)} {counts}; use 'smooth'."
            )
        self.register_buffer("factor", torch.cat([factor, factor.new_ones(int(background))]), persistent=False)

    def loss(self, logits: Tensor, gt_classes: Tensor, verified: Optional[Tensor]) -> Tensor:
        scaled = logits * self.factor.to(logits.dtype)
        return mean_over_regions(softmax_cross_entropy(scaled, gt_classes).total, len(logits))

    def scores(self, logits: Tensor) -> Tensor:
        logits = widen(logits)
        return super().scores(logits * self.factor.to(logits.dtype))

    def describe(self) -> Dict[str, object]:
        foreground = self.factor[: self.num_classes]
        return {**super().describe(), "factors": f"{foreground.min():.3g} to {foreground.max():.3g}"}
