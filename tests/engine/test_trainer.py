"""The trainer: mixed precision on a CPU, samplers, and what a run writes down."""

import json

import pytest
import torch
from detectron2.engine.hooks import EvalHook, PeriodicWriter

from eql_d2.data.builtin import register_from_config
from eql_d2.engine.trainer import Trainer
from tests.conftest import tiny_config
from tests.engine.test_bad_input import run_tiny


def test_autocast_on_a_cpu_keeps_the_loss_in_float32(lvis_folder, monkeypatch):
    """SOLVER.AMP.ENABLED runs layers in bfloat16; loss arithmetic, weights and checkpoints stay float32."""
    seen = []
    build_model = Trainer.build_model.__func__

    def watched(cls, cfg):
        model = build_model(cls, cfg)
        predictor = model.roi_heads.box_predictor
        predictor.cls_score.register_forward_hook(lambda module, args, output: seen.append(output.dtype))
        inner = predictor.classifier_loss.loss
        predictor.classifier_loss.loss = lambda logits, *args: seen.append(logits.dtype) or inner(logits, *args)
        return model

    monkeypatch.setattr(Trainer, "build_model", classmethod(watched))
    results = run_tiny(lvis_folder, "SOLVER.AMP.ENABLED", True, "SOLVER.MAX_ITER", 2)
    assert seen[:2] == [torch.bfloat16, torch.float32]
    assert set(results) == {"bbox", "segm"}
    state = torch.load(lvis_folder / "output" / "model_final.pth", weights_only=True)["model"]
    assert all(value.dtype != torch.bfloat16 for value in state.values())


@pytest.mark.parametrize("sampler", ["RepeatFactorTrainingSampler", "ClassAwareSampler"])
def test_samplers_by_config(lvis_folder, sampler):
    run_tiny(lvis_folder, "DATALOADER.SAMPLER_TRAIN", sampler, "SOLVER.MAX_ITER", 2)
    content = json.loads((lvis_folder / "output" / "results.json").read_text())
    assert content["results"]["bbox"]["AP"] >= 0


def test_results_hold_what_repeats_a_number(lvis_folder):
    run_tiny(lvis_folder, "MODEL.LONG_TAIL.EQL.IMAGE_LEVEL_EXEMPTION", False, "SOLVER.MAX_ITER", 1)
    content = json.loads((lvis_folder / "output" / "results.json").read_text())
    experiment = content["experiment"]
    loss = experiment["classifier_losses"][0]
    assert loss["loss"] == "EQL" and loss["image_level_exemption"] is False and loss["num_tail_classes"] == 3
    assert experiment["seed"] == 1 and experiment["versions"]["torch"] == torch.__version__
    # A group without ground truth has no AP: null, not -100 and not NaN, which is no json.
    assert content["results"]["bbox"]["APr"] is None
    assert content["results"]["bbox"]["APf"] is not None


@pytest.mark.parametrize("is_main", [True, False])
def test_augmented_evaluation_comes_after_the_plain_one_on_every_rank(lvis_folder, monkeypatch, is_main):
    """Both evaluations are collective: ranks that run them in another order wait for each other for ever."""
    cfg = tiny_config(lvis_folder, "Mask-R-CNN-FPN", "EQL", "TEST.AUG.ENABLED", True)
    register_from_config(cfg)
    monkeypatch.setattr("detectron2.utils.comm.is_main_process", lambda: is_main)
    order = []
    monkeypatch.setattr(Trainer, "test", classmethod(lambda cls, *args: order.append("plain") or {}))
    monkeypatch.setattr(Trainer, "test_with_TTA", classmethod(lambda cls, *args: order.append("augmented") or {}))
    trainer = Trainer(cfg)
    for hook in trainer._hooks:
        if isinstance(hook, EvalHook):
            hook._func()
    assert order == ["plain", "augmented"]
    assert isinstance(trainer._hooks[-1], PeriodicWriter) == is_main
