"""PCB's passes through the box head: features, losses, the regulariser's progress, and detections."""

import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

from eql_d2.errors import InputError
from eql_d2.modeling.refinement import FeatureRefinement
from tests.conftest import tiny_config
from tests.modeling.test_heads import example

PASSES = ["MODEL.LONG_TAIL.REFINEMENT.LOSS_WEIGHTS", (0.2, 0.3, 0.5), "MODEL.LONG_TAIL.REFINEMENT.WIDTH", 8]


def test_a_factor_of_each_place_and_a_summand_of_each_channel():
    refine = FeatureRefinement((3, 2, 2), num_logits=5, num_deltas=8, width=4)
    features, logits, deltas = torch.randn(6, 3, 2, 2), torch.randn(6, 5), torch.randn(6, 8)
    scale, shift = refine.scale(deltas).view(6, 1, 2, 2), refine.shift(logits).view(6, 3, 1, 1)
    torch.testing.assert_close(refine(features, logits, deltas), features * scale + shift)


def test_no_regions():
    refine = FeatureRefinement((3, 2, 2), 5, 8, 4)
    assert refine(torch.zeros(0, 3, 2, 2), torch.zeros(0, 5), torch.zeros(0, 8)).shape == (0, 3, 2, 2)


@pytest.mark.parametrize("loss", ["SOFTMAX", "SEESAW"])
def test_passes(lvis_folder, loss):
    cfg = tiny_config(lvis_folder, "Mask-R-CNN-FPN", loss, *PASSES, "MODEL.LONG_TAIL.REGULARIZER.NAME", "PCB")
    model = build_model(cfg).train()
    predictor = model.roi_heads.box_predictor
    values, progress = [], []
    predictor.classifier_loss.register_forward_hook(lambda module, args, output: values.append(output.detach()))
    regularizer = predictor.classifier_loss.regularizer
    regularizer.register_forward_pre_hook(lambda module, args: progress.append(module.progress))
    with EventStorage():
        losses = model([example(), example(classes=(1, 2))])
    assert progress == [0.0, 0.5, 1.0] and regularizer.num_steps == 1
    expected = sum(weight * value for weight, value in zip((0.2, 0.3, 0.5), values))
    torch.testing.assert_close(losses["loss_cls"].detach(), expected)
    assert len({float(value) for value in values}) == 3
    losses["loss_cls"].backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.roi_heads.refinement.parameters())

    model.eval()
    calls = []
    predictor.cls_score.register_forward_hook(lambda module, args, output: calls.append(output))
    with torch.no_grad():
        (result,) = model([example()])
    assert len(calls) == 3 and len(result["instances"]) == cfg.TEST.DETECTIONS_PER_IMAGE
    best = predictor.scores(calls[-1])[:, :-1].max()
    torch.testing.assert_close(result["instances"].scores.max(), best)


@pytest.mark.parametrize("architecture", ["Cascade-Mask-R-CNN-FPN", "Mask-R-CNN-C4"])
def test_other_heads_have_no_passes(lvis_folder, architecture):
    with pytest.raises(InputError, match=r"REFINEMENT.LOSS_WEIGHTS is \(0.2, 0.3, 0.5\), which LongTail\w+ has not"):
        build_model(tiny_config(lvis_folder, architecture, "SOFTMAX", *PASSES))
