"""A wheel in an environment of its own, used from an empty folder: configs, data, training, evaluation, tables."""

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest
import yaml

from tests.conftest import CONFIGS, ROOT
from tests.test_end_to_end import SMALL

pytestmark = pytest.mark.end_to_end

#: What the package is built from.
SOURCE = ("eql_d2", "configs", "setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")


def call(command, folder, status=0) -> str:
    """Run a command in a folder, without this process's import path; check its exit status, return what it printed."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    environment.update(OMP_NUM_THREADS="1", DETECTRON2_DATASETS="data")
    words = [str(word) for word in command]
    done = subprocess.run(
        words, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300
    )
    assert done.returncode == status, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def binaries(tmp_path_factory) -> Path:
    """The folder of programs of an environment that has the wheel, and all else from the one that runs the tests."""
    place = tmp_path_factory.mktemp("wheel")
    for name in SOURCE:  # a copy: building leaves folders behind
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, place / "source" / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", place]
    call([*pip, "wheel", *options, place / "source"], place)
    (wheel,) = place.glob("*.whl")
    environment = venv.EnvBuilder(with_pip=False)
    environment.create(place / "venv")
    binaries = Path(environment.ensure_directories(place / "venv").bin_path)
    call([*pip, "--python", binaries / "python", "install", "--no-deps", "--no-index", wheel], place)
    # The .pth files of the shared folders are not read from here, so that an editable install in them is not seen.
    shared = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (packages,) = (place / "venv").rglob("site-packages")
    (packages / "shared.pth").write_text("\n".join(shared) + "\n")
    return binaries


@pytest.fixture(scope="module")
def folder(binaries, tmp_path_factory) -> Path:
    """An empty folder but for the generated data in ``data/mini``."""
    folder = tmp_path_factory.mktemp("anywhere")
    sizes = ["--classes", 12, "--train-images", 60, "--val-images", 16, "--test-images", 4, "--image-size", 96]
    call([binaries / "eql-d2", "make-mini-dataset", "--output", "data/mini", *sizes], folder)
    return folder


def test_the_configs_are_in_the_wheel(binaries, tmp_path):
    code = "import eql_d2, json; from eql_d2 import model_zoo; names = model_zoo.list_configs(); "
    code += "print(json.dumps([eql_d2.__file__, names, model_zoo.get_config(names[0]).MODEL.META_ARCHITECTURE]))"
    place, names, architecture = json.loads(call([binaries / "python", "-W", "ignore", "-c", code], tmp_path))
    package = Path(place).parent
    assert binaries.parent in package.parents and (package / "py.typed").is_file() and architecture
    there = {path.relative_to(package / "configs") for path in (package / "configs").rglob("*.yaml")}
    assert there == {path.relative_to(CONFIGS) for path in CONFIGS.rglob("*.yaml")}
    assert len(names) > 100


def test_training_evaluation_and_prediction(binaries, folder):
    program = binaries / "eql-d2"
    config = ["--config-file", "mini/eql", *SMALL]
    printed = call([program, "train", *config, "OUTPUT_DIR", "out"], folder)
    assert "Classifier loss: loss=EQL" in printed and "FutureWarning" not in printed
    results = json.loads((folder / "out/results.json").read_text())["results"]
    assert {"AP", "APr", "APc", "APf"} <= set(results["segm"])
    detections = "out/inference/mini_val/lvis_instances_results.json"
    printed = call([program, "evaluate", detections, "--annotations", "data/mini/val.json"], folder)
    assert "| mask |" in printed
    arguments = ["--config-file", "out/config.yaml", "--input", "data/mini/test", "--output", "drawn"]
    call([program, "predict", *arguments, "--opts", "MODEL.WEIGHTS", "out/model_final.pth"], folder)
    assert len(list((folder / "drawn").iterdir())) == 4


def test_tables_start_the_installed_package(binaries, folder):
    """Every packaged table is listed; the trainings of one of the user's own are commands of the installed package."""
    program = binaries / "eql-d2"
    listed = call([program, "reproduce", "list"], folder).splitlines()
    names = {path.stem for path in (CONFIGS / "tables").glob("*.yaml") if not path.name.startswith("Base-")}
    assert {line.split(":")[0] for line in listed} == names
    rows = [{"name": "eql", "config": "mini/eql", "opts": [*map(str, SMALL), "SOLVER.MAX_ITER", "2"]}]
    table = {"title": "Mine", "dataset": "mine", "metrics": ["bbox/AP"], "rows": rows}
    (folder / "mine.yaml").write_text(yaml.safe_dump(table))
    call([program, "reproduce", "run", "mine.yaml"], folder)
    (record,) = map(json.loads, (folder / "output/tables/results.jsonl").read_text().splitlines())
    assert record["config"] == "configs/mini/eql.yaml" and record["commit"] is None
    assert "| eql |" in call([program, "reproduce", "report", "mine.yaml"], folder)


def test_what_is_wrong_is_said_in_one_line(binaries, tmp_path):
    printed = call([binaries / "python", "-m", "eql_d2", "train", "--config-file", "mini/eqll"], tmp_path, status=2)
    assert printed.splitlines()[-1].startswith("error: --config-file mini/eqll") and "mini/eql" in printed
    assert "Traceback" not in printed and not list(tmp_path.iterdir())
