"""Metrics for Weights & Biases and MLflow, with modules in the place of theirs that keep what they are given."""

import sys
import types

import pytest

from eql_d2.errors import InputError
from tests.engine.test_bad_input import run_tiny


class Recorder(types.ModuleType):
    """A module any function of which only keeps its arguments; of "init" the result is the module itself."""

    def __init__(self, name):
        super().__init__(name)
        self.calls = []

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)

        def call(*args, **kwargs):
            self.calls.append((name, args, kwargs))
            return self

        return call

    def of(self, name):
        return [(args, kwargs) for called, args, kwargs in self.calls if called == name]


@pytest.mark.parametrize("name, log, end", [("wandb", "log", "finish"), ("mlflow", "log_metrics", "end_run")])
def test_metrics_and_settings_arrive(lvis_folder, monkeypatch, name, log, end):
    module = Recorder(name)
    monkeypatch.setitem(sys.modules, name, module)
    run_tiny(lvis_folder, "MODEL.LONG_TAIL.WRITERS", f"('{name}',)", "SOLVER.MAX_ITER", 3)
    logged = [(kwargs["step"], args[0]) for args, kwargs in module.of(log)]
    steps = [step for step, _ in logged]
    assert steps == sorted(set(steps)) and steps[0] == 2 and len(module.of(end)) == 1
    metrics = {key: value for _, of_step in logged for key, value in of_step.items()}
    assert metrics["total_loss"] > 0 and metrics["segm/AP"] >= 0 and all(type(v) is float for v in metrics.values())
    if name == "wandb":
        settings = module.of("init")[0][1]["config"]
    else:
        settings = module.of("log_params")[0][0][0]
        assert not any("@" in key for key in metrics) and any(" at " in key for key in metrics)
    assert str(settings["SOLVER.MAX_ITER"]) == "3" and settings["MODEL.LONG_TAIL.LOSS"] == "EQL"


def test_bad_input(lvis_folder, monkeypatch):
    with pytest.raises(InputError, match=r"WRITERS has 'comet'; there are 'wandb', 'mlflow'"):
        run_tiny(lvis_folder, "MODEL.LONG_TAIL.WRITERS", "('comet',)")
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r'has \'wandb\' .*: pip install "eql_d2\[wandb\]"'):
        run_tiny(lvis_folder, "MODEL.LONG_TAIL.WRITERS", "('wandb',)")
