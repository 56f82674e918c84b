"""Gradient accumulation: which losses of the parts make that of the whole batch, and what else it must leave alone."""

import pytest
import torch
from detectron2.engine import SimpleTrainer
from detectron2.utils.env import seed_all_rng

from eql_d2.data.builtin import register_from_config
from eql_d2.engine.accumulation import accumulating
from eql_d2.engine.finite import CPUAutocastTrainer, FiniteTrainer
from eql_d2.engine.gradient_hook import GradientHook
from eql_d2.engine.trainer import Trainer
from eql_d2.errors import InputError
from tests.conftest import tiny_config

PARTS = "MODEL.LONG_TAIL.ACCUMULATE.PARTS"


def trained(folder, parts, loss="SOFTMAX", *opts, steps=1):
    """Train a model with norm layers that look at no other image, on 4 images a step; return it and its trainer."""
    settings = [
        "MODEL.RESNETS.NORM",
        "FrozenBN",
        "SOLVER.IMS_PER_BATCH",
        4,
        "SOLVER.MAX_ITER",
        steps,
        "DATASETS.TEST",
        (),
    ]
    cfg = tiny_config(folder, "Mask-R-CNN-FPN", loss, *settings, PARTS, parts, *opts)
    register_from_config(cfg)
    seed_all_rng(3)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=False)
    trainer.train()
    return trainer.model, trainer


@pytest.fixture
def first_come(monkeypatch):
    """Regions are sampled in order: random draws come in another order for parts than for the whole batch."""
    monkeypatch.setattr(torch, "randperm", lambda number, **_: torch.arange(number))


@pytest.mark.parametrize("amp, tolerance", [(False, 1e-6), (True, 2e-3)])
def test_parts_make_the_step_of_the_whole_batch(lvis_folder, first_come, amp, tolerance):
    """Losses of proposals, classes and boxes are means over a fixed number of regions of each image."""
    opts = ["MODEL.MASK_ON", False, "SOLVER.AMP.ENABLED", amp]
    whole, whole_trainer = trained(lvis_folder, 1, "SOFTMAX", *opts)
    for parts in (2, 4):
        model, trainer = trained(lvis_folder, parts, "SOFTMAX", *opts)
        for (name, expected), found in zip(whole.state_dict().items(), model.state_dict().values()):
            torch.testing.assert_close(found, expected, atol=tolerance, rtol=0, msg=name)
        for key in ("loss_cls", "loss_box_reg", "loss_rpn_cls", "loss_rpn_loc", "total_loss"):
            value, expected = (t.storage.history(key).latest() for t in (trainer, whole_trainer))
            assert value == pytest.approx(expected, rel=1e-2 if amp else 1e-5), key
        assert type(trainer._trainer) is (CPUAutocastTrainer if amp else FiniteTrainer)
        assert trainer._trainer.model is model and not trainer._trainer.zero_grad_before_forward


def test_sums_of_a_loss_and_of_the_gradient_hook_take_in_every_part(lvis_folder, first_come):
    opts = ["MODEL.MASK_ON", False, "MODEL.LONG_TAIL.ANALYSIS.PERIOD", 1]
    models = {parts: trained(lvis_folder, parts, "EQL_V2", *opts) for parts in (1, 2)}
    whole, in_parts = (models[parts][0].roi_heads.box_predictor.classifier_loss for parts in (1, 2))
    hooks = {parts: next(h for h in models[parts][1]._hooks if isinstance(h, GradientHook)) for parts in (1, 2)}
    (statistics,) = hooks[2].statistics
    assert statistics.num_regions == hooks[1].statistics[0].num_regions == 4 * 32
    torch.testing.assert_close(statistics["positive_gradient"], in_parts.pos_grad, rtol=1e-5, atol=0)
    torch.testing.assert_close(statistics["negative_gradient"], in_parts.neg_grad, rtol=1e-5, atol=0)
    # The second part is weighted by what the first has left, so the sums are near those of the whole batch, not equal.
    assert not torch.equal(whole.neg_grad, in_parts.neg_grad)


def test_each_part_s_gradient_is_scaled(lvis_folder):
    """A trainer with a gradient scaler goes back from scaled losses; 2 ** 10 is undone by the optimizer's step."""
    model = torch.nn.Linear(1, 1, bias=False)

    class Losses(torch.nn.Module):
        def forward(self, batch):
            return {"loss": model(torch.stack(batch)).mean()}

    trainer = SimpleTrainer(Losses(), [], torch.optim.SGD(model.parameters(), 1.0))
    trainer.grad_scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    batch = [torch.tensor([float(x)]) for x in (1, 2, 3, 6)]
    with accumulating(trainer, 2):
        trainer.optimizer.zero_grad()
        loss = trainer.model(batch)["loss"]
        trainer.grad_scaler.scale(loss).backward()
    assert model.weight.grad.item() == 3 * 2**10 and loss.item() == pytest.approx(3 * model.weight.item())


def test_bad_input(lvis_folder):
    with pytest.raises(InputError, match=r"PARTS is 3 with SOLVER.IMS_PER_BATCH 4 on 1 .* multiple of 3"):
        trained(lvis_folder, 3)
    with pytest.raises(InputError, match=r"PARTS is 0; it must be at least 1"):
        trained(lvis_folder, 0)
