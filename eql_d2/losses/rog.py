"""ROG: a ranking of all scores, of every region and class, beside a loss that looks at each region alone."""

import torch
from torch import Tensor

from eql_d2.errors import InputError
from eql_d2.losses.functional import attach_gradient, target_index
from eql_d2.losses.regularizer import REGULARIZER_REGISTRY, Regularizer
from eql_d2.losses.state import sum_over_ranks


@REGULARIZER_REGISTRY.register("ROG")
class RankingRegularizer(Regularizer):
    """The global-level ranking of ROG (Zhang et al., ICCV 2023), beside a classification loss of each object.

    AP ranks the detections of a class over all images, which no loss of single regions sees. Here the logit s_i of each
    foreground region at its own class is ranked among all logits of the batch. With
    ``H(x) = clamp(x / (2 delta) + 1/2, 0, 1)``, ``a_i = sum of H(s_k - s_i)`` over the regions k of the same class (i
    itself counts one half) and ``b_i = sum of H(s_n - s_i)`` over the logits n of all regions and classes that are no
    region's own, the ranking error is ``e_i = b_i / (a_i + b_i)``. The term is its mean over the regions of a class,
    then over the classes that have any.

    Its gradient is that of an error-driven update (AP loss, arXiv 1904.06373), not the derivative of the value:
    ``-lambda w e_i`` at s_i and ``lambda w H(s_n - s_i) / (a_i + b_i)`` at each n, in the same means. A class that had
    c regions so far, one at least, has ``w = c^-gamma``, relative to the mean over the classes.

    Sums over the logits are taken by intervals between the bends of H, so that the cost is that of a few passes over
    ``[R, K]`` and not of ``[regions, R, K]``.

    Args:
        num_classes: K.
        lambda_: factor of the gradient; the value is without it.
        gamma: power of the counts; 0 weighs all classes alike.
        delta: half the width of H.

    Raises:
        InputError: if delta is not above 0, or another argument is below.
    """

    instance_seen: Tensor

    def __init__(self, num_classes: int, lambda_: float = 0.1, gamma: float = 1.0, delta: float = 0.5):
        super().__init__(num_classes)
        for key, value, least in (("LAMBDA", lambda_, ">= 0"), ("GAMMA", gamma, ">= 0"), ("DELTA", delta, "> 0")):
            if value < 0 or (value == 0 and least == "> 0"):
                raise InputError(f"MODEL.LONG_TAIL.REGULARIZER.ROG.{key} is {value}; it is {least}.")
        self.lambda_, self.gamma, self.delta = lambda_, gamma, delta
        self.register_buffer("instance_seen", torch.zeros(num_classes, dtype=torch.float64))

    def class_weight(self) -> Tensor:
        """Return w, float64 ``[K]``, whose mean is 1."""
        weight = self.instance_seen.clamp(min=1) ** -self.gamma
        return weight / weight.mean()

    @torch.no_grad()
    def term(self, logits: Tensor, gt_classes: Tensor) -> Tensor:
        counts = self.instance_seen.new_zeros(self.num_classes + 1)
        counts.index_add_(0, gt_classes, torch.ones_like(gt_classes, dtype=counts.dtype))
        if self.training:
            self.instance_seen.add_(sum_over_ranks(counts[: self.num_classes]))
        index, inside = target_index(gt_classes, self.num_classes)
        own, is_foreground = logits.double().gather(1, index).squeeze(1), inside.squeeze(1)
        # The share of a region: one over the regions of its class, and over the classes that have any.
        share = is_foreground / counts[gt_classes]
        share = share / share.sum().clamp(min=1)

        same_class = (gt_classes.unsqueeze(0) == gt_classes.unsqueeze(1)) & inside
        difference = own.unsqueeze(0) - own.unsqueeze(1)  # of s_k, in the columns, to s_i
        above = ((difference / (2 * self.delta) + 0.5).clamp(0, 1) * same_class).sum(1)
        ranks = _Ranks(logits, own, self.delta, index, inside)
        false = ranks.number_above()
        total = (above + false).clamp(min=0.5)
        error = false / total

        weight = self.lambda_ * share * self.class_weight()[index.squeeze(1)]
        gradient = ranks.sum_below(weight / total).to(logits.dtype)
        at_target = torch.where(is_foreground, -weight * error, gradient.gather(1, index).squeeze(1))
        gradient.scatter_(1, index, at_target.to(logits.dtype).unsqueeze(1))
        with torch.enable_grad():
            return attach_gradient(logits, (share * error).sum().to(logits.dtype), gradient)


class _Ranks:
    """Sums of H between the logits ``s_i`` of the regions' own classes and all logits ``s_n`` but those.

    H(s_n - s_i) is 0 below s_i - delta, linear up to s_i + delta, and 1 from there. Sorted, these edges cut the line
    into intervals in which every sum is linear: count and sum of the logits of an interval say all that is needed.

    Args:
        logits: ``[R, K]``.
        own: float64 ``[R]``, s_i; of background regions a value of no use.
        delta: half the width of H.
        index: int64 ``[R, 1]`` and
        inside: bool ``[R, 1]``, as of :func:`~eql_d2.losses.functional.target_index`.
    """

    def __init__(self, logits: Tensor, own: Tensor, delta: float, index: Tensor, inside: Tensor):
        self.logits, self.own, self.delta = logits.double().contiguous(), own, delta
        self.edges, self.order = torch.cat([own - delta, own + delta]).sort()
        # Where the edges of each region are among the sorted ones.
        self.place = torch.empty_like(self.order)
        self.place[self.order] = torch.arange(len(self.order), device=own.device)
        interval = torch.searchsorted(self.edges, self.logits)
        # The regions' own logits lie below all edges: they are no negatives.
        self.interval = interval.scatter_(1, index, torch.where(inside, 0, interval.gather(1, index)))

    def number_above(self) -> Tensor:
        """Return ``sum over n of H(s_n - s_i)``, float64 ``[R]``."""
        flat = self.interval.flatten()
        count = self.edges.new_zeros(len(self.edges) + 1).index_add_(
            0, flat, torch.ones_like(flat, dtype=torch.float64)
        )
        total = torch.zeros_like(count).index_add_(0, flat, self.logits.flatten())
        # Over the intervals above each edge.
        count, total = (values.flip(0).cumsum(0).flip(0)[1:][self.place] for values in (count, total))
        (low, high), (low_total, high_total) = count.chunk(2), total.chunk(2)
        partly = (low_total - high_total - self.own * (low - high)) / (2 * self.delta) + 0.5 * (low - high)
        return (high + partly).clamp(min=0)

    def sum_below(self, weight: Tensor) -> Tensor:
        """Return ``sum over i of weight_i H(s_n - s_i)`` for each logit, float64 ``[R, K]``; 0 for the regions' own."""
        slope = weight / (2 * self.delta)
        start = 0.5 * weight - slope * self.own
        # What each edge adds to the line of the intervals above it.
        slope = torch.cat([slope, -slope])[self.order].cumsum(0)
        start = torch.cat([start, weight - start])[self.order].cumsum(0)
        slope, start = (torch.cat([values.new_zeros(1), values]) for values in (slope, start))
        return (start[self.interval] + slope[self.interval] * self.logits).clamp(min=0)
