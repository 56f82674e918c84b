"""tools/reproduce.py as a user runs it: real trainings of a few iterations, killed, resumed and reported."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml

from eql_d2.mini.generate import generate_mini_dataset
from tests.conftest import ROOT
from tests.test_end_to_end import SMALL

pytestmark = pytest.mark.end_to_end


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a generated data set and a table: softmax, LogN from its weights, and a row that fails."""
    folder = tmp_path_factory.mktemp("tables")
    generate_mini_dataset(folder / "data" / "mini", num_classes=12, num_train=60, num_val=16, num_test=4, image_size=96)
    keep = ["MODEL.LONG_TAIL.INIT_CLASSIFIER", "keep"]
    table = {
        "title": "A small table",
        "dataset": "Generated",
        "baseline": "softmax",
        "metrics": ["segm/AP", "segm/APr", "bbox/AP", "bbox/AP-fixed"],
        "opts": [str(word) for word in SMALL] + ["MODEL.LONG_TAIL.AP_FIXED", "True"],
        "rows": [
            {"name": "softmax", "config": "mini/softmax"},
            {"name": "logn", "config": "mini/logn", "start": "softmax", "action": "evaluate", "calibrate": True,
             "opts": keep},
            {"name": "broken", "config": "mini/sigmoid", "opts": ["MODEL.WEIGHTS", "absent.pth"]},
        ],
    }  # fmt: skip
    (folder / "small.yaml").write_text(yaml.safe_dump(table))
    return folder


def reproduce(place, command, *arguments):
    words = [sys.executable, "tools/reproduce.py", command, str(place / "small.yaml")]
    words += ["--results", str(place / "results.jsonl"), "--runs", str(place / "runs"), *arguments]
    environment = {**os.environ, "DETECTRON2_DATASETS": str(place / "data")}
    return subprocess.Popen(
        words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_a_table_is_run_killed_resumed_and_reported(place):
    first = reproduce(place, "run", "--only", "softmax")
    deadline = time.monotonic() + 300
    # Killed with a checkpoint on disk and the training not at its end.
    while not list(place.glob("runs/softmax*/last_checkpoint")) and time.monotonic() < deadline:
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    first.communicate(timeout=60)
    (folder,) = place.glob("runs/softmax-seed0-*")
    # The training has ended with the command that started it, and is not taken for a failure.
    assert not subprocess.run(["pgrep", "-f", str(folder)], capture_output=True).stdout
    assert json.loads((folder / "run.json").read_text())["status"] == "interrupted"
    assert not (folder / "model_final.pth").exists()

    second = reproduce(place, "run", "--jobs", "2")
    printed, _ = second.communicate(timeout=600)
    assert second.returncode == 1, printed  # one row fails
    assert "done  softmax (seed 0)" in printed and "done  logn (seed 0)" in printed and "absent.pth" in printed
    records = {record["name"]: record for record in map(json.loads, (place / "results.jsonl").read_text().splitlines())}
    assert set(records) == {"softmax", "logn"}
    assert records["softmax"]["attempts"] >= 2 and records["softmax"]["peak_memory_mib"] > 300
    assert records["logn"]["experiment"]["calibration"]["name"] == "LOGN"
    assert {"AP", "AP-fixed"} <= set(records["logn"]["metrics"]["bbox"])

    printed, _ = reproduce(place, "run", "--only", "softmax", "logn").communicate(timeout=300)
    assert "2 of 2 runs have finished, 0 to go" in printed

    printed, _ = reproduce(place, "status").communicate(timeout=300)
    assert "softmax (seed 0): finished" in printed and "broken (seed 0): failed" in printed

    printed, _ = reproduce(place, "report").communicate(timeout=300)
    assert "| softmax | 1 |" in printed and "| broken | 0 | failed |" in printed and "broken failed: error:" in printed

    figure = place / "small.png"
    plotted = reproduce(place, "plot", "--metrics", "bbox/AP", "--baseline", "softmax", "--output", str(figure))
    assert plotted.communicate(timeout=300)[0] == "" and figure.read_bytes().startswith(b"\x89PNG")
