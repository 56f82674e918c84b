"""Every config: a leaf of a few lines that builds its model, with the loss, heads and masks that its name says."""

import json
from functools import cache

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model

import eql_d2.modeling  # noqa: F401
from eql_d2.config import get_cfg, load_config
from eql_d2.data.frequency import CategoryFrequency
from eql_d2.engine.trainer import describe_experiment
from eql_d2.experiments.references import leaves
from eql_d2.losses import (
    CALIBRATION_REGISTRY,
    CLASSIFIER_LOSS_REGISTRY,
    REGULARIZER_REGISTRY,
    LogitStatistics,
    RunningLogitStatistics,
)
from eql_d2.losses.fracal import save_dimensions
from tests.conftest import CONFIGS, ROOT

#: The detectors; test_classification_configs.py, test_segmentation_configs.py and test_challenge.py have the others.
OTHERS = {CONFIGS / "classification", CONFIGS / "segmentation", CONFIGS / "mini_semseg"}
OTHERS |= {CONFIGS / "LVISv0.5/challenge", CONFIGS / "mini_challenge"}
LEAVES = [path for path in leaves() if not OTHERS & set(path.parents)]
#: Folders of the configs that are no method's.
SETS = ("mini", "mini_openimages", "mini_partly", "photographs", "real")
LOSSES = {name.lower() for name, _ in CLASSIFIER_LOSS_REGISTRY}
CALIBRATIONS = {name.lower() for name, _ in CALIBRATION_REGISTRY}
REGULARIZERS = {name.lower() for name, _ in REGULARIZER_REGISTRY}
#: All others have two.
IMAGES_PER_GPU = {
    CONFIGS / "LVISv0.5/class_balanced/faster_rcnn_R_50_FPN_coco_1x_stage2.yaml": 4,  # BAGS model 7
    CONFIGS / "LVISv0.5/softmax/mask_rcnn_R_50_FPN_coco_1x.yaml": 1,  # BAGS model 19
    CONFIGS / "LVISv1/federated/cascade_mask_rcnn_R_50_FPN_90k_LSJ.yaml": 8,  # Detic
    **{CONFIGS / f"LVISv1/{loss}/mask_rcnn_vitdet_b_100ep.yaml": 1 for loss in ("federated", "eql_v2", "seesaw")},
}
#: What is done with a softmax classifier that is trained already: (TRAINABLE, INIT_CLASSIFIER) of each protocol.
PROTOCOLS = {"crt": ("classifier", "reset"), "lws": ("scale", "keep"), "tau_norm": ("all", "keep")}
METHODS = LOSSES | CALIBRATIONS | REGULARIZERS | set(PROTOCOLS)

pytestmark = pytest.mark.usefixtures("without_initial_values")


@cache
def load(path):
    """Return a config; shared, so not to be changed."""
    return load_config(str(path))


def is_leaf_of_a_set(path) -> bool:
    return path.parent.name in SETS


def method_of(path) -> str:
    """Return the method that a leaf's folder, in ``mini`` and ``real`` its name, stands for."""
    if not is_leaf_of_a_set(path):
        return path.parent.name
    name = path.stem.replace("cascade_", "").replace("retinanet_", "")
    methods = [method for method in METHODS if f"{name}_".startswith(f"{method}_")]
    return max(methods, key=len)


def stage1_of(path):
    """Return the config whose result a leaf starts from, by the naming rule; ``None`` for one-stage leaves."""
    if method_of(path) not in {*CALIBRATIONS, *PROTOCOLS} and "_stage2" not in path.stem:
        node = load(path).MODEL.LONG_TAIL
        if node.TRAINABLE == "all":
            return None
    if is_leaf_of_a_set(path):
        return path.with_name("softmax.yaml")
    # What follows _stage2 tells two second stages of one method apart.
    return path.parent.parent / "softmax" / f"{path.stem.split('_stage2')[0]}.yaml"


@pytest.fixture(scope="module")
def counts_folder(tmp_path_factory):
    """Return a function that writes long-tailed counts and logit statistics of K classes, and returns their folder."""
    root = tmp_path_factory.mktemp("frequency")

    def write(num_classes: int):
        folder = root / str(num_classes)
        if not folder.exists():
            folder.mkdir()
            counts = [max(1, int(2000 * 0.99**j)) for j in range(num_classes)]
            CategoryFrequency.from_counts(counts, num_images=57263).save(folder / "frequency.json")
            for kind in (LogitStatistics, RunningLogitStatistics):
                kind(num_classes + 1).save(folder / f"statistics_{kind.regions}.pth")
            save_dimensions(torch.ones(num_classes), folder / "dimensions.pth")
        return folder

    return write


