"""docs/coverage.md: every table of the papers, and what of it can be run."""

import re
from pathlib import Path
from typing import Dict, List, Tuple

from eql_d2.experiments.spec import PAPERS, TABLES, Table, load_specification, table_names

RUNNABLE = "runnable"
PARTLY = "partly"
NOT_EXPRESSIBLE = "not expressible"
INTRODUCTION = """\
# Coverage

Every table of the six papers that this package was built for, and what of it `eql-d2 reproduce run` can run. Made by
`eql-d2 reproduce coverage --output docs/coverage.md` from `configs/tables`; a test fails when it is out of
date. "Runnable" says that every row has a config that builds, not that it was run: what was run is in
[results.md](results.md). What a row does otherwise than its paper is said under the table's report
(`eql-d2 reproduce report TABLE`). A small copy is the same comparison on the generated data set, for a laptop.
"""


def make_coverage(folder: Path = TABLES) -> str:
    """Return the content of docs/coverage.md.

    Args:
        folder: of the specifications.

    Raises:
        InputError: if one of them is wrong.
    """
    tables = [load_specification(name, folder) for name in table_names(folder)]
    summary = [["paper", RUNNABLE, PARTLY, NOT_EXPRESSIBLE]]
    parts = []
    for paper, number in PAPERS.items():
        of_paper = sorted((table for table in tables if table.paper == paper), key=_position)
        states = [state(table) for table in of_paper]
        summary.append([paper, *(str(states.count(kind)) for kind in (RUNNABLE, PARTLY, NOT_EXPRESSIBLE))])
        lines = [["table", "specification", "rows that run", "state", "small copy"]]
        for table in of_paper:
            rows = f"{len(table.runnable)} of {len(table.rows)}"
            small_copy = f"`{table.small_copy}`" if table.small_copy else ""
            lines.append([_title(table), f"`{table.name}`", rows, describe(table), small_copy])
        parts.append(f"## {paper} ({number})\n\n{_markdown(lines)}")
    return "\n".join([INTRODUCTION, _markdown(summary), *parts])


def state(table: Table) -> str:
    """Return :data:`RUNNABLE`, :data:`PARTLY` or :data:`NOT_EXPRESSIBLE`."""
    if len(table.runnable) == len(table.rows):
        return RUNNABLE
    return PARTLY if table.runnable else NOT_EXPRESSIBLE


def describe(table: Table) -> str:
    """Return the state of a table with the reason for each row that cannot be run."""
    reasons: Dict[str, List[str]] = {}
    for row in table.rows:
        if row.not_expressible:
            reasons.setdefault(row.not_expressible, []).append(f"`{row.name}`")
    named = " ".join(f"{', '.join(names)}: {reason}" for reason, names in reasons.items())
    if table.runnable:
        return f"{PARTLY}, without {named}" if reasons else RUNNABLE
    return f"{NOT_EXPRESSIBLE}: {next(iter(reasons))}" if len(reasons) == 1 else f"{NOT_EXPRESSIBLE}. {named}"


def _title(table: Table) -> str:
    title = table.title.replace(f"{table.paper}, ", "", 1)
    return title[0].upper() + title[1:]


def _position(table: Table) -> Tuple[int, str]:
    """Numbered tables come first, by number; the others after them, by title."""
    number = re.search(r"\bTable (\d+)", table.title)
    return (int(number.group(1)) if number else 1000, table.title)


def _markdown(lines: List[List[str]]) -> str:
    header, *rows = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines]
    return "\n".join([header, "|" + " --- |" * len(lines[0]), *rows]) + "\n"
