"""Numbers of a table: published, measured, their spread over seeds, and which differences the seeds support."""

import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple

from scipy import stats

from eql_d2.errors import InputError
from eql_d2.experiments.execution import provenance, read_records, records_of
from eql_d2.experiments.plan import PlannedRun, runs_of
from eql_d2.experiments.references import find_row, read_tables
from eql_d2.experiments.spec import FIXED, Table, TableRow

#: How a column of the papers' tables is called here, by what the paper's table measures.
_PUBLISHED_COLUMNS = {
    "mask": {"segm/AP": "AP", "segm/AP50": "AP50", "segm/AP75": "AP75", "bbox/AP": "APbbox"},
    "box": {"bbox/AP": "AP", "bbox/AP50": "AP50", "bbox/AP75": "AP75"},
}
_GROUP_COLUMNS = {"APr": "APr", "APc": "APc", "APf": "APf", "APs": "APS", "APm": "APM", "APl": "APL"}


@dataclass
class Cell:
    """One metric of one row.

    Attributes:
        values: measured, one for each finished seed, in percent.
        difference: mean minus the baseline's mean; ``None`` for the baseline or where one of the two was not run.
        supported: whether the seeds support that there is a difference.
        published: what is printed elsewhere, by source.
    """

    values: List[float] = field(default_factory=list)
    difference: Optional[float] = None
    supported: bool = False
    published: Dict[str, str] = field(default_factory=dict)

    @property
    def mean(self) -> Optional[float]:
        """Mean over seeds, ``None`` if there is none."""
        return statistics.fmean(self.values) if self.values else None

    @property
    def spread(self) -> Optional[float]:
        """Sample standard deviation over seeds, ``None`` for less than two."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass
class Line:
    """One row of the report.

    Attributes:
        row: of the specification.
        cells: by metric.
        seeds: that have finished.
        seconds: mean wall time of a run.
        peak_memory_mib: largest peak of a run.
        provenance: of the runs, as :func:`~eql_d2.experiments.execution.provenance` says it.
        error: the last error of a run that failed, empty if none did.
    """

    row: TableRow
    cells: Dict[str, Cell]
    seeds: Tuple[int, ...] = ()
    seconds: Optional[float] = None
    peak_memory_mib: Optional[float] = None
    provenance: Tuple[str, ...] = ()
    error: str = ""


def collect_lines(table: Table, results_file: Path, errors: Optional[Mapping[str, str]] = None) -> List[Line]:
    """Return the rows of a table with what was measured of them.

    A record belongs to a run if config, seed and start weights are the same, and the data where the data is there; of
    several, the newest is taken.

    Args:
        table: the specification.
        results_file: JSON lines.
        errors: last error by row name.
    """
    records = read_records(results_file)
    published = read_tables()
    runs = runs_of(table, results_file.parent)
    lines = []
    for row in table.rows:
        found = _records_by_seed(row, runs, records)
        again = _records_by_seed(table.fixed_row(row), runs, records) if table.fixed_opts else found
        cells = {metric: Cell(published=_published(published, row, metric)) for metric in table.metrics}
        for metric, cell in cells.items():
            for _, record in again if metric.endswith(FIXED) else found:
                value = _lookup(record["metrics"], metric, row.augmented)
                if value is not None:
                    cell.values.append(value)
        lines.append(
            Line(
                row=row,
                cells=cells,
                seeds=tuple(seed for seed, _ in found),
                seconds=statistics.fmean(record["seconds"] for _, record in found) if found else None,
                peak_memory_mib=max((record["peak_memory_mib"] for _, record in found), default=None),
                provenance=tuple(provenance(record) for _, record in found),
                error=(errors or {}).get(row.name, ""),
            )
        )
    _compare_with_baseline(lines)
    return lines


def _records_by_seed(row: TableRow, runs: Mapping, records: Sequence[Mapping]) -> List[Tuple[int, Mapping[str, Any]]]:
    """Return (seed, record) of the runs of a row that have finished."""
    seeds = () if row.not_expressible else row.seeds
    found = [(seed, best_record(runs[row.name, seed], records)) for seed in seeds]
    return [(seed, record) for seed, record in found if record is not None]


def best_record(run: PlannedRun, records: Sequence[Mapping[str, Any]]) -> Optional[Mapping[str, Any]]:
    """Return the newest record of a run, whatever its code, ``None`` if there is none."""
    try:
        fitting = records_of(run, records)
    except InputError:  # the data is not here; the numbers still are
        fitting = [record for record in records if record["config_digest"] == run.config_digest]
    return (fitting or [None])[-1]


def _compare_with_baseline(lines: Sequence[Line]) -> None:
    by_name = {line.row.name: line for line in lines}
    for line in lines:
        baseline = by_name.get(line.row.baseline, line)
        if baseline is line:
            continue
        for metric, cell in line.cells.items():
            other = baseline.cells[metric]
            if cell.values and other.values:
                cell.difference = cell.mean - other.mean
                cell.supported = differs(cell.values, other.values)


def differs(first: Sequence[float], second: Sequence[float]) -> bool:
    """Return whether two samples have different means by Welch's t-test at 5%, two-sided.

    A sample of one has no spread, so nothing is supported. No correction for the number of comparisons.
    """
    if min(len(first), len(second)) < 2:
        return False
    if len({*first}) == len({*second}) == 1:  # no spread at all
        return first[0] != second[0]
    test = stats.ttest_ind(first, second, equal_var=False)
    # The degrees of freedom rounded down, as in a printed table: that asks for more, never for less.
    return bool(abs(test.statistic) > stats.t.ppf(0.975, max(1, int(test.df))))


def _lookup(metrics: Mapping[str, Any], metric: str, augmented: bool) -> Optional[float]:
    kind, name = metric.split("/")
    return metrics.get(f"{kind}_TTA" if augmented else kind, {}).get(name)


def _published(tables: Mapping[str, Dict[str, Any]], row: TableRow, metric: str) -> Dict[str, str]:
    """Return what the row's references print for a metric, by source."""
    found = {}
    for source, reference in row.published.items():
        value = published_value(tables, reference, metric)
        if value is not None:
            found[source] = value
    return found


