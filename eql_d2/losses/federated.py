"""Federated loss: only some of the classes take part in each step."""

from typing import Optional

import torch
from torch import Tensor

from eql_d2.data.frequency import CategoryFrequency
from eql_d2.losses.base import append_background, mean_over_regions, sigmoid_prior_bias, widen
from eql_d2.losses.functional import weighted_sigmoid_cross_entropy
from eql_d2.losses.registry import CLASSIFIER_LOSS_REGISTRY
from eql_d2.losses.state import RandomLoss


@CLASSIFIER_LOSS_REGISTRY.register("FEDERATED")
class FederatedLoss(RandomLoss):
    """Federated loss (Zhou et al., arXiv 2103.07461), by the sampling law of Detectron2's own.

    Sigmoid cross-entropy over the classes that occur in the batch and others drawn without replacement in proportion to
    ``image_count ^ frequency_power``, until there are ``num_sampled_classes``. As in Detectron2, background counts as
    one of them where it occurs. A class without images is never drawn.

    Logits: K classes, no background column.

    Args:
        frequency: counts of the training set.
        num_sampled_classes: classes that take part in a step, at least.
        frequency_power: exponent of the image count.
        prior: probability of each class before training; 0.01 in Detectron2.
        seed: of the random draws.
    """

    needs_frequency = True

    sampling_weight: Tensor

    def __init__(
        self,
        frequency: CategoryFrequency,
        num_sampled_classes: int = 50,
        frequency_power: float = 0.5,
        prior: float = 0.01,
        seed: int = 0,
    ):
        super().__init__(frequency, seed)
        self.num_sampled_classes, self.frequency_power, self.prior = num_sampled_classes, frequency_power, prior
        weight = frequency.image_count.double() ** frequency_power * (frequency.image_count > 0)
        self.register_buffer("sampling_weight", weight.float(), persistent=False)

    @property
    def num_logits(self) -> int:
        return self.num_classes

    def initial_bias(self) -> Tensor:
        return sigmoid_prior_bias(self.num_logits, self.prior)

    def sample_classes(self, gt_classes: Tensor) -> Tensor:
        """Return the classes that take part in this step, bool ``[K]``; moves on to the next step in training."""
        generator = self.next_generator(gt_classes.device)
        present = torch.zeros(self.num_classes + 1, dtype=torch.bool, device=gt_classes.device)
        present[gt_classes] = True
        # Weights over exponential variates: the largest are a weighted sample without replacement (as in
        # torch.multinomial), and how many are taken may depend on the labels without the host knowing.
        variates = torch.empty_like(self.sampling_weight).exponential_(generator=generator)
        keys = torch.where(present[:-1], 0.0, self.sampling_weight / variates)
        order = keys.argsort(descending=True)
        taken = torch.arange(self.num_classes, device=order.device) < self.num_sampled_classes - present.sum()
        sampled = torch.zeros_like(present[:-1]).scatter_(0, order, taken)
        return present[:-1] | (sampled & (keys > 0))

    def loss(self, logits: Tensor, gt_classes: Tensor, verified: Optional[Tensor]) -> Tensor:
        weight = self.sample_classes(gt_classes).to(logits.dtype)
        return mean_over_regions(weighted_sigmoid_cross_entropy(logits, gt_classes, weight).total, len(logits))

    def scores(self, logits: Tensor) -> Tensor:
        return append_background(torch.sigmoid(widen(logits)))
