"""Deformable convolution without a compiled Detectron2: its two layers on torchvision's operator.

``MODEL.RESNETS.DEFORM_ON_PER_STAGE`` builds Detectron2's ``DeformBottleneckBlock``, whose layers are of its extension
``detectron2._C``. Where that is missing, as in the pinned wheel, importing :mod:`eql_d2.modeling` puts those of this
file in their place; a compiled Detectron2 keeps its own. Parameters and their names in a checkpoint are the same.
"""

import importlib.util
from typing import Callable, Optional, Tuple, Union

from detectron2.modeling.backbone import resnet
from torch import Tensor, nn
from torchvision.ops import DeformConv2d


class DeformableConv(DeformConv2d):
    """Deformable convolution, v1 (Dai et al., arXiv 1703.06211) and, with a mask, v2 (Zhu et al., arXiv 1811.11168).

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as of ``nn.Conv2d``.
        deformable_groups: that many parts of the input channels have offsets of their own.
        norm, activation: applied to the output, if given.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Union[int, Tuple[int, int]],
        stride: Union[int, Tuple[int, int]] = 1,
        padding: Union[int, Tuple[int, int]] = 0,
        dilation: Union[int, Tuple[int, int]] = 1,
        groups: int = 1,
        deformable_groups: int = 1,
        bias: bool = False,
        norm: Optional[nn.Module] = None,
        activation: Optional[Callable[[Tensor], Tensor]] = None,
    ):
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        self.deformable_groups = deformable_groups
        self.norm, self.activation = norm, activation
        # As Detectron2's.
        nn.init.kaiming_uniform_(self.weight, nonlinearity="relu")
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, offset: Tensor, mask: Optional[Tensor] = None) -> Tensor:
        """Return the output ``[N, out_channels, H', W']``.

        Args:
            x: ``[N, in_channels, H, W]``.
            offset: ``[N, 2 * deformable_groups * kernel height * kernel width, H', W']``: of each place that the
                kernel looks at, how far down and how far right in pixels.
            mask: ``[N, deformable_groups * kernel height * kernel width, H', W']``, a factor of each such place.
        """
        x = super().forward(x, offset, mask)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.activation is None else self.activation(x)


def use_torchvision() -> None:
    """Let Detectron2 build its deformable layers by torchvision's operator, unless it has compiled its own."""
    if importlib.util.find_spec("detectron2._C") is None:
        resnet.DeformConv = resnet.ModulatedDeformConv = DeformableConv
