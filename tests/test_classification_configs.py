"""Every config of an image classifier builds its model with the loss that its name says, and states its protocol."""

import pytest
from detectron2.modeling import build_model

import eql_d2.modeling  # noqa: F401
from eql_d2.config import load_config
from eql_d2.data.frequency import CategoryFrequency
from eql_d2.experiments.spec import load_specification
from tests.conftest import CONFIGS

FOLDER = CONFIGS / "classification"
LEAVES = sorted(path for path in FOLDER.rglob("*.yaml") if not path.name.startswith("Base-"))
#: Losses by the beginning of a leaf's name, the longest first.
LOSSES = ("balanced_softmax", "class_balanced", "softmax_eql", "seesaw", "softmax", "focal", "seql", "ldam")
#: Protocols that start from the classifier of the softmax leaf, by the beginning of a leaf's name.
PROTOCOLS = ("crt", "lws", "tau_norm")

pytestmark = pytest.mark.usefixtures("without_initial_values")


@pytest.mark.parametrize("path", LEAVES, ids=lambda path: str(path.relative_to(FOLDER)))
def test_leaf(path, tmp_path):
    cfg = load_config(str(path))
    num_classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    assert (
        num_classes
        == {"cifar100lt": 100, "imagenet_lt": 1000, "inaturalist2018": 8142, "places_lt": 365}[path.parent.name]
    )
    counts = [max(1, int(500 * 0.99**label)) for label in range(num_classes)]
    CategoryFrequency.from_counts(counts, num_images=sum(counts)).save(tmp_path / "counts.json")
    cfg.MODEL.LONG_TAIL.FREQUENCY = str(tmp_path / "counts.json")
    cfg.MODEL.LONG_TAIL.TIMM.PRETRAINED = False
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg)
    loss = model.head.classifier_loss
    if path.stem.startswith(PROTOCOLS):
        method = next(name for name in PROTOCOLS if path.stem.startswith(name))
        first = path.with_name(path.stem.replace(method, "softmax").replace("_stage2", "") + ".yaml")
        assert f"{load_config(str(first)).OUTPUT_DIR}/model_final.pth" == cfg.MODEL.WEIGHTS
        assert loss.name == "SOFTMAX"
        assert (cfg.MODEL.LONG_TAIL.TRAINABLE != "all") == path.stem.endswith("stage2")
    else:
        assert loss.name.lower() == next(name for name in LOSSES if path.stem.startswith(name))
    if cfg.OUTPUT_DIR != "./output":
        assert f"output/{path.relative_to(CONFIGS).with_suffix('')}" == cfg.OUTPUT_DIR
    assert loss.num_logits == num_classes
    names = {entry["name"] for entry in cfg.MODEL.LONG_TAIL.CLASSIFICATION.DATASETS}
    assert {*cfg.DATASETS.TRAIN, *cfg.DATASETS.TEST} <= names
    if "imbalance" in path.stem:
        assert list(cfg.DATASETS.TRAIN) == [f"cifar100_lt_{path.stem.rsplit('_', 1)[1]}_train"]
    if "R_50" in path.stem:
        assert model.backbone.output_shape()["res5"].channels == 2048


def test_the_protocol_of_table_8():
    cfg = load_config(str(FOLDER / "cifar100lt/seql.yaml"))
    solver = cfg.SOLVER
    assert (solver.IMS_PER_BATCH, solver.MAX_ITER, tuple(solver.STEPS)) == (256, 12800, (6400, 9600))
    assert (solver.BASE_LR, solver.BASE_LR * solver.WARMUP_FACTOR, solver.WARMUP_ITERS) == (0.2, 0.1, 400)
    assert (solver.NESTEROV, solver.MOMENTUM, solver.WEIGHT_DECAY) == (True, 0.9, 1e-4)
    assert (cfg.MODEL.LONG_TAIL.SEQL.LAMBDA, cfg.MODEL.LONG_TAIL.SEQL.GAMMA) == (3e-3, 0.95)
    assert (cfg.MODEL.LONG_TAIL.CLASSIFICATION.AUTO_AUGMENT, cfg.MODEL.LONG_TAIL.CLASSIFICATION.CUTOUT) == (
        "cifar10",
        16,
    )


def test_the_short_table_is_an_eighth_of_the_full_one():
    full, short = load_specification("cifar100lt_table8"), load_specification("cifar100lt_short")
    assert [row.name for row in full.rows] == [row.name for row in short.rows]
    assert all(row.seeds == (0, 1, 2) for row in short.rows)
    for row in short.rows:
        solver = load_config(str(row.config), row.opts).SOLVER
        assert (solver.MAX_ITER, tuple(solver.STEPS), solver.WARMUP_ITERS) == (1600, (800, 1200), 50)
        assert solver.AMP.ENABLED


@pytest.mark.parametrize(("name", "iterations"), [("imagenet_lt/softmax_eql_R_50", 90 * 115846 / 256)])
def test_schedules_count_epochs(name, iterations):
    assert abs(load_config(str(FOLDER / f"{name}.yaml")).SOLVER.MAX_ITER - iterations) <= 0.5


def test_re_weighting_starts_with_the_first_step_of_the_learning_rate():
    for path in (FOLDER / "cifar100lt").glob("ldam_drw*.yaml"):
        cfg = load_config(str(path))
        assert cfg.SOLVER.STEPS[0] == cfg.MODEL.LONG_TAIL.LDAM.REWEIGHT_AFTER


def test_epochs():
    decoupling = [
        load_config(str(FOLDER / f"imagenet_lt/{name}.yaml")).SOLVER for name in ("softmax_R_50", "crt_R_50_stage2")
    ]
    assert [round(solver.MAX_ITER * 512 / 115846, 2) for solver in decoupling] == [90, 10]
    inaturalist = load_config(str(FOLDER / "inaturalist2018/softmax_R_50.yaml")).SOLVER
    places = load_config(str(FOLDER / "places_lt/softmax_R_152.yaml")).SOLVER
    assert abs(inaturalist.MAX_ITER - 90 * 437513 / 512) <= 1
    assert abs(places.MAX_ITER - 30 * 62500 / 256) <= 1
