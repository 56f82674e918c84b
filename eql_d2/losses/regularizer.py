"""Regularisers: terms over the logits of the classes that are added to a classifier loss, whichever it is."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Dict, Mapping, Optional

from torch import Tensor, nn

from eql_d2.losses.registry import NamedRegistry, default_settings, settings_to_arguments

if TYPE_CHECKING:
    from eql_d2.losses.base import ClassifierLoss

REGULARIZER_REGISTRY = NamedRegistry("REGULARIZER", "MODEL.LONG_TAIL.REGULARIZER.NAME", "regulariser")


class Regularizer(nn.Module, ABC):
    """A term that a :class:`~eql_d2.losses.base.ClassifierLoss` adds to its own.

    Scores stay those of the loss. State is in buffers, saved in the checkpoint and equal on all ranks.

    Args:
        num_classes: K.
    """

    #: Name in the registry and of the config node, set on registration.
    name = ""

    def __init__(self, num_classes: int):
        super().__init__()
        self.num_classes = num_classes
        #: Where a head classifies each region several times in a step: how far along it is, 0 at first, 1 at last.
        self.progress = 1.0
        self._last: Optional[Tensor] = None

    def check(self, loss: "ClassifierLoss") -> None:
        """Check that it means something beside ``loss``.

        Raises:
            InputError: if it does not.
        """

    def forward(self, logits: Tensor, gt_classes: Tensor) -> Tensor:
        """Return the term, a scalar with a gradient; 0 if R is 0.

        Args:
            logits: float32 or float64 ``[R, K]``, those of the classes.
            gt_classes: int64 ``[R]`` in ``0..K``, K for background.
        """
        term = self.term(logits, gt_classes)
        self._last = term.detach()
        return term

    @property
    def loss_name(self) -> str:
        """Name of the term beside the parts of a loss that has several, and in a training log."""
        return f"loss_{self.name.lower()}"

    @abstractmethod
    def term(self, logits: Tensor, gt_classes: Tensor) -> Tensor:
        """Compute the term, and update the state in training; arguments as of :meth:`forward`."""

    def statistics(self) -> Dict[str, Tensor]:
        """Return the last term for a training log, detached; empty before the first."""
        return {} if self._last is None else {self.loss_name: self._last}

    def describe(self) -> Dict[str, Any]:
        """Return its name and its settings, for the description of the loss."""
        names = default_settings(self.name, REGULARIZER_REGISTRY)
        return {"regularizer": self.name, **{f"regularizer.{name}": getattr(self, name) for name in names}}


def add_regularizer(loss: "ClassifierLoss", name: str, settings: Mapping[str, Any]) -> None:
    """Let ``loss`` add the regulariser ``name`` to itself; nothing for an empty name.

    Args:
        loss: of K classes.
        name: a name in :data:`REGULARIZER_REGISTRY` or ``""``.
        settings: config keys of the regulariser's node, or argument names, with their values.

    Raises:
        InputError: for an unknown name or setting, or a loss that it means nothing beside.
    """
    if not name:
        return
    arguments = settings_to_arguments(name, settings, REGULARIZER_REGISTRY)
    regularizer = REGULARIZER_REGISTRY.get(name)(loss.num_classes, **arguments)
    regularizer.check(loss)
    loss.regularizer = regularizer
