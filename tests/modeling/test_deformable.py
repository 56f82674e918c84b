"""Deformable convolution by torchvision: a plain one where nothing is shifted, and else as by hand."""

import pytest
import torch
import torch.nn.functional as F
from detectron2.modeling import build_model
from detectron2.modeling.backbone import resnet
from detectron2.modeling.backbone.resnet import DeformBottleneckBlock
from detectron2.utils.events import EventStorage

from eql_d2.modeling.deformable import DeformableConv, use_torchvision
from tests.conftest import tiny_config
from tests.modeling.test_heads import example


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("deformable_groups", [1, 2])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("stride, dilation", [(1, 1), (2, 1), (1, 2)])
def test_without_offsets_it_is_a_plain_convolution(modulated, deformable_groups, groups, stride, dilation):
    torch.manual_seed(0)
    layer = DeformableConv(
        4, 6, 3, stride, dilation, dilation, groups, deformable_groups, norm=torch.nn.BatchNorm2d(6), activation=F.relu
    )
    x = torch.randn(2, 4, 9, 11)
    plain = F.conv2d(x, layer.weight, None, stride, dilation, dilation, groups)
    offset = x.new_zeros(2, 18 * deformable_groups, *plain.shape[2:])
    mask = x.new_ones(2, 9 * deformable_groups, *plain.shape[2:]) if modulated else None
    expected = F.relu(F.batch_norm(plain, None, None, layer.norm.weight, layer.norm.bias, training=True))
    torch.testing.assert_close(layer(x, offset, mask), expected, rtol=1e-4, atol=1e-5)


def by_hand(x, offset, weight, mask, padding):
    """Every place of the kernel read by bilinear interpolation, zero outside the image (arXiv 1703.06211, eq. 2, 3)."""
    (height, width), size = x.shape[2:], weight.shape[2]
    groups = offset.shape[1] // (2 * size * size)
    out = x.new_zeros(x.shape[0], weight.shape[0], *offset.shape[2:])
    for n, i, j in ((n, i, j) for n in range(len(x)) for i in range(out.shape[2]) for j in range(out.shape[3])):
        for c in range(x.shape[1]):
            group = c * groups // x.shape[1]
            for k in range(size * size):
                place = group * size * size + k
                y_at = i - padding + k // size + offset[n, 2 * place, i, j]
                x_at = j - padding + k % size + offset[n, 2 * place + 1, i, j]
                value = 0
                for row in (y_at.floor().long(), y_at.floor().long() + 1):
                    for column in (x_at.floor().long(), x_at.floor().long() + 1):
                        if 0 <= row < height and 0 <= column < width:
                            share = (1 - (y_at - row).abs()) * (1 - (x_at - column).abs())
                            value = value + share * x[n, c, row, column]
                if mask is not None:
                    value = value * mask[n, place, i, j]
                out[n, :, i, j] += value * weight[:, c, k // size, k % size]
    return out


@pytest.mark.parametrize("modulated", [False, True])
@pytest.mark.parametrize("deformable_groups", [1, 2])
def test_as_by_hand(modulated, deformable_groups):
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    layer = DeformableConv(2, 3, 3, padding=1, deformable_groups=deformable_groups).double()
    x, offset = draw(1, 2, 4, 5), draw(1, 18 * deformable_groups, 4, 5)
    mask = draw(1, 9 * deformable_groups, 4, 5).sigmoid() if modulated else None
    torch.testing.assert_close(layer(x, offset, mask), by_hand(x, offset, layer.weight, mask, 1))
    inputs = [x, offset, *([mask] if modulated else [])]
    assert torch.autograd.gradcheck(layer, [value.requires_grad_() for value in inputs])


@pytest.mark.parametrize("modulated", [False, True])
def test_detectron2_builds_its_block_of_them(modulated):
    """With its names in a checkpoint. Offsets are zero at first: it is the plain block, v2's at half the weight."""
    torch.manual_seed(0)
    settings = {"bottleneck_channels": 4, "stride": 2, "num_groups": 2, "norm": "FrozenBN"}
    block = DeformBottleneckBlock(8, 16, deform_modulated=modulated, **settings)
    names = {"weight", "norm.weight", "norm.bias", "norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    assert {key[6:] for key in block.state_dict() if key.startswith("conv2.")} <= names
    plain = resnet.BottleneckBlock(8, 16, **settings)
    weights = {key: value for key, value in block.state_dict().items() if "offset" not in key}
    if modulated:
        weights["conv2.weight"] = weights["conv2.weight"] / 2
    plain.load_state_dict(weights)
    x = torch.randn(2, 8, 10, 12)
    torch.testing.assert_close(block(x), plain(x), rtol=1e-4, atol=1e-5)
    assert block(x[:0]).shape == (0, 16, 5, 6)


@pytest.mark.parametrize("modulated", [False, True])
def test_a_detector_trains_with_it(lvis_folder, modulated):
    options = ["MODEL.RESNETS.DEPTH", 50, "MODEL.RESNETS.DEFORM_ON_PER_STAGE", [False, True, True, True]]
    options += ["MODEL.RESNETS.WIDTH_PER_GROUP", 8, "MODEL.RESNETS.DEFORM_MODULATED", modulated]
    model = build_model(tiny_config(lvis_folder, "Mask-R-CNN-FPN", "EQL", *options)).train()
    layers = [module for module in model.modules() if isinstance(module, DeformableConv)]
    assert len(layers) == 4 + 6 + 3
    with EventStorage():
        sum(model([example(), example(seed=1)]).values()).backward()
    offsets = [p for name, p in model.named_parameters() if "conv2_offset.weight" in name]
    assert len(offsets) == 13 and all(p.grad.abs().sum() > 0 for p in offsets)


def test_a_compiled_detectron2_keeps_its_own(monkeypatch):
    own = object()
    monkeypatch.setattr(resnet, "DeformConv", own)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: own)
    use_torchvision()
    assert resnet.DeformConv is own
