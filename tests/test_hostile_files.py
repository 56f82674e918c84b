"""Files that would execute something, in every tool that takes such files: they do not, one line says what is wrong."""

import logging
import os
import pickle
import sys
import zipfile

import numpy as np
import pytest
import torch
import yaml

import eql_d2.engine  # noqa: F401
from eql_d2.cli import run as run_command
from eql_d2.config import load_config
from eql_d2.errors import InputError
from eql_d2.modeling import lite0_weights
from tests.conftest import tiny_config


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


def zoo_file(path, payload):
    content = {"model": {"a": np.ones(2)}, "__author__": "a stranger", "matching_heuristics": True, "b": payload}
    path.write_bytes(pickle.dumps(content))


def caffe2_file(path, payload):
    path.write_bytes(pickle.dumps({"blobs": {"conv1_w": np.array([payload], dtype=object)}}, protocol=2))


def torch_file(path, payload):
    torch.save({"model": {"a": torch.ones(2)}, "optimizer": payload}, path)


def old_torch_file(path, payload):
    torch.save({"model": {"a": torch.ones(2)}, "iteration": payload}, path, _use_new_zipfile_serialization=False)


#: What an end of a name stands for, and how such a file is written.
WEIGHTS = {
    "zoo.pkl": zoo_file,
    "caffe2.pkl": caffe2_file,
    "model.pth": torch_file,
    "old.pth": old_torch_file,
    "model.pyth": torch_file,
    "model.safetensors": zoo_file,
}


@pytest.fixture
def place(lvis_folder, monkeypatch):
    """A folder with a data set, a config ``tiny.yaml`` and a run folder ``output`` without weights."""
    # Logs and dumps the config, which takes longer than all else here.
    for name in ("setup_console", "default_setup"):
        monkeypatch.setattr(sys.modules["eql_d2.engine.setup"], name, lambda *_: None)
    monkeypatch.setattr("detectron2.engine.defaults.setup_logger", lambda: None)
    monkeypatch.setattr(logging, "raiseExceptions", False)  # handlers of earlier tests write where these have closed
    cfg = tiny_config(lvis_folder)
    (lvis_folder / "tiny.yaml").write_text(cfg.dump())
    (lvis_folder / "output").mkdir()
    (lvis_folder / "output" / "config.yaml").write_text(cfg.dump())
    return lvis_folder


def refusal_of(capfd, command, *arguments) -> str:
    """Return the one line with which a command refuses its input."""
    with pytest.raises(SystemExit) as ended:
        run_command(command, [str(argument) for argument in arguments])
    printed = capfd.readouterr().err
    errors = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert ended.value.code == 2 and len(errors) == 1 and "Traceback" not in printed, printed
    return errors[0]


#: The arguments with which each tool is given weights.
TOOLS_OF_WEIGHTS = {
    "train": ["--config-file", "{place}/tiny.yaml", "MODEL.WEIGHTS", "{file}"],
    "train --eval-only": ["--config-file", "{place}/tiny.yaml", "MODEL.WEIGHTS", "{file}"],
    "train-two-stage": ["--stage1", "{place}/tiny.yaml", "--stage2", "{place}/tiny.yaml", "MODEL.WEIGHTS", "{file}"],
    "calibrate": ["--config-file", "{place}/tiny.yaml", "MODEL.WEIGHTS", "{file}"],
    "predict": ["--config-file", "{place}/tiny.yaml", "--input", "{place}/images", "--output", "{place}/drawn"]
    + ["--opts", "MODEL.WEIGHTS", "{file}"],
    "analyze": ["{place}/output", "--output", "{place}/analysis", "--only", "weights", "--weights", "{file}"],
    "convert-checkpoint": ["{file}", "{place}/out.pth", "--layout", "detectron2"],
    "train --eval-only with statistics": ["--config-file", "{place}/tiny.yaml", "MODEL.WEIGHTS", "{place}/tiny.yaml"]
    + ["MODEL.LONG_TAIL.CALIBRATION.NAME", "LOGN", "MODEL.LONG_TAIL.CALIBRATION.LOGN.STATISTICS", "{file}"],
}  # fmt: skip


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("tool", TOOLS_OF_WEIGHTS)
def test_weights(place, capfd, tool, name):
    file = place / name
    WEIGHTS[name](file, Payload(place / "marker"))
    command, *flags = tool.split(" with ")[0].split()
    arguments = [word.format(place=place, file=file) for word in TOOLS_OF_WEIGHTS[tool]]
    assert name in refusal_of(capfd, command, *flags, *arguments)
    assert not (place / "marker").exists()


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_that_last_checkpoint_names(place, capfd, name):
    WEIGHTS[name](place / "output" / name, Payload(place / "marker"))
    (place / "output" / "last_checkpoint").write_text(name)
    assert "no checkpoint to go on from" in refusal_of(capfd, "train", "--resume", "--config-file", place / "tiny.yaml")
    assert not (place / "marker").exists()


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_of_another_package(place, name):
    WEIGHTS[name](place / name, Payload(place / "marker"))
    with pytest.raises(InputError, match=name):
        lite0_weights.convert(place / "out.pkl", place / name)
    assert not (place / "marker").exists()


