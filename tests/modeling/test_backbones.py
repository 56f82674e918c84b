"""Backbones that Detectron2 does not have."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY

from eql_d2.config import get_cfg


def build(name, cfg=None):
    return BACKBONE_REGISTRY.get(name)(cfg or get_cfg(), ShapeSpec(channels=3))


def num_parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "parameters", "channels", "stride"),
    [("build_cifar_resnet32_backbone", 463_504, 64, 4), ("build_resnet10_backbone", 4_905_792, 512, 32)],
)
def test_sizes(name, parameters, channels, stride):
    backbone = build(name)
    assert num_parameters(backbone) == parameters
    shape = backbone.output_shape()["last"]
    assert (shape.channels, shape.stride) == (channels, stride)
    features = backbone.eval()(torch.rand(2, 3, 64, 32))
    assert features["last"].shape == (2, channels, 64 // stride, 32 // stride)


def test_resnet32_of_ten_classes_has_the_paper_s_parameters():
    """0.46 M (arXiv 1512.03385, Table 6)."""
    assert num_parameters(build("build_cifar_resnet32_backbone")) + 64 * 10 + 10 == 464_154


def test_option_a_shortcut_is_every_second_pixel_between_zeros():
    backbone = build("build_cifar_resnet32_backbone").eval()
    block = backbone.stages[1][0]
    with torch.no_grad():
        for norm in (block.bn1, block.bn2):
            norm.weight.zero_()
    x = torch.rand(2, 16, 8, 8)
    expected = torch.zeros(2, 32, 4, 4)
    expected[:, 8:24] = x[:, :, ::2, ::2]
    torch.testing.assert_close(block(x), expected)
