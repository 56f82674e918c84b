"""The interface that every classifier loss implements, and the arithmetic that several of them share."""

import inspect
from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import Any, Dict, Iterator, Optional, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eql_d2.data.frequency import CategoryFrequency
from eql_d2.data.groups import GROUP_NAMES, GROUPS
from eql_d2.errors import InputError
from eql_d2.losses.regularizer import Regularizer

Categories = Union[int, CategoryFrequency]


class ClassifierLoss(nn.Module, ABC):
    """A loss over the classification logits of R regions, and the scores that the same logits give at test time.

    There are K foreground classes. A label is in ``0..K``; K is background, and column K of the scores. How many
    logits stand behind the K + 1 scores is the method's own business (``num_logits``).

    Subclasses implement :attr:`num_logits`, :meth:`loss` and :meth:`scores`, and :meth:`initial_bias` where the
    classifier does not start at zero.

    Args:
        categories: the training set's :class:`~eql_d2.data.frequency.CategoryFrequency`, or, for losses that need no
            counts, the number of foreground classes K.
    """

    #: Name in the registry and of the config node, set on registration.
    name = ""
    #: Whether the loss cannot be built from the number of classes alone.
    needs_frequency = False
    #: Whether each row of the scores, background included, sums to one.
    scores_sum_to_one = False
    #: Whether it is the cross-entropy of a softmax over the logits of the K classes, perhaps with further columns and
    #: with constants added to them, in which each region has the weight 1.
    is_softmax = False
    #: Whether regions may be background. A loss with a column for background that can do without takes the constructor
    #: argument ``background``: with False it has K columns, for images, which always show a class.
    background = True

    #: Whether the sum over regions is divided by the foreground regions of all ranks, and not by all regions.
    divides_by_foreground = False
    #: Whether the loss looks at the image-level labels; a caller to whom they cost memory may ask.
    uses_verified = False
    #: Whether a class is spared in regions of images that do not verify it, see :meth:`spare_unverified`.
    spares_unverified = False
    #: Whether :meth:`forward` takes the quality of each region, its overlap with the object.
    uses_quality = False
    #: Whether the loss is a mean over regions to which each contributes by itself, given what is kept from step to step
    #: and what :meth:`in_parts` is told: then the regions of a step may come in several calls.
    regions_are_independent = True
    #: Whether :meth:`forward` takes which regions are of one object.
    uses_objects = False

    group_of_class: Optional[Tensor]

    def __init__(self, categories: Categories):
        super().__init__()
        if isinstance(categories, CategoryFrequency):
            self.num_classes = categories.num_classes
        elif self.needs_frequency:
            raise InputError(
                f"{type(self).__name__} needs the images and instances of each class: pass a CategoryFrequency, "
                f"not {categories!r}."
            )
        else:
            self.num_classes = int(categories)
        if self.num_classes < 1:
            raise InputError(f"The number of classes is {self.num_classes}; it must be at least 1.")
        groups = categories.groups if isinstance(categories, CategoryFrequency) else None
        self._group_sizes = [list(groups or ()).count(letter) for letter in GROUPS]
        # int64 [K + 1]: 0 rare, 1 common, 2 frequent, 3 background. It follows from the data set, so no checkpoint.
        indices = None if groups is None else torch.tensor([*map(GROUPS.index, groups), len(GROUPS)])
        self.register_buffer("group_of_class", indices, persistent=False)
        self._gt_classes: Optional[Tensor] = None
        #: A term that is added to the loss, see :func:`~eql_d2.losses.regularizer.add_regularizer`.
        self.regularizer: Optional[Regularizer] = None

    @property
    @abstractmethod
    def num_logits(self) -> int:
        """Width of the linear layer that feeds this loss."""

    @property
    def has_background_logits(self) -> bool:
        """Whether there are logits beside those of the K classes: for background, objectness, or other classes.

        A loss without them serves tasks that know no background, such as image classification.
        """
        return self.num_logits > self.num_classes

    @property
    def has_independent_columns(self) -> bool:
        """Whether the columns are the K classes alone, each with a probability of its own."""
        return not (self.has_background_logits or self.scores_sum_to_one)

    def spare_unverified(self) -> None:
        """From now on give no negative gradient to a class in the regions of images that do not verify it.

        The loss of class j in region r then has the weight 1 of the loss's own rule where j is verified in r's image or
        is r's class, and 0 elsewhere: nobody knows whether j is in the picture. What a loss with state sums up is
        without these entries too. A softmax, or a column for background, cannot do so: an object that is not labelled
        would still be an example of background.

        Raises:
            InputError: for such a loss.
        """
        if not self.has_independent_columns:
            raise InputError(
                f"MODEL.LONG_TAIL.UNVERIFIED is 'exempt', but LOSS {self.name} has a softmax or a column for "
                f"background, for which an object that is not labelled is background all the same; choose a loss of "
                f"independent columns, such as SIGMOID, EQL, FEDERATED or FOCAL, or set UNVERIFIED to 'loss'."
            )
        self.spares_unverified = self.uses_verified = True

    def initial_bias(self) -> Tensor:
        """Return the initial bias of each logit, float32 ``[num_logits]``. Zero unless the method has a prior."""
        return torch.zeros(self.num_logits)

    def forward(
        self, logits: Tensor, gt_classes: Tensor, verified: Optional[Tensor] = None, has_ignored: bool = False
    ) -> Union[Tensor, Dict[str, Tensor]]:
        """Compute the loss in float32, or in float64 where the logits are float64.

        Args:
            logits: ``[R, num_logits]``, any floating dtype. R may be 0; the loss is then 0 with a gradient.
            gt_classes: int64 ``[R]`` in ``0..K``, K for background; with ``has_ignored``, -1 for a region to leave out.
            verified: bool ``[R, K]``; entry ``(r, j)`` is true if class j is in the positive or the negative set of
                the image that region r comes from. ``None`` if the data set has no image-level labels.
            has_ignored: whether labels may be -1. To look for them without being told would make the host wait.

        Returns:
            A scalar, or a dict of named scalars to be added.

        Raises:
            ValueError: if the shapes do not fit each other or this loss.
        """
        num_regions = len(gt_classes)
        if logits.shape != (num_regions, self.num_logits):
            raise ValueError(
                f"{type(self).__name__} for {self.num_classes} classes takes logits of shape "
                f"[{num_regions}, {self.num_logits}], not {list(logits.shape)}."
            )
        if verified is not None and verified.shape != (num_regions, self.num_classes):
            raise ValueError(f"verified must be [{num_regions}, {self.num_classes}], not {list(verified.shape)}.")
        if has_ignored:
            kept = gt_classes >= 0
            logits, gt_classes = logits[kept], gt_classes[kept]
            verified = None if verified is None else verified[kept]
        self._gt_classes = gt_classes
        with torch.autocast(logits.device.type, enabled=False):
            logits = widen(logits)
            spared = logits
            if self.spares_unverified and verified is not None:
                spared = without_unverified(logits, gt_classes, verified)
            loss = self.loss(spared, gt_classes, verified)
            if self.regularizer is None:
                return loss
            term = self.regularizer(logits[:, : self.num_classes], gt_classes)
            return {**loss, self.regularizer.loss_name: term} if isinstance(loss, dict) else loss + term

    @contextmanager
    def in_parts(self, gt_classes: Tensor) -> Iterator[None]:
        """Take the calls of :meth:`forward` in the block for parts of one step: R x K logits need not be there at once.

        The mean of the parts' losses and gradients, weighted by their regions, is that of all regions in one call, and
        so is what is kept from step to step: it changes when the block ends. Random numbers are drawn for each part.

        Args:
            gt_classes: int64 ``[R]``, the labels of all parts; regions that are left out have -1.

        Raises:
            ValueError: if the regions of this loss are not independent (:attr:`regions_are_independent`), or it has a
                regulariser.
        """
        if not self.regions_are_independent or self.regularizer is not None:
            raise ValueError(f"{type(self).__name__} takes the regions of a step in one call.")
        yield
        self._gt_classes = gt_classes[gt_classes >= 0]

    @abstractmethod
    def loss(self, logits: Tensor, gt_classes: Tensor, verified: Optional[Tensor]) -> Union[Tensor, Dict[str, Tensor]]:
        """Compute the loss; arguments as in :meth:`forward`, checked, with logits in float32 or float64."""

    @abstractmethod
    def scores(self, logits: Tensor) -> Tensor:
        """Return the probabilities that test-time post-processing sees.

        Args:
            logits: ``[R, num_logits]``, any floating dtype.

        Returns:
            Float32 (float64 for float64 logits) ``[R, K + 1]``; column K is background. Rows need not sum to one.
        """

    def class_demand(self) -> Optional[Tensor]:
        """Return what the chance of each class is to be, ``[K]``, where further regions can be had; ``None`` if any."""
        return None

    def statistics(self) -> Dict[str, Tensor]:
        """Return what a training log may show of the last :meth:`forward`: named scalars, detached, on the device.

        Nothing is computed until this is called. The number of regions of each group, for losses built from a
        CategoryFrequency; methods add ``negative_weight/<group>`` and ``gradient_ratio/<group>`` where they have them,
        and a regulariser its term. Empty before the first forward.
        """
        statistics = {} if self.regularizer is None else self.regularizer.statistics()
        if self._gt_classes is None or self.group_of_class is None:
            return statistics
        counts = torch.zeros(len(GROUPS) + 1, device=self._gt_classes.device)
        groups = self.group_of_class[self._gt_classes]
        counts.index_add_(0, groups, torch.ones_like(groups, dtype=counts.dtype))
        names = (*GROUP_NAMES.values(), "background")
        return {**statistics, **{f"num_regions/{name}": count for name, count in zip(names, counts)}}

    def group_means(self, name: str, values: Tensor) -> Dict[str, Tensor]:
        """Return the mean of ``values [K]`` over the rare, common and frequent classes as ``<name>/<group>``.

        Groups without a class are left out; empty if the loss was built without a CategoryFrequency.
        """
        if self.group_of_class is None:
            return {}
        groups = self.group_of_class[: self.num_classes]
        sums = torch.zeros(len(GROUPS), dtype=values.dtype, device=values.device).index_add_(0, groups, values)
        sizes = zip(GROUP_NAMES.values(), self._group_sizes)
        return {f"{name}/{group}": sums[i] / size for i, (group, size) in enumerate(sizes) if size}

    def settings(self) -> Dict[str, Any]:
        """Return the constructor arguments, the categories left out, as they were given."""
        names = list(inspect.signature(type(self).__init__).parameters)[2:]
        return {name: getattr(self, name) for name in names}

    def describe(self) -> Dict[str, Any]:
        """Return what a log should say of this loss: its name, its settings, and what it derives from the counts."""
        described = {"loss": self.name, "num_classes": self.num_classes, "num_logits": self.num_logits}
        described.update(self.settings())
        return described if self.regularizer is None else {**described, **self.regularizer.describe()}

    def extra_repr(self) -> str:
        return ", ".join(f"{key}={value}" for key, value in self.describe().items() if key != "loss")


