"""Registries by config name, that of the classifier losses, and the one function that builds a loss from settings."""

import inspect
import keyword
from difflib import get_close_matches
from typing import Any, Dict, Mapping

from fvcore.common.registry import Registry

from eql_d2.errors import InputError


class NamedRegistry(Registry):
    """Maps a short name, which is also the name of a config node, to a class.

    Args:
        name: of the registry.
        config_key: the key that chooses from it, for messages.
        noun: what is registered, for messages.
    """

    def __init__(self, name: str, config_key: str, noun: str):
        super().__init__(name)
        self.config_key, self.noun = config_key, noun

    def register(self, name: str):
        """Return a decorator that registers a class as ``name``, and gives it the attribute ``name``."""

        def decorate(registered):
            registered.name = name
            self._do_register(name, registered)
            return registered

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
                f"{self.config_key} is {name!r}, which is no registered {self.noun}.{hint} Known: {', '.join(known)}."
            )
        return super().get(name)


CLASSIFIER_LOSS_REGISTRY = NamedRegistry("CLASSIFIER_LOSS", "MODEL.LONG_TAIL.LOSS", "loss")


def argument_name(key: str) -> str:
    """Return the constructor argument that the config key ``key`` sets: lower case, ``LAMBDA`` becomes ``lambda_``."""
    name = key.lower()
    return name + "_" if keyword.iskeyword(name) else name


def default_settings(name: str, registry: NamedRegistry = CLASSIFIER_LOSS_REGISTRY) -> Dict[str, Any]:
    """Return the constructor arguments of the class ``name`` with their defaults, its first argument left out."""
    parameters = list(inspect.signature(registry.get(name).__init__).parameters.values())
    return {p.name: p.default for p in parameters[2:]}


def settings_to_arguments(
    name: str, settings: Mapping[str, Any], registry: NamedRegistry = CLASSIFIER_LOSS_REGISTRY
) -> Dict[str, Any]:
    """Return ``settings`` (config keys or argument names) as constructor arguments of the class ``name``.

    Raises:
        InputError: for an unknown name or setting.
    """
    arguments = {argument_name(key): value for key, value in settings.items()}
    known = default_settings(name, registry)
    unknown = sorted(set(arguments) - set(known))
    if unknown:
        raise InputError(
            f"The {registry.noun} {name!r} has no setting {', '.join(map(repr, unknown))}. "
            f"Known: {', '.join(sorted(known))}."
        )
    return arguments


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
    arguments = settings_to_arguments(name, settings)
    return CLASSIFIER_LOSS_REGISTRY.get(name)(categories, **arguments)