def test_weights_in_a_run_that_a_report_is_made_of(place):
    """What cannot be had is left out of the page."""
    torch_file(place / "output" / "model_final.pth", Payload(place / "marker"))
    with pytest.raises(SystemExit) as ended:
        run_command("report", [str(place / "output"), "--output", str(place / "report.html"), "--max-images", "0"])
    assert not ended.value.code and "model_final.pth" in (place / "report.html").read_text()
    assert not (place / "marker").exists()


CONFIG = "OUTPUT_DIR: !!python/object/apply:os.system ['touch {marker}']\n"
TOOLS_OF_CONFIGS = {
    "train": ["--config-file", "{file}"],
    "train --eval-only": ["--config-file", "{file}"],
    "train-two-stage": ["--stage1", "{place}/tiny.yaml", "--stage2", "{file}"],
    "calibrate": ["--config-file", "{file}"],
    "schedule": ["--config-file", "{file}"],
    "predict": ["--config-file", "{file}", "--input", "{place}/images", "--output", "{place}/drawn"],
    "check-dataset": ["--config-file", "{file}", "some_train"],
    "visualize-data": ["--config-file", "{file}", "--output", "{place}/look"],
    "visualize-results": ["{place}/output", "--config-file", "{file}", "--output", "{place}/look"],
    "reproduce status": ["{file}"],
    "reproduce run": ["{file}", "--dry-run"],
    "plan": ["{file}", "--output", "{place}/plan"],
    "thresholds of a run": ["{place}/output"],
    "visualize-results of a run": ["{place}/output", "--output", "{place}/look"],
    "analyze of a run": ["{place}/output", "--output", "{place}/analysis"],
    "report of a run": ["{place}/output", "--output", "{place}/report.html"],
}


KINDS = ("itself", "its base", "its base's base in a list")


@pytest.mark.parametrize(
    "tool, kind",
    # YOLO's lists, which plan takes, have no bases.
    [(tool, kind) for tool in TOOLS_OF_CONFIGS for kind in (KINDS[:1] if tool == "plan" else KINDS)],
)
def test_configs(place, capfd, tool, kind):
    file = place / ("output/config.yaml" if tool.endswith("of a run") else "hostile.yaml")
    hostile = CONFIG.format(marker=place / "marker")
    if kind == "itself":
        file.write_text(hostile)
    else:
        (place / "base.yaml").write_text(hostile)
        (place / "middle.yaml").write_text("_BASE_: base.yaml\n")
        base = place / ("base.yaml" if kind == "its base" else "middle.yaml")
        of_table = tool.startswith("reproduce")  # whose base is one file
        file.write_text(yaml.safe_dump({"_BASE_": str(base) if kind == "its base" or of_table else [str(base)]}))
    command, *flags = tool.split(" of ")[0].split()
    arguments = [word.format(place=place, file=file) for word in TOOLS_OF_CONFIGS[tool]]
    assert "python/object/apply:os.system" in refusal_of(capfd, command, *flags, *arguments)
    assert not (place / "marker").exists()


def object_arrays(path, payload):
    """Write an .npz whose arrays are of objects; numpy's own writer asks for no leave to pickle."""
    labels = np.array([payload] * 4, dtype=object)
    np.savez(path, x_train=labels, y_train=labels, x_test=labels, y_test=labels)


def pickle_for_array(path, payload):
    """Write an .npz whose members are plain pickles, which numpy loads if it may."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("x_train", "y_train", "x_test", "y_test"):
            archive.writestr(f"{name}.npy", pickle.dumps(payload))


@pytest.mark.parametrize("write", [object_arrays, pickle_for_array])
@pytest.mark.parametrize("tool", ["train", "check-dataset"])
def test_arrays(place, capfd, tool, write):
    write(place / "images.npz", Payload(place / "marker"))
    name = f"{place.name}_images"
    entry = {"name": name, "kind": "cifar", "path": str(place / "images.npz"), "split": "train"}
    cfg = load_config("classification/cifar100lt/softmax", ["MODEL.DEVICE", "cpu", "OUTPUT_DIR", str(place / "output")])
    cfg.MODEL.LONG_TAIL.CLASSIFICATION.DATASETS = [entry]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = (name,), ()
    (place / "images.yaml").write_text(cfg.dump())
    arguments = ["--config-file", place / "images.yaml"] + [name] * (tool == "check-dataset")
    assert "images.npz" in refusal_of(capfd, tool, *arguments)
    assert not (place / "marker").exists()
