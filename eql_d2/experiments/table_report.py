"""A measured table as Markdown, CSV, LaTeX or HTML."""

import csv
import io
from collections import Counter
from dataclasses import dataclass
from typing import Callable, Dict, List, Sequence, Tuple

from eql_d2.experiments.comparison import Cell, Line
from eql_d2.experiments.spec import FIXED, SOURCES, Table
from eql_d2.visualization.page import render

KINDS = {
    "segm": "mask",
    "bbox": "box",
    "segm_TTA": "test-time augmentation, mask",
    "bbox_TTA": "test-time augmentation, box",
    "oid": "Open Images",
    "classification": "image classification",
    "sem_seg": "semantic segmentation",
}
#: Kinds whose metrics are no average precision.
NOT_AP = ("classification", "sem_seg")
NOT_RUN = "not run"
NOT_EXPRESSIBLE = "not expressible"
ABSENT = "n/a"
#: Stands behind a difference that the seeds support.
SUPPORTED = "*"
HERE = "here"


@dataclass
class Grid:
    """A table of text: the part of a report with the metrics of one kind.

    Attributes:
        title: what the metrics are of.
        header: (metric or column name, source) of each column; the source is empty for columns of words.
        rows: cells by column.
    """

    title: str
    header: List[Tuple[str, str]]
    rows: List[List[str]]


def format_report(table: Table, lines: Sequence[Line], style: str) -> str:
    """Return the report of a table.

    Args:
        table: the specification.
        lines: as :func:`~eql_d2.experiments.comparison.collect_lines` returns them.
        style: a key of :data:`FORMATS`.
    """
    return FORMATS[style](table, lines)


def make_grids(table: Table, lines: Sequence[Line]) -> List[Grid]:
    """Return one grid for each kind of metric, in the order in which the kinds come."""
    groups: Dict[str, List[str]] = {}
    for metric in table.metrics:
        kind, name = metric.split("/")
        groups.setdefault(kind + ("-fixed" if name.endswith("-fixed") else ""), []).append(metric)
    grids = []
    for group, metrics in groups.items():
        # A row may have a baseline of its own, that of its paper.
        words_of = {column: [str(line.row.values.get(column, "")) for line in lines] for column in table.columns}
        if len(baselines(table)) > 1:
            words_of["baseline"] = [_baseline_label(table, line) for line in lines]
        words_of["seeds"] = [str(len(line.seeds)) for line in lines]
        header: List[Tuple[str, str]] = [("method", ""), *((column, "") for column in words_of)]
        columns: List[Tuple[str, str]] = []
        for metric in metrics:
            sources = [s for s in SOURCES if any(s in line.cells[metric].published for line in lines)]
            columns += [(metric, source) for source in (*sources, HERE)]
        rows = []
        for i, line in enumerate(lines):
            numbers = [_cell_text(line, metric, source) for metric, source in columns]
            rows.append([line.row.label, *(column[i] for column in words_of.values()), *numbers])
        kind = group.split("-")[0]
        measure = "" if kind in NOT_AP else " AP-fixed" if group.endswith("-fixed") else " AP"
        title = f"{KINDS.get(kind, kind)}{measure}"
        grids.append(Grid(title, header + [(metric.split("/")[1], source) for metric, source in columns], rows))
    return grids


def _cell_text(line: Line, metric: str, source: str) -> str:
    cell = line.cells[metric]
    if source != HERE:
        return cell.published.get(source, ABSENT)
    if line.row.not_expressible:
        return NOT_EXPRESSIBLE
    if not line.seeds or (metric.endswith(FIXED) and not cell.values):
        return "failed" if line.error else NOT_RUN
    return measured_text(cell)


def measured_text(cell: Cell) -> str:
    """Return mean, spread and difference to the baseline, as ``22.8 ± 0.3 (+2.7*)``."""
    if cell.mean is None:
        return ABSENT
    text = f"{cell.mean:.1f}"
    if cell.spread is not None:
        text += f" ± {cell.spread:.1f}"
    if cell.difference is not None:
        text += f" ({cell.difference:+.1f}{SUPPORTED if cell.supported else ''})"
    return text


def notes(table: Table, lines: Sequence[Line]) -> List[str]:
    """Return the sentences under a table: what the marks mean, what failed, the caveats of the protocol."""
    found = []
    if any(line.seeds for line in lines):
        found.append("Here: mean ± sample standard deviation over the seeds, in percent.")
        against = baselines(table)
        if against:
            to = against[0] if len(against) == 1 else "the row's baseline"
            found.append(
                f"In brackets: difference to {to}. {SUPPORTED} marks those that the seeds support (Welch's "
                f"t-test, two-sided, p < 0.05, not corrected for the number of comparisons); the others they do not."
            )
        minutes = [line.seconds / 60 for line in lines if line.seconds is not None]
        memory = max(line.peak_memory_mib for line in lines if line.peak_memory_mib is not None)
        found.append(
            f"A run took {min(minutes):.1f} to {max(minutes):.1f} minutes of wall time and at most {memory:,.0f} MiB."
        )
        origins = Counter(origin for line in lines for origin in line.provenance)
        found.append("Measured with " + "; ".join(f"{origin}: {n} runs" for origin, n in sorted(origins.items())) + ".")
    partial = [line for line in lines if line.seeds and len(line.seeds) < len(line.row.seeds)]
    if partial:
        found.append("Some seeds are missing: " + ", ".join(line.row.label for line in partial) + ".")
    found += [f"{line.row.label} failed: {line.error}" for line in lines if line.error]
    reasons: Dict[str, List[str]] = {}
    for line in lines:
        if line.row.not_expressible:
            reasons.setdefault(line.row.not_expressible, []).append(line.row.label)
    for reason, labels in reasons.items():
        found.append(f"Not expressible ({'; '.join(dict.fromkeys(labels))}): {reason}")
    return [*found, *table.caveats]


