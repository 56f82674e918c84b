"""The registry of classifier losses and the one function that builds a loss from its settings."""

import inspect
import keyword
from difflib import get_close_matches
from typing import Any, Dict, Mapping

from fvcore.common.registry import Registry

from eql_d2.errors import InputError


class ClassifierLossRegistry(Registry):
    """Maps a method's short name, which is also the name of its config node, to its class."""

    def register(self, name: str):
        """Return a decorator that registers a :class:`~eql_d2.losses.base.ClassifierLoss` as ``name``."""

        def decorate(loss_class):
            loss_class.name = name
            self._do_register(name, loss_class)
            return loss_class

        return decorate

    def get(self, name: str):
        """Return the class registered as ``name``.

        Raises:
            InputError: if there is none; the message lists the names and the nearest one.
        """
        if name not in self:
            known = sorted(key for key, _ in self)
            near = get_close_matches(name.upper(), known, n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise InputError(
                f"MODEL.LONG_TAIL.LOSS is {name!r}, which is no registered loss.{hint} Known: {', '.join(known)}."
            )
        return super().get(name)


CLASSIFIER_LOSS_REGISTRY = ClassifierLossRegistry("CLASSIFIER_LOSS")


def argument_name(key: str) -> str:
    """Return the constructor argument that the config key ``key`` sets: lower case, ``LAMBDA`` becomes ``lambda_``."""
    name = key.lower()
    return name + "_" if keyword.iskeyword(name) else name


def default_settings(name: str) -> Dict[str, Any]:
    """Return the constructor arguments of the loss ``name`` with their defaults, its first argument left out."""
    parameters = list(inspect.signature(CLASSIFIER_LOSS_REGISTRY.get(name).__init__).parameters.values())
    return {p.name: p.default for p in parameters[2:]}


def build_classifier_loss(name: str, categories, settings: Mapping[str, Any]):
    """Build the loss ``name``.

    Args:
        name: a name in :data:`CLASSIFIER_LOSS_REGISTRY`.
        categories: a :class:`~eql_d2.data.frequency.CategoryFrequency`, or the number of classes for losses that use
            no counts.
        settings: config keys of the method's own node (``LAMBDA``) or argument names (``lambda_``) with their values.

    Raises:
        InputError: for an unknown loss or an unknown setting.
    """
    loss_class = CLASSIFIER_LOSS_REGISTRY.get(name)
    arguments = {argument_name(key): value for key, value in settings.items()}
    known = default_settings(name)
    unknown = sorted(set(arguments) - set(known))
    if unknown:
        raise InputError(
            f"The loss {name!r} has no setting {', '.join(map(repr, unknown))}. Known: {', '.join(sorted(known))}."
        )
    return loss_class(categories, **arguments)
