"""Backbones that Detectron2 does not have: ResNet-32 for CIFAR, ResNet-10, and any model of timm, under an FPN too."""

from typing import Dict, Sequence

import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm and a shortcut (He et al., arXiv 1512.03385, figure 5, left).

    Args:
        in_channels: of the input.
        channels: of the output.
        stride: of the first convolution.
        project: a 1x1 convolution as the shortcut where the shape changes (option B of section 4.1), instead of every
            ``stride``-th pixel with channels of zeros on both sides, which has no parameter (option A).
    """

    def __init__(self, in_channels: int, channels: int, stride: int, project: bool):
        super().__init__()
        self.stride, self.padding = stride, (channels - in_channels) // 2
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.shortcut = None
        if project and (stride > 1 or in_channels != channels):
            convolution = nn.Conv2d(in_channels, channels, 1, stride, bias=False)
            self.shortcut = nn.Sequential(convolution, nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        if self.shortcut is not None:
            x = self.shortcut(x)
        elif self.stride > 1 or self.padding:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return F.relu(out.add_(x), inplace=True)


class SmallResNet(Backbone):
    """A residual network of basic blocks with all its parameters trained from scratch, Kaiming-normal weights.

    Args:
        channels: of each stage.
        depths: blocks of each stage.
        stem: the layers before the first stage; their output has ``channels[0]`` channels.
        stem_stride: of the stem.
        project: see :class:`BasicBlock`.

    Gives ``{"last": [N, channels[-1], H / stride, W / stride]}``.
    """

    def __init__(
        self, channels: Sequence[int], depths: Sequence[int], stem: nn.Sequential, stem_stride: int, project: bool
    ):
        super().__init__()
        self.stem = stem
        stages, in_channels = [], channels[0]
        for stage, (width, depth) in enumerate(zip(channels, depths)):
            blocks = []
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(BasicBlock(in_channels, width, stride, project))
                in_channels = width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.Sequential(*stages)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        self._out_features = ["last"]
        self._out_feature_channels = {"last": channels[-1]}
        self._out_feature_strides = {"last": stem_stride * 2 ** (len(channels) - 1)}

    def forward(self, x: Tensor) -> Dict[str, Tensor]:
        """Return the last feature map of images ``[N, 3, H, W]``."""
        return {"last": self.stages(self.stem(x))}


def _stem(in_channels: int, channels: int, kernel: int, stride: int, *more: nn.Module) -> nn.Sequential:
    convolution = nn.Conv2d(in_channels, channels, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(channels), nn.ReLU(inplace=True), *more)


@BACKBONE_REGISTRY.register()
def build_cifar_resnet32_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SmallResNet:
    """ResNet-32 for images of 32 pixels (arXiv 1512.03385, section 4.2): 463,504 parameters, stride 4.

    A 3x3 convolution of 16 channels, then three stages of five basic blocks with 16, 32 and 64 channels, shortcuts
    without parameters.
    """
    return SmallResNet((16, 32, 64), (5, 5, 5), _stem(input_shape.channels, 16, 3, 1), 1, project=False)


@BACKBONE_REGISTRY.register()
def build_resnet10_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> SmallResNet:
    """ResNet-10, the network of ImageNet-LT (OLTR, arXiv 1904.05160): 4,905,792 parameters, stride 32.

    ResNet-18's stem and one basic block in each of its four stages, shortcuts by 1x1 convolutions.
    """
    stem = _stem(input_shape.channels, 64, 7, 2, nn.MaxPool2d(3, 2, 1))
    return SmallResNet((64, 128, 256, 512), (1, 1, 1, 1), stem, 4, project=True)
