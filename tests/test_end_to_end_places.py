"""A user without root, data that nobody may write, and paths with spaces and letters beyond ASCII."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from eql_d2.mini.generate import generate_mini_dataset
from tests.conftest import ROOT

pytestmark = pytest.mark.end_to_end

TRAIN = [
    "train", "--config-file", ROOT / "configs" / "mini" / "eql.yaml",
    "MODEL.ROI_HEADS.NUM_CLASSES", 12,
    "SOLVER.IMS_PER_BATCH", 4,
    "SOLVER.MAX_ITER", 4,
    "SOLVER.STEPS", "(3,)",
    "DATALOADER.NUM_WORKERS", 1,
]  # fmt: skip


def test_training_evaluation_check_and_report(tmp_path):
    data, place = tmp_path / "Lång svans 漢字", tmp_path / "out put é"
    place.mkdir()
    generate_mini_dataset(data / "mini", num_classes=12, num_train=40, num_val=8, num_test=4, image_size=96)
    before = _listing(data)
    for path in (data, *data.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    user = _plain_user(place)
    run = place / "run 1"
    assert "copypaste: Task: bbox" in _tool(data, place, user, *TRAIN, "OUTPUT_DIR", run)
    checked = _tool(data, place, user, "check-dataset", "--json", data / "mini" / "val.json")
    assert checked.endswith("No errors found.\n")
    results = run / "inference" / "mini_val" / "lvis_instances_results.json"
    table = _tool(data, place, user, "evaluate", results, "--annotations", data / "mini" / "val.json")
    assert "LVIS protocol" in table and "APr" in table
    _tool(data, place, user, "report", run, "--output", place / "the report.html")
    assert "<html" in (place / "the report.html").read_text(encoding="utf-8") and _listing(data) == before


def _listing(folder: Path):
    return sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file())


def _plain_user(place: Path):
    """Return whom the tools are run as: this user, or where that is root, nobody, if Python may be read by nobody."""
    if os.getuid():
        return None
    for folder in [place, *place.parents]:  # pytest's own folders are for their owner alone
        if folder == Path(place.anchor) or folder.stat().st_mode & 0o5 == 0o5:
            break
        folder.chmod(folder.stat().st_mode | 0o755)
    os.chown(place, 65534, 65534)
    try:
        done = subprocess.run([sys.executable, "-c", "import torch"], user=65534, group=65534, cwd="/", env={})
    except PermissionError:
        return None
    return None if done.returncode else 65534


def _tool(data: Path, place: Path, user, *words) -> str:
    environment = {key: value for key, value in os.environ.items() if key not in ("HOME", "XDG_CACHE_HOME")}
    environment.update(DETECTRON2_DATASETS=str(data), OMP_NUM_THREADS="1", PYTHONPATH=str(ROOT))
    command = [sys.executable, "-m", "eql_d2", *map(str, words)]
    kwargs = {} if user is None else {"user": user, "group": user, "extra_groups": []}
    done = subprocess.run(
        command, env=environment, cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **kwargs
    )
    assert done.returncode == 0, done.stdout
    return done.stdout
