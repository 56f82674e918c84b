"""Normed (cosine) layers: the classifier and the mask predictor whose logits are scaled cosines.

As in mmdetection, where Seesaw loss, ECM, LogN and others use them: features and weights are divided by their norms,
and the features multiplied by a temperature, before an ordinary linear layer with its bias.
"""

from typing import Any, Dict, Optional

import torch
from torch import Tensor, nn

from eql_d2.errors import InputError

#: What ``MODEL.LONG_TAIL.CLASSIFIER`` and ``MASK_PREDICTOR`` may be.
LAYERS = ("linear", "normed")


def divide_by_norm(values: Tensor, power: float, eps: float) -> Tensor:
    """Return ``values / (norm^power + eps)``, the norm over dimension 1, in float32 or wider whatever autocast says.

    Under half precision ``eps`` would vanish beside most norms.
    """
    with torch.autocast(values.device.type, enabled=False):
        values = values if values.dtype == torch.float64 else values.float()
        return values / (values.norm(dim=1, keepdim=True) ** power + eps)


class NormedLayer(nn.Module):
    """What the two layers share: settings, and how input and weight are normalised.

    The temperature is in the checkpoint, so that the weights of a linear layer, or of one with another temperature, are
    not taken for this layer's: they would load and give other scores.
    """

    def _set(self, temperature: float, power: float, eps: float) -> None:
        """Store the settings.

        Raises:
            InputError: if the temperature is not positive or ``eps`` is negative.
        """
        if temperature <= 0:
            raise InputError(f"The temperature of a normed layer is {temperature}; it must be positive.")
        if eps < 0:
            raise InputError(f"EPS of a normed layer is {eps}; it must be 0 or more.")
        self.power, self.eps = power, eps
        self.register_buffer("temperature", torch.tensor(float(temperature)))

    def normalize_input(self, x: Tensor) -> Tensor:
        """Return ``T x / (|x|^power + eps)`` of features ``[R, C, ...]``, the norm over C."""
        return divide_by_norm(x, self.power, self.eps) * self.temperature

    def normalize_weight(self, weight: Tensor) -> Tensor:
        """Return ``W / (|W|^power + eps)`` of weights ``[columns, C, ...]``, the norm over C."""
        return divide_by_norm(weight, self.power, self.eps)

    def _load_from_state_dict(self, state_dict: Dict[str, Any], prefix: str, *args, **kwargs) -> None:
        if f"{prefix}weight" in state_dict:
            saved = state_dict.get(f"{prefix}temperature")
            if saved is None or not torch.isclose(saved.float().cpu(), self.temperature.float().cpu()):
                found = "those of a linear layer" if saved is None else f"of the temperature {float(saved):g}"
                raise InputError(
                    f"{prefix}weight: the layer is normed with the temperature {float(self.temperature):g}, but the "
                    f"weights are {found}; set CLASSIFIER, MASK_PREDICTOR and NORMED of MODEL.LONG_TAIL as they were "
                    f"in training, or MODEL.LONG_TAIL.INIT_CLASSIFIER reset to train a new classifier."
                )
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class NormedLinear(NormedLayer, nn.Linear):
    """``z = (T x / (|x|^p + eps)) . (W_c / (|W_c|^p + eps)) + b_c``, the classifier of mmdetection's ``NormedLinear``.

    Args:
        in_features: width of the features.
        out_features: number of logits.
        temperature: T, 20 in most releases.
        power: p.
        eps: added to the norm.

    Raises:
        InputError: if the temperature is not positive or ``eps`` is negative.
    """

    def __init__(
        self, in_features: int, out_features: int, temperature: float = 20.0, power: float = 1.0, eps: float = 1e-6
    ):
        super().__init__(in_features, out_features)
        self._set(temperature, power, eps)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``[R, out_features]`` of features ``[R, in_features]``."""
        return nn.functional.linear(self.normalize_input(x), self.normalize_weight(self.weight), self.bias)


class NormedConv2d(NormedLayer, nn.Conv2d):
    """The 1 x 1 convolution of the same form; the norms are over the channels, pixel by pixel.

    Args:
        in_channels: of the features.
        out_channels: number of masks.
        temperature: T, 20 in the releases.
        power: of the norms.
        eps: added to the norms.

    Raises:
        InputError: if the temperature is not positive or ``eps`` is negative.
    """

    def __init__(
        self, in_channels: int, out_channels: int, temperature: float = 20.0, power: float = 1.0, eps: float = 1e-6
    ):
        super().__init__(in_channels, out_channels, kernel_size=1)
        self._set(temperature, power, eps)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits ``[R, out_channels, H, W]`` of features ``[R, in_channels, H, W]``."""
        return nn.functional.conv2d(self.normalize_input(x), self.normalize_weight(self.weight), self.bias)


def check_not_normed(state_dict: Dict[str, Any], layer: str, key: str) -> None:
    """Check that the weights of a linear layer are not those of a normed one.

    Args:
        state_dict: that is being loaded.
        layer: name of the layer in it.
        key: the config key that chooses the layer.

    Raises:
        InputError: if they are.
    """
    if f"{layer}.temperature" in state_dict:
        raise InputError(f"{layer}: the weights are those of a normed layer; set {key} normed.")


def normed_settings(cfg, layer: str, temperature: str) -> Optional[Dict[str, float]]:
    """Return the settings of a normed layer, ``None`` for a linear one.

    Args:
        cfg: with ``MODEL.LONG_TAIL``.
        layer: the key that chooses, "CLASSIFIER" or "MASK_PREDICTOR".
        temperature: the key of its temperature in ``MODEL.LONG_TAIL.NORMED``.

    Raises:
        InputError: if ``layer`` says neither "linear" nor "normed".
    """
    chosen, node = cfg.MODEL.LONG_TAIL[layer], cfg.MODEL.LONG_TAIL.NORMED
    if chosen not in LAYERS:
        raise InputError(f"MODEL.LONG_TAIL.{layer} is {chosen!r}; there are {', '.join(map(repr, LAYERS))}.")
    return {"temperature": node[temperature], "power": node.POWER, "eps": node.EPS} if chosen == "normed" else None
