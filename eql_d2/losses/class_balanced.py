"""Class-balanced loss: classes weigh by their effective number of instances."""

from eql_d2.data.frequency import CategoryFrequency
from eql_d2.errors import InputError
from eql_d2.losses.registry import CLASSIFIER_LOSS_REGISTRY
from eql_d2.losses.reweighted import ReweightedSoftmaxLoss


@CLASSIFIER_LOSS_REGISTRY.register("CLASS_BALANCED")
class ClassBalancedLoss(ReweightedSoftmaxLoss):
    """Class-balanced softmax loss (Cui et al., arXiv 1901.05555).

    A region of class j weighs ``(1 - beta) / (1 - beta^n_j)``, n_j the number of training instances (one at least),
    divided by the mean over the classes. The defaults are those of BAGS's "Re-weight-cls" (model 7): beta 0.999,
    clipped to [0.1, 5], background 1. The original paper does not clip: ``min_weight=0``, ``max_weight=inf``.

    Args:
        frequency: counts of the training set.
        beta: in [0, 1); 0 weighs all classes alike, towards 1 it becomes the inverse frequency.
        min_weight: least weight.
        max_weight: largest weight.
        background: detection (K + 1 columns) or plain classification (K).

    Raises:
        InputError: if beta is not in [0, 1) or the bounds are not in order.
    """

    def __init__(
        self,
        frequency: CategoryFrequency,
        beta: float = 0.999,
        min_weight: float = 0.1,
        max_weight: float = 5.0,
        background: bool = True,
    ):
        if not 0 <= beta < 1:
            raise InputError(f"CLASS_BALANCED's BETA is {beta}; it lies in [0, 1).")
        super().__init__(frequency, min_weight, max_weight, background)
        self.beta = beta
        counts = frequency.instance_count.double().clamp(min=1)
        self.register_weight((1 - beta) / (1 - beta**counts))
