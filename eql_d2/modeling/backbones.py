"""Backbones that Detectron2 does not have: ResNet-32 for CIFAR, ResNet-10, and any model of timm, under an FPN too."""

from difflib import get_close_matches
from typing import Dict, Iterator, Sequence

import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, FPN, Backbone
from detectron2.modeling.backbone.fpn import LastLevelMaxPool
from torch import Tensor, nn

from eql_d2.errors import InputError


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


class TimmBackbone(Backbone):
    """A model of timm by its stages; strides and channels are those of timm's ``feature_info``.

    Args:
        name: of the model, see ``timm.list_models()``.
        in_channels: of the images.
        out_features: names of the stages to give, ``stage1`` (stride 2 or 4) and on; the last one if empty.
        pretrained: load timm's weights, which it downloads.
        norm: "" for the model's own norm layers, "FrozenBN" for batch norm with fixed statistics and factors, or
            "SyncBN" for batch norm with the statistics of the images of all processes.
        freeze_at: that many stages from the input on are frozen, the stem with the first; 0 for none.

    Raises:
        InputError: for a model or stage that there is not, or a number of stages to freeze that it has not.
    """

    def __init__(
        self,
        name: str,
        in_channels: int = 3,
        out_features: Sequence[str] = (),
        pretrained: bool = False,
        norm: str = "",
        freeze_at: int = 0,
    ):
        super().__init__()
        timm = _import_timm()
        # timm's own conversions: its batch norm carries the activation.
        norms = {
            "": lambda model: model,
            "FrozenBN": timm.layers.freeze_batch_norm_2d,
            "SyncBN": timm.layers.convert_sync_batchnorm,
        }
        if norm not in norms:
            raise InputError(
                f"MODEL.LONG_TAIL.TIMM.NORM is {norm!r}; it is '' (the model's own), 'FrozenBN' or 'SyncBN'."
            )
        try:
            model = timm.create_model(name, pretrained=pretrained, features_only=True, in_chans=in_channels)
        except RuntimeError as error:
            near = get_close_matches(name, timm.list_models(), n=1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise InputError(f"MODEL.LONG_TAIL.TIMM.NAME is {name!r}: {error}.{hint}") from None
        info = model.feature_info
        self._stages = [f"stage{i + 1}" for i in range(len(info.channels()))]
        self._out_feature_channels = dict(zip(self._stages, info.channels()))
        self._out_feature_strides = dict(zip(self._stages, info.reduction()))
        self._out_features = list(out_features) or self._stages[-1:]
        unknown = sorted(set(self._out_features) - set(self._stages))
        if unknown:
            raise InputError(
                f"MODEL.LONG_TAIL.TIMM.OUT_FEATURES has {unknown[0]!r}; {name} has {', '.join(self._stages)}."
            )
        self.model = norms[norm](model)
        if not 0 <= freeze_at <= len(self._stages):
            raise InputError(f"MODEL.BACKBONE.FREEZE_AT is {freeze_at}; it is 0 to {len(self._stages)}.")
        if freeze_at:
            names = list(_modules_until(self.model, info.get_dicts()[freeze_at - 1]["module"]))
            timm.utils.freeze(self.model, names, include_bn_running_stats=True)

    def forward(self, x: Tensor) -> Dict[str, Tensor]:
        """Return the maps ``[N, channels, H / stride, W / stride]`` of the chosen stages of images ``[N, 3, H, W]``."""
        maps = dict(zip(self._stages, self.model(x)))
        return {name: self._channels_first(name, maps[name]) for name in self._out_features}

    def _channels_first(self, name: str, features: Tensor) -> Tensor:
        """Some transformers of timm give ``[N, H, W, C]``."""
        if features.shape[1] == self._out_feature_channels[name]:
            return features
        return features.permute(0, 3, 1, 2)


def _modules_until(module: nn.Module, last: str, prefix: str = "") -> Iterator[str]:
    """Yield the names of the modules before ``last``, in their order, and of ``last`` itself.

    Args:
        module: where to begin.
        last: dotted name; some models of timm have an underscore in the place of the dot.
        prefix: of the names.
    """
    children = dict(module.named_children())
    name, _, rest = last.partition(".")
    if name not in children:
        name, rest = last.replace(".", "_"), ""
    for child_name, child in children.items():
        if child_name == name and rest:
            yield from _modules_until(child, rest, f"{prefix}{name}.")
        else:
            yield f"{prefix}{child_name}"
        if child_name == name:
            return


@BACKBONE_REGISTRY.register()
def build_timm_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> TimmBackbone:
    """Build the model that ``MODEL.LONG_TAIL.TIMM.NAME`` names, see :class:`TimmBackbone`."""
    node = cfg.MODEL.LONG_TAIL.TIMM
    return TimmBackbone(
        node.NAME, input_shape.channels, node.OUT_FEATURES, node.PRETRAINED, node.NORM, cfg.MODEL.BACKBONE.FREEZE_AT
    )


@BACKBONE_REGISTRY.register()
def build_timm_fpn_backbone(cfg: CfgNode, input_shape: ShapeSpec) -> FPN:
    """Build the same under a feature pyramid, for detectors.

    ``MODEL.FPN.IN_FEATURES`` names the stages, of rising stride; the outputs are ``p<log2 of the stride>`` and one
    more, by max pooling, as of Detectron2's ``build_resnet_fpn_backbone``.
    """
    node = cfg.MODEL.LONG_TAIL.TIMM
    in_features = cfg.MODEL.FPN.IN_FEATURES
    bottom_up = TimmBackbone(
        node.NAME, input_shape.channels, in_features, node.PRETRAINED, node.NORM, cfg.MODEL.BACKBONE.FREEZE_AT
    )
    return FPN(
        bottom_up=bottom_up,
        in_features=in_features,
        out_channels=cfg.MODEL.FPN.OUT_CHANNELS,
        norm=cfg.MODEL.FPN.NORM,
        top_block=LastLevelMaxPool(),
        fuse_type=cfg.MODEL.FPN.FUSE_TYPE,
    )


def _import_timm():
    try:
        import timm
        import timm.layers
        import timm.utils
    except ImportError:
        raise InputError("MODEL.BACKBONE.NAME asks for a model of timm, which is missing: pip install timm.") from None
    return timm
