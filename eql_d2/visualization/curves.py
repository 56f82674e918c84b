"""Training curves as pictures that go into a page."""

from typing import Dict, List, Sequence, Tuple

from markupsafe import Markup

from eql_d2.evaluation.open_images_results import KIND as OPEN_IMAGES
from eql_d2.plotting import panels, style, svg
from eql_d2.run_folder import RunFolder
from eql_d2.visualization.page import data_uri, render

_EVALUATED = ("AP", "APr", "APc", "APf")


def curve_keys(runs: Sequence[RunFolder]) -> List[str]:
    """Return what to draw: the total loss, each loss, the learning rate, and AP if it was measured more than once."""
    keys = sorted(set().union(*(run.metric_keys() for run in runs)))
    losses = [key for key in keys if key.rsplit("/", 1)[-1].startswith("loss_")]
    chosen = [key for key in ("total_loss", *losses, "lr") if key in keys]
    for kind in ("segm", "bbox", OPEN_IMAGES):
        repeated = [key for key in (f"{kind}/{name}" for name in _EVALUATED) if _is_repeated(runs, key)]
        chosen += repeated
        if repeated:
            break
    return chosen


def _is_repeated(runs: Sequence[RunFolder], key: str) -> bool:
    return any(len(run.series(key)) > 1 for run in runs)


def curves(runs: Sequence[RunFolder]) -> Markup:
    """Return a figure for each of :func:`curve_keys`, with a line for each run that has a history."""
    missing = [run.name for run in runs if not run.history]
    figures = [_figure(runs, key) for key in curve_keys(runs)] if len(missing) < len(runs) else []
    return render("training", missing=missing, figures=figures)


def _figure(runs: Sequence[RunFolder], key: str) -> Dict[str, str]:
    series = [(run.name, run.series(key)) for run in runs]
    series = [(name, points) for name, points in series if points]
    described = [
        f"{name}: {points[0][1]:.4g} at iteration {points[0][0]}, {points[-1][1]:.4g} at {points[-1][0]}"
        for name, points in series
    ]
    address = data_uri(_draw(series, key), "image/svg+xml")
    return {"key": key, "address": address, "words": "; ".join(described)}


def _draw(series: Sequence[Tuple[str, Sequence[Tuple[int, float]]]], key: str) -> bytes:
    """Return the plot of named series of (iteration, value) as SVG."""
    from matplotlib import rc_context

    with rc_context({"text.parse_math": False}):  # a dollar in a name is a dollar
        figure, axes = panels(1, width=5.2, height=2.9)
        panel = axes[0, 0]
        for i, (name, points) in enumerate(series):
            look = style(i) if len(points) < 8 else {**style(i), "marker": None}
            panel.plot(*zip(*points), linewidth=1.6, label=name, **look)
        panel.set_title(key, fontsize=10, loc="left")
        panel.set_xlabel("iteration", fontsize=9)
        panel.tick_params(labelsize=8)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
        if len(series) > 1:
            panel.legend(fontsize=8, frameon=False)
        return svg(figure)