@pytest.mark.parametrize("path", LEAVES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_leaf(path, counts_folder):
    content = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    assert len(content) <= 14, f"{path} is no leaf: {len(content)} lines"
    cfg = load(path).clone()
    cfg.MODEL.DEVICE = "cpu"
    folder = counts_folder(cfg.MODEL.ROI_HEADS.NUM_CLASSES)
    node = cfg.MODEL.LONG_TAIL
    node.FREQUENCY = str(folder / "frequency.json")
    if node.CALIBRATION.LOGN.STATISTICS:
        node.CALIBRATION.LOGN.STATISTICS = str(folder / f"statistics_{node.CALIBRATION.LOGN.REGIONS}.pth")
    if node.CALIBRATION.FRACAL.STATISTICS:
        node.CALIBRATION.FRACAL.STATISTICS = str(folder / "dimensions.pth")
    model = build_model(cfg)
    losses = describe_experiment(cfg, model)["classifier_losses"]
    heads = cfg.MODEL.ROI_HEADS.NAME
    assert len(losses) == (3 if heads == "LongTailCascadeROIHeads" else 1)
    # Folder and loss agree, so that nobody trains EQL for EQL v2.
    method = method_of(path)
    # A regulariser's leaf says after the schedule which loss it is beside.
    beside = path.stem.rsplit("_", 1)[-1] if method in REGULARIZERS else method
    assert losses[0]["loss"].lower() == (beside if beside in LOSSES else "softmax")
    assert losses[0].get("regularizer", "").lower() == (method if method in REGULARIZERS else "")
    assert node.CALIBRATION.NAME.lower() == (method if method in CALIBRATIONS else "")
    if method in PROTOCOLS and "coco" not in path.name:
        assert PROTOCOLS[method] == (node.TRAINABLE, node.INIT_CLASSIFIER)
    assert (node.TAU_NORM.TAU > 0) == (method == "tau_norm")
    # Stage 1 has a softmax's K + 1 logits; a classifier of another width cannot start from them.
    if node.TRAINABLE != "all" and node.INIT_CLASSIFIER == "keep":
        assert losses[0]["num_logits"] == losses[0]["num_classes"] + 1
    if cfg.MODEL.WEIGHTS.startswith("detectron2://COCO"):
        assert node.INIT_CLASSIFIER == "reset"
    assert losses[0]["num_classes"] == cfg.MODEL.ROI_HEADS.NUM_CLASSES
    one_stage = "retinanet" in path.name
    backbone = "build_retinanet_resnet_fpn_backbone" if one_stage else "build_resnet_fpn_backbone"
    assert ("FPN" in path.name) <= (backbone == cfg.MODEL.BACKBONE.NAME)
    assert one_stage == (cfg.MODEL.META_ARCHITECTURE == "LongTailRetinaNet")
    has_masks = path.parent.name in ("mini", "mini_partly", "real") and not one_stage
    assert ("mask_rcnn" in path.name or has_masks) == cfg.MODEL.MASK_ON
    assert ("cascade" in path.name) == (heads == "LongTailCascadeROIHeads")
    for depth in (50, 101):
        assert (f"_{depth}_" in path.name) <= (depth == cfg.MODEL.RESNETS.DEPTH)
    resnets = cfg.MODEL.RESNETS
    width = (
        32 if path.parent.name in ("mini", "mini_openimages", "mini_partly", "photographs") else 64
    )  # the mini model is half as wide as ResNet-50
    groups = (64, 4, False) if "X_101_64x4d" in path.name else (1, width, resnets.STRIDE_IN_1X1)
    assert groups == (resnets.NUM_GROUPS, resnets.WIDTH_PER_GROUP, resnets.STRIDE_IN_1X1)
    if "paper" in path.name:
        assert cfg.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK and cfg.SOLVER.IMS_PER_BATCH == 32
    if not is_leaf_of_a_set(path):
        assert cfg.TEST.DETECTIONS_PER_IMAGE == 300
        assert cfg.MODEL.WEIGHTS.startswith(("detectron2://", "catalog://")) or stage1_of(path)


@pytest.mark.parametrize("path", LEAVES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_second_stages_start_from_the_first(path):
    """Stage 2 of ``<method>/<name>_stage2*.yaml``, and a calibration, look where ``softmax/<name>.yaml`` writes."""
    cfg = load(path)
    first = stage1_of(path)
    if first is None:
        assert cfg.MODEL.LONG_TAIL.TRAINABLE == "all"
        return
    first_cfg = load(first)
    assert first_cfg.MODEL.LONG_TAIL.LOSS == "SOFTMAX" and first_cfg.MODEL.LONG_TAIL.TRAINABLE == "all"
    assert f"{first_cfg.OUTPUT_DIR}/model_final.pth" == cfg.MODEL.WEIGHTS
    for key in ("ROI_HEADS", "RESNETS", "ROI_BOX_HEAD", "ROI_MASK_HEAD"):
        ours, theirs = cfg.MODEL[key].clone(), first_cfg.MODEL[key].clone()
        if key == "ROI_HEADS":
            ours.SCORE_THRESH_TEST = theirs.SCORE_THRESH_TEST
        assert ours == theirs, key
    factor = IMAGES_PER_GPU.get(path, 2) / IMAGES_PER_GPU.get(first, 2)
    assert factor * first_cfg.SOLVER.IMS_PER_BATCH == cfg.SOLVER.IMS_PER_BATCH


def test_output_folders_follow_the_config_s_path():
    """Where a config names its OUTPUT_DIR, it is ``output/<path of the config>``: no two stages share a folder."""
    default = get_cfg().OUTPUT_DIR
    for path in LEAVES:
        folder = load(path).OUTPUT_DIR
        if folder != default:
            assert folder == f"output/{path.relative_to(CONFIGS).with_suffix('')}"


def test_every_method_has_a_mini_leaf():
    assert {method_of(path) for path in LEAVES if path.parent.name == "mini"} == METHODS


def test_the_paper_s_schedule_is_25_epochs():
    cfg = load_config(str(CONFIGS / "LVISv0.5/eql/mask_rcnn_R_50_FPN_paper.yaml"))
    per_epoch = 56740 / cfg.SOLVER.IMS_PER_BATCH
    assert round(25 * per_epoch) == cfg.SOLVER.MAX_ITER
    assert [round(epoch * per_epoch) for epoch in (16, 22)] == list(cfg.SOLVER.STEPS)


@pytest.mark.parametrize(
    "leaf, epochs, steps",
    [
        ("class_balanced/faster_rcnn_R_50_FPN_coco_1x_stage2", 12, (8, 11)),
        ("softmax/faster_rcnn_R_50_FPN_coco_1x_stage2_finetune", 10, (7,)),
    ],
)
def test_schedules_of_single_leaves_count_epochs(leaf, epochs, steps):
    solver = load(CONFIGS / f"LVISv0.5/{leaf}.yaml").SOLVER
    per_epoch = 56740 / solver.IMS_PER_BATCH
    assert abs(solver.MAX_ITER - epochs * per_epoch) <= 0.5
    assert len(solver.STEPS) == len(steps)
    assert all(abs(a - b * per_epoch) <= 0.5 for a, b in zip(solver.STEPS, steps))


@pytest.mark.parametrize(
    "base", ["LVISv0.5/Base-1x", "LVISv0.5/Base-2x", "LVISv0.5/Base-coco-1x", "LVISv1/Base-1x", "LVISv1/Base-2x"]
)
def test_schedules_count_epochs(base):
    images = 56740 if "v0.5" in base else 99388
    epochs, *steps = (24, 16, 22) if "2x" in base else (12, 8, 11)
    solver = load(CONFIGS / f"{base}.yaml").SOLVER
    assert abs(solver.MAX_ITER - epochs * images / 16) <= 0.5
    assert all(abs(a - b * images / 16) <= 0.5 for a, b in zip(solver.STEPS, steps))


def test_every_protocol_states_its_world_size():
    """Fewer GPUs must not silently mean a smaller batch per learning rate."""
    for path in LEAVES:
        if not is_leaf_of_a_set(path):
            cfg = load(path)
            assert IMAGES_PER_GPU.get(path, 2) * cfg.SOLVER.REFERENCE_WORLD_SIZE == cfg.SOLVER.IMS_PER_BATCH, path


def test_configs_survive_a_dump(tmp_path):
    cfg = load_config(str(CONFIGS / "mini/eql.yaml"))
    (tmp_path / "config.yaml").write_text(cfg.dump())
    assert json.dumps(load_config(str(tmp_path / "config.yaml"))) == json.dumps(cfg)


def test_the_tail_of_lvis_v1_is_rare_and_common():
    """What 1.76e-3 takes in on v0.5; the same share would take in 78 frequent classes of v1. EQL's is its release's."""
    with np.load(ROOT / "tests/golden/lvis_v1_image_count.npz") as arrays:
        frequency = CategoryFrequency.from_counts(
            arrays["image_count"].astype(int), num_images=100_170, groups=arrays["groups"].tolist()
        )
    is_frequent = [group == "f" for group in frequency.groups]
    assert sum(is_frequent[j] for j in frequency.tail_mask(1.76e-3).nonzero().flatten().tolist()) == 78
    for name, classes, of_frequent in (("seql", 798, 0), ("droploss", 798, 0), ("eql", 815, 17)):
        node = load(CONFIGS / f"LVISv1/{name}/mask_rcnn_R_50_FPN_1x.yaml").MODEL.LONG_TAIL
        tail = frequency.tail_mask(node[name.upper()].LAMBDA)
        assert tail.sum() == classes
        assert sum(is_frequent[j] for j in tail.nonzero().flatten().tolist()) == of_frequent
    # The tail ratio that the pages and configs of SEQL and DropLoss state.
    assert frequency.tail_ratio(0.0010062) == pytest.approx(0.054, abs=0.0005)


def test_every_coco_protocol_trains_12_epochs_with_the_releases_losses():
    """Whatever its batch; smooth L1 with beta 1 and 1/9, 2000 proposals."""
    leaves = [path for path in LEAVES if "_coco_" in path.name]
    assert len(leaves) > 15
    for path in leaves:
        cfg = load(path)
        beta = (cfg.MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA, cfg.MODEL.RPN.SMOOTH_L1_BETA, cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN)
        assert beta == (1.0, pytest.approx(1 / 9, abs=1e-4), 2000), path
        if cfg.SOLVER.IMS_PER_BATCH != 16:
            assert abs(cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH - 12 * 56740) <= cfg.SOLVER.IMS_PER_BATCH, path
