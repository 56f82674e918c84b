"""EQL's weight functions over frequency, and the share of a data set that a threshold takes in."""

from pathlib import Path
from typing import Dict, List, Optional, Sequence

import torch
from torch import Tensor

from eql_d2.analysis.produced import Produced, write_tables
from eql_d2.analysis.trained_model import TrainedModel
from eql_d2.data.categories import CategoryRow, CategoryTable
from eql_d2.data.frequency import PROPER_RANGE, CategoryFrequency
from eql_d2.losses.eql import exponential_weight, gompertz_weight, threshold_weight
from eql_d2.plotting import panels, save, style

#: Points of a drawn function.
POINTS = 400


def weight_values(frequency: Tensor, settings) -> Dict[str, Tensor]:
    """Return T(f) of ``frequency``, any shape in float64, by function (EQL, section 4.4, Figure 3).

    Args:
        frequency: shares of the training images.
        settings: the config node ``MODEL.LONG_TAIL.EQL``.
    """
    return {
        "threshold": threshold_weight(frequency, settings.LAMBDA),
        "exponential": exponential_weight(frequency, settings.EXPONENTIAL_A, settings.EXPONENTIAL_N),
        "gompertz": gompertz_weight(frequency, settings.GOMPERTZ_A, settings.GOMPERTZ_B, settings.GOMPERTZ_C),
    }


def threshold_of(run: TrainedModel) -> Optional[float]:
    """Return lambda of the run's own loss (EQL, SEQL, DropLoss), ``None`` for a loss without a threshold."""
    node = run.cfg.MODEL.LONG_TAIL
    return node.get(node.LOSS, {}).get("LAMBDA")


def weight_functions(runs: Sequence[TrainedModel], categories: CategoryTable, folder: Path) -> Produced:
    """T(f) with the settings of the first run of EQL, or the defaults, over a range of frequencies and by category.

    The range ends at one and a half times the largest frequency at which a function is above a thousandth.
    """
    of_eql = [run for run in runs if run.cfg.MODEL.LONG_TAIL.LOSS == "EQL"]
    settings, frequency = (of_eql or runs)[0].cfg.MODEL.LONG_TAIL.EQL, categories.frequency.frequency
    wide = torch.linspace(0, 1, 100_001, dtype=torch.float64)
    reach = max(float(wide[values > 1e-3].max()) for values in weight_values(wide, settings).values() if values.any())
    grid = torch.linspace(0, min(1.0, 1.5 * reach), POINTS + 1, dtype=torch.float64)
    functions = weight_values(grid, settings)
    listed = {"frequency": grid.tolist(), **{name: values.tolist() for name, values in functions.items()}}
    points = [dict(zip(listed, values)) for values in zip(*listed.values())]
    of_categories = categories.rows({"frequency": frequency, **weight_values(frequency, settings)})
    figure, axes = panels(1)
    panel = axes[0, 0]
    for index, (name, values) in enumerate(functions.items()):
        panel.plot(grid, values, label=name, markevery=(10 * index, 40), markersize=4, **style(index))
    inside = frequency[frequency <= grid[-1]]
    panel.plot(inside, torch.full_like(inside, -0.04), "|", color="black", markersize=7, label="categories")
    panel.set_xlabel("frequency: images of the category / all training images")
    panel.set_ylabel("T(f)")
    panel.grid(alpha=0.3)
    panel.legend(loc="best", fontsize=8)
    return write_tables(
        "weight-functions",
        f"How much of other categories' foreground gradient a category of frequency f is spared (EQL, Figure 3): "
        f"threshold at {settings.LAMBDA:g}, exponential and Gompertz decay. Strokes below are the "
        f"{len(inside)} of {len(categories)} categories in this range.",
        folder,
        {"weight_functions": points, "weight_functions_categories": of_categories},
        save(figure, folder, "weight_functions"),
    )


def tail_ratio_steps(frequency: CategoryFrequency) -> List[CategoryRow]:
    """Return TR(lambda) (EQL, equation 8) at each threshold that takes in one more category than the one before.

    Columns: ``lambda`` and ``images`` (the threshold as a share and as a number of images: categories in fewer are
    tail), ``num_tail_classes``, ``tail_ratio`` in [0, 1].
    """
    # A category in n images is tail from the first threshold above n: that of n + 1 images.
    steps = sorted({0, *(int(count) + 1 for count in frequency.image_count.unique())})
    counts = frequency.image_count
    total = max(int(counts.sum()), 1)
    return [
        {
            "lambda": images / frequency.num_images,
            "images": images,
            "num_tail_classes": int((counts < images).sum()),
            "tail_ratio": int(counts[counts < images].sum()) / total,
        }
        for images in steps
    ]


def draw_tail_ratio(panel, frequency: CategoryFrequency, thresholds: Sequence[float]) -> None:
    """Draw TR(lambda) with the proper range and some thresholds into a panel."""
    drawn = [row for row in tail_ratio_steps(frequency) if row["lambda"] > 0]
    ratios = [100 * row["tail_ratio"] for row in drawn]
    # A category in n images is tail for every lambda above n / all: the line rises there, not at the row's n + 1.
    rises = [max(row["images"] - 1, 0.5) / frequency.num_images for row in drawn]
    panel.step(rises, ratios, where="post", color="black")
    low, high = (100 * bound for bound in PROPER_RANGE)
    panel.axhspan(
        low, high, facecolor="0.85", hatch="...", edgecolor="0.6", label=f"proper range: {low:.0f} to {high:.0f}%"
    )
    for index, value in enumerate(thresholds):
        label = f"lambda = {value:g}: {100 * frequency.tail_ratio(value):.1f}%"
        panel.axvline(value, label=label, **{**style(index), "marker": None})
    panel.set_xscale("log")
    panel.set_xlabel("lambda")
    panel.set_ylabel("tail ratio (%)")
    panel.set_ylim(0, 102)
    panel.grid(alpha=0.3)
    panel.legend(loc="best", fontsize=8)


def tail_ratio(runs: Sequence[TrainedModel], categories: CategoryTable, folder: Path) -> Produced:
    """TR(lambda) of the first run's training set, with the thresholds of the runs' losses marked."""
    frequency = categories.frequency
    rows = tail_ratio_steps(frequency)
    thresholds = {run.name: threshold_of(run) for run in runs if threshold_of(run) is not None}
    marked = [
        {
            "run": name,
            "lambda": value,
            "num_tail_classes": frequency.num_tail_classes(value),
            "tail_ratio": frequency.tail_ratio(value),
        }
        for name, value in thresholds.items()
    ]
    figure, axes = panels(1)
    draw_tail_ratio(axes[0, 0], frequency, sorted(set(thresholds.values())))
    return write_tables(
        "tail-ratio",
        f"Share of the image counts that belongs to categories below the threshold (EQL, equation 8), of "
        f"{frequency.num_images} training images and {len(categories)} categories; the band is the range that the "
        f"paper calls proper.",
        folder,
        {"tail_ratio": rows, "tail_ratio_runs": marked},
        save(figure, folder, "tail_ratio"),
    )
