"""What the regions of a training step say of each category: gradients and probabilities, summed up by hooks."""

import copy
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import torch
from torch import Tensor, nn

from eql_d2.data.categories import CategoryRow, CategoryTable
from eql_d2.errors import InputError
from eql_d2.losses import ClassifierLoss
from eql_d2.losses.state import RandomLoss, sum_over_ranks
from eql_d2.modeling.normed import NormedLinear

#: Sums of :class:`RegionStatistics`, float64 ``[K]`` each.
SUMS = (
    "positives",
    "positive_gradient",
    "negative_gradient",
    "positive_norm",
    "negative_norm",
    "probability",
)


class RegionStatistics:
    """Sums over the regions that one classifier is trained on, for each of K classes.

    A region is positive for its own class and negative for all others; a background region is negative for all
    (EQL, arXiv 2003.05176, Figure 1).

    With z the logits ``[R, C]``, x the features ``[R, D]`` and w the classifier's weights ``[C, D]``, region r gives
    weight row j the gradient ``(dL/dz_rj) x_r``, so its L2 norm is ``|dL/dz_rj| |x_r|``; x and w are those that are
    multiplied, of a normed classifier the normed ones. L is the loss times the number
    of regions R of the step, so that the numbers do not depend on the batch size: for sigmoid cross-entropy dL/dz is
    p - 1 on positives and p on negatives (equation 5). Loss weights (``loss_weight``) are not in it.

    Attributes:
        sums: float64 ``[6, K]``, rows as in :data:`SUMS`: number of positive regions; ``|dL/dz|`` of positive and of
            negative regions, summed; norms of the weight gradient of positive and of negative regions, summed;
            probability of their own class of positive regions, summed.
        num_regions: regions seen, float64 scalar.
        confusion: int64 ``[K + 1, K + 1]``, ground truth by highest score, K for background; ``None`` if not asked for.
        foreground_confusion: int64 ``[K, K]``, foreground regions by highest score of the K classes; or ``None``.
    """

    def __init__(self, num_classes: int, with_confusion: bool = False):
        self.num_classes = num_classes
        self.sums = torch.zeros(len(SUMS), num_classes, dtype=torch.float64)
        self.num_regions = torch.zeros((), dtype=torch.float64)
        self.confusion = self.foreground_confusion = None
        if with_confusion:
            self.confusion = torch.zeros(num_classes + 1, num_classes + 1, dtype=torch.int64)
            self.foreground_confusion = torch.zeros(num_classes, num_classes, dtype=torch.int64)

    @torch.no_grad()
    def update(self, gradient: Tensor, feature_norm: Tensor, scores: Tensor, gt_classes: Tensor) -> None:
        """Add the regions of a step, of all ranks.

        A collective: every rank calls it at the same step, also one without a region. A step whose sums are not finite
        on some rank is left out on all.

        Args:
            gradient: dL/dz ``[R, C]`` with L summed over regions; columns from K on are not looked at.
            feature_norm: ``|x_r|``, ``[R]``.
            scores: ``[R, K + 1]``, column K for background.
            gt_classes: int64 ``[R]`` in ``0..K``.
        """
        step = torch.cat(
            [
                region_sums(gradient, feature_norm, scores, gt_classes, self.num_classes).flatten(),
                torch.full((1,), float(len(gt_classes)), dtype=torch.float64, device=gradient.device),
            ]
        )
        step = sum_over_ranks(step).cpu()
        if bool(torch.isfinite(step).all()):
            self.sums += step[:-1].view_as(self.sums)
            self.num_regions += step[-1]
        if self.confusion is not None:
            self._count_predictions(scores, gt_classes)

    def _count_predictions(self, scores: Tensor, gt_classes: Tensor) -> None:
        gt_classes, predicted = gt_classes.cpu(), predicted_classes(scores).cpu()
        one = torch.ones_like(gt_classes)
        self.confusion.index_put_((gt_classes, predicted), one, accumulate=True)
        is_foreground = gt_classes < self.num_classes
        nearest = scores[:, : self.num_classes].argmax(1).cpu()[is_foreground]
        where = (gt_classes[is_foreground], nearest)
        self.foreground_confusion.index_put_(where, torch.ones_like(nearest), accumulate=True)

    def __getitem__(self, name: str) -> Tensor:
        """Return one of :data:`SUMS`, float64 ``[K]``."""
        return self.sums[SUMS.index(name)]

    @property
    def negatives(self) -> Tensor:
        """Number of negative regions of each class, float64 ``[K]``."""
        return self.num_regions - self["positives"]

    def means(self) -> Dict[str, Tensor]:
        """Return the means, float64 ``[K]`` each, NaN where there is nothing to divide by.

        ``positive_gradient_norm`` and ``negative_gradient_norm``: mean L2 norm of the gradient of the class's weights
        over its positive and its negative regions. ``mean_probability``: of the own class over positive regions.
        ``gradient_ratio``: sum of ``|dL/dz|`` over positive regions over that of negative regions (EQL v2, arXiv
        2012.08548).
        """
        positives = self["positives"]
        values = {
            "positive_gradient_norm": (self["positive_norm"], positives),
            "negative_gradient_norm": (self["negative_norm"], self.negatives),
            "mean_probability": (self["probability"], positives),
            "gradient_ratio": (self["positive_gradient"], self["negative_gradient"]),
        }
        return {name: torch.where(below > 0, above / below, torch.nan) for name, (above, below) in values.items()}

    def state_dict(self) -> Dict[str, Tensor]:
        """Return the sums for a checkpoint; the confusion is not part of it."""
        return {"sums": self.sums.clone(), "num_regions": self.num_regions.clone()}

    def load_state_dict(self, state: Dict[str, Tensor]) -> None:
        """Go on from :meth:`state_dict`.

        Raises:
            ValueError: if the number of classes is another.
        """
        if state["sums"].shape != self.sums.shape:
            raise ValueError(f"The sums are {list(state['sums'].shape)}, not {list(self.sums.shape)}.")
        self.sums.copy_(state["sums"])
        self.num_regions.copy_(state["num_regions"])


