"""Balanced group softmax (BAGS): one softmax for each group of classes with a similar number of instances."""

from typing import Any, Dict, List, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import Tensor

from eql_d2.data.frequency import CategoryFrequency
from eql_d2.errors import InputError
from eql_d2.losses.base import append_background, widen
from eql_d2.losses.functional import LEAST_EXPONENTIAL, attach_gradient, softmax_gradient
from eql_d2.losses.registry import CLASSIFIER_LOSS_REGISTRY
from eql_d2.losses.state import RandomLoss, random_rank

#: Regions whose factors are in the cache at once.
ROWS_AT_ONCE = 128


@CLASSIFIER_LOSS_REGISTRY.register("BAGS")
class BalancedGroupSoftmax(RandomLoss):
    """Balanced group softmax (Li et al., arXiv 2006.10408).

    The classes are split into N groups by their number of training instances. Each group has a softmax over its classes
    and "others", which is the target of the regions of all other classes and of background; one more softmax tells
    background from foreground. The loss is the sum of the N + 1 cross-entropies, each averaged over its regions.

    In each group, all regions of its own classes are kept and, at random, ``beta`` times as many others. A group
    without a region of its own gives no loss. At test, a class's score is its probability in its group times that of
    foreground; the probabilities of "others" are not used.

    Logits: K classes in the order of the labels, N others, then foreground, then background.

    Args:
        frequency: counts of the training set; instances are counted.
        group_bounds: rising instance counts at which a new group begins; a class with exactly the bound belongs to the
            higher group. Groups without a class are left out.
        beta: others kept for each region of the group's own classes; a large number keeps all.
        seed: of the random draws.

    Raises:
        InputError: if the bounds do not rise or beta is negative.
    """

    needs_frequency = True

    group_of_label: Tensor
    column_of_label: Tensor
    grouped_order: Tensor
    label_order: Tensor
    in_group: Tensor
    target_of_label: Tensor

    def __init__(
        self,
        frequency: CategoryFrequency,
        group_bounds: Sequence[int] = (10, 100, 1000),
        beta: float = 8.0,
        seed: int = 0,
    ):
        super().__init__(frequency, seed)
        if list(group_bounds) != sorted(set(group_bounds)):
            raise InputError(f"BAGS's GROUP_BOUNDS are {list(group_bounds)}; they must rise.")
        if beta < 0:
            raise InputError(f"BAGS's BETA is {beta}; it must be at least 0.")
        self.group_bounds, self.beta = tuple(group_bounds), beta
        bounds = torch.tensor(self.group_bounds, dtype=torch.int64)
        groups = torch.bucketize(frequency.instance_count, bounds, right=True)
        used, groups = groups.unique(return_inverse=True)
        self.num_groups = len(used)
        sizes = groups.bincount(minlength=self.num_groups).tolist()
        classes = [torch.nonzero(groups == group).flatten() for group in range(self.num_groups)]
        self._register_layout(groups, classes)
        # Columns of each softmax in the grouped order: the classes of a group and its others; at the end foreground and
        # background.
        self._widths: List[int] = [size + 1 for size in sizes] + [2]
        self._register_columns()
        self._kept: Optional[Tensor] = None

    def _register_layout(self, groups: Tensor, classes: List[Tensor]) -> None:
        """Register where each class is; ``groups [K]`` is the group of each class, ``classes`` those of each group."""
        num_classes, others = self.num_classes, self.num_classes + torch.arange(self.num_groups)
        tail = others[-1] + torch.tensor([1, 2])
        order = torch.cat([torch.cat([c, o.reshape(1)]) for c, o in zip(classes, others)] + [tail])
        # Label [K + 1] -> column in the softmax of each group [N, K + 1]; the last column of a group is "others".
        column = torch.stack([torch.full((num_classes + 1,), len(c)) for c in classes])
        for group, members in enumerate(classes):
            column[group, members] = torch.arange(len(members))
        binary = torch.zeros(1, num_classes + 1, dtype=torch.int64)
        binary[0, -1] = 1
        self.register_buffer("group_of_label", torch.cat([groups, torch.tensor([-1])]), persistent=False)
        self.register_buffer("column_of_label", torch.cat([column, binary]), persistent=False)
        # int32: selecting columns by it is a fifth faster than by int64.
        self.register_buffer("grouped_order", order.int(), persistent=False)
        self.register_buffer("label_order", order.argsort().int(), persistent=False)

    def _register_columns(self) -> None:
        """Register which columns are in which softmax, and the target column of each label in each softmax."""
        widths = torch.tensor(self._widths)
        group_of_place = torch.repeat_interleave(torch.arange(len(widths)), widths)
        starts = (widths.cumsum(0) - widths).unsqueeze(1)
        in_group = F.one_hot(group_of_place[self.label_order.long()]).T.float().contiguous()  # [N + 1, num_logits]
        self.register_buffer("in_group", in_group, persistent=False)
        self.register_buffer(
            "target_of_label", self.grouped_order.long()[self.column_of_label + starts], persistent=False
        )

    @property
    def num_logits(self) -> int:
        return self.num_classes + self.num_groups + 2

    def describe(self) -> Dict[str, Any]:
        return {**super().describe(), "group_sizes": [width - 1 for width in self._widths[:-1]]}

    def statistics(self) -> Dict[str, Tensor]:
        statistics = super().statistics()
        if self._kept is not None:
            counts = self._kept.sum(1)
            statistics.update({f"num_regions/group{i}": counts[i] for i in range(self.num_groups)})
        return statistics

    def kept_regions(self, gt_classes: Tensor) -> Tensor:
        """Return which regions each softmax is trained on, bool ``[N + 1, R]``; the last one is that of background."""
        groups = torch.arange(self.num_groups, device=gt_classes.device).unsqueeze(1)
        own = self.group_of_label[gt_classes] == groups
        num_own = own.sum(1, keepdim=True)
        quota = (num_own.double() * self.beta).floor()
        kept = own | (random_rank(~own, self.next_generator(gt_classes.device)) < quota)
        return torch.cat([kept & (num_own > 0), torch.ones_like(kept[:1])])

    def loss(self, logits: Tensor, gt_classes: Tensor, verified: Optional[Tensor]) -> Tensor:
        with torch.no_grad():
            kept = self._kept = self.kept_regions(gt_classes)
            weight = kept.to(logits.dtype) / kept.sum(1, keepdim=True).clamp(min=1)
            total, gradient = self._of_all_columns(logits, gt_classes, weight) or self._of_each_group(
                logits, gt_classes, weight
            )
        return attach_gradient(logits, total, gradient)

    def _of_all_columns(self, logits: Tensor, gt_classes: Tensor, weight: Tensor) -> Optional[Tuple[Tensor, Tensor]]:
        """Return loss and gradient by one softmax over all columns, of which each group takes its share.

        The columns stay where they are, which saves two thirds of the time on a CPU. ``None`` where that would not be
        exact, since a group's probabilities are too small beside those of the others, and on a GPU, which would have to
        be waited for to know.

        Args:
            logits: ``[R, num_logits]``.
            gt_classes: int64 ``[R]``.
            weight: ``[N + 1, R]``.
        """
        if logits.is_cuda or torch.get_float32_matmul_precision() != "highest":
            return None
        in_group = self.in_group.to(logits.dtype)
        gradient = torch.softmax(logits, dim=1)
        largest = gradient.amax(dim=1, keepdim=True)
        share = (in_group @ gradient.T).T  # [R, N + 1]; the other way round takes four times as long
        if len(logits) and not bool(share.min() > LEAST_EXPONENTIAL):
            return None
        targets = self.target_of_label[:, gt_classes].T  # [R, N + 1]
        log_p = logits.gather(1, targets) - logits.amax(dim=1, keepdim=True) + largest.log() - share.log()
        for some, factor in zip(gradient.split(ROWS_AT_ONCE), (weight.T / share).split(ROWS_AT_ONCE)):
            some.mul_(factor @ in_group)
        gradient.scatter_(1, targets, weight.T * torch.expm1(log_p))
        return -(weight.T * log_p).sum(), gradient

    def _of_each_group(self, logits: Tensor, gt_classes: Tensor, weight: Tensor) -> Tuple[Tensor, Tensor]:
        """Return loss and gradient by a softmax of each group; arguments as of :meth:`_of_all_columns`."""
        targets = self.column_of_label[:, gt_classes]
        grouped = logits.index_select(1, self.grouped_order)
        total, gradients = logits.new_zeros(()), []
        for block, *rest in zip(grouped.split(self._widths, dim=1), targets.unsqueeze(2), weight.unsqueeze(2)):
            of_block, gradient, target_gradient = softmax_gradient(block, *rest)
            gradients.append(gradient.scatter_(1, rest[0], target_gradient))
            total += of_block
        return total, torch.cat(gradients, dim=1).index_select(1, self.label_order)

    def scores(self, logits: Tensor) -> Tensor:
        grouped = widen(logits).index_select(1, self.grouped_order)
        blocks = [F.softmax(block, dim=1) for block in grouped.split(self._widths, dim=1)]
        foreground, background = blocks[-1].unbind(1)
        in_group = torch.cat(blocks, dim=1).index_select(1, self.label_order)[:, : self.num_classes]
        return append_background(in_group * foreground.unsqueeze(1), background)
