"""AP of each category against its training images, of several runs, and what changed between them."""

import math
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import numpy as np

from eql_d2.analysis.figures import AP_TITLES, capitalized, group_labels, nan_tensor
from eql_d2.analysis.produced import Produced, write_tables
from eql_d2.analysis.trained_model import AP_COLUMNS, TrainedModel
from eql_d2.data.categories import CategoryRow, CategoryTable
from eql_d2.data.groups import GROUP_NAMES
from eql_d2.errors import InputError
from eql_d2.plotting import bar_style, panels, save, style

#: CategoryTable that gained most, and as many that lost most, in the table of changes.
MOST_CHANGED = 10


def read_ap(runs: Sequence[TrainedModel], dataset: Optional[str], categories: CategoryTable) -> Dict[str, Any]:
    """Return the AP that evaluation wrote.

    Args:
        runs: evaluated on one data set.
        dataset: its name; the one that the first run was evaluated on if not given or not evaluated.
        categories: of the training set.

    Returns:
        ``dataset``, and ``ap``: by AP column (``segm_AP``, ``bbox_AP``, those that all runs have) and run name, float64
        ``[K]`` in percent, NaN for categories without ground truth.

    Raises:
        InputError: if a run was not evaluated on it, or on other categories.
    """
    dataset = runs[0].evaluated_dataset(dataset)
    tables = {}
    for run in runs:
        run.evaluated_dataset(dataset)
        tables[run.name] = rows = run.category_ap(dataset)
        if not rows:
            raise InputError(
                f"{run.category_file(dataset)}: there is no such file; {run.name} was evaluated on "
                f"{', '.join(run.evaluations())}."
            )
        if len(rows) != len(categories):
            raise InputError(
                f"{run.inference_folder(dataset)} has AP of {len(rows)} categories, but the model has "
                f"{len(categories)}; evaluate it again."
            )
    columns = [c for c in AP_COLUMNS if all(c in row for rows in tables.values() for row in rows)]
    if not columns:
        raise InputError(
            f"{dataset}: the runs have no column {' or '.join(AP_COLUMNS)} in common; evaluate them again."
        )
    ap = {c: {name: nan_tensor([row[c] for row in rows]) for name, rows in tables.items()} for c in columns}
    return {"dataset": dataset, "ap": ap}


def ap_rows(ap: Dict[str, Dict[str, Any]], categories: CategoryTable) -> List[CategoryRow]:
    """Return one row for each run and category: AP in percent, and its difference to the first run's."""
    rows = []
    for name in next(iter(ap.values())):
        for label in categories.order().tolist():
            row = {"run": name, **categories.row(label)}
            for column, by_run in ap.items():
                value, first = float(by_run[name][label]), float(next(iter(by_run.values()))[label])
                row[column] = None if math.isnan(value) else value
                row[f"{column}_change"] = None if math.isnan(value - first) else value - first
            rows.append(row)
    return rows


def ap_group_rows(ap: Dict[str, Dict[str, Any]], categories: CategoryTable) -> List[CategoryRow]:
    """Return one row for each run and group (and "all"): categories with ground truth, the mean of their AP."""
    rows = []
    letters = np.array(categories.frequency.groups)
    for name in next(iter(ap.values())):
        for group in [*group_labels(categories), "all"]:
            row: CategoryRow = {"run": name, "group": group}
            for column, by_run in ap.items():
                values = by_run[name].numpy()
                values = values[np.isfinite(values) & ((letters == group) | (group == "all"))]
                row[f"{column}_categories"] = len(values)
                row[column] = float(values.mean()) if len(values) else None
            rows.append(row)
    return rows


def change_rows(rows: Sequence[CategoryRow], column: str) -> List[CategoryRow]:
    """Return, for each run but the first, the categories whose AP gained most and lost most.

    Args:
        rows: of :func:`ap_rows`.
        column: of AP.

    Returns:
        At most :data:`MOST_CHANGED` gains, the largest first, then as many losses, the largest last.
    """
    names = list(dict.fromkeys(row["run"] for row in rows))
    key = f"{column}_change"
    found = []
    for name in names[1:]:
        changed = [row for row in rows if row["run"] == name and row[key]]
        changed.sort(key=lambda row: -row[key])
        gains = [row for row in changed if row[key] > 0][:MOST_CHANGED]
        losses = [row for row in changed if row[key] < 0][-MOST_CHANGED:]
        for row in gains + losses:
            row = {k: v for k, v in row.items() if not k.endswith("AP") and (k == key or not k.endswith("_change"))}
            found.append({**row, "column": column, "change": row.pop(key), "compared_with": names[0]})
    return [{k: v for k, v in row.items() if k != key} for row in found]