def region_sums(gradient: Tensor, feature_norm: Tensor, scores: Tensor, gt_classes: Tensor, num_classes: int) -> Tensor:
    """Return the step's :data:`SUMS`, float64 ``[6, K]``; arguments as in :meth:`RegionStatistics.update`."""
    # Background gets a column of its own, which is dropped: no indexing by a mask, so nobody waits for the device.
    magnitude = gradient[:, :num_classes].abs().double()
    magnitude = torch.cat([magnitude, magnitude.new_zeros(len(magnitude), 1)], dim=1)
    index = gt_classes.unsqueeze(1)
    own = magnitude.gather(1, index).squeeze(1)
    magnitude.scatter_(1, index, 0.0)
    norm = feature_norm.double()
    own_score = scores.gather(1, index).squeeze(1).double()
    of_positives = torch.stack([torch.ones_like(own), own, own * norm, own_score])
    count, positive, positive_norm, probability = of_positives.new_zeros(4, num_classes + 1).index_add_(
        1, gt_classes, of_positives
    )
    sums = [count, positive, magnitude.sum(0), positive_norm, norm @ magnitude, probability]
    return torch.stack(sums)[:, :num_classes]


def predicted_classes(scores: Tensor) -> Tensor:
    """Return the class of the highest score of each region, int64 ``[R]``, K for background.

    Losses without a background column (their scores' last column is zero) leave background to the others: a region is
    then taken for background if no class reaches one half.

    Args:
        scores: ``[R, K + 1]``.
    """
    foreground, background = scores[:, :-1], scores[:, -1:]
    if not bool(background.any()):
        background = 1 - foreground.amax(1, keepdim=True)
    return torch.cat([foreground, background], dim=1).argmax(1)


def total_gradient(total: Any, logits: Tensor) -> Tensor:
    """Return dL/dz ``[R, C]`` of a loss (a scalar, or a dict of scalars to be added), times R. The graph is kept."""
    total = sum(total.values()) if isinstance(total, dict) else total
    # Times R before the way back: a mean's gradient would underflow where the logits are in half precision.
    (gradient,) = torch.autograd.grad(total * len(logits), logits, retain_graph=True)
    return gradient.float() if gradient.dtype != torch.float64 else gradient


