"""Steps whose loss or gradient is not finite: skipped without a trace, named, counted, and the end after many."""

import copy
import json

import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from detectron2.utils.events import EventStorage

from eql_d2.data.builtin import register_from_config
from eql_d2.engine.finite import FiniteAMPTrainer, check_finite
from eql_d2.engine.trainer import Trainer
from tests.conftest import tiny_config
from tests.engine.ranks import run_ranks

NAN = float("nan")


def make_trainer(folder, *opts, resume=False):
    cfg = tiny_config(folder, "Mask-R-CNN-FPN", "EQL_V2", "SOLVER.CHECKPOINT_PERIOD", 2, *opts)
    cfg.DATASETS.TEST = ()
    (folder / "output").mkdir(exist_ok=True)
    register_from_config(cfg)
    seed_all_rng(0)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=resume)
    return trainer


def spoil_loss(trainer, is_spoiled):
    """Make the classification loss NaN in the iterations that are to be spoiled."""
    head = trainer.model.roi_heads.box_predictor if not hasattr(trainer.model, "module") else None
    predictor = head or trainer.model.module.roi_heads.box_predictor
    predictor.classifier_loss.register_forward_hook(
        lambda module, args, output: output * NAN if is_spoiled(trainer.iter) else output
    )


def spoil_gradient(trainer, is_spoiled):
    """Make the gradient of the first backbone layer infinite, the loss being finite."""
    first = next(parameter for parameter in trainer.model.parameters() if parameter.requires_grad)
    first.register_hook(lambda gradient: gradient * float("inf") if is_spoiled(trainer.iter) else gradient)


def spoil_activation(trainer, is_spoiled):
    """Let an image be NaN: proposals, batch norm statistics and every loss are NaN with it."""
    trainer.model.backbone.register_forward_pre_hook(
        lambda module, args: (args[0] * NAN,) if is_spoiled(trainer.iter) else None
    )


def all_state(trainer):
    return {"model": trainer.model.state_dict(), "optimizer": trainer._trainer.optimizer.state_dict()["state"]}


def flat(values, prefix=""):
    if isinstance(values, dict):
        return {key: v for name, value in values.items() for key, v in flat(value, f"{prefix}{name}/").items()}
    return {prefix: values}


def test_a_skipped_step_leaves_no_trace(lvis_folder, warned):
    trainer = make_trainer(lvis_folder, "SOLVER.MAX_ITER", 5)
    for spoiled, spoil in enumerate((spoil_loss, spoil_gradient, spoil_activation), 1):
        spoil(trainer, lambda iteration, spoiled=spoiled: iteration == spoiled)
    states, run_step = [], trainer._trainer.run_step

    def watched():
        before = copy.deepcopy(all_state(trainer))
        run_step()
        states.append((flat(before), flat(copy.deepcopy(all_state(trainer)))))

    trainer._trainer.run_step = watched
    trainer.train()
    for iteration, (before, after) in enumerate(states):
        check_finite(after)
        changed = [name for name, value in after.items() if torch.is_tensor(value)
                   and not name.endswith("num_batches_tracked/")
                   and not (name in before and torch.equal(value, before[name]))]  # fmt: skip
        assert bool(changed) == (iteration in (0, 4)), (iteration, changed)
    assert any("classifier_loss" in name for name in changed)
    assert [message.split(";")[0] for message in warned] == [
        "Iteration 1: the loss is not finite",
        "Iteration 2: the gradient is not finite",
        "Iteration 3: the loss is not finite",
    ]
    assert all(message.count(".png") == 2 for message in warned) and "(3 in a row, 3 in all)" in warned[-1]
    for iteration, skipped in ((1, 1), (3, 3)):  # checkpoints of those very iterations
        checkpoint = torch.load(lvis_folder / "output" / f"model_000000{iteration}.pth", weights_only=True)
        check_finite(checkpoint)
        assert checkpoint["trainer"]["_trainer"]["skipped"] == skipped
    lines = [json.loads(line) for line in (lvis_folder / "output" / "metrics.json").read_text().splitlines()]
    assert [line["skipped_steps"] for line in lines if "skipped_steps" in line] == [3]


