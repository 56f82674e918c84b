"""The trainer: mixed precision on a CPU, samplers, and what a run writes down."""

import json

import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.engine import AMPTrainer, SimpleTrainer, defaults
from detectron2.engine.hooks import EvalHook, PeriodicWriter

from eql_d2.data.builtin import register_from_config
from eql_d2.engine.checkpoint import LongTailCheckpointer
from eql_d2.engine.finite import CPUAutocastTrainer, FiniteTrainer
from eql_d2.engine.trainer import Trainer
from eql_d2.modeling.test_time_augmentation import TestTimeAugmentation
from eql_d2.run_folder import RunFolder
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


@pytest.mark.parametrize("amp, step", [(False, FiniteTrainer), (True, CPUAutocastTrainer)])
def test_detectron2_builds_the_trainer_from_our_classes(lvis_folder, amp, step):
    cfg = tiny_config(lvis_folder, "Mask-R-CNN-FPN", "EQL", "SOLVER.AMP.ENABLED", amp)
    register_from_config(cfg)
    trainer = Trainer(cfg)
    assert type(trainer._trainer) is step and type(trainer.checkpointer) is LongTailCheckpointer
    # Detectron2's own names are as they were: another trainer in this process gets what it expects.
    assert defaults.DetectionCheckpointer is DetectionCheckpointer and defaults.AMPTrainer is AMPTrainer


def spoil(monkeypatch, iteration: int, in_the_loss: bool):
    """Let a training diverge in one iteration: a NaN in the loss, or in what the optimizer's step leaves."""
    run_step = SimpleTrainer.run_step

    def spoiled(self):
        if self.iter == iteration and in_the_loss:
            next(self.model.parameters()).data.fill_(float("nan"))
            loss = self.model.roi_heads.box_predictor.classifier_loss
            loss.register_forward_hook(lambda module, args, output: output * float("nan"))
        run_step(self)
        if self.iter == iteration and not in_the_loss:
            list(self.model.parameters())[-1].data.view(-1)[0] = float("inf")

    monkeypatch.setattr(SimpleTrainer, "run_step", spoiled)


@pytest.mark.parametrize("in_the_loss", [True, False])
def test_a_training_that_diverges_in_its_last_iteration_has_not_finished(lvis_folder, monkeypatch, in_the_loss):
    evaluated = []
    monkeypatch.setattr(Trainer, "_evaluate", classmethod(lambda *args: evaluated.append(args) or {}))
    spoil(monkeypatch, 1, in_the_loss)
    with pytest.raises(FloatingPointError, match="NaN"):
        run_tiny(lvis_folder, "SOLVER.MAX_ITER", 2, "TEST.AUG.ENABLED", True)
    folder = RunFolder(lvis_folder / "output")
    assert not evaluated and not folder.has_finished()
    assert not folder.results_file.exists() and not folder.weights.exists()


def test_after_a_divergence_the_last_checkpoint_is_gone_on_from(lvis_folder, monkeypatch):
    options = ["SOLVER.MAX_ITER", 3, "SOLVER.CHECKPOINT_PERIOD", 1]
    with monkeypatch.context() as patched:
        spoil(patched, 2, False)
        with pytest.raises(FloatingPointError, match="holds NaN or infinity"):
            run_tiny(lvis_folder, *options)
    assert (lvis_folder / "output" / "last_checkpoint").read_text() == "model_0000001.pth"
    run_tiny(lvis_folder, *options, resume=True)
    assert RunFolder(lvis_folder / "output").has_finished()


@pytest.mark.parametrize("augmented", [False, True])
def test_an_evaluation_that_was_interrupted_goes_on_at_the_next_image(lvis_folder, monkeypatch, augmented):
    """With test-time augmentation as without: no image is computed twice, and the results are the same."""
    options = ["TEST.AUG.MIN_SIZES", (48, 64), "TEST.AUG.MAX_SIZE", 64, "MODEL.WEIGHTS", ""]
    cfg = tiny_config(lvis_folder, "Cascade-Mask-R-CNN-FPN", "EQL", *options)
    register_from_config(cfg)
    torch.manual_seed(0)
    model = Trainer.build_model(cfg)
    test = Trainer.test_with_TTA if augmented else Trainer.test
    expected = test(cfg, model)
    file = RunFolder(cfg.OUTPUT_DIR).inference_folder(cfg.DATASETS.TEST[0], augmented) / "lvis_instances_results.json"
    whole, seen = file.read_bytes(), []
    kind = TestTimeAugmentation if augmented else type(model)
    forward = kind.forward

    def stopped_after(count):
        def looked_at(self, inputs):
            if len(seen) == count:
                raise KeyboardInterrupt
            seen.append(inputs[0]["image_id"])
            return forward(self, inputs)

        return looked_at

    monkeypatch.setattr(kind, "forward", stopped_after(2))
    with pytest.raises(KeyboardInterrupt):
        test(cfg, model)
    file.unlink()
    monkeypatch.setattr(kind, "forward", stopped_after(9))
    assert repr(test(cfg, model)) == repr(expected)
    assert seen == [1, 2, 3, 4] and file.read_bytes() == whole