def ap(
    runs: Sequence[TrainedModel], categories: CategoryTable, folder: Path, dataset: Optional[str] = None
) -> Produced:
    """AP against training images with the means of the groups, and the categories that changed most."""
    read = read_ap(runs, dataset, categories)
    column = next(iter(read["ap"]))
    title = AP_TITLES[column.split("_")[0]]
    rows, groups = ap_rows(read["ap"], categories), ap_group_rows(read["ap"], categories)
    changes = change_rows(rows, column)
    figure, axes = panels(3 if changes else 2)
    for index, run in enumerate(runs):
        _scatter(axes[0, 0], [row for row in rows if row["run"] == run.name], column, index)
    axes[0, 0].set_xscale("log")
    axes[0, 0].xaxis.set_major_formatter("{x:g}")
    axes[0, 0].xaxis.set_minor_formatter("")
    axes[0, 0].set_xlabel("training images of the category")
    _bars(axes[0, 1], groups, column)
    for panel in axes[0, :2]:
        panel.set_ylabel(title)
        panel.grid(alpha=0.3, axis="y")
        panel.legend(loc="best", fontsize=8)
    if changes:
        shown = changes[-1]["run"]
        _changes(axes[0, 2], [row for row in changes if row["run"] == shown])
        axes[0, 2].set_xlabel(f"change of {title}, {shown} against {runs[0].name}", fontsize=8)
    return write_tables(
        "ap",
        f"{capitalized(title)} of each category on {read['dataset']} against its training "
        f"images; bars are group means over the categories with ground truth, whose number is above."
        + (f" Right: the categories that gained and lost most against {runs[0].name}." if changes else ""),
        folder,
        {"ap": rows, "ap_groups": groups, "ap_changes": changes},
        save(figure, folder, "ap"),
    )


def _scatter(axes, rows: Sequence[CategoryRow], column: str, index: int) -> None:
    rows = [row for row in rows if row[column] is not None]
    look = style(index)
    # A category without images has no place on a logarithmic axis: it is drawn at 1/2.
    images = [max(row["train_images"], 0.5) for row in rows]
    face = look["color"] if look["marker"] == "x" else "none"
    label = rows[0]["run"] if rows else None
    ap_values = [row[column] for row in rows]
    axes.scatter(images, ap_values, s=18, marker=look["marker"], facecolors=face, edgecolors=look["color"], label=label)


def _bars(axes, groups: Sequence[CategoryRow], column: str) -> None:
    names, labels = (list(dict.fromkeys(row[key] for row in groups)) for key in ("run", "group"))
    width = 0.8 / len(names)
    for index, name in enumerate(names):
        rows = [row for row in groups if row["run"] == name]
        places = np.arange(len(rows)) + (index - (len(names) - 1) / 2) * width
        heights = [row[column] or 0.0 for row in rows]
        axes.bar(places, heights, width, label=name, **bar_style(index))
        for place, height, row in zip(places, heights, rows):
            text = "n/a" if row[column] is None else f"{height:.1f}"
            axes.text(place, height, text, ha="center", va="bottom", fontsize=7)
    counts = {row["group"]: row[f"{column}_categories"] for row in groups if row["run"] == names[0]}
    axes.set_xticks(range(len(labels)), [f"{GROUP_NAMES.get(label, label)}\n({counts[label]})" for label in labels])
    axes.set_ylim(0, max(1.0, 1.15 * max((row[column] or 0.0 for row in groups), default=0.0)))


def _changes(axes, rows: Sequence[CategoryRow]) -> None:
    places = -np.arange(len(rows))
    axes.barh(places, [max(row["change"], 0) for row in rows], **bar_style(0))
    axes.barh(places, [min(row["change"], 0) for row in rows], **bar_style(1))
    axes.set_yticks(places, [f"{row['name'][:24]} ({row['group']}, {row['train_images']})" for row in rows], fontsize=7)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.grid(alpha=0.3, axis="x")
