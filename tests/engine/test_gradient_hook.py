"""Statistics accumulated while a model trains: right, resumed, and without a trace when off."""

import csv

import pytest
import torch
from detectron2.utils.env import seed_all_rng

from eql_d2.analysis import GradientHook
from eql_d2.data.builtin import register_from_config
from eql_d2.engine.trainer import Trainer
from eql_d2.errors import InputError
from tests.conftest import NUM_CLASSES, tiny_config

PERIOD = "MODEL.LONG_TAIL.ANALYSIS.PERIOD"


def trainer_of(folder, *opts, resume=False):
    cfg = tiny_config(folder, "Mask-R-CNN-FPN", "EQL_V2", "TEST.EVAL_PERIOD", 0, "DATASETS.TEST", (), *opts)
    cfg.MODEL.MASK_ON = False
    register_from_config(cfg)
    seed_all_rng(3)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    return trainer


def hook_of(trainer):
    hooks = [hook for hook in trainer._hooks if isinstance(hook, GradientHook)]
    return hooks[0] if hooks else None


def table(folder):
    with (folder / "output" / "training_gradients.csv").open(newline="") as file:
        return {int(row["label"]): row for row in csv.DictReader(file)}


def assert_equals_loss(trainer, num_steps):
    """What the hook summed up is what EQL v2 accumulated for itself."""
    (statistics,) = hook_of(trainer).statistics
    loss = trainer.model.roi_heads.box_predictor.classifier_loss
    assert 32 * num_steps < statistics.num_regions <= 64 * num_steps
    torch.testing.assert_close(statistics["positive_gradient"], loss.pos_grad, rtol=1e-5, atol=0)
    torch.testing.assert_close(statistics["negative_gradient"], loss.neg_grad, rtol=1e-5, atol=0)


def test_the_ratio_is_that_of_the_loss_also_after_a_resume(lvis_folder):
    opts = [PERIOD, 1, "SOLVER.CHECKPOINT_PERIOD", 2]
    first = trainer_of(lvis_folder, *opts, "SOLVER.MAX_ITER", 2)
    first.train()
    assert_equals_loss(first, 2)
    resumed = trainer_of(lvis_folder, *opts, "SOLVER.MAX_ITER", 4, resume=True)
    assert resumed.start_iter == 2
    (before,) = hook_of(first).statistics
    (loaded,) = hook_of(resumed).statistics
    assert torch.equal(before.sums, loaded.sums) and before.num_regions == loaded.num_regions
    resumed.train()
    assert_equals_loss(resumed, 4)
    rows = table(lvis_folder)
    assert len(rows) == NUM_CLASSES and rows[0]["name"] == "class_0" and rows[0]["train_images"] == "150"
    ratio = resumed.model.roi_heads.box_predictor.classifier_loss.gradient_ratio()
    for label, row in rows.items():
        assert float(row["gradient_ratio"]) == pytest.approx(float(ratio[label]), rel=1e-4)
        assert int(float(row["positives"])) + int(float(row["negatives"])) == int(loaded.num_regions)
        assert (row["mean_probability"] == "") == (float(row["positives"]) == 0)


def test_training_is_the_same_with_and_without(lvis_folder):
    states = []
    for period in (0, 1):
        trainer = trainer_of(lvis_folder, PERIOD, period, "SOLVER.MAX_ITER", 2)
        assert (hook_of(trainer) is None) == (period == 0)
        trainer.train()
        states.append(trainer.model.state_dict())
        assert (lvis_folder / "output" / "training_gradients.csv").exists() == (period > 0)
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_every_nth_step(lvis_folder):
    trainer = trainer_of(lvis_folder, PERIOD, 3, "SOLVER.MAX_ITER", 4)  # steps 0 and 3
    trainer.train()
    (statistics,) = hook_of(trainer).statistics
    assert 64 < statistics.num_regions <= 128
    predictor = trainer.model.roi_heads.box_predictor
    assert not predictor.cls_score._forward_pre_hooks and not predictor.classifier_loss._forward_hooks


def test_mixed_precision(lvis_folder):
    """bfloat16 logits have 8 bits: the sums agree with those of the loss, which are of the same logits, to 1%."""
    trainer = trainer_of(lvis_folder, PERIOD, 1, "SOLVER.AMP.ENABLED", True, "SOLVER.MAX_ITER", 2)
    trainer.train()
    (statistics,) = hook_of(trainer).statistics
    loss = trainer.model.roi_heads.box_predictor.classifier_loss
    torch.testing.assert_close(statistics["positive_gradient"], loss.pos_grad, rtol=1e-2, atol=0)
    torch.testing.assert_close(statistics["negative_gradient"], loss.neg_grad, rtol=1e-2, atol=0)


def test_bad_input(lvis_folder):
    with pytest.raises(InputError, match=r"ANALYSIS.PERIOD is -1"):
        trainer_of(lvis_folder, PERIOD, -1)
    with pytest.raises(InputError, match=r"no box predictor of this package"):
        trainer_of(lvis_folder, PERIOD, 1, "MODEL.ROI_HEADS.NAME", "StandardROIHeads")
