"""The generated data set's folder: what is kept, replaced and refused, and what bad arguments are told."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from eql_d2.errors import InputError
from eql_d2.mini import generate as mini
from eql_d2.mini.generate import generate_mini_dataset
from eql_d2.mini.shapes import MAX_CLASSES

TINY = {"num_classes": 7, "num_train": 6, "num_val": 3, "image_size": 64, "num_test": 2}


def all_files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path):
    first, second, other = (
        all_files(generate_mini_dataset(tmp_path / name, seed=seed, **TINY))
        for name, seed in (("a", 5), ("b", 5), ("c", 6))
    )
    assert first == second
    assert first.keys() == other.keys()
    assert all(first[path] != other[path] for path in first)


def test_a_set_that_is_there_is_not_made_again(tmp_path, monkeypatch):
    folder = generate_mini_dataset(tmp_path / "mini", **TINY)
    before = all_files(folder)
    monkeypatch.setattr(mini, "_write_dataset", lambda *_: pytest.fail("generated again"))
    assert generate_mini_dataset(folder, **TINY) == folder
    assert all_files(folder) == before


def test_other_parameters_need_overwrite(tmp_path):
    folder = generate_mini_dataset(tmp_path / "mini", **TINY)
    before = all_files(folder)
    with pytest.raises(InputError, match="made with seed 0, not 1"):
        generate_mini_dataset(folder, seed=1, **TINY)
    assert all_files(folder) == before
    generate_mini_dataset(folder, seed=1, overwrite=True, **TINY)
    assert all_files(folder) != before
    assert json.loads((folder / "mini.json").read_text())["seed"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["mini"]


def test_another_version_is_not_reused(tmp_path, monkeypatch):
    folder = generate_mini_dataset(tmp_path / "mini", **TINY)
    monkeypatch.setattr(mini, "VERSION", mini.VERSION + 1)
    with pytest.raises(InputError, match="made with version"):
        generate_mini_dataset(folder, **TINY)


def test_an_incomplete_set_is_not_reused(tmp_path):
    folder = generate_mini_dataset(tmp_path / "mini", **TINY)
    (folder / "val.json").unlink()
    with pytest.raises(InputError, match=r"lacks val\.json"):
        generate_mini_dataset(folder, **TINY)
    generate_mini_dataset(folder, overwrite=True, **TINY)
    assert (folder / "val.json").exists()


@pytest.mark.parametrize("with_stamp", [False, True])
def test_a_folder_with_other_files_is_left_alone(tmp_path, with_stamp):
    folder = tmp_path / "mine"
    if with_stamp:
        generate_mini_dataset(folder, **TINY)
    folder.mkdir(exist_ok=True)
    (folder / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match=r"'thesis\.tex'"):
        generate_mini_dataset(folder, seed=1, overwrite=True, **TINY)
    assert (folder / "thesis.tex").read_text() == "years of work"


def test_a_run_that_is_cut_short_leaves_nothing(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(mini, "category_records", interrupt)
    with pytest.raises(KeyboardInterrupt):
        generate_mini_dataset(tmp_path / "mini", **TINY)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_replacement_keeps_the_old_set(tmp_path, monkeypatch):
    folder = generate_mini_dataset(tmp_path / "mini", **TINY)
    before = all_files(folder)
    rename = Path.rename

    def fail_for_the_new_set(path, target):
        if path.name.startswith(".mini.tmp") and not path.name.endswith("-old"):
            raise OSError("no space left")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_new_set)
    with pytest.raises(InputError, match="no space left"):
        generate_mini_dataset(folder, seed=1, overwrite=True, **TINY)
    assert all_files(folder) == before
    assert [path.name for path in tmp_path.iterdir()] == ["mini"]


# ---- bad arguments


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"num_classes": 0}, "num_classes is 0; it must be at least 1"),
        ({"num_classes": MAX_CLASSES + 1, "num_train": 9999}, f"at most {MAX_CLASSES} classes"),
        ({"num_classes": 100, "num_train": 12}, "num_train is 12; .* at least 13"),
        ({"num_train": 1.5}, r"num_train is 1\.5; it must be a whole number"),
        ({"num_val": 0}, "num_val is 0"),
        ({"num_test": 0}, "num_test is 0"),
        ({"image_size": 16}, "image_size is 16; it must be at least 32"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_arguments_are_named(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message):
        generate_mini_dataset(tmp_path / "mini", **{**TINY, **arguments})
    assert not (tmp_path / "mini").exists()


def test_output_that_is_a_file_or_below_one(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file"):
        generate_mini_dataset(tmp_path / "file", **TINY)
    with pytest.raises(InputError, match="cannot be written"):
        generate_mini_dataset(tmp_path / "file" / "mini", **TINY)


def test_the_tool_generates_prints_statistics_and_reports_errors_in_one_line(tmp_path):
    root = Path(__file__).parents[2]
    tool = root / "tools" / "make_mini_dataset.py"
    environment = {**os.environ, "PYTHONPATH": str(root)}
    sizes = ["--classes=7", "--train-images=6", "--val-images=3", "--test-images=2", "--image-size=64"]
    command = [sys.executable, str(tool), "--output", str(tmp_path / "mini"), *sizes]
    made = subprocess.run([*command, "--statistics"], capture_output=True, text=True, env=environment)
    assert made.returncode == 0, made.stderr
    rows = {line[:40].strip(): line[40:].split() for line in made.stdout.splitlines()}
    assert rows["images"] == ["6", "3"]
    assert rows["categories"] == ["7", "7"]
    failed = subprocess.run([*command, "--seed=1"], capture_output=True, text=True, env=environment)
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: ") and failed.stderr.count("\n") == 1