class Watcher:
    """Hooks on box predictors that feed one :class:`RegionStatistics` for each stage.

    Args:
        predictors: one box predictor, or one for each stage of a cascade.
        with_confusion: whether predictions are counted too.
        frozen: take the gradients from a copy of each loss whose sums over training stand still, and leave the loss
            itself alone; for models whose forward pass keeps no graph. Random draws of the copy go on from step to
            step. Otherwise the gradients are those of the loss that is being trained.
        is_active: asked in each forward pass.

    Raises:
        InputError: for a predictor whose regions have no features of their own, as pixels.
    """

    def __init__(
        self,
        predictors: Sequence[nn.Module],
        with_confusion: bool = False,
        frozen: bool = False,
        is_active: Callable[[], bool] = lambda: True,
    ):
        self.predictors = list(predictors)
        if not all(predictor.classifies_regions for predictor in self.predictors):
            raise InputError(
                "The regions of a segmentation head are pixels, whose logits are upsampled: there are no features of "
                "theirs whose gradients could be analysed. Set MODEL.LONG_TAIL.ANALYSIS.PERIOD 0."
            )
        self.statistics = [RegionStatistics(p.classifier_loss.num_classes, with_confusion) for p in self.predictors]
        self._frozen = [frozen_copy(p.classifier_loss) if frozen else None for p in self.predictors]
        self._is_active = is_active
        self._features: Dict[int, Tensor] = {}

    @contextmanager
    def attached(self) -> Iterator["Watcher"]:
        """Watch every forward pass inside the block."""
        handles = self.attach()
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def attach(self) -> List[Any]:
        """Register the hooks; return the handles to remove them by."""
        handles = []
        for stage, predictor in enumerate(self.predictors):
            handles.append(predictor.cls_score.register_forward_pre_hook(self._before_classifier(stage)))
            handles.append(predictor.classifier_loss.register_forward_hook(self._after_loss(stage)))
        return handles

    def _before_classifier(self, stage: int) -> Callable:
        predictor = self.predictors[stage]

        def hook(layer: nn.Module, args: Tuple) -> None:
            # Not in an evaluation, nor where batch norm statistics are collected: no loss, or none that is trained.
            trains = predictor.training and (self._frozen[stage] is not None or torch.is_grad_enabled())
            if trains and self._is_active():
                features = args[0].detach()
                # The weights that are seen from the logits are, in a normed layer, the normed ones.
                is_normed = isinstance(layer, NormedLinear)
                self._features[stage] = layer.normalize_input(features) if is_normed else features

        return hook

    def _after_loss(self, stage: int) -> Callable:
        predictor, copied, statistics = self.predictors[stage], self._frozen[stage], self.statistics[stage]

        def hook(loss: ClassifierLoss, args: Tuple, output: Any) -> None:
            features: Optional[Tensor] = self._features.pop(stage, None)
            if features is None:
                return
            logits, gt_classes, *rest = args
            if copied is None:
                gradient = total_gradient(output, logits)
            else:
                with torch.enable_grad():
                    leaf = logits.detach().requires_grad_()
                    gradient = total_gradient(copied(leaf, gt_classes, *rest), leaf)
            if predictor.cls_scale is not None:  # z is scale * (w x) + ...: the scale is part of the way to w
                gradient = gradient * predictor.cls_scale.detach()
            with torch.no_grad():
                scores = loss.scores(logits)
            statistics.update(gradient, features.flatten(1).float().norm(dim=1), scores, gt_classes)

        return hook


def frozen_copy(loss: ClassifierLoss) -> ClassifierLoss:
    """Return a copy of a loss that accumulates nothing; one that draws random numbers draws new ones at each call."""
    copied = copy.deepcopy(loss)
    # In evaluation mode sums stand still, but so does the step that random numbers follow from.
    return copied.train(isinstance(loss, RandomLoss))


def region_columns(statistics: RegionStatistics) -> Dict[str, Tensor]:
    """Return counts and means of :class:`RegionStatistics`, float64 ``[K]`` each."""
    counts = {"positives": statistics["positives"], "negatives": statistics.negatives}
    sums = {name: statistics[name] for name in ("positive_gradient", "negative_gradient")}
    return {**counts, **sums, **statistics.means()}


def region_rows(statistics: Sequence[RegionStatistics], categories: CategoryTable) -> List[CategoryRow]:
    """Return one row for each stage and category.

    Columns: ``stage`` (0 but in a cascade), the category's, ``positives`` and ``negatives`` (regions),
    ``positive_gradient`` and ``negative_gradient`` (sums of ``|dL/dz|``), and those of
    :meth:`RegionStatistics.means`.
    """
    rows: List[CategoryRow] = []
    for stage, of_stage in enumerate(statistics):
        rows += categories.rows(region_columns(of_stage), stage=stage)
    return rows
