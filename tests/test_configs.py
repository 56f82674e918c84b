"""Every config: a leaf of a few lines that builds its model, with the loss, heads and masks that its name says."""

import json

import pytest
import torch
from detectron2.modeling import build_model

import eql_d2.modeling  # noqa: F401
from eql_d2.data.frequency import CategoryFrequency
from eql_d2.engine import load_config
from eql_d2.engine.trainer import describe_experiment
from tests.conftest import CONFIGS

LEAVES = sorted(path for path in CONFIGS.rglob("*.yaml") if not path.name.startswith("Base-"))


@pytest.fixture(scope="module")
def frequency_file(tmp_path_factory):
    """Return a function that writes long-tailed counts of K classes and returns the file."""
    folder = tmp_path_factory.mktemp("frequency")

    def write(num_classes: int) -> str:
        path = folder / f"{num_classes}.json"
        counts = [max(1, int(2000 * 0.99**j)) for j in range(num_classes)]
        CategoryFrequency.from_counts(counts, num_images=57263).save(path)
        return str(path)

    return write


@pytest.fixture(scope="module", autouse=True)
def _skip_initial_values():
    """Leave parameters uninitialised: filling a ResNet-101 with random numbers takes most of a build's time."""
    patch = pytest.MonkeyPatch()
    for name in ("kaiming_uniform_", "kaiming_normal_", "normal_", "uniform_"):
        patch.setattr(torch.nn.init, name, lambda tensor, *args, **kwargs: tensor)
    yield
    patch.undo()


@pytest.mark.parametrize("path", LEAVES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_leaf(path, frequency_file):
    content = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    assert len(content) <= 14, f"{path} is no leaf: {len(content)} lines"
    cfg = load_config(str(path), ["MODEL.DEVICE", "cpu"])
    cfg.MODEL.LONG_TAIL.FREQUENCY = frequency_file(cfg.MODEL.ROI_HEADS.NUM_CLASSES)
    model = build_model(cfg)
    losses = describe_experiment(cfg, model)["classifier_losses"]
    heads = cfg.MODEL.ROI_HEADS.NAME
    assert len(losses) == (3 if heads == "LongTailCascadeROIHeads" else 1)
    # Folder and loss agree, so that nobody trains EQL for EQL v2.
    folder = path.parent.name
    method = folder if folder not in ("mini", "real") else path.stem.replace("demo_", "").replace("cascade_", "")
    assert method.startswith(losses[0]["loss"].lower())
    assert model.roi_heads.num_classes == losses[0]["num_classes"]
    assert ("FPN" in path.name) <= (cfg.MODEL.BACKBONE.NAME == "build_resnet_fpn_backbone")
    for depth in (50, 101):
        assert (f"R_{depth}_" in path.name) <= (cfg.MODEL.RESNETS.DEPTH == depth)
    if "paper" in path.name:
        assert cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK and cfg.SOLVER.IMS_PER_BATCH == 32
    if folder not in ("mini", "real"):
        assert cfg.MODEL.WEIGHTS.startswith("detectron2://") and cfg.TEST.DETECTIONS_PER_IMAGE == 300


def test_the_paper_s_schedule_is_25_epochs():
    cfg = load_config(str(CONFIGS / "LVISv0.5/eql/mask_rcnn_R_50_FPN_paper.yaml"))
    per_epoch = 56740 / cfg.SOLVER.IMS_PER_BATCH
    assert round(25 * per_epoch) == cfg.SOLVER.MAX_ITER
    assert [round(epoch * per_epoch) for epoch in (16, 22)] == list(cfg.SOLVER.STEPS)


def test_every_protocol_states_its_world_size():
    """Fewer GPUs must not silently mean a smaller batch per learning rate."""
    for path in LEAVES:
        if path.parent.name not in ("mini", "real"):
            cfg = load_config(str(path))
            assert cfg.SOLVER.IMS_PER_BATCH == 2 * cfg.SOLVER.REFERENCE_WORLD_SIZE, path


def test_configs_survive_a_dump(tmp_path):
    cfg = load_config(str(CONFIGS / "mini/eql.yaml"))
    (tmp_path / "config.yaml").write_text(cfg.dump())
    assert json.dumps(load_config(str(tmp_path / "config.yaml"))) == json.dumps(cfg)