def test_the_training_stops_after_many_skipped_steps_in_a_row(lvis_folder):
    trainer = make_trainer(lvis_folder, "MODEL.LONG_TAIL.TRAINING.SKIPPED_STEPS", 3, "SOLVER.MAX_ITER", 20)
    spoil_gradient(trainer, lambda iteration: iteration in (2, 3) or iteration >= 5)
    with pytest.raises(FloatingPointError, match=r"^3 steps in a row up to iteration 7 .*--resume"):
        trainer.train()
    output = lvis_folder / "output"
    assert (output / "last_checkpoint").read_text() == "model_0000005.pth"
    for path in output.glob("*.pth"):
        check_finite(torch.load(path, weights_only=True))
    resumed = make_trainer(lvis_folder, "SOLVER.MAX_ITER", 8, resume=True)
    assert resumed.start_iter == 6 and resumed._trainer.skipped == 3 and resumed._trainer.in_a_row == 1
    resumed.train()
    assert (output / "model_final.pth").is_file()


def test_what_is_not_finite_is_not_saved(lvis_folder):
    trainer = make_trainer(lvis_folder)
    trainer.iter = 0
    trainer.checkpointer.save("good")
    optimizer = trainer._trainer.optimizer
    parameter = optimizer.param_groups[0]["params"][0]
    optimizer.state[parameter]["momentum_buffer"] = torch.full_like(parameter, NAN)
    with pytest.raises(FloatingPointError, match=r"trainer\._trainer\.optimizer\.state\.0\.momentum_buffer holds NaN"):
        trainer.checkpointer.save("bad")
    assert sorted(path.name for path in (lvis_folder / "output").glob("*.pth")) == ["good.pth"]


def test_gradients_whose_squares_overflow_are_finite(lvis_folder):
    trainer = make_trainer(lvis_folder, "SOLVER.BASE_LR", 1e-25, "SOLVER.MAX_ITER", 1)
    first = next(parameter for parameter in trainer.model.parameters() if parameter.requires_grad)
    first.register_hook(lambda gradient: gradient * 0 + 1e25)
    trainer.train()
    assert trainer._trainer.skipped == 0


def train_rank(folder):
    trainer = make_trainer(folder)
    rank = comm.get_rank()
    spoil_loss(trainer, lambda iteration: iteration == 1 and rank == 1)
    trainer.train()
    assert trainer._trainer.skipped == 1
    torch.save(all_state(trainer), folder / f"rank{rank}.pth")


def test_ranks_skip_together(lvis_folder):
    """Only rank 1 has a loss that is not finite."""
    run_ranks(train_rank, 2, lvis_folder / "meet", lvis_folder)
    first, second = (flat(torch.load(lvis_folder / f"rank{rank}.pth", weights_only=True)) for rank in (0, 1))
    for name, value in first.items():
        if torch.is_tensor(value) and "running" not in name:
            assert torch.equal(value, second[name]), name
    log = (lvis_folder / "output" / "metrics.json").read_text()
    assert '"skipped_steps": 1' in log


def test_the_gradient_scaler_goes_on_skipping(monkeypatch):
    """float16 gradients that overflow: the scaler lowers its factor and the step counts as skipped."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.amp.autocast", lambda dtype: torch.autocast("cpu", enabled=False))
    model = torch.nn.Linear(2, 1)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = model

        def forward(self, batch):
            return {"loss": self.layer(batch[0]["image"]).mean() * 1e30}

    batch = [{"image": torch.ones(1, 2), "file_name": "a.jpg"}]
    net = Model()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=1000)
    trainer = FiniteAMPTrainer(
        net, [batch] * 20, torch.optim.SGD(net.parameters(), 1e-30), grad_scaler=scaler, patience=20
    )
    before = model.weight.clone()
    with EventStorage():
        skipped = []
        for trainer.iter in range(20):
            trainer.run_step()
            skipped.append(trainer.skipped)
    # 2^40 x 1e30 overflows float32 until the factor is at most 2^28.
    assert skipped == list(range(1, 13)) + [12] * 8 and trainer.in_a_row == 0
    assert scaler.get_scale() == 2.0**28
    assert not torch.equal(model.weight, before) and torch.isfinite(model.weight).all()


def test_detectron2_s_own_step_is_what_runs(lvis_folder):
    """A finite training is Detectron2's, to the bit."""
    guarded = make_trainer(lvis_folder)
    guarded.train()
    plain = make_trainer(lvis_folder)
    inner = plain._trainer
    plain._trainer = SimpleTrainer(inner.model, plain.build_train_loader(plain.cfg), inner.optimizer)
    for hooks in (inner.model._forward_hooks, inner.model._forward_pre_hooks):
        hooks.clear()
    plain.train()
    expected, found = flat(all_state(plain)), flat(all_state(guarded))
    for name, value in expected.items():
        assert not torch.is_tensor(value) or torch.equal(value, found[name]), name