class SoftmaxColumns(ClassifierLoss):
    """The columns and scores of a softmax: K classes, then background unless ``background`` is False.

    Without that column a region labelled K gives no loss, and column K of the scores is zero. Subclasses with a
    constructor argument ``background`` set the attribute.
    """

    scores_sum_to_one = True

    @property
    def num_logits(self) -> int:
        return self.num_classes + self.background

    def scores(self, logits: Tensor) -> Tensor:
        scores = F.softmax(widen(logits), dim=1)
        return scores if self.background else append_background(scores)


def widen(logits: Tensor) -> Tensor:
    """Return ``logits`` in float32, or unchanged if they are float64: loss arithmetic is never in half precision."""
    return logits if logits.dtype == torch.float64 else logits.float()


#: A logit at which the loss of a negative and its gradient are zero in float32 and float64.
IMPOSSIBLE = -1e4


def without_unverified(logits: Tensor, gt_classes: Tensor, verified: Tensor) -> Tensor:
    """Return ``logits [R, K]`` with those that are neither verified nor their region's class at :data:`IMPOSSIBLE`.

    What is replaced gets no gradient, and to a loss of independent columns counts for nothing.

    Args:
        logits: float32 or float64 ``[R, K]``.
        gt_classes: int64 ``[R]`` in ``0..K``.
        verified: bool ``[R, K]``.
    """
    spared = F.pad(~verified, (0, 1)).scatter_(1, gt_classes.unsqueeze(1), False)
    return logits.masked_fill(spared[:, :-1], IMPOSSIBLE)


def sigmoid_prior_bias(num_logits: int, prior: float) -> Tensor:
    """Return ``[num_logits]`` biases at which ``sigmoid(bias) = prior`` (focal loss, arXiv 1708.02002, section 3.3)."""
    if not 0 < prior < 1:
        raise InputError(f"PRIOR is {prior}; a prior probability lies between 0 and 1.")
    return torch.logit(torch.full((num_logits,), float(prior), dtype=torch.float64)).float()


def mean_over_regions(total: Tensor, num_regions: int) -> Tensor:
    """Divide a sum over regions by R, by 1 if there is none."""
    return total / max(num_regions, 1)


def append_background(foreground: Tensor, background: Optional[Tensor] = None) -> Tensor:
    """Append column K to ``[R, K]`` foreground scores: ``background [R]``, or zero where the method predicts none."""
    if background is None:
        return F.pad(foreground, (0, 1))
    return torch.cat([foreground, background.unsqueeze(1)], dim=1)
