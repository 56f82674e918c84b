"""Every config of semantic segmentation builds its model with the loss and the head that its name says."""

import pytest
from detectron2.modeling import build_model

import eql_d2.modeling  # noqa: F401
from eql_d2.config import load_config
from eql_d2.data.frequency import CategoryFrequency
from tests.conftest import CONFIGS

FOLDERS = {"ade20k_150": 150, "ade20k_full": 847, "mini_semseg": 61}
LEAVES = sorted(
    path for path in CONFIGS.rglob("*.yaml") if path.parent.name in FOLDERS and not path.name.startswith("Base-")
)
#: The losses that have a leaf in every folder.
METHODS = ["balanced_softmax", "class_balanced", "eql", "eql_v2", "seesaw", "seql", "sigmoid", "softmax", "softmax_eql"]

pytestmark = pytest.mark.usefixtures("without_initial_values")


def method_of(path):
    return path.stem.split("_R_50")[0].split("_DeepLab")[0]


@pytest.mark.parametrize("path", LEAVES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_leaf(path, tmp_path):
    content = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    assert len(content) <= 6, f"{path} is no leaf: {len(content)} lines"
    num_classes = FOLDERS[path.parent.name]
    counts = [max(1, int(5000 * 0.95**label)) for label in range(num_classes)]
    frequency = CategoryFrequency.from_counts(counts, [100 * n for n in counts], num_images=20_000)
    frequency.save(tmp_path / "counts.json")
    cfg = load_config(str(path), ["MODEL.LONG_TAIL.FREQUENCY", str(tmp_path / "counts.json"), "MODEL.DEVICE", "cpu"])
    model = build_model(cfg)
    head, loss = model.sem_seg_head, model.sem_seg_head.classifier_loss
    assert loss.name.lower() == method_of(path)
    assert loss.num_logits == num_classes == head.cls_score.out_features
    assert head.ignore_value == (65535 if num_classes > 254 else 255) == cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE
    name = "LongTailDeepLabV3PlusHead" if "DeepLab" in path.name else "LongTailSemSegFPNHead"
    assert type(head).__name__ == name
    if method_of(path) in ("eql", "seql") and path.parent.name != "mini_semseg":
        assert loss.lambda_ == frequency.lambda_of(0.09)


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_method_has_a_leaf(folder):
    assert sorted({method_of(path) for path in LEAVES if path.parent.name == folder}) == METHODS


def test_the_protocol_of_ade20k():
    for name in ("ade20k_150/softmax_R_50_FPN", "ade20k_full/seesaw_R_50_FPN", "ade20k_150/softmax_DeepLabV3+_R_50"):
        cfg = load_config(str(CONFIGS / f"segmentation/{name}.yaml"))
        solver = cfg.SOLVER
        assert (solver.IMS_PER_BATCH, solver.BASE_LR, solver.WEIGHT_DECAY) == (16, 0.01, 5e-4)
        assert (solver.MAX_ITER, solver.LR_SCHEDULER_NAME, solver.POLY_LR_POWER) == (160_000, "WarmupPolyLR", 0.9)
        assert cfg.MODEL.LONG_TAIL.AUGMENT.SIZE == 512
        # The shorter side of an image of 4:3, as a factor of 512.
        assert [round(factor * 3 / 4, 2) for factor in cfg.MODEL.LONG_TAIL.AUGMENT.SCALE_JITTER] == [0.5, 2.0]
