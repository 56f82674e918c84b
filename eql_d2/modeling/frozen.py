"""What need not be computed where a part of the model is frozen."""

from torch import nn


def is_frozen(module: nn.Module) -> bool:
    """Return whether the module has parameters and none of them is trained, so that a loss of it alone has no use."""
    trained = [parameter.requires_grad for parameter in module.parameters()]
    return bool(trained) and not any(trained)
