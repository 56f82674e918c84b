"""The tools as a user runs them: processes of their own, a generated data set, no network, no GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cv2
import pytest
import torch

from eql_d2.mini.generate import generate_mini_dataset
from tests.conftest import ROOT

pytestmark = pytest.mark.end_to_end

SMALL = [
    "MODEL.ROI_HEADS.NUM_CLASSES", 12,
    "SOLVER.IMS_PER_BATCH", 4,
    "SOLVER.MAX_ITER", 6,
    "SOLVER.CHECKPOINT_PERIOD", 3,
    "SOLVER.STEPS", "(5,)",
    "DATALOADER.NUM_WORKERS", 0,
]  # fmt: skip


@pytest.fixture(scope="module")
def datasets(tmp_path_factory) -> Path:
    """A folder that holds a generated set of 12 classes as ``mini``."""
    folder = tmp_path_factory.mktemp("datasets")
    generate_mini_dataset(folder / "mini", num_classes=12, num_train=60, num_val=16, num_test=4, image_size=96)
    return folder


def start(datasets, command):
    environment = {**os.environ, "DETECTRON2_DATASETS": str(datasets), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [str(word) for word in command],
        env=environment,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def tool(datasets, *command, status=0) -> str:
    """Run a tool of this repository, check its exit status, return what it printed."""
    process = start(datasets, [sys.executable, *command])
    output, _ = process.communicate(timeout=600)
    assert process.returncode == status, output
    return output


def train(datasets, output_dir, *arguments, config="mini/eql.yaml", status=0) -> str:
    command = ["tools/train_net.py", "--config-file", f"configs/{config}", *arguments]
    return tool(datasets, *command, *SMALL, "OUTPUT_DIR", output_dir, status=status)


def results_of(output_dir):
    return json.loads((Path(output_dir) / "results.json").read_text())


@pytest.fixture(scope="module")
def trained(datasets, tmp_path_factory):
    """The output folder of six iterations of EQL, and what the run printed."""
    output_dir = tmp_path_factory.mktemp("trained")
    return output_dir, train(datasets, output_dir)


def test_training_leaves_what_a_user_looks_for(trained):
    output_dir, printed = trained
    assert "Classifier loss: loss=EQL" in printed and "num_tail_classes=" in printed and "eta:" in printed
    metrics = [json.loads(line) for line in (output_dir / "metrics.json").read_text().splitlines()]
    assert max(line["iteration"] for line in metrics) >= 5 and all(line.get("total_loss", 1) > 0 for line in metrics)
    assert {"bbox/AP", "segm/APr", "loss_cls", "loss_mask"} <= set().union(*metrics)
    assert list(output_dir.glob("events.out.tfevents.*"))
    content = results_of(output_dir)
    loss = content["experiment"]["classifier_losses"][0]
    assert loss["loss"] == "EQL" and loss["lambda_"] == 0.0345 and 0 < loss["num_tail_classes"] < 12
    for kind in ("bbox", "segm"):
        assert {"AP", "AP50", "AP75", "APs", "APm", "APl", "APr", "APc", "APf"} <= set(content["results"][kind])
    assert len(json.loads((output_dir / "category_frequency.json").read_text())["image_count"]) == 12
    assert not list(output_dir.glob("*.tmp*"))


def test_eval_only_gives_the_same_ap(trained, datasets, tmp_path):
    output_dir, _ = trained
    train(datasets, tmp_path, "--eval-only", "MODEL.WEIGHTS", output_dir / "model_final.pth")
    assert results_of(tmp_path)["results"] == results_of(output_dir)["results"]


def test_inference_without_the_training_set(trained, datasets, tmp_path):
    """The counts that training wrote stand in for a training json that is absent."""
    output_dir, _ = trained
    (tmp_path / "mini").mkdir()
    for name in ("val.json", "val", "test.json", "test"):
        (tmp_path / "mini" / name).symlink_to(datasets / "mini" / name)
    registered = [["mini_val", "mini/val.json", "mini/val"]]
    arguments = ["--eval-only", "MODEL.WEIGHTS", output_dir / "model_final.pth", "MODEL.LONG_TAIL.DATASETS", registered]
    frequency = ["MODEL.LONG_TAIL.FREQUENCY", output_dir / "category_frequency.json"]
    train(tmp_path, tmp_path / "output", *arguments, *frequency)
    assert results_of(tmp_path / "output")["results"] == results_of(output_dir)["results"]


def test_resume_goes_on_from_the_last_checkpoint(trained, datasets, tmp_path):
    """A run that is killed after iteration 3 and resumed saves at the same iterations as one that was not."""
    output_dir, _ = trained
    (tmp_path / "last_checkpoint").write_text("model_0000002.pth")
    (tmp_path / "model_0000002.pth").write_bytes((output_dir / "model_0000002.pth").read_bytes())
    printed = train(datasets, tmp_path, "--resume", "TEST.EVAL_PERIOD", 100)
    assert "Starting training from iteration 3" in printed
    checkpoint = torch.load(tmp_path / "model_final.pth", weights_only=True)
    assert checkpoint["iteration"] == 5


def test_two_processes_on_cpus(datasets, tmp_path):
    """Two gloo processes train, and evaluate to the same AP as one process does with their weights."""
    printed = train(datasets, tmp_path / "two", "--num-gpus", 2, "--dist-url", "auto")
    assert "World size: 2" in printed
    train(datasets, tmp_path / "one", "--eval-only", "MODEL.WEIGHTS", tmp_path / "two" / "model_final.pth")
    assert results_of(tmp_path / "one")["results"] == results_of(tmp_path / "two")["results"]


def test_torchrun(datasets, tmp_path):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2, "tools/train_net.py"]
    command = [*launcher, "--config-file", "configs/mini/cascade_eql.yaml", *SMALL, "OUTPUT_DIR", tmp_path]
    printed = tool(datasets, *command)
    assert "World size: 2" in printed
    assert len(results_of(tmp_path)["experiment"]["classifier_losses"]) == 3


def test_a_set_without_annotations_gives_a_submission(trained, datasets, tmp_path):
    output_dir, _ = trained
    arguments = ["--eval-only", "MODEL.WEIGHTS", output_dir / "model_final.pth", "DATASETS.TEST", "('mini_test',)"]
    printed = train(datasets, tmp_path, *arguments)
    assert "no annotations" in printed
    submission = json.loads((tmp_path / "inference/mini_test/lvis_instances_results.json").read_text())
    images = {image["id"] for image in json.loads((datasets / "mini/test.json").read_text())["images"]}
    assert submission and {detection["image_id"] for detection in submission} == images
    assert all({"bbox", "score", "category_id", "segmentation"} <= set(detection) for detection in submission)
    assert {d["category_id"] for d in submission} <= set(range(1, 13))


def test_test_time_augmentation(trained, datasets, tmp_path):
    output_dir, _ = trained
    arguments = ["--eval-only", "MODEL.WEIGHTS", output_dir / "model_final.pth", "TEST.AUG.ENABLED", True]
    train(datasets, tmp_path, *arguments, "TEST.AUG.MIN_SIZES", "(96, 128)", "TEST.AUG.MAX_SIZE", 128)
    results = results_of(tmp_path)["results"]
    assert set(results) == {"bbox", "segm", "bbox_TTA", "segm_TTA"} and results["bbox_TTA"]["AP"] >= 0


def test_prediction_on_images_and_video(trained, datasets, tmp_path):
    """demo/demo.py draws a folder and a video, with the config and the counts that training left, and no data set."""
    output_dir, _ = trained
    images = sorted((datasets / "mini/val").iterdir())[:3]
    (tmp_path / "images").mkdir()
    for image in images:
        (tmp_path / "images" / image.name).symlink_to(image)
    video = cv2.VideoWriter(str(tmp_path / "in.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 5, (96, 96))
    for image in images:
        video.write(cv2.imread(str(image)))
    video.release()
    config = ["demo/demo.py", "--config-file", output_dir / "config.yaml", "--confidence-threshold", 0.0]
    weights = ["--opts", "MODEL.WEIGHTS", output_dir / "model_final.pth"]
    results = ["--output", tmp_path / "drawn", "--results", tmp_path / "results.json", "--batch-size", 2]
    tool(tmp_path, *config, "--input", tmp_path / "images", *results, *weights)
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == [image.name for image in images]
    assert (cv2.imread(str(tmp_path / "drawn" / images[0].name)) != cv2.imread(str(images[0]))).any()
    detections = json.loads((tmp_path / "results.json").read_text())
    assert {detection["image_id"] for detection in detections} == {1, 2, 3} and detections[0]["segmentation"]
    tool(tmp_path, *config, "--video-input", tmp_path / "in.mp4", "--output", tmp_path / "out.mp4", *weights)
    assert cv2.VideoCapture(str(tmp_path / "out.mp4")).get(cv2.CAP_PROP_FRAME_COUNT) == 3
    printed = tool(tmp_path, *config, "--input", tmp_path / "absent.jpg", *results, *weights, status=2)
    assert "absent.jpg" in printed and "Traceback" not in printed


def test_broken_weights_are_named(datasets, tmp_path):
    (tmp_path / "half.pth").write_bytes(b"PK\x03\x04 half a file")
    printed = train(datasets, tmp_path / "output", "MODEL.WEIGHTS", tmp_path / "half.pth", status=2)
    assert "half.pth" in printed and "Traceback" not in printed


def test_the_demonstration(datasets, tmp_path):
    """Six iterations of what `make demo` runs; a second call only prints the table again."""
    command = ["tools/demo_mini.py", "--output", tmp_path, "--data", datasets / "mini"]
    # Twelve classes: the classifier of the shipped weights does not fit.
    opts = [*SMALL, "MODEL.LONG_TAIL.INIT_CLASSIFIER", "reset"]
    printed = tool(datasets, *command, *opts)
    assert "| Sigmoid |" in printed and "| EQL |" in printed and "| EQL - Sigmoid |" in printed
    assert "Next: eql-d2 report" in printed.splitlines()[-1]
    assert 10_000 < (tmp_path / "detections.jpg").stat().st_size < 1_000_000
    before = (tmp_path / "eql/model_final.pth").stat().st_mtime_ns
    assert "| EQL - Sigmoid |" in tool(datasets, *command, *opts)
    assert (tmp_path / "eql/model_final.pth").stat().st_mtime_ns == before