def baselines(table: Table) -> List[str]:
    """Return the labels of the rows that differences are taken to."""
    names = dict.fromkeys(row.baseline for row in table.rows if row.baseline not in ("", row.name))
    return [table.find(name).label for name in names]


def _baseline_label(table: Table, line: Line) -> str:
    name = line.row.baseline
    return table.find(name).label if name not in ("", line.row.name) else ""


def to_markdown(table: Table, lines: Sequence[Line]) -> str:
    """Return the report as Markdown, one table for each kind of metric."""
    parts = [f"### {table.title}", f"{table.dataset}."]
    for grid in make_grids(table, lines):
        names = [f"{name} ({source})" if source and _has_sources(grid) else name for name, source in grid.header]
        rows = [names, ["---"] * len(names), *grid.rows]
        body = "\n".join("| " + " | ".join(_escape(cell, "|") for cell in row) + " |" for row in rows)
        parts.append(f"**{grid.title}**\n\n{body}")
    parts.append("\n".join(f"- {note}" for note in notes(table, lines)))
    return "\n\n".join(part for part in parts if part) + "\n"


def _has_sources(grid: Grid) -> bool:
    return any(source not in ("", HERE) for _, source in grid.header)


def _escape(text: str, characters: str) -> str:
    for character in characters:
        text = text.replace(character, f"\\{character}")
    return text.replace("\n", " ")


def to_csv(table: Table, lines: Sequence[Line]) -> str:
    """Return one line for each row and metric, with every number in a column of its own."""
    file = io.StringIO()
    columns = ["method", *table.columns, "metric", *SOURCES, "mean", "standard deviation", "seeds", "difference"]
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*columns, "supported"])
    for line in lines:
        for metric, cell in line.cells.items():
            published = [cell.published.get(source, "") for source in SOURCES]
            measured = [_number(cell.mean), _number(cell.spread), len(line.seeds), _number(cell.difference)]
            extra = [line.row.values.get(column, "") for column in table.columns]
            supported = "" if cell.difference is None else str(cell.supported).lower()
            writer.writerow([line.row.label, *extra, metric, *published, *measured, supported])
    return file.getvalue()


def _number(value) -> str:
    return "" if value is None else f"{value:.4f}"


def to_latex(table: Table, lines: Sequence[Line]) -> str:
    """Return one ``tabular`` for each kind of metric; needs the package booktabs."""
    parts = [f"% {table.title}; {table.dataset}"]
    for grid in make_grids(table, lines):
        words = sum(not source for _, source in grid.header)
        columns = "l" * words + "r" * (len(grid.header) - words)
        parts.append(f"% {grid.title}\n\\begin{{tabular}}{{{columns}}}\n\\toprule")
        spans = _spans(grid)
        parts.append(
            " & ".join(
                _latex(name) if width == 1 else f"\\multicolumn{{{width}}}{{c}}{{{_latex(name)}}}"
                for name, width in spans
            )
            + " \\\\"
        )
        if _has_sources(grid):
            parts.append(" & ".join(source for _, source in grid.header) + " \\\\")
        parts.append("\\midrule")
        parts += [" & ".join(_latex(cell) for cell in row) + " \\\\" for row in grid.rows]
        parts.append("\\bottomrule\n\\end{tabular}")
    parts += [f"% {note}" for note in notes(table, lines)]
    return "\n".join(parts) + "\n"


def _spans(grid: Grid) -> List[Tuple[str, int]]:
    """Return the metrics with the number of columns that each has."""
    spans: List[Tuple[str, int]] = []
    for name, source in grid.header:
        if spans and source and spans[-1][0] == name:
            spans[-1] = (name, spans[-1][1] + 1)
        else:
            spans.append((name, 1))
    return spans


_LATEX_SYMBOLS = {"±": r"$\pm$", "λ": r"$\lambda$", "γ": r"$\gamma$", "ξ": r"$\xi$", "τ": r"$\tau$"}


def _latex(text: str) -> str:
    text = _escape(text.replace("\\", "/"), "&%$#_{}")
    for character, command in _LATEX_SYMBOLS.items():
        text = text.replace(character, command)
    return text.replace("~", r"\textasciitilde{}").replace("^", r"\textasciicircum{}")


def to_html(table: Table, lines: Sequence[Line]) -> str:
    """Return the report as one HTML page without scripts or links."""
    grids = [
        {"grid": grid, "spans": _spans(grid), "has_sources": _has_sources(grid)} for grid in make_grids(table, lines)
    ]
    return render("measured", title=table.title, dataset=table.dataset, grids=grids, notes=notes(table, lines))


#: How a report can be printed.
FORMATS: Dict[str, Callable[[Table, Sequence[Line]], str]] = {
    "markdown": to_markdown,
    "csv": to_csv,
    "latex": to_latex,
    "html": to_html,
}
