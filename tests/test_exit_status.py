"""Every tool's exit status on failure: not 0, with one line that begins with "error: " and no stack."""

import errno
import importlib.util
import json
import logging
import os
import subprocess
import sys
import threading
import types

import numpy as np
import pytest

from eql_d2 import cli
from eql_d2.engine.console import ConsoleFilter
from eql_d2.engine.launch import _unless_one_line, launch
from eql_d2.errors import InputError, one_line, run_tool
from tests.analysis.helpers import make_run
from tests.conftest import full_disk, tiny_config
from tests.evaluation.helpers import make_detections, make_ground_truth

#: Of each command, arguments that it cannot do anything with; {out} is a folder that may be made, {file} a file.
FAILING = {
    "plan": ["absent.json", "--output", "{out}"],
    "train": ["--config-file", "absent.yaml"],
    "train-two-stage": ["--stage1", "absent.yaml", "--stage2", "absent.yaml"],
    "evaluate": ["absent.json", "--annotations", "absent.json"],
    "ensemble": ["absent.json", "--output", "{out}/merged.json"],
    "calibrate": ["--config-file", "absent.yaml"],
    "thresholds": ["absent"],
    "schedule": ["--config-file", "absent.yaml"],
    "convert-checkpoint": ["absent.pth", "{out}/a.pth", "--layout", "imagenet"],
    "predict": ["--config-file", "absent.yaml", "--input", "{file}", "--output", "{out}"],
    "export": ["--config-file", "absent.yaml", "--images", "{file}", "--output", "{out}/a.onnx"],
    "reproduce": ["run", "no_such_table"],
    "analyze": ["absent", "--output", "{out}"],
    "report": ["absent", "--output", "{out}/a.html"],
    "visualize-data": ["--dataset", "no_such_set", "--output", "{out}"],
    "visualize-results": ["absent", "--output", "{out}"],
    "configs": ["no_such_config"],
    "check-dataset": ["--json", "absent.json"],
    "merge": ["absent.yaml", "--output", "{out}/merged.json"],
    "write-masks": ["--json", "absent.json", "--images", "{out}", "--output", "{out}"],
    "make-mini-dataset": ["--output", "{file}/mini"],
    "demo": ["--data", "{file}/mini", "--output", "{out}"],
    "install-detectron2": [],
}


@pytest.fixture(autouse=True)
def _hooks_as_they_were(monkeypatch):
    """launch() sets them for a process that is its own."""
    monkeypatch.setattr(logging, "raiseExceptions", logging.raiseExceptions)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)


def status_and_line(capsys, function, *arguments):
    """Return the exit status of a tool, and the line that it says."""
    with pytest.raises(SystemExit) as info:
        function(*arguments)
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("W", " "))]
    assert len(lines) == 1, lines
    return info.value.code, lines[0]


def test_no_command_is_left_out():
    assert list(FAILING) == list(cli.COMMANDS)


