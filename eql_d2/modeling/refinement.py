"""Iterative refinement of region features (PCB): a head that looks at each region several times."""

from typing import Tuple

from torch import Tensor, nn


class FeatureRefinement(nn.Module):
    """What a pass of the box head predicted, worked into the features of the next one (He et al., arXiv 2201.02784).

    ``features * S + C``: S, a factor of each place, from the box deltas, and C, a summand of each channel, from the
    class logits; both by two linear layers with a ReLU between.

    Args:
        shape: ``(C, h, w)`` of the region features.
        num_logits: of the classifier.
        num_deltas: of the box regression.
        width: of the hidden layers.
    """

    def __init__(self, shape: Tuple[int, int, int], num_logits: int, num_deltas: int, width: int):
        super().__init__()
        channels, height, width_of_map = shape
        self.scale = nn.Sequential(nn.Linear(num_deltas, width), nn.ReLU(), nn.Linear(width, height * width_of_map))
        self.shift = nn.Sequential(nn.Linear(num_logits, width), nn.ReLU(), nn.Linear(width, channels))

    def forward(self, features: Tensor, logits: Tensor, deltas: Tensor) -> Tensor:
        """Return the features ``[R, C, h, w]`` of the next pass."""
        scale = self.scale(deltas).view(-1, 1, *features.shape[2:])
        return features * scale + self.shift(logits)[:, :, None, None]