def published_value(tables: Mapping[str, Dict[str, Any]], reference: Mapping[str, Any], metric: str) -> Optional[str]:
    """Return the number that a published row prints for a metric, ``None`` if it has none.

    Args:
        tables: as :func:`~eql_d2.experiments.references.read_tables` returns them.
        reference: ``table``, ``row`` and, where a cell holds two numbers of two models, ``part``.
        metric: as ``segm/APr``; ``bbox_TTA/AP`` is that of test-time augmentation, and of a kind that is no box's or
            mask's, as ``oid/AP-1-rarest``, the column is called the same, if the table's ``columns`` does not say else.

    Raises:
        InputError: if there is no such table, or not exactly one such row.
    """
    table, row = find_row(tables, reference)
    kind, name = metric.split("/")
    if "box AP / mask AP" in row:
        numbers = str(row["box AP / mask AP"]).split(" / ")
        position = {"bbox": 0, "segm": 1}.get(kind, len(numbers))
        return numbers[position] if name == "AP" and position < len(numbers) else None
    kind = kind.removesuffix("_TTA")  # with test-time augmentation
    if kind not in (
        "bbox",
        "segm",
    ):  # metrics of other tasks are called as the papers' columns are, or as the table says
        column = table.get("columns", {}).get(name, name)
        return None if row.get(column) is None else str(row[column])
    metric = f"{kind}/{name}"
    measured = "box" if table["metric"].startswith("box") else "mask"
    column = _PUBLISHED_COLUMNS[measured].get(metric)
    if column is None and kind == {"mask": "segm", "box": "bbox"}[measured]:
        column = _GROUP_COLUMNS.get(name)
    value = row.get(column) if column else None
    if value is None:
        return None
    return str(value).split(" / ")[reference["part"]] if "part" in reference and name == "AP" else str(value)
