"""Fused losses: the value and its closed-form gradient in a few passes over ``[R, C]``, without dense targets.

Plain autograd would keep one ``[R, C]`` tensor for each operation of a weighted loss. Here the gradient is written
down, computed beside the value, and handed to autograd by :func:`attach_gradient`. Weights are constants: no gradient
flows into them.
"""

import math
from typing import Callable, NamedTuple, Optional, Tuple, Union

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

#: Exponents below this one count as minus infinity where many are expected, and what their exponentials do not exceed.
#: Numbers that underflow take a processor ten times as long as others, and add nothing.
LEAST_EXPONENT = -60.0
LEAST_EXPONENTIAL = 1e-26
#: Entries that an elementwise loss works on at once. More would cost memory and gain no time: 64 MiB in float32.
ENTRIES_AT_ONCE = 1 << 24


class LossTerms(NamedTuple):
    """A loss summed over regions and columns, and what its gradient adds up to in each column.

    Attributes:
        total: scalar with a gradient.
        positive: ``[C]``, sum over regions of the absolute gradient at their own class; ``[0]`` unless asked for.
        negative: ``[C]``, sum over regions of the absolute gradient at the other classes; ``[0]`` unless asked for.
    """

    total: Tensor
    positive: Tensor
    negative: Tensor


class _AttachGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, logits: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_output: Tensor):
        (gradient,) = ctx.saved_tensors
        return gradient * grad_output, None, None


