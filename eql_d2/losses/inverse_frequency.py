"""Inverse-frequency weights, the plainest re-weighting."""

from eql_d2.data.frequency import CategoryFrequency
from eql_d2.losses.registry import CLASSIFIER_LOSS_REGISTRY
from eql_d2.losses.reweighted import ReweightedSoftmaxLoss


@CLASSIFIER_LOSS_REGISTRY.register("INVERSE_FREQUENCY")
class InverseFrequencyLoss(ReweightedSoftmaxLoss):
    """Softmax cross-entropy in which a region of class j weighs ``n_j^-power``.

    n_j is the number of training instances (one at least); the weight is divided by its mean over the classes. The
    defaults are those of BAGS's "Re-weight" (arXiv 2006.10408, model 6): power 1, clipped to [0.1, 5], background 1.
    Power 0.5 is the square-root variant.

    Args:
        frequency: counts of the training set.
        power: exponent of the inverse frequency.
        min_weight: least weight.
        max_weight: largest weight.
        background: detection (K + 1 columns) or plain classification (K).

    Raises:
        InputError: if the bounds are not in order.
    """

    def __init__(
        self,
        frequency: CategoryFrequency,
        power: float = 1.0,
        min_weight: float = 0.1,
        max_weight: float = 5.0,
        background: bool = True,
    ):
        super().__init__(frequency, min_weight, max_weight, background)
        self.power = power
        self.register_weight(frequency.instance_count.double().clamp(min=1) ** -power)
