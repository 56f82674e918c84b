"""What the figures of the analyses share: lines by category, with the groups marked."""

from typing import Any, List, Sequence, Tuple

import numpy as np
import torch
from torch import Tensor

from eql_d2.data.categories import CategoryTable
from eql_d2.data.groups import GROUP_NAMES
from eql_d2.plotting import style

#: What the axes call AP of each IoU type.
AP_TITLES = {"segm": "mask AP", "bbox": "box AP", "oid": "Open Images AP"}
#: CategoryTable from which a line is a running mean, and points on it.
MANY_CATEGORIES = 100


def smoothed(values: np.ndarray) -> np.ndarray:
    """Return the running mean of ``values [K]``, NaN left out, over :func:`window` categories."""
    half = window(len(values)) // 2
    valid = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(valid, values, 0.0))])
    counts = np.concatenate([[0], np.cumsum(valid)])
    low = np.clip(np.arange(len(values)) - half, 0, None)
    high = np.clip(np.arange(len(values)) + half + 1, None, len(values))
    count = counts[high] - counts[low]
    return np.where(count > 0, (sums[high] - sums[low]) / np.maximum(count, 1), np.nan)


def window(num_categories: int) -> int:
    """Return over how many categories a line is averaged: 1 for few, odd."""
    return 1 if num_categories <= MANY_CATEGORIES else 2 * (num_categories // 80) + 1


def smoothing_note(categories: CategoryTable) -> str:
    """Return the sentence of a caption that says how lines are averaged; empty where they are not."""
    width = window(len(categories))
    return f" Lines are running means over {width} categories; the table has each." if width > 1 else ""


def plot_by_category(
    axes,
    series: Sequence[Tuple[str, Tensor]],
    categories: CategoryTable,
    ylabel: str,
    log: bool = False,
    legend: bool = True,
    styles: Sequence[int] = (),
) -> None:
    """Draw numbers of each category, sorted by falling number of training images, with the groups marked.

    Args:
        axes: of matplotlib.
        series: label and numbers ``[K]`` of each run; NaN is left out.
        categories: K of them.
        ylabel: of the vertical axis.
        log: whether that axis is logarithmic; zeros are then left out.
        legend: whether to draw one.
        styles: place of each series among the runs; counted from 0 if not given.
    """
    order = categories.order()
    places = np.arange(len(order))
    for index, (label, values) in enumerate(series):
        drawn = smoothed(values.double()[order].numpy())
        shown = np.isfinite(drawn) & ((drawn > 0) | (not log))
        every = max(1, len(order) // 40)
        look = style(styles[index] if styles else index)
        offset = (index * every // max(len(series), 1)) % every  # markers of several lines side by side
        spaced = {"markersize": 4, "linewidth": 1.3, "markevery": (offset, every)}
        axes.plot(places[shown], drawn[shown], label=label, **spaced, **look)
    if log and any(len(line.get_ydata()) for line in axes.lines):
        axes.set_yscale("log")
    axes.set_xlim(-0.02 * len(order) - 0.5, 1.02 * len(order) - 0.5)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.set_xlabel("categories, most training images first")
    axes.set_ylabel(ylabel)
    axes.grid(alpha=0.3)
    _mark_groups(axes, categories, order)
    if legend and series:
        axes.legend(loc="best", fontsize=8)


def _mark_groups(axes, categories: CategoryTable, order: Tensor) -> None:
    """Draw a line where the group changes, and write the groups' names above; nothing where groups are mixed."""
    letters = [categories.frequency.groups[label] for label in order.tolist()]
    starts = [i for i in range(len(letters)) if i == 0 or letters[i] != letters[i - 1]]
    if len(starts) > len(set(letters)):
        return
    for start, end in zip(starts, [*starts[1:], len(letters)]):
        if start:
            axes.axvline(start - 0.5, color="black", linewidth=0.8, linestyle=(0, (2, 2)))
        middle = (start + end - 1) / 2
        text = GROUP_NAMES[letters[start]]
        axes.text(middle, 1.01, text, transform=axes.get_xaxis_transform(), ha="center", va="bottom", fontsize=8)


def capitalized(text: str) -> str:
    """Return a text with a capital first letter, the others as they are."""
    return text[:1].upper() + text[1:]


def group_labels(categories: CategoryTable) -> List[str]:
    """Return the letters of the groups that have a category, rare first."""
    return [letter for letter, size in categories.frequency.group_sizes().items() if size]


def nan_tensor(values: Sequence[Any]) -> Tensor:
    """Return numbers as float64 ``[K]`` with NaN for ``None``."""
    return torch.tensor([float("nan") if value is None else float(value) for value in values], dtype=torch.float64)