def attach_gradient(logits: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
    """Return ``value`` as a function of ``logits`` whose derivative is ``gradient``.

    Args:
        logits: ``[R, C]``, may require a gradient.
        value: scalar without a gradient.
        gradient: ``[R, C]``, d value / d logits. Must not be changed afterwards.
    """
    return _AttachGradient.apply(logits, value, gradient)


def target_index(gt_classes: Tensor, num_columns: int) -> Tuple[Tensor, Tensor]:
    """Return the target column of each region, ``[R, 1]``, and whether it has one, bool ``[R, 1]``.

    A label without a column (background, where the loss has none) points at the last column; callers leave that entry
    as it is. So nothing is indexed by a mask, which would make the host wait for the device.
    """
    index = gt_classes.unsqueeze(1)
    return index.clamp(max=num_columns - 1), index < num_columns


def _replace_targets(matrix: Tensor, index: Tensor, inside: Tensor, values: Union[Tensor, float]) -> None:
    """Write ``values [R, 1]`` into ``matrix [R, C]`` at the target columns, in place, where the region has one."""
    matrix.scatter_(1, index, torch.where(inside, values, matrix.gather(1, index)))


def _column_sums(gradient: Tensor, index: Tensor, inside: Tensor, at_target: Tensor) -> Tuple[Tensor, Tensor]:
    """Return the absolute gradients of each column over its positive and its negative regions, ``[C]`` each.

    Args:
        gradient: ``[R, C]`` of the negatives; changed in place: zero at the targets.
        index: int64 ``[R, 1]`` and
        inside: bool ``[R, 1]``, of :func:`target_index`.
        at_target: ``[R, 1]``, the gradient at the target.
    """
    _replace_targets(gradient, index, inside, 0.0)
    negative = gradient.sum(0)
    positive = torch.zeros_like(negative)
    positive.index_add_(0, index.squeeze(1), (at_target.abs() * inside).squeeze(1))
    return positive, negative


#: The four matrices that an elementwise loss is made of, for some of the regions: loss and gradient of each entry as a
#: negative ``[r, C]``, and of the target entries ``[r, 1]``.
Entries = Tuple[Tensor, Tensor, Tensor, Tensor]


def _sum_entries(
    logits: Tensor, gt_classes: Tensor, entries: Callable[[Tensor, slice, Tensor], Entries], with_sums: bool = False
) -> LossTerms:
    """Sum up a loss of independent entries, some rows at a time: nothing but the gradient is as large as the logits.

    Args:
        logits: ``[R, C]``.
        gt_classes: int64 ``[R]``; a label of C or more is the positive of no column.
        entries: takes the logits of some rows, which rows these are and their target columns ``[r, 1]``; returns new
            tensors.
        with_sums: also return the column sums of the gradient.
    """
    num_rows, num_columns = logits.shape
    step = max(ENTRIES_AT_ONCE // max(num_columns, 1), 1)
    total = logits.new_zeros(())
    positive = negative = logits.new_zeros(num_columns if with_sums else 0)
    with torch.no_grad():
        at_once = num_rows <= step
        gradients = torch.empty_like(logits[:0] if at_once else logits)
        for start in range(0, max(num_rows, 1), step):
            rows = slice(start, min(start + step, num_rows))
            index, inside = target_index(gt_classes[rows], num_columns)
            loss, gradient, target_loss, target_gradient = entries(logits[rows], rows, index)
            _replace_targets(loss, index, inside, target_loss)
            total = total + loss.sum()
            if with_sums:
                more_positive, more_negative = _column_sums(gradient, index, inside, target_gradient)
                positive, negative = positive + more_positive, negative + more_negative
            _replace_targets(gradient, index, inside, target_gradient)
            if at_once:
                gradients = gradient
            else:
                gradients[rows] = gradient
    return LossTerms(attach_gradient(logits, total, gradients), positive, negative)


def _rows_of(weight: Tensor, rows: slice, dtype: torch.dtype) -> Tensor:
    """Return the weights of some rows: those of ``[R, C]``, or all of ``[C]``, which are the same for each row."""
    return (weight[rows] if weight.ndim == 2 else weight).to(dtype)


def weighted_sigmoid_cross_entropy(
    logits: Tensor,
    gt_classes: Tensor,
    negative_weight: Optional[Tensor] = None,
    positive_weight: Optional[Tensor] = None,
    with_sums: bool = False,
) -> LossTerms:
    """Sum of ``w_neg (1 - y) softplus(z) + w_pos y softplus(-z)`` over regions and columns.

    Args:
        logits: float32 or float64 ``[R, C]``.
        gt_classes: int64 ``[R]``; a label of C or more is the positive of no column.
        negative_weight: ``[C]`` or ``[R, C]``; 1 if not given. At targets it is not looked at.
        positive_weight: ``[C]``; 1 if not given.
        with_sums: also return the column sums of the weighted gradient.
    """

    def entries(logits: Tensor, rows: slice, index: Tensor) -> Entries:
        at_target = logits.gather(1, index)
        weight = 1 if positive_weight is None else positive_weight.to(logits.dtype)[index]
        loss, gradient = F.softplus(logits), torch.sigmoid(logits)
        if negative_weight is not None:
            of_rows = _rows_of(negative_weight, rows, logits.dtype)
            loss.mul_(of_rows)
            gradient.mul_(of_rows)
        return loss, gradient, weight * F.softplus(-at_target), -weight * torch.sigmoid(-at_target)

    return _sum_entries(logits, gt_classes, entries, with_sums)


def weighted_gumbel_cross_entropy(
    logits: Tensor, gt_classes: Tensor, negative_weight: Optional[Tensor] = None, bounds: Tuple[float, float] = (-4, 10)
) -> LossTerms:
    """Sum of ``-w_neg (1 - y) log(1 - P(z)) - y log P(z)`` with the Gumbel distribution ``P(z) = exp(-exp(-z))``.

    In the domain of logarithms: ``-log P = exp(-z)``, whose derivative has no quotient that rounding could spoil.

    Args:
        logits: float32 or float64 ``[R, C]``.
        gt_classes: int64 ``[R]``; a label of C or more is the positive of no column.
        negative_weight: ``[C]`` or ``[R, C]``; 1 if not given. At targets it is not looked at.
        bounds: logits are clamped to them; beyond, the gradient is zero.
    """

    def entries(logits: Tensor, rows: slice, index: Tensor) -> Entries:
        within = (logits >= bounds[0]).logical_and_(logits <= bounds[1])
        rate = logits.clamp(*bounds).neg_().exp_()  # -log P
        loss = -torch.log(-torch.expm1(-rate))
        gradient = (rate / torch.expm1(rate)).mul_(within)  # exp(-z) P / (1 - P)
        if negative_weight is not None:
            of_rows = _rows_of(negative_weight, rows, logits.dtype)
            loss.mul_(of_rows)
            gradient.mul_(of_rows)
        target_loss = rate.gather(1, index)
        return loss, gradient, target_loss, -target_loss * within.gather(1, index)

    return _sum_entries(logits, gt_classes, entries)


def focal_cross_entropy(
    logits: Tensor,
    gt_classes: Tensor,
    gamma: Union[float, Tensor],
    alpha: float,
    weight: Optional[Tensor] = None,
    with_sums: bool = False,
    quality: Optional[Tensor] = None,
) -> LossTerms:
    """Sum of ``-w alpha_t (1 - p_t)^gamma log(p_t)`` over regions and columns (focal loss, arXiv 1708.02002).

    Args:
        logits: float32 or float64 ``[R, C]``.
        gt_classes: int64 ``[R]``; a label of C or more is the positive of no column.
        gamma: focusing parameter, one for all or one for each column ``[C]``.
        alpha: weight of positives; negatives have ``1 - alpha``.
        weight: ``[C]`` weight of each column; 1 if not given.
        with_sums: also return the column sums of the gradient.
        quality: ``[R]`` in [0, 1], the target q of positives instead of 1, whose loss is then
            ``w |q - p|^gamma (-q log(p) - (1 - q) log(1 - p))``, without alpha (quality focal loss, arXiv 2006.04388).
    """

    def entries(logits: Tensor, rows: slice, index: Tensor) -> Entries:
        probability = torch.sigmoid(logits)
        # d/dz of p^g softplus(z) is p^g (g (1 - p) softplus(z) + p).
        loss = F.softplus(logits)
        gradient = loss * gamma
        torch.lerp(probability, probability.new_ones(()), gradient, out=gradient)
        modulation = _power_(probability, gamma).mul_(1 - alpha if weight is None else (1 - alpha) * weight)
        loss.mul_(modulation)
        gradient.mul_(modulation)
        at_target = logits.gather(1, index)
        if quality is not None:
            return loss, gradient, *_quality_targets(at_target, quality[rows].unsqueeze(1), index, gamma, weight)
        return loss, gradient, *_focal_targets(at_target, index, gamma, alpha, weight)

    return _sum_entries(logits, gt_classes, entries, with_sums)


def _power_(probability: Tensor, gamma: Union[float, Tensor]) -> Tensor:
    """Return ``probability [R, C]`` to the power gamma (one, or one for each column), in place."""
    if not isinstance(gamma, Tensor):
        return probability.pow_(gamma)
    # Powers of two cost less than those of e; and both cost ten times as much where they come out denormal.
    exponential = probability.log2_().mul_(gamma).clamp_(min=LEAST_EXPONENT / math.log(2)).exp2_()
    return torch.threshold_(exponential, LEAST_EXPONENTIAL, 0.0)


def _focal_targets(
    logits: Tensor, index: Tensor, gamma: Union[float, Tensor], alpha: float, weight: Optional[Tensor]
) -> Tuple[Tensor, Tensor]:
    """Return loss and gradient of the target entries ``[R, 1]``; arguments as in :func:`focal_cross_entropy`."""
    gamma = gamma[index] if isinstance(gamma, Tensor) else gamma
    missing, loss = torch.sigmoid(-logits), F.softplus(-logits)
    modulation = missing.pow(gamma) * (alpha if weight is None else alpha * weight[index])
    return modulation * loss, -modulation * (gamma * torch.sigmoid(logits) * loss + missing)


def _quality_targets(
    logits: Tensor, quality: Tensor, index: Tensor, gamma: Union[float, Tensor], weight: Optional[Tensor]
) -> Tuple[Tensor, Tensor]:
    """Return loss and gradient of the target entries ``[R, 1]`` with the targets ``quality [R, 1]``."""
    gamma = gamma[index] if isinstance(gamma, Tensor) else gamma
    weight = torch.ones_like(logits) if weight is None else weight[index]
    quality = quality.to(logits.dtype)
    probability, cross_entropy = torch.sigmoid(logits), F.softplus(logits) - quality * logits
    error = probability - quality
    modulation = weight * error.abs().pow(gamma)
    slope = weight * gamma * error.abs().pow(gamma - 1) * error.sign() * probability * torch.sigmoid(-logits)
    return modulation * cross_entropy, slope * cross_entropy + modulation * error


def softmax_cross_entropy(
    logits: Tensor,
    gt_classes: Tensor,
    adjustment: Optional[Tensor] = None,
    region_weight: Optional[Tensor] = None,
    with_sums: bool = False,
) -> LossTerms:
    """Sum over regions of ``-w_r log softmax(z + adjustment)`` at the region's class.

    Args:
        logits: float32 or float64 ``[R, C]``.
        gt_classes: int64 ``[R]``; a region with a label of C or more gives no loss.
        adjustment: added to the logits; taken as a constant. ``[C]``, or ``[R, C]``, which is then overwritten.
        region_weight: ``[R]``; 1 if not given.
        with_sums: also return the column sums of the weighted gradient.
    """
    with torch.no_grad():
        index, inside = target_index(gt_classes, logits.shape[1])
        weight = inside.to(logits.dtype)
        if region_weight is not None:
            weight = weight * region_weight.to(logits.dtype).unsqueeze(1)
        if adjustment is None:
            adjusted = logits
        elif adjustment.ndim == 1:
            adjusted = logits + adjustment.to(logits.dtype)
        else:
            adjusted = adjustment.add_(logits)
        total, gradient, target_gradient = softmax_gradient(adjusted, index, weight, in_place=adjusted is not logits)
        positive = negative = logits.new_zeros(0)
        if with_sums:
            positive, negative = _column_sums(gradient, index, inside, target_gradient)
        _replace_targets(gradient, index, inside, target_gradient)
    return LossTerms(attach_gradient(logits, total, gradient), positive, negative)


def rows_that_count(counts: Tensor) -> Union[slice, Tensor]:
    """Return the rows, int64, where bool ``counts [R]`` is true, or all on a GPU, which would have to be waited for.

    For losses that give other rows the weight zero: it need not be computed.
    """
    return slice(None) if counts.is_cuda else counts.nonzero().flatten()


def softmax_gradient(
    logits: Tensor, index: Tensor, weight: Tensor, in_place: bool = False
) -> Tuple[Tensor, Tensor, Tensor]:
    """Return the weighted cross-entropy of logits, and its gradient but for the target entries.

    The softmax is torch's own: one pass over each row while it is in the cache. The logarithm of its denominator is
    minus that of the largest probability.

    Args:
        logits: ``[R, C]``, rows may be strided.
        index: int64 ``[R, 1]``, target columns.
        weight: ``[R, 1]``.
        in_place: overwrite the logits: on a CPU a fresh ``[R, C]`` tensor costs as much as the arithmetic on it.

    Returns:
        The loss, summed over the regions; ``w_r softmax(logits)``, new, ``[R, C]``; the gradient of the target entries,
        ``[R, 1]``.
    """
    at_target = logits.gather(1, index) - logits.amax(dim=1, keepdim=True)
    probability = torch.softmax(logits, dim=1, out=logits if in_place else None)
    at_target = at_target + probability.amax(dim=1, keepdim=True).log()
    return -(weight * at_target).sum(), probability.mul_(weight), weight * torch.expm1(at_target)


def random_mask(
    num_rows: int,
    num_columns: int,
    probability: Union[float, Tensor],
    like: Tensor,
    generator: torch.Generator,
    rows: Union[slice, Tensor] = slice(None),
) -> Tensor:
    """Return ``[num_rows, num_columns]`` of independent zeros and ones, a one with ``probability`` (to 2^-16).

    Four entries share one 64-bit random number: a quarter of the cost of ``torch.rand``, which would dominate the loss.

    Args:
        num_rows: R.
        num_columns: C.
        probability: of a one; a float or a scalar tensor.
        like: gives dtype and device.
        generator: of that device.
        rows: the rows that are returned; all are drawn, so that the draws do not depend on it.
    """
    words = torch.empty(num_rows, (num_columns + 3) // 4, dtype=torch.int64, device=like.device)
    # From the least int64 on, without an end: all 64 bits are random.
    words.random_(-(2**63), None, generator=generator)
    uniform = words[rows].view(torch.int16)[:, :num_columns].to(like.dtype)
    return uniform.lt_(probability * 2.0**16 - 2.0**15)
