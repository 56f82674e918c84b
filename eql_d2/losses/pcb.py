"""PCB: the confusion matrix of a training as soft targets, so that classes that are taken for one another balance."""

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from eql_d2.errors import InputError
from eql_d2.losses.base import mean_over_regions
from eql_d2.losses.regularizer import REGULARIZER_REGISTRY, Regularizer
from eql_d2.losses.state import sum_over_ranks

if TYPE_CHECKING:
    from eql_d2.losses.base import ClassifierLoss


@REGULARIZER_REGISTRY.register("PCB")
class PairwiseClassBalance(Regularizer):
    """Pairwise class balance regularisation (He et al., arXiv 2201.02784).

    ``M_yj`` is the running mean of the softmax over the K classes at class j, over the regions of class y. A region of
    class y has the share ``alpha`` of its target moved from y to ``p_j = M_jy / sum_k M_ky``: to the classes that are
    taken for y, which are punished less the more often they are. For a softmax cross-entropy this is the term
    ``alpha (z_y - sum_j p_j z_j + sum_j p_j log p_j)``, the normaliser of the softmax having cancelled, averaged over
    all regions. Constants that a loss adds to its logits (Seesaw loss, balanced softmax) cancel in its gradient too.

    M is updated before it is used, by the regions of all ranks, and is float32: means, unlike sums, do not drift. The
    term is zero before step ``start`` and until each class has had a region. In the passes of a head that classifies
    each region several times, ``alpha`` grows from 0 at the first to its value at the last; the last one counts as the
    step.

    Args:
        num_classes: K; the state takes ``4 K^2`` bytes.
        alpha: share of the target that is moved, in [0, 1].
        momentum: share of a row of M that stays in a step that has regions of its class, in [0, 1).
        start: training steps before the term is added.

    Raises:
        InputError: if alpha or the momentum is out of its range.
    """

    confusion: Tensor
    instance_seen: Tensor
    num_steps: Tensor

    def __init__(self, num_classes: int, alpha: float = 0.4, momentum: float = 0.99, start: int = 0):
        super().__init__(num_classes)
        if not 0 <= alpha <= 1:
            raise InputError(f"MODEL.LONG_TAIL.REGULARIZER.PCB.ALPHA is {alpha}; it lies in [0, 1].")
        if not 0 <= momentum < 1:
            raise InputError(f"MODEL.LONG_TAIL.REGULARIZER.PCB.MOMENTUM is {momentum}; it lies in [0, 1).")
        self.alpha, self.momentum, self.start = alpha, momentum, start
        self.register_buffer("confusion", torch.zeros(num_classes, num_classes))
        self.register_buffer("instance_seen", torch.zeros(num_classes, dtype=torch.float64))
        self.register_buffer("num_steps", torch.zeros((), dtype=torch.int64))

    def check(self, loss: "ClassifierLoss") -> None:
        if not loss.is_softmax:
            raise InputError(
                f"MODEL.LONG_TAIL.REGULARIZER.NAME is 'PCB', which moves a share of a softmax's target, and "
                f"MODEL.LONG_TAIL.LOSS {loss.name!r} is no such cross-entropy with the weight 1 for each region."
            )

    def term(self, logits: Tensor, gt_classes: Tensor) -> Tensor:
        if self.training:
            self._update(logits.detach(), gt_classes)
        # Nothing here is read by the host, which would wait for the device.
        active = (self.num_steps >= self.start) & (self.instance_seen > 0).all()
        if self.training and self.progress == 1:
            self.num_steps.add_(1)
        label = gt_classes.clamp(max=self.num_classes - 1)
        counts = active & (gt_classes < self.num_classes)
        column = self.confusion.t()[label].to(logits.dtype)
        target = column / column.sum(1, keepdim=True).clamp(min=torch.finfo(logits.dtype).tiny)
        moved = logits.gather(1, label.unsqueeze(1)).squeeze(1) - (target * logits).sum(1)
        terms = moved + torch.xlogy(target, target).sum(1)
        return self.alpha * self.progress * mean_over_regions((terms * counts).sum(), len(logits))

    @torch.no_grad()
    def _update(self, logits: Tensor, gt_classes: Tensor) -> None:
        """Take in the regions of all ranks: a collective. A step that is not finite anywhere changes nothing."""
        size = self.num_classes
        # The last row is background's, and the last column counts regions.
        sums = self.confusion.new_zeros(size + 1, size + 1)
        probabilities = F.pad(F.softmax(logits, dim=1).to(sums.dtype), (0, 1), value=1.0)
        sums = sum_over_ranks(sums.index_add_(0, gt_classes, probabilities))[:size]
        counts = torch.where(torch.isfinite(sums).all(), sums[:, size:], 0.0)
        mean = sums[:, :size] / counts.clamp(min=1)
        updated = torch.lerp(mean, self.confusion, self.momentum)
        updated = updated / updated.sum(1, keepdim=True)
        self.confusion.copy_(torch.where(counts > 0, updated, self.confusion))
        self.instance_seen.add_(counts.squeeze(1))
