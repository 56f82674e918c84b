"""One command for two stages: what each starts from, and what becomes of it when it is killed."""

import json
import re
import subprocess
import sys

import pytest
import torch

from eql_d2.engine.trainer import Trainer
from eql_d2.engine.two_stage import is_finished, stage_arguments, train_two_stages, two_stage_parser
from eql_d2.errors import InputError
from tests.conftest import ROOT, tiny_config

PROTOCOL = ["MODEL.LONG_TAIL.TRAINABLE", "classifier", "MODEL.LONG_TAIL.INIT_CLASSIFIER", "reset"]


class Killed(BaseException):
    """What no part of a training catches."""


@pytest.fixture
def configs(lvis_folder):
    """Return the configs of a softmax detector and of BAGS on top of it, 4 iterations each, a checkpoint after 2."""
    for name, loss, opts in (("one", "SOFTMAX", []), ("two", "BAGS", PROTOCOL)):
        opts = [*opts, "SOLVER.CHECKPOINT_PERIOD", 2, "OUTPUT_DIR", str(lvis_folder / name)]
        cfg = tiny_config(lvis_folder, "Mask-R-CNN-FPN", loss, *opts)
        (lvis_folder / f"{name}.yaml").write_text(cfg.dump())
    return ["--stage1", str(lvis_folder / "one.yaml"), "--stage2", str(lvis_folder / "two.yaml")]


def train(configs, *arguments):
    return train_two_stages(two_stage_parser().parse_args([*configs, *arguments]))


@pytest.fixture
def iterations(monkeypatch):
    """Record (loss, iteration) of each training step, and raise ``Killed`` before that in ``iterations.kill``."""

    class Iterations(list):
        kill = None

    recorded = Iterations()
    run_step = Trainer.run_step

    def recording(self):
        step = (self.cfg.MODEL.LONG_TAIL.LOSS, self.iter)
        if step == recorded.kill:
            raise Killed
        recorded.append(step)
        run_step(self)

    monkeypatch.setattr(Trainer, "run_step", recording)
    return recorded


def check_finished(folder):
    """Both stages have their last weights and results, and the second has all but the classifier of the first."""
    results = {name: json.loads((folder / name / "results.json").read_text()) for name in ("one", "two")}
    assert all("bbox" in content["results"] for content in results.values())
    assert results["two"]["experiment"]["weights"] == str(folder / "one" / "model_final.pth")
    assert results["two"]["experiment"]["trainable"] == "classifier"
    one, two = (torch.load(folder / name / "model_final.pth")["model"] for name in ("one", "two"))
    for name, value in two.items():
        if not re.search(r"\.(cls_score|classifier_loss)\.", name):
            assert torch.equal(value, one[name]), name
    width = {name: len(state["roi_heads.box_predictor.cls_score.bias"]) for name, state in (("1", one), ("2", two))}
    assert width["2"] > width["1"]


def steps(loss, *numbers):
    return [(loss, number) for number in numbers]


def test_killed_in_either_stage(lvis_folder, configs, iterations):
    iterations.kill = ("SOFTMAX", 3)
    with pytest.raises(Killed):
        train(configs)
    assert not is_finished(lvis_folder / "one")
    iterations.kill = ("BAGS", 3)
    with pytest.raises(Killed):
        train(configs)
    assert is_finished(lvis_folder / "one") and not is_finished(lvis_folder / "two")
    one = (lvis_folder / "one" / "model_final.pth").stat().st_mtime_ns
    iterations.kill = None
    train(configs)
    # The steps after the last checkpoint are done again, no other.
    assert iterations == [
        *steps("SOFTMAX", 0, 1, 2, 2, 3),
        *steps("BAGS", 0, 1, 2, 2, 3),
    ]
    assert (lvis_folder / "one" / "model_final.pth").stat().st_mtime_ns == one
    check_finished(lvis_folder)

    train(configs)
    assert len(iterations) == 10  # nothing is left to do


def test_killed_in_the_last_evaluation(lvis_folder, configs, iterations, monkeypatch):
    """Results of an evaluation in the course of training are not the last ones."""
    test = Trainer.test.__func__

    def killed_at_the_end(cls, cfg, model):
        if (lvis_folder / "one" / "model_final.pth").exists():
            raise Killed
        return test(cls, cfg, model)

    monkeypatch.setattr(Trainer, "test", classmethod(killed_at_the_end))
    with pytest.raises(Killed):
        train(configs, "TEST.EVAL_PERIOD", "2")
    assert (lvis_folder / "one" / "results.json").exists() and not is_finished(lvis_folder / "one")
    monkeypatch.setattr(Trainer, "test", classmethod(test))
    train(configs, "TEST.EVAL_PERIOD", "2")
    assert iterations == [*steps("SOFTMAX", 0, 1, 2, 3), *steps("BAGS", 0, 1, 2, 3)]
    check_finished(lvis_folder)


def test_each_stage_has_its_log(lvis_folder, configs):
    train(configs)
    logs = [(lvis_folder / name / "log.txt").read_text() for name in ("one", "two")]
    for text, own, other in zip(logs, ("SOFTMAX", "BAGS"), ("BAGS", "SOFTMAX")):
        assert text.count(f"Classifier loss: loss={own},") == 1 and f"Classifier loss: loss={other}," not in text


def test_folders(lvis_folder, configs):
    def folders(*arguments):
        stages = stage_arguments(two_stage_parser().parse_args([*configs, *arguments]))
        weights = stages[1].opts[stages[1].opts.index("MODEL.WEIGHTS") + 1]
        assert weights == str(stages[0].output_dir / "model_final.pth") and "MODEL.WEIGHTS" not in stages[0].opts
        assert all(stage.resume for stage in stages)
        return [stage.output_dir for stage in stages]

    assert folders() == [lvis_folder / "one", lvis_folder / "two"]
    assert folders("OUTPUT_DIR", "x") == [type(lvis_folder)("x/stage1"), type(lvis_folder)("x/stage2")]


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["--eval-only"], "eql-d2 train"),
        (["--config-file", "x.yaml"], "--stage1 and --stage2"),
        (["MODEL.LONG_TAIL.LOS", "EQL"], "Did you mean MODEL.LONG_TAIL.LOSS"),
    ],
)
def test_bad_arguments(configs, arguments, words):
    with pytest.raises(InputError, match=words):
        train(configs, *arguments)


def test_two_processes(lvis_folder, configs):
    """The tool on two processes: both stages under DistributedDataParallel, the second with its frozen parameters."""
    command = [sys.executable, str(ROOT / "tools/train_two_stage.py"), *configs, "--num-gpus", "2"]
    command += ["--dist-url", "auto", "SOLVER.MAX_ITER", "2"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    check_finished(lvis_folder)
    state = torch.load(lvis_folder / "two" / "model_final.pth")["model"]
    assert (state["roi_heads.box_predictor.cls_score.bias"] != 0).any()  # it was trained
