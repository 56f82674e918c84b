"""The road map of the challenge of 2019: each step adds to the one before what its name says, and builds."""

import json

import pytest
import torch
from detectron2.modeling import build_backbone, build_model
from torch import nn

import eql_d2.modeling  # noqa: F401
from eql_d2.config import flatten, load_config
from eql_d2.data.frequency import CategoryFrequency
from eql_d2.experiments.comparison import collect_lines
from eql_d2.experiments.plan import runs_of
from eql_d2.experiments.spec import load_specification
from eql_d2.modeling.deformable import DeformableConv
from eql_d2.modeling.test_time_augmentation import check_augmentable
from tests.conftest import CONFIGS

FOLDERS = {"LVISv0.5/challenge": 1230, "mini_challenge": 60}
LEAVES = sorted(p for folder in FOLDERS for p in (CONFIGS / folder).glob("*.yaml") if not p.name.startswith("Base-"))
#: What each step changes in the config of the one before, in both folders; the full road map alone has 6 and 8.
CHANGES = {
    2: {"MODEL.RESNETS.DEFORM_ON_PER_STAGE"},
    3: {"MODEL.RESNETS.NORM", "MODEL.FPN.NORM"},
    4: {"DATALOADER.SAMPLER_TRAIN", "DATALOADER.REPEAT_THRESHOLD"},
    5: {"INPUT.MIN_SIZE_TRAIN", "INPUT.MAX_SIZE_TRAIN"},
    6: {"MODEL.WEIGHTS", "MODEL.LONG_TAIL.INIT_CLASSIFIER", "MODEL.LONG_TAIL.INIT_CLASSES"},
    7: {"MODEL.LONG_TAIL.IGNORED.BOXES"},
    8: {"MODEL.WEIGHTS", "MODEL.BACKBONE.NAME", "MODEL.FPN.IN_FEATURES", "MODEL.PIXEL_MEAN", "MODEL.PIXEL_STD"}
    | {"MODEL.LONG_TAIL.TIMM.NAME", "MODEL.LONG_TAIL.TIMM.NORM", "INPUT.FORMAT"},
    9: {"MODEL.LONG_TAIL.DATASETS", "MODEL.LONG_TAIL.IGNORED.BOXES", "DATASETS.TRAIN"},
    10: {"TEST.AUG.ENABLED", "TEST.AUG.MIN_SIZES", "TEST.AUG.FLIP", "MODEL.LONG_TAIL.TTA.MASKS"},
    11: {"MODEL.LONG_TAIL.TTA.MASKS"},
}  # fmt: skip
#: Leaves of the full road map whose models differ.
BUILT = ("step1_", "step2", "step3", "step8", "coco_X")

pytestmark = pytest.mark.usefixtures("without_initial_values")


def steps(folder):
    """Return the steps of a road map by their number."""
    found = {int(p.stem[4:].split("_")[0]): p for p in (CONFIGS / folder).glob("step*.yaml")}
    if folder == "mini_challenge":
        found[1] = CONFIGS / "mini/eql.yaml"
    return dict(sorted(found.items()))


@pytest.mark.parametrize("folder", FOLDERS)
def test_each_step_adds_what_its_name_says(folder):
    paths = steps(folder)
    assert list(paths) == ([*range(1, 12)] if folder != "mini_challenge" else [1, 2, 3, 4, 5, 7, 9, 10, 11])
    before = None
    for number, path in paths.items():
        now = flatten(load_config(str(path)))
        if before is not None:
            changed = {key for key in now if now[key] != before[key]}
            assert changed and changed <= CHANGES[number], (path, changed)
        before = now


