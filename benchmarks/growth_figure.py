"""The figure of benchmarks/growth.py: one panel for each cost, both axes logarithmic, readable in black and white."""

import math
from pathlib import Path
from typing import Any, Mapping, Sequence

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullFormatter, NullLocator

COLUMNS = 4
LEAST_RATIO_OF_LABELS = 2
OURS = {"color": "black", "marker": "o", "markersize": 5, "linestyle": "-", "linewidth": 1.8, "label": "eql_d2"}
PEER = {
    "color": "0.45",
    "marker": "s",
    "markersize": 5,
    "markerfacecolor": "white",
    "linestyle": "--",
    "linewidth": 1.4,
    "label": "peer",
}


def draw(num_classes_list: Sequence[int], panels: Mapping[str, Sequence[Any]], path: Path) -> None:
    """Draw the panels to ``path`` and, as SVG, beside it.

    Args:
        num_classes_list: the numbers of classes.
        panels: title: points with the seconds ``ours`` and ``peer`` (``None`` where it was not run).
        path: of the PNG.
    """
    rows = -(-len(panels) // COLUMNS)
    figure, axes = plt.subplots(rows, COLUMNS, figsize=(13, 3.1 * rows + 0.5), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis, (title, points) in zip(axes.flat, panels.items()):
        draw_panel(axis, num_classes_list, points)
        axis.set_title(title, fontsize=10)
    for axis in axes[:, 0]:
        axis.set_ylabel("processor seconds")
    for axis in axes.flat[max(0, len(panels) - COLUMNS) : len(panels)]:
        axis.set_xlabel("classes")
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles[::-1], labels[::-1], loc="upper center", ncols=2, frameon=False, fontsize=11)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.3 / (3.1 * rows + 0.5)))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130)
    figure.savefig(path.with_suffix(".svg"), metadata={"Date": None})
    plt.close(figure)


def draw_panel(axis, num_classes_list: Sequence[int], points: Sequence[Any]) -> None:
    """Draw one cost; say how many times more the peer took at the last point that both have."""
    shared = [(k, point) for k, point in zip(num_classes_list, points) if point.peer is not None]
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.plot([k for k, _ in shared], [point.peer for _, point in shared], **PEER)
    axis.plot(num_classes_list, [point.ours for point in points], **OURS)
    lowest = min(min(point.ours, point.peer or point.ours) for point in points)
    highest = max(max(point.ours, point.peer or point.ours) for point in points)
    # At least two decades, so that noise does not look like growth.
    room = max(0.4, (2 - math.log10(highest / lowest)) / 2)
    axis.set_ylim(lowest / 10**room, highest * 10**room)
    if shared:
        k, point = shared[-1]
        ratio = point.peer / point.ours
        axis.annotate(
            f"{ratio:.1f}x" if ratio < 10 else f"{ratio:.0f}x",
            (k, point.peer),
            xytext=(0, 7),
            textcoords="offset points",
            ha="center",
            fontsize=10,
        )
        if len(shared) < len(points):
            axis.annotate(
                "peer: over\nthe budget",
                (num_classes_list[-1], math.sqrt(point.peer * points[-1].ours)),
                ha="right",
                va="center",
                fontsize=9,
                color="0.35",
            )
    labels = [f"{k:,}" if k < 5000 else f"{k // 1000}k" for k in num_classes_list]
    # A label that would touch the next one is left out; its tick stays.
    for i in range(len(labels) - 1):
        if num_classes_list[i + 1] < LEAST_RATIO_OF_LABELS * num_classes_list[i]:
            labels[i] = ""
    axis.set_xticks(num_classes_list, labels)
    axis.xaxis.set_minor_locator(NullLocator())
    axis.yaxis.set_major_locator(LogLocator(numticks=6))
    axis.yaxis.set_minor_formatter(NullFormatter())
    axis.tick_params(labelsize=9)
    axis.grid(True, which="major", color="0.88", linewidth=0.7)
    axis.spines[["top", "right"]].set_visible(False)
