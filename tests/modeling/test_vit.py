"""ViTDet's backbone from YAML: its levels, and a training step with losses of this package."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from eql_d2.config import load_config
from eql_d2.engine.optimizer import build_optimizer
from eql_d2.errors import InputError
from tests.conftest import CONFIGS, tiny_config
from tests.modeling.test_heads import example

NODE = "MODEL.LONG_TAIL.VIT"
TINY = [
    "MODEL.BACKBONE.NAME",
    "build_vit_pyramid_backbone",
    f"{NODE}.WIDTH",
    16,
    f"{NODE}.DEPTH",
    2,
    f"{NODE}.HEADS",
    2,
]
TINY += [f"{NODE}.GLOBAL_BLOCKS", (1,), f"{NODE}.WINDOW", 2, f"{NODE}.IMAGE_SIZE", 64, "MODEL.FPN.NORM", "LN"]
ADAMW = ["MODEL.LONG_TAIL.OPTIMIZER.NAME", "AdamW", "MODEL.LONG_TAIL.OPTIMIZER.LAYER_DECAY", 0.5]


@pytest.mark.parametrize("architecture, loss", [("Mask-R-CNN-FPN", "EQL_V2"), ("Cascade-Mask-R-CNN-FPN", "SEESAW")])
def test_a_training_step_lowers_the_loss(lvis_folder, architecture, loss):
    cfg = tiny_config(lvis_folder, architecture, loss, *TINY, *ADAMW, "SOLVER.BASE_LR", 0.001)
    torch.manual_seed(0)
    model = build_model(cfg).train()
    shapes = model.backbone.output_shape()
    assert {name: shape.stride for name, shape in shapes.items()} == {f"p{i}": 2**i for i in range(2, 7)}
    assert model.backbone.net.blocks[0].window_size == 2 and model.backbone.net.blocks[1].window_size == 0
    optimizer = build_optimizer(cfg, model)
    totals = []
    for _ in range(6):
        torch.manual_seed(1)  # the same regions in each step
        with EventStorage():
            loss = sum(model([example(size=48), example(classes=(1,), seed=1)]).values())
        totals.append(float(loss.detach()))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert totals[-1] < totals[0]
    model.eval()
    with torch.no_grad():
        assert len(model([example(size=48)])[0]["instances"]) == cfg.TEST.DETECTIONS_PER_IMAGE


def test_learning_rates_decay_over_the_blocks(lvis_folder):
    """As in ViTDet's release; norms and positions have a weight decay of their own."""
    cfg = tiny_config(lvis_folder, "Mask-R-CNN-FPN", "SOFTMAX", *TINY, *ADAMW, "SOLVER.BASE_LR", 0.08)
    model = build_model(cfg)
    groups = {
        id(parameter): group for group in build_optimizer(cfg, model).param_groups for parameter in group["params"]
    }
    rate = {name: groups[id(parameter)]["lr"] for name, parameter in model.named_parameters()}
    assert rate["backbone.net.patch_embed.proj.weight"] == pytest.approx(0.01)
    assert rate["backbone.net.blocks.0.attn.qkv.weight"] == pytest.approx(0.02)
    assert rate["backbone.net.blocks.1.attn.qkv.weight"] == pytest.approx(0.04)
    assert rate["roi_heads.box_predictor.cls_score.weight"] == pytest.approx(0.08)
    decay = {name: groups[id(parameter)]["weight_decay"] for name, parameter in model.named_parameters()}
    assert decay["backbone.net.pos_embed"] == 0 and decay["backbone.net.blocks.0.norm1.weight"] == 0
    assert decay["roi_heads.box_predictor.cls_score.weight"] == cfg.SOLVER.WEIGHT_DECAY


@pytest.mark.parametrize(
    "opts, word",
    [
        ([f"{NODE}.IMAGE_SIZE", 100], "IMAGE_SIZE is 100"),
        ([f"{NODE}.HEADS", 3], "HEADS 3 do not divide"),
        ([f"{NODE}.GLOBAL_BLOCKS", (2,)], "GLOBAL_BLOCKS has 2"),
    ],
)
def test_bad_sizes(lvis_folder, opts, word):
    with pytest.raises(InputError, match=word):
        build_model(tiny_config(lvis_folder, "Mask-R-CNN-FPN", "SOFTMAX", *TINY, *opts))


@pytest.mark.parametrize(
    "opts, word",
    [
        (["MODEL.LONG_TAIL.OPTIMIZER.NAME", "Adam"], "NAME is 'Adam'; there are 'SGD', 'AdamW'"),
        (["MODEL.LONG_TAIL.OPTIMIZER.LAYER_DECAY", 0.0], "LAYER_DECAY is 0.0; it lies"),
        (["MODEL.LONG_TAIL.OPTIMIZER.LAYER_DECAY", 0.7], "set it to 1"),
        (ADAMW, "set it to 1"),
    ],
)
def test_bad_optimizers(lvis_folder, opts, word):
    cfg = tiny_config(lvis_folder, "Mask-R-CNN-FPN", "SOFTMAX", *opts)
    with pytest.raises(InputError, match=word):
        build_optimizer(cfg, build_model(cfg))


def test_the_release_s_config():
    """What its Python config says."""
    cfg = load_config(str(CONFIGS / "LVISv1/federated/mask_rcnn_vitdet_b_100ep.yaml"))
    solver, node = cfg.SOLVER, cfg.MODEL.LONG_TAIL
    assert (solver.IMS_PER_BATCH, solver.MAX_ITER, solver.STEPS) == (64, 156_250, (138_889, 150_463))
    assert (solver.BASE_LR, solver.WEIGHT_DECAY, node.OPTIMIZER.LAYER_DECAY) == (2e-4, 0.1, 0.7)
    assert node.AUGMENT.SCALE_JITTER == (0.1, 2.0) and node.AUGMENT.SIZE == node.VIT.IMAGE_SIZE == 1024
    assert (node.FEDERATED.NUM_SAMPLED_CLASSES, node.FEDERATED.FREQUENCY_POWER, node.FEDERATED.PRIOR) == (50, 0.5, 0.01)
    assert cfg.DATALOADER.REPEAT_THRESHOLD == 0.001 and cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST == 0.02
