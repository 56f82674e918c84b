"""The page of what can be run, and rows that cannot."""

import subprocess
import sys

import pytest

from eql_d2.errors import InputError
from eql_d2.experiments import reproduce
from eql_d2.experiments.comparison import collect_lines
from eql_d2.experiments.coverage import describe, make_coverage
from eql_d2.experiments.references import leaves
from eql_d2.experiments.spec import PAPERS, load_specification, table_names
from eql_d2.experiments.table_report import format_report
from tests.conftest import ROOT

REASON = "The package has no such head."
ROWS = [{"name": "a", "config": "tiny"}, {"name": "b", "label": "B", "not_expressible": REASON}]


def test_the_page_is_up_to_date():
    assert (ROOT / "docs/coverage.md").read_text() == make_coverage(), (
        "run: eql-d2 reproduce coverage --output docs/coverage.md"
    )


def test_the_command_prints_the_page():
    command = [sys.executable, ROOT / "tools/reproduce.py", "coverage"]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout == make_coverage()


def test_every_paper_has_tables_and_no_two_of_one_name():
    tables = [load_specification(name) for name in table_names()]
    assert {table.paper for table in tables} >= set(PAPERS)
    titles = [table.title for table in tables]
    assert len(set(titles)) == len(titles)


@pytest.mark.parametrize(
    "rows, expected",
    [
        (ROWS[:1], "runnable"),
        (ROWS, f"partly, without `b`: {REASON}"),
        (ROWS[1:], f"not expressible: {REASON}"),
        ([*ROWS[1:], {"name": "c", "not_expressible": REASON}], f"not expressible: {REASON}"),
        ([ROWS[1], {"name": "c", "not_expressible": "Why."}], f"not expressible. `b`: {REASON} `c`: Why."),
    ],
)
def test_states(write_table, rows, expected):
    assert describe(write_table(rows)) == expected


def test_a_row_that_cannot_be_run_is_reported_and_not_planned(write_table, tmp_path):
    table = write_table(ROWS)
    assert [run.row.name for run in reproduce.select_runs(table, tmp_path)] == ["a"]
    with pytest.raises(InputError, match=f"'b' of tiny cannot be run: {REASON}"):
        reproduce.select_runs(table, tmp_path, only=["b"])
    assert reproduce.status_lines(table, tmp_path, tmp_path / "none.jsonl")[-1] == f"b: not expressible: {REASON}"
    text = format_report(table, collect_lines(table, tmp_path / "none.jsonl"), "markdown")
    assert "| B | 0 | not expressible |" in text and f"Not expressible (B): {REASON}" in text
    # A table of such rows alone has nothing to run, and says so.
    nothing = write_table(ROWS[1:], name="nothing")
    assert reproduce.select_runs(nothing, tmp_path) == []


def test_every_leaf_of_lvis_is_in_a_table():
    """So that what it does otherwise than its release has a place to be said."""
    tables = [load_specification(name) for name in table_names()]
    used = {row.config for table in tables for row in [*table.rows, *table.prepare.values()]}
    assert {path for path in leaves() if path.parent.parent.name in ("LVISv0.5", "LVISv1")} <= used
