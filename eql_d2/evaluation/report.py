"""What an evaluation leaves behind: the per-category table as CSV and json, text tables, a picture."""

import csv
import io
import json
import os
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np

from eql_d2.data.groups import GROUP_COLORS, GROUP_NAMES
from eql_d2.evaluation.backends import Evaluations
from eql_d2.evaluation.metrics import format_value
from eql_d2.files import write_whole
from eql_d2.plotting import panels, save_figure

#: Name of the per-category table, without the ending: it is written as CSV and json.
CATEGORY_TABLE = "per_category_ap"


def metric_name(name: str, fixed: bool) -> str:
    """Return the name of a metric beside its counterpart without the suffix: AP, AP-fixed."""
    return f"{name}-fixed" if fixed else name


def category_rows(
    evaluations: Evaluations,
    training_counts: Optional[Mapping[int, Tuple[int, int]]] = None,
) -> List[Dict[str, Any]]:
    """Return one row for each category: id, name, group, counts, AP in percent.

    Args:
        evaluations: of :func:`~eql_d2.evaluation.backends.evaluate_tasks`.
        training_counts: (images, instances) in the training set by category id: the columns ``train_images`` and
            ``train_instances``. Without it, ``image_count`` and ``instance_count`` as the annotation file has them: in
            some releases of LVIS val these are the counts of val, so they are not called training counts.

    Returns:
        Rows by ascending id, with ``None`` where a number is not known or a category has no ground truth.
    """
    first = next(iter(evaluations.values()))
    rows = []
    for k, category in enumerate(first.categories):
        row = {"id": category.id, "name": category.name, "group": first.groups[k]}
        if training_counts is None:
            row.update(image_count=category.image_count, instance_count=category.instance_count)
        else:
            row["train_images"], row["train_instances"] = training_counts.get(category.id, (None, None))
        for (iou_type, fixed), evaluation in evaluations.items():
            ap = evaluation.category_ap[k]
            row[f"{iou_type}_{metric_name('AP', fixed)}"] = None if np.isnan(ap) else 100 * float(ap)
        rows.append(row)
    return rows


def write_category_csv(rows: Sequence[Mapping[str, Any]], path: Union[str, os.PathLike]) -> None:
    """Write the rows with an empty cell for what is not available (``None``)."""
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    write_whole(path, text.getvalue())


def write_category_json(rows: Sequence[Mapping[str, Any]], path: Union[str, os.PathLike]) -> None:
    """Write the rows with ``null`` for what is not available (``None``)."""
    write_whole(path, json.dumps(list(rows), indent=1))


def format_metrics(evaluations: Evaluations) -> str:
    """Return a Markdown table, one row for each IoU type, metrics in percent, "n/a" without ground truth."""
    lines: List[Optional[str]] = []
    columns: Optional[List[str]] = None
    for (iou_type, fixed), evaluation in evaluations.items():
        names = [metric_name(name, fixed) for name in evaluation.metrics]
        if names != columns:
            lines += ["" if lines else None, markdown_row(["", *names]), markdown_row(["---"] * (len(names) + 1))]
            columns = names
        label = {"bbox": "box", "segm": "mask"}[iou_type]
        lines.append(markdown_row([label, *(format_value(value) for value in evaluation.metrics.values())]))
    return "\n".join(line for line in lines if line is not None)


def count_column(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return which column of :func:`category_rows` counts the images of a category."""
    return "train_images" if "train_images" in rows[0] else "image_count"


def plot_categories(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], path: Union[str, os.PathLike]) -> None:
    """Draw AP of each category against its (training) images, with the mean of each group.

    Args:
        rows: of :func:`category_rows`; those without a count or without AP are left out.
        columns: the AP columns to draw, one panel each.
        path: a picture's path; its suffix decides the format.
    """
    figure, grid = panels(len(columns), height=4.4)
    for axes, column in zip(grid[0], columns):
        _plot_column(axes, rows, column)
    save_figure(figure, Path(path))


def _plot_column(axes, rows: Sequence[Mapping[str, Any]], column: str) -> None:
    count = count_column(rows)
    for group, color in GROUP_COLORS.items():
        shown = [row for row in rows if row["group"] == group and None not in (row[count], row[column])]
        if not shown:
            continue
        # A category without images has no place on a logarithmic axis: it is drawn at 1/2.
        images = np.maximum([row[count] for row in shown], 0.5)
        ap = np.array([row[column] for row in shown])
        axes.scatter(images, ap, s=9, color=color, alpha=0.6, linewidths=0)
        label = f"{GROUP_NAMES[group]}: mean {ap.mean():.1f} of {len(ap)}"
        axes.plot([images.min(), images.max()], [ap.mean()] * 2, color=color, linewidth=2.5, label=label)
    axes.set_xscale("log")
    axes.set_xlabel("training images of the category" if count == "train_images" else "image_count of the category")
    axes.set_ylabel(column.replace("_", " "))
    axes.set_ylim(-2, 102)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best", fontsize=8)


def markdown_row(cells: Sequence[str]) -> str:
    """Return a row of a table."""
    return "| " + " | ".join(cells) + " |"
