"""The best weights by a metric, and the end of a training that gets no better."""

import json

import pytest
import torch

from eql_d2.engine.trainer import Trainer
from eql_d2.errors import InputError
from eql_d2.run_folder import RunFolder
from tests.engine.test_bad_input import run_tiny

NODE = "MODEL.LONG_TAIL.BEST"


def options(iterations, patience=0, metric="segm/AP", mode="max"):
    return (
        ["SOLVER.MAX_ITER", iterations, "SOLVER.CHECKPOINT_PERIOD", 1, "TEST.EVAL_PERIOD", 1]
        + [f"{NODE}.METRIC", metric, f"{NODE}.MODE", mode, f"{NODE}.PATIENCE", patience]
    )  # fmt: skip


@pytest.fixture
def scripted(monkeypatch):
    """Evaluations return the values of a list, one after the other, and then the last again."""

    def script(*values):
        left = list(values)

        def evaluated(cls, cfg, model, evaluators):
            return {"segm": {"AP": left.pop(0) if len(left) > 1 else left[0]}}

        monkeypatch.setattr(Trainer, "_evaluate", classmethod(evaluated))

    return script


def weights_of(path):
    state = torch.load(path, weights_only=True)
    return state["model"], state


def best(folder):
    return json.loads(RunFolder(folder / "output").best_file.read_text())


def assert_same(one, other):
    assert one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("mode, values, where", [("max", (1, 3, 2, 3), 1), ("min", (3, float("nan"), 1, 2), 2)])
def test_the_best_is_kept(lvis_folder, scripted, mode, values, where):
    """A tie is no gain, and a metric without a value no best."""
    scripted(*values)
    run_tiny(lvis_folder, *options(4, mode=mode))
    output = RunFolder(lvis_folder / "output")
    kept, state = weights_of(output.best_weights)
    assert_same(kept, weights_of(output.folder / f"model_{where:07d}.pth")[0])
    assert set(state) == {"model", "iteration"} and state["iteration"] == where
    assert (best(lvis_folder)["best_iteration"], best(lvis_folder)["best"]) == (where, values[where])
    # The final evaluation is at the iteration after the last, as in metrics.json.
    assert [iteration for iteration, _ in best(lvis_folder)["values"]] == [0, 1, 2, 4]
    assert (output.folder / "last_checkpoint").read_text() == "model_final.pth"


def test_a_resumed_training_remembers_the_best(lvis_folder, scripted):
    scripted(5, 1, 1)
    run_tiny(lvis_folder, *options(3))
    before = RunFolder(lvis_folder / "output").best_weights.read_bytes()
    scripted(2, 4)
    run_tiny(lvis_folder, *options(5), resume=True)
    assert RunFolder(lvis_folder / "output").best_weights.read_bytes() == before
    assert best(lvis_folder)["best"] == 5 and best(lvis_folder)["best_iteration"] == 0
    scripted(3, 3)  # a new training in the same folder begins anew
    run_tiny(lvis_folder, *options(2))
    assert best(lvis_folder)["best"] == 3


def test_early_stopping(lvis_folder, scripted):
    scripted(1, 2, 1, 2, 1)
    results = run_tiny(lvis_folder, *options(20, patience=2))
    output = RunFolder(lvis_folder / "output")
    assert weights_of(output.weights)[1]["iteration"] == 3 and output.has_finished()
    assert results == {"segm": {"AP": 1}} and output.read_results()["results"] == results
    assert not (output.folder / "model_0000004.pth").exists() and best(lvis_folder)["best_iteration"] == 1
    # More patience lets the same training go on.
    scripted(1, 1, 1, 1)
    run_tiny(lvis_folder, *options(20, patience=4), resume=True)
    assert weights_of(output.weights)[1]["iteration"] == 5


def test_a_real_metric(lvis_folder):
    run_tiny(lvis_folder, *options(2, metric="bbox/APf"))
    assert best(lvis_folder)["best"] >= 0 and len(best(lvis_folder)["values"]) == 2


def test_bad_input(lvis_folder):
    with pytest.raises(InputError, match=r"METRIC is 'bbox/AQ'; the evaluation has bbox/AP, .*segm/APr"):
        run_tiny(lvis_folder, *options(2, metric="bbox/AQ"))
    with pytest.raises(InputError, match=r"MODE is 'top'; it is 'max' or 'min'"):
        run_tiny(lvis_folder, *options(2, mode="top"))
    with pytest.raises(InputError, match=r"PATIENCE is -1"):
        run_tiny(lvis_folder, *options(2, patience=-1))
    with pytest.raises(InputError, match=r"set TEST.EVAL_PERIOD and DATASETS.TEST"):
        run_tiny(lvis_folder, *options(2), "TEST.EVAL_PERIOD", 0)
