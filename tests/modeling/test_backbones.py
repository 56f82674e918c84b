"""Backbones that Detectron2 does not have."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY

import eql_d2.modeling  # noqa: F401
from eql_d2.config import get_cfg
from eql_d2.errors import InputError


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


#: Stages of timm's models: names, channels, strides.
TIMM = {
    "resnet18": ([64, 64, 128, 256, 512], [2, 4, 8, 16, 32]),
    "convnext_atto": ([40, 80, 160, 320], [4, 8, 16, 32]),
    "efficientnet_lite0": ([16, 24, 40, 112, 320], [2, 4, 8, 16, 32]),
    "swin_tiny_patch4_window7_224": ([96, 192, 384, 768], [4, 8, 16, 32]),
}


def timm_config(name, **settings):
    pytest.importorskip("timm")
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.LONG_TAIL.TIMM.NAME = name
    for key, value in settings.items():
        cfg.MODEL.LONG_TAIL.TIMM[key] = value
    return cfg


@pytest.mark.parametrize("name", list(TIMM))
def test_timm_stages(name):
    channels, strides = TIMM[name]
    stages = [f"stage{i + 1}" for i in range(len(channels))]
    backbone = build("build_timm_backbone", timm_config(name, OUT_FEATURES=stages)).eval()
    side = 224 if "224" in name else 64
    shapes = backbone.output_shape()
    assert [shapes[stage].channels for stage in stages] == channels
    assert [shapes[stage].stride for stage in stages] == strides
    with torch.no_grad():
        features = backbone(torch.rand(1, 3, side, side))
    for stage, width, stride in zip(stages, channels, strides):
        assert features[stage].shape == (1, width, side // stride, side // stride)
    assert list(build("build_timm_backbone", timm_config(name)).output_shape()) == stages[-1:]


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto", "efficientnet_lite0"])
def test_timm_under_an_fpn(name):
    _, strides = TIMM[name]
    stages = [f"stage{i + 1}" for i, stride in enumerate(strides) if stride >= 4]
    cfg = timm_config(name)
    cfg.MODEL.FPN.IN_FEATURES = stages
    cfg.MODEL.FPN.OUT_CHANNELS = 8
    backbone = build("build_timm_fpn_backbone", cfg).train()
    features = backbone(torch.rand(2, 3, 64, 128))
    assert list(features) == ["p2", "p3", "p4", "p5", "p6"]
    assert [tuple(level.shape) for level in features.values()] == [
        (2, 8, 64 // stride, 128 // stride) for stride in (4, 8, 16, 32, 64)
    ]
    sum(level.sum() for level in features.values()).backward()
    first = next(backbone.bottom_up.parameters())
    assert first.grad.abs().sum() > 0


def randomize_statistics(module):
    generator = torch.Generator().manual_seed(0)
    for name, value in module.state_dict().items():
        if "running" in name:
            value.copy_(torch.rand(value.shape, generator=generator) + 0.5)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0"])
def test_frozen_batch_norm_is_batch_norm_at_test(name):
    backbone, frozen = (build("build_timm_backbone", timm_config(name, NORM=norm)) for norm in ("", "FrozenBN"))
    randomize_statistics(backbone)
    state = {key: value for key, value in backbone.state_dict().items() if not key.endswith("num_batches_tracked")}
    frozen.load_state_dict(state)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        expected = backbone.eval()(images)
        found = frozen.train()(images)
    for stage, features in expected.items():
        torch.testing.assert_close(found[stage], features, rtol=1e-4, atol=1e-5)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in frozen.modules())


@pytest.mark.parametrize(
    ("name", "frozen", "trained"),
    [
        ("resnet18", ["conv1", "bn1", "layer1"], ["layer2", "layer3", "layer4"]),
        ("convnext_atto", ["stem_0", "stem_1", "stages_0", "stages_1"], ["stages_2", "stages_3"]),
        ("efficientnet_lite0", ["conv_stem", "bn1", "blocks.0", "blocks.1"], ["blocks.2", "blocks.4", "blocks.6"]),
    ],
)
def test_frozen_stages(name, frozen, trained):
    cfg = timm_config(name)
    cfg.MODEL.BACKBONE.FREEZE_AT = 2
    model = build("build_timm_backbone", cfg).model
    for modules, is_trained in ((frozen, False), (trained, True)):
        for module in map(model.get_submodule, modules):
            assert all(parameter.requires_grad is is_trained for parameter in module.parameters())
            has_batch_norm = any(isinstance(part, torch.nn.BatchNorm2d) for part in module.modules())
            assert is_trained or not has_batch_norm


@pytest.mark.parametrize(
    ("settings", "freeze_at", "match"),
    [
        ({"NAME": "resnet_18"}, 0, "NAME is 'resnet_18'.*Did you mean"),
        ({"OUT_FEATURES": ["stage9"]}, 0, "OUT_FEATURES has 'stage9'; resnet18 has stage1"),
        ({"NORM": "GN"}, 0, "NORM is 'GN'"),
        ({}, 6, "FREEZE_AT is 6; it is 0 to 5"),
    ],
)
def test_bad_timm_settings(settings, freeze_at, match):
    cfg = timm_config("resnet18", **settings)
    cfg.MODEL.BACKBONE.FREEZE_AT = freeze_at
    with pytest.raises(InputError, match=match):
        build("build_timm_backbone", cfg)
