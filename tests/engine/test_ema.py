"""The moving average of the weights: what it is, that it is evaluated, kept, and gone on with."""

import pytest
import torch
from torch import nn

from eql_d2.engine.checkpoint import LongTailCheckpointer
from eql_d2.engine.ema import MovingAverage
from eql_d2.engine.trainer import Trainer
from eql_d2.errors import InputError
from eql_d2.run_folder import RunFolder
from tests.conftest import tiny_config
from tests.engine.test_bad_input import run_tiny

DECAY = ["MODEL.LONG_TAIL.EMA.DECAY", 0.5]


def test_by_hand():
    """Weights and batch norm's statistics are averaged with a decay that rises; other buffers are the model's."""
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    model.register_buffer("sums", torch.zeros(1))
    average = MovingAverage(model, 0.25)
    expected = 0.0
    for step, value in enumerate((3.0, 5.0, 1.0, 7.0)):
        model[0].weight.data.fill_(value)
        model[1].running_mean.fill_(10 * value)
        model.sums.fill_(value)
        average.update_parameters(model)
        decay = min(0.25, (1 + step) / (10 + step)) if step else 0.0
        expected = decay * expected + (1 - decay) * value
        assert average.module[0].weight.item() == pytest.approx(expected)
        assert average.module[1].running_mean.item() == pytest.approx(10 * expected)
        assert average.module.sums.item() == value
    assert not average.module.training and model.training


@pytest.fixture
def evaluated(monkeypatch):
    """The states of the models that are evaluated."""
    states = []

    def evaluate(cls, cfg, model, evaluators):
        states.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"segm": {"AP": float(len(states))}}

    monkeypatch.setattr(Trainer, "_evaluate", classmethod(evaluate))
    return states


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_the_average_is_evaluated_and_kept(lvis_folder, evaluated):
    best = ["MODEL.LONG_TAIL.BEST.METRIC", "segm/AP", "TEST.EVAL_PERIOD", 2]
    run_tiny(lvis_folder, *DECAY, *best, "SOLVER.MAX_ITER", 3)
    folder = RunFolder(lvis_folder / "output")
    content = torch.load(folder.weights, weights_only=True)
    average = {name[len("module.") :]: v for name, v in content["ema"].items() if name.startswith("module.")}
    assert content["ema"]["n_averaged"] == 3
    assert any(not torch.equal(value, average[name]) for name, value in content["model"].items())
    assert_same(evaluated[-1], average)
    assert_same(torch.load(folder.best_weights, weights_only=True)["model"], average)
    # Evaluating, and starting another training, take the average.
    run_tiny(lvis_folder, "MODEL.WEIGHTS", folder.weights, eval_only=True)
    assert_same(evaluated[-1], average)
    model = Trainer.build_model(tiny_config(lvis_folder))
    LongTailCheckpointer(model).load(str(folder.weights))
    assert_same(model.state_dict(), average)


def test_a_resumed_training_goes_on_with_both(lvis_folder, evaluated):
    """Nothing of the state is lost: what is loaded is what was saved, weights and average."""
    run_tiny(lvis_folder, *DECAY, "SOLVER.MAX_ITER", 2)
    saved = torch.load(lvis_folder / "output" / "model_final.pth", weights_only=True)
    # No iteration is left: the weights are loaded, and the average is evaluated.
    loaded = []
    before = Trainer.train
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Trainer, "train", lambda self: loaded.append(self.model.state_dict()) or before(self))
        run_tiny(lvis_folder, *DECAY, "SOLVER.MAX_ITER", 2, resume=True)
    assert_same(loaded[0], saved["model"])
    average = {name[len("module.") :]: v for name, v in saved["ema"].items() if name.startswith("module.")}
    assert_same(evaluated[-1], average)
    run_tiny(lvis_folder, *DECAY, "SOLVER.MAX_ITER", 4, resume=True)
    assert torch.load(lvis_folder / "output" / "model_final.pth", weights_only=True)["ema"]["n_averaged"] == 4


def test_bad_input(lvis_folder):
    with pytest.raises(InputError, match=r"EMA.DECAY is 1.0; it is 0 \(off\) or between 0 and 1"):
        run_tiny(lvis_folder, "MODEL.LONG_TAIL.EMA.DECAY", 1.0)
    with pytest.raises(InputError, match=r"PRECISE_BN"):
        run_tiny(lvis_folder, *DECAY, "TEST.PRECISE_BN.ENABLED", True)
