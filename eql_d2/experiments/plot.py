"""A measured table as a figure: a panel for each metric, a line for each method, a point for each seed."""

from pathlib import Path
from typing import Any, List, Optional, Sequence

from scipy.stats import kendalltau

from eql_d2.errors import InputError
from eql_d2.experiments.comparison import Line
from eql_d2.experiments.spec import Table
from eql_d2.experiments.table_report import KINDS
from eql_d2.plotting import save_figure

SUFFIXES = (".png", ".svg", ".pdf")
#: What ``sort`` may be beside a metric: each panel by its own.
EACH = "each"
_ROW_HEIGHT = 0.24


def plot_table(
    table: Table,
    lines: Sequence[Line],
    output: Path,
    metrics: Optional[Sequence[str]] = None,
    sort: Optional[str] = None,
) -> None:
    """Write the figure of :func:`table_figure`.

    Args:
        table: the specification.
        lines: as :func:`~eql_d2.experiments.comparison.collect_lines` returns them.
        output: a ``.png``, ``.svg`` or ``.pdf`` file.
        metrics: of the table; the first and the last AP of all categories if not given.
        sort: as of :func:`table_figure`.

    Raises:
        InputError: if the suffix is another, the table lacks a metric, or no row has all of them.
    """
    if output.suffix not in SUFFIXES:
        raise InputError(f"--output {output} must end in {', '.join(SUFFIXES)}.")
    figure = table_figure(table, lines, metrics or default_metrics(table), sort)
    output.parent.mkdir(parents=True, exist_ok=True)
    save_figure(figure, output)


def default_metrics(table: Table) -> List[str]:
    """Return the first and the last metric of all categories: mask AP and box AP-fixed where a table has both."""
    whole = [metric for metric in table.metrics if metric.split("/")[1] in ("AP", "AP-fixed")] or table.metrics
    return list(dict.fromkeys([whole[0], whole[-1]]))


def sorted_lines(lines: Sequence[Line], metrics: Sequence[str], by: str) -> List[Line]:
    """Return the rows of which all metrics and ``by`` were measured, by falling mean of that."""
    measured = [line for line in lines if all(line.cells[metric].values for metric in (*metrics, by))]
    return sorted(measured, key=lambda line: -line.cells[by].mean)


def table_figure(table: Table, lines: Sequence[Line], metrics: Sequence[str], sort: Optional[str] = None) -> Any:
    """Draw the measured rows of a table, the best on top.

    Each seed is a circle and the mean over the seeds a tick. Circles are filled where the seeds support that the row
    differs from its baseline. A dotted line goes through the mean of the baseline of most rows.

    Args:
        table: the specification.
        lines: as :func:`~eql_d2.experiments.comparison.collect_lines` returns them.
        metrics: a panel for each.
        sort: a metric of the table that all panels are sorted by, the first of ``metrics`` if not given; or
            :data:`EACH`, each panel by its own, with the rows' names beside each.

    Returns:
        A ``matplotlib.figure.Figure``.

    Raises:
        InputError: if the table lacks a metric, or no row has all of them.
    """
    from eql_d2.plotting import STYLES, panels

    orders = [metric if sort == EACH else sort or metrics[0] for metric in metrics]
    for metric in (*metrics, *orders):
        if metric not in table.metrics:
            raise InputError(f"{table.name} has no metric {metric!r}; it has {', '.join(table.metrics)}.")
    num_rows = len(sorted_lines(lines, metrics, orders[0]))
    if not num_rows:
        raise InputError(f"No row of {table.name} has {' and '.join(metrics)} measured; run it first.")
    label_width = 2.4 if sort == EACH else 0.0
    width = 2.2 + 4.8 / len(metrics) + label_width
    figure, axes = panels(len(metrics), width=width, height=1.0 + _ROW_HEIGHT * num_rows)
    places = [-index for index in range(num_rows)]
    color = STYLES[0]["color"]
    reference = _baseline(lines)
    for panel, metric, order in zip(axes[0], metrics, orders):
        shown = sorted_lines(lines, metrics, order)
        for place, line in zip(places, shown):
            cell = line.cells[metric]
            face = color if cell.supported else "none"
            panel.plot(cell.values, [place] * len(cell.values), "o", markersize=5, color=color, markerfacecolor=face)
            panel.plot([cell.mean], [place], "|", markersize=11, color="black")
        if reference is not None and reference.cells[metric].values:
            panel.axvline(reference.cells[metric].mean, color="black", linewidth=0.8, linestyle=":")
        kind, name = metric.split("/")
        panel.set_xlabel(f"{KINDS.get(kind, kind)} {name}")
        panel.set_yticks(places, [_label(table, line) if panel is axes[0, 0] or sort == EACH else "" for line in shown])
        panel.set_ylim(places[-1] - 0.7, 0.7)
        panel.grid(alpha=0.3)
    figure.suptitle(table.title, fontsize=10)
    return figure


def rank_correlation(lines: Sequence[Line], metrics: Sequence[str]) -> str:
    """Return a sentence with Kendall's rank correlation of the rows' means by the first and by the last metric."""
    first, *_, last = metrics
    shown = sorted_lines(lines, metrics, first)
    tau = kendalltau(*([line.cells[metric].mean for line in shown] for metric in (first, last))).statistic
    return f"Kendall's rank correlation of {first} and {last}, the means of {len(shown)} rows: {tau:.2f}."


def _label(table: Table, line: Line) -> str:
    values = [f"{column} {line.row.values[column]}" for column in table.columns if column in line.row.values]
    return ", ".join([line.row.label, *values])


def _baseline(lines: Sequence[Line]) -> Optional[Line]:
    """Return the row that most rows are compared with, ``None`` if there is none."""
    names = [line.row.baseline for line in lines if line.row.baseline]
    most = max(names, key=names.count, default=None)
    return next((line for line in lines if line.row.name == most), None)
