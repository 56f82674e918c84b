"""CONTRIBUTING.md's worked example, followed to the letter in a copy of the project."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import List, NamedTuple

import pytest

from tests.conftest import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text()
#: Folders that are made, not written.
MADE = {".git", ".venv", "output", "build", "dist", "__pycache__", ".mypy_cache", ".ruff_cache", ".pytest_cache"}


class Block(NamedTuple):
    """A fenced block: a new file ``path``, or lines to insert ``side`` the one line that contains ``anchor``."""

    path: str
    side: str
    anchor: str
    content: str


def blocks() -> List[Block]:
    found = re.findall(r"^```\w+ (\S+)(?: (before|after): ([^\n]+))?\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL)
    return [Block(*block) for block in found]


def apply(block: Block, root: Path) -> None:
    path = root / block.path
    if not block.side:
        assert not path.exists(), f"{block.path} is there already"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.content)
        return
    lines = path.read_text().splitlines(keepends=True)
    (place,) = [number for number, line in enumerate(lines) if block.anchor in line]
    lines.insert(place + (block.side == "after"), block.content)
    path.write_text("".join(lines))


def run(command: List[str], root: Path, folder: Path) -> None:
    """Run a command in ``folder`` with the package of ``root``."""
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def test_the_loss_works_from_outside_of_the_package(tmp_path):
    """In a process of its own: a registry is for life."""
    (loss,) = [block for block in blocks() if block.path == "eql_d2/losses/poly.py"]
    (outside,) = [block for block in blocks() if block.path == "outside"]
    (tmp_path / "poly.py").write_text(loss.content)
    check = "assert logits.grad.abs().sum() > 0 and scores.shape == (512, 38)\n"
    (tmp_path / "script.py").write_text(outside.content + check)
    run([sys.executable, "script.py"], ROOT, folder=tmp_path)


def test_every_place_that_the_example_changes_is_there(tmp_path):
    """So that an edit that moves a line which the text names is noticed at once."""
    for block in blocks():
        if block.side:
            path = tmp_path / block.path
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / block.path, path)
            apply(block, tmp_path)
            assert block.content in path.read_text()


def test_the_floors_are_those_of_the_linter():
    """Every room of the package is in the table, in the order of the contract in pyproject.toml."""
    tomllib = pytest.importorskip("tomllib")
    (contract,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    floor_of = {
        room: floor
        for floor, rooms in enumerate(reversed(contract["layers"]))
        for room in re.findall(r"\w+", rooms)
        if room != "__main__"
    }
    package = ROOT / "eql_d2"
    there = {room for room in floor_of if (package / room).is_dir() or (package / f"{room}.py").is_file()}
    rows = re.search(r"\| room \|.*?\n\n", TEXT, re.DOTALL).group().strip().splitlines()[2:]
    told = [room for row in rows for room in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert set(told) == there
    assert [floor_of[room] for room in told] == sorted(floor_of[room] for room in told)


@pytest.mark.end_to_end
def test_the_worked_example_is_complete(tmp_path):
    """The list of places is true: with them and no others, what the text says to run passes."""
    root = tmp_path / "project"
    shutil.copytree(ROOT, root, ignore=lambda folder, names: MADE.intersection(names))
    for block in blocks():
        if block.path != "outside":
            apply(block, root)
    commands = re.search(r"### 6\. Run\n\n```\n(.*?)```", TEXT, re.DOTALL).group(1).splitlines()
    zoo, tests, train, lint = (command.split() for command in commands)
    run([sys.executable, *zoo[1:]], root, folder=root)
    about = "poly or twin or every_method or pages or index or lists_every or links"
    run([sys.executable, *tests[1:], "-k", about], root, folder=root)
    assert lint == ["make", "lint"] and train[3] == "configs/mini/poly.yaml" and (root / train[3]).is_file()
    run([sys.executable, "-m", "ruff", "check", "eql_d2", "tests"], root, folder=root)
