"""Docstrings: what they refer to exists, and the API pages are made of them without a warning."""

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, List

import pytest

import eql_d2
from tests.conftest import ROOT

MODULES = sorted(
    module.name for module in pkgutil.walk_packages(eql_d2.__path__, "eql_d2.") if not module.name.endswith("__main__")
)
#: ``:class:`~a.b.C``` and ``:class:`the text <a.b.C>```.
REFERENCE = re.compile(r":(?:attr|class|data|exc|func|meth|mod|obj):`(?:[^`<]*<)?[~!]?([\w.]+)>?`")


def attribute(owner: Any, path: List[str]) -> bool:
    """Whether ``owner.a.b`` exists; what a class's instances are annotated with counts."""
    for part in path:
        if part in getattr(owner, "__annotations__", ()):
            return True
        if not hasattr(owner, part):
            return False
        owner = getattr(owner, part)
    return True


def exists(target: str, module: ModuleType) -> bool:
    """Whether a reference in ``module`` names something: absolute, of the module, or of one of its classes."""
    parts = target.split(".")
    classes = [value for value in vars(module).values() if inspect.isclass(value)]
    if any(attribute(owner, parts) for owner in [module, *classes]):
        return True
    for length in range(len(parts), 0, -1):
        try:
            owner = importlib.import_module(".".join(parts[:length]))
        except ImportError:
            continue
        return attribute(owner, parts[length:])
    return False


@pytest.mark.parametrize("name", MODULES)
def test_references_exist(name):
    module = importlib.import_module(name)
    references = REFERENCE.findall(Path(module.__file__).read_text())
    assert [target for target in references if not exists(target, module)] == []


def test_references_are_found_and_a_wrong_one_is_noticed():
    module = importlib.import_module("eql_d2.losses.softmax_eql")
    assert "eql_d2.losses.adjusted_softmax.AdjustedSoftmaxLoss" in REFERENCE.findall(Path(module.__file__).read_text())
    assert REFERENCE.findall(":meth:`the text <a.b>` and :func:`~c.d`") == ["a.b", "c.d"]
    assert exists("eql_d2.losses.state.RandomLoss.next_generator", module)
    assert not exists("eql_d2.losses.state.RandomLoss.generator", module)
    assert not exists("eql_d2.losses.states", module)


@pytest.mark.parametrize("name", MODULES)
def test_module_paths_in_prose_exist(name):
    """A dotted path of the package, wherever a comment or docstring names one."""
    module = importlib.import_module(name)
    text = Path(module.__file__).read_text()
    paths = re.findall(r"``(eql_d2(?:\.\w+)+)", text)
    assert [path for path in paths if not exists(path, module)] == []


DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_paths_in_documents_exist(path):
    """``eql_d2.a.b`` in a document is a module or a name in one; files that it tells to write are left out."""
    text = re.sub(r"^```\w+ \S.*?^```$", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)
    paths = re.findall(r"(?<![\w/.])eql_d2(?:\.[a-zA-Z]\w*)+(?![\w/])", text)
    assert [found for found in paths if not exists(found, eql_d2)] == []


@pytest.mark.end_to_end
def test_the_api_pages_are_made_without_a_warning(tmp_path):
    subprocess.run([sys.executable, ROOT / "tools/make_api_pages.py", "--output", tmp_path], check=True)
    assert {path.stem for path in (tmp_path / "eql_d2" / "losses").glob("*.html")} >= {"base", "eql", "seql"}
    page = (tmp_path / "eql_d2" / "losses" / "eql.html").read_text()
    assert "frequency threshold; classes with" in page and "~eql_d2" not in page