@pytest.mark.parametrize("command", FAILING)
def test_failing_commands(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    if command == "install-detectron2":
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
        monkeypatch.setattr(subprocess, "run", lambda command: subprocess.CompletedProcess(command, 1))
    arguments = [word.format(out=tmp_path / "out", file=tmp_path / "file") for word in FAILING[command]]
    status, line = status_and_line(capsys, cli.run, command, arguments)
    assert status == 2 and line.startswith("error: ")
    assert not any((tmp_path / "out").rglob("*")), "nothing is left"


def test_what_a_tool_ends_with(capsys):
    def raising(error):
        def main():
            raise error

        return main

    assert status_and_line(capsys, run_tool, raising(InputError("words"))) == (2, "error: words")
    assert status_and_line(capsys, run_tool, raising(KeyboardInterrupt())) == (130, "interrupted")
    denied = PermissionError(errno.EACCES, "Permission denied", "/there")
    assert status_and_line(capsys, run_tool, raising(denied)) == (2, "error: /there: Permission denied.")
    full = OSError(errno.ENOSPC, "No space left on device")
    words = "error: A file of the output cannot be written (No space left on device); free some space or name another"
    assert status_and_line(capsys, run_tool, raising(full)) == (2, f"{words} place.")
    for bug in (KeyError("a"), FileNotFoundError(errno.ENOENT, "No such file or directory", "of our own")):
        with pytest.raises(type(bug)):
            run_tool(raising(bug))
        assert one_line(bug) is None


def test_evaluating_on_a_full_disk(tmp_path, capsys):
    rng = np.random.default_rng(0)
    ground_truth = make_ground_truth(rng)
    for category in ground_truth["categories"]:
        category["image_count"] = 5
    (tmp_path / "gt.json").write_text(json.dumps(ground_truth))
    (tmp_path / "results.json").write_text(json.dumps(make_detections(rng, ground_truth)))
    (tmp_path / "out").mkdir()
    for option, name in (("--per-category", "ap.csv"), ("--per-category", "ap.json"), ("--plot", "ap.png")):
        path = tmp_path / "out" / name
        path.write_text("earlier")
        arguments = [str(tmp_path / "results.json"), "--annotations", str(tmp_path / "gt.json"), option, str(path)]
        with full_disk(100):
            status, line = status_and_line(capsys, cli.run, "evaluate", [*arguments, "--iou-type", "bbox"])
        assert (status, line.split(" (")[0]) == (2, f"error: {path} cannot be written")
        assert path.read_text() == "earlier"
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_analyzing_on_a_full_disk(lvis_folder, capsys):
    run, output = make_run(lvis_folder, "run", lvis_folder), lvis_folder / "out"
    with full_disk(100):
        status, line = status_and_line(
            capsys, cli.run, "analyze", [str(run), "--output", str(output), "--only", "tail-ratio"]
        )
    assert status == 2 and line.startswith(f"error: {output / 'tail_ratio.'}") and "cannot be written" in line
    assert list(output.iterdir()) == []


def test_training_on_a_disk_that_gets_full(lvis_folder):
    """The earlier checkpoint is whole."""
    folder = lvis_folder / "output"
    folder.mkdir()
    (folder / "model_final.pth").write_text("earlier")
    (lvis_folder / "tiny.yaml").write_text(tiny_config(lvis_folder).dump())
    limit = 1 << 20  # what setup() tries
    script = (
        "import resource\n"
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))\n"
        "from eql_d2.cli import run\n"
        f"run('train', ['--config-file', {str(lvis_folder / 'tiny.yaml')!r}])\n"
    )
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stdout + done.stderr and done.stderr.count("error: ") == 1
    line = f"error: {folder / 'model_final.pth'} cannot be written (File too large); free some space or name another"
    assert line in done.stderr
    assert (folder / "model_final.pth").read_text() == "earlier"
    assert not list(folder.glob("*.tmp*"))


def test_no_stack_of_what_is_said_in_one_line():
    """Detectron2's loop logs the stack of every exception; threads and files closed at exit print theirs."""
    for error, is_said in ((OSError(errno.ENOSPC, "No space left on device"), True), (KeyError("a bug"), False)):
        record = logging.LogRecord("d2", logging.ERROR, "", 0, "Exception during training:", (), (None, error, None))
        assert ConsoleFilter().filter(record) is not is_said
        printed = []
        _unless_one_line(printed.append, types.SimpleNamespace(exc_value=error))
        assert bool(printed) is not is_said


def test_launch_says_a_full_disk_once(capsys):
    def main(args):
        raise OSError(errno.ENOSPC, "No space left on device", "/there/log.txt")

    class OneProcess:
        num_gpus, num_machines, machine_rank, dist_url = 1, 1, 0, ""

    status, line = status_and_line(capsys, launch, main, OneProcess)
    assert status == 2 and line.startswith("error: /there/log.txt cannot be written (No space left on device)")
