"""A data set, a config and a training script that take milliseconds, so that running tables can be tested."""

import json
import sys

import pytest
import yaml

from eql_d2.experiments import plan, spec
from tests.conftest import make_lvis_json

#: In the place of tools/train_net.py: does what the config override SOLVER.MAX_ITER says. 13 fails, 17 waits for ever,
#: 21 takes a second.
SCRIPT = """
import json, os, sys, time
from pathlib import Path
arguments = sys.argv[1:]
value = lambda key, default=None: dict(zip(arguments, arguments[1:])).get(key, default)  # the last one counts
folder = Path(value("OUTPUT_DIR"))
if value("SOLVER.MAX_ITER") == "13":
    sys.exit("error: SOLVER.MAX_ITER is 13; that is unlucky.")
while value("SOLVER.MAX_ITER") == "17":
    time.sleep(0.05)
if value("SOLVER.MAX_ITER") == "21":
    time.sleep(1)
weights = value("MODEL.WEIGHTS")
if weights:
    assert Path(weights).is_file(), weights
(folder / "calls.txt").open("a").write(" ".join(arguments) + "\\n")
if "--eval-only" not in arguments:
    (folder / "model_0000001.pth").write_bytes(b"early")
    (folder / "model_final.pth").write_bytes(b"weights")
ap = float(value("SOLVER.BASE_LR", 0)) * 100 + float(value("SEED"))
(folder / "results.json").write_text(json.dumps({
    "experiment": {"seed": int(value("SEED"))},
    "results": {"segm": {"AP": ap, "AP-fixed": ap, "APr": None}, "bbox": {"AP": ap + 1}},
}))
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with data, ``configs/tiny.yaml``, ``tables/`` and the script; everything in the package points to it."""
    (tmp_path / "data").mkdir()
    (tmp_path / "images").mkdir()
    for split in ("train", "val"):
        (tmp_path / "data" / f"{split}.json").write_text(json.dumps(make_lvis_json()))
    config = {
        "MODEL": {
            "LONG_TAIL": {
                "DATASETS": [
                    [f"tiny_{split}", str(tmp_path / "data" / f"{split}.json"), str(tmp_path / "images")]
                    for split in ("train", "val")
                ]
            }
        },
        "DATASETS": {"TRAIN": ["tiny_train"], "TEST": ["tiny_val"]},
    }
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "tiny.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "tables").mkdir()
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    monkeypatch.setattr(spec, "CONFIGS", tmp_path / "configs")
    monkeypatch.setattr(plan, "TRAIN", (sys.executable, str(script)))
    monkeypatch.setattr(plan, "CALIBRATE", (sys.executable, str(script)))
    return tmp_path


@pytest.fixture
def write_table(place):
    """Write a specification with these rows and keys; return the loaded table."""

    def write(rows, name="tiny", **keys):
        content = {"title": "Tiny", "dataset": "Tiny", "metrics": ["segm/AP", "segm/APr", "bbox/AP"], "rows": rows}
        path = place / "tables" / f"{name}.yaml"
        path.write_text(yaml.safe_dump({**content, **keys}))
        return spec.load_specification(name, place / "tables")

    return write