@pytest.mark.parametrize("path", LEAVES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_leaf(path, tmp_path):
    content = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    assert len(content) <= 14, f"{path} is no leaf: {len(content)} lines"
    num_classes = 80 if path.name.startswith("coco_") else FOLDERS[str(path.parent.relative_to(CONFIGS))]
    counts = [max(1, int(2000 * 0.99**j)) for j in range(num_classes)]
    CategoryFrequency.from_counts(counts, num_images=57263).save(tmp_path / "frequency.json")
    options = ["MODEL.DEVICE", "cpu", "MODEL.LONG_TAIL.FREQUENCY", str(tmp_path / "frequency.json")]
    cfg = load_config(str(path), [*options, "MODEL.LONG_TAIL.TIMM.PRETRAINED", False])
    assert cfg.MODEL.MASK_ON and cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK
    if path.parent.name == "challenge":
        assert cfg.SOLVER.IMS_PER_BATCH == 2 * cfg.SOLVER.REFERENCE_WORLD_SIZE == 32
        assert {80: 100}.get(num_classes, 300) == cfg.TEST.DETECTIONS_PER_IMAGE
        assert path.stem.startswith("step") or f"output/LVISv0.5/challenge/{path.stem}" == cfg.OUTPUT_DIR
        if not path.stem.startswith(BUILT):
            return
    model = build_model(cfg)
    check_augmentable(cfg, model)
    loss = model.roi_heads.box_predictor.classifier_loss
    assert loss.num_classes == num_classes and loss.name == ("SOFTMAX" if num_classes == 80 else "EQL")
    kinds = [type(module) for module in model.backbone.modules()]
    is_senet = cfg.MODEL.BACKBONE.NAME == "build_timm_fpn_backbone"
    # 3 of the 4 stages of ResNet-101 and of the mini model, ResNet-50.
    deformable = 0 if is_senet or "step1_" in path.name else 13 if num_classes == 60 else 30
    assert kinds.count(DeformableConv) == deformable
    if "step1_" not in path.name and "step2" not in path.name:
        assert nn.SyncBatchNorm in kinds or any(issubclass(kind, nn.SyncBatchNorm) for kind in kinds)
        assert not any(issubclass(kind, nn.BatchNorm2d) and not issubclass(kind, nn.SyncBatchNorm) for kind in kinds)


def test_senet_154_gives_the_pyramid_its_four_stages(tmp_path):
    cfg = load_config(str(CONFIGS / "LVISv0.5/challenge/step8_SENet_154.yaml"), ["MODEL.DEVICE", "cpu"])
    with torch.device("meta"):
        backbone = build_backbone(cfg)
        maps = backbone(torch.zeros(1, 3, 128, 192))
    assert {name: tuple(value.shape[2:]) for name, value in maps.items()} == {
        "p2": (32, 48), "p3": (16, 24), "p4": (8, 12), "p5": (4, 6), "p6": (2, 3),
    }  # fmt: skip
    # SENet-154 has 115 million parameters with its classifier of 1000 classes (arXiv 1709.01507, table 8, cadene's).
    assert round(sum(p.numel() for p in backbone.bottom_up.parameters()) / 1e6, 1) == 113.0


def test_rows_of_test_time_augmentation_print_its_numbers(tmp_path, monkeypatch):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))  # without the data, the config alone tells the runs
    table = load_specification("eql_challenge")
    metrics = {"segm": {"AP": 1.0}, "segm_TTA": {"AP": 2.0}}
    common = {"code_digest": "code", "metrics": metrics, "seconds": 1.0, "peak_memory_mib": 1.0}
    runs = runs_of(table, tmp_path).values()
    records = [json.dumps({**common, "seed": run.seed, "config_digest": run.config_digest}) for run in runs]
    (tmp_path / "results.jsonl").write_text("\n".join(records))
    cells = {line.row.name: line.cells["segm/AP"] for line in collect_lines(table, tmp_path / "results.jsonl")}
    printed = {name: set(cell.values) for name, cell in cells.items()}
    assert [name for name, values in printed.items() if values == {2.0}] == ["multi_scale_boxes", "multi_scale_masks"]
    assert [name for name, values in printed.items() if values != {1.0} and values != {2.0}] == ["ensemble"]
    published = [cell.published["paper"] for cell in cells.values() if cell.published]
    assert published == ["30.1", "30.8", "31.4", "32.3", "35.1", "36.4"]
