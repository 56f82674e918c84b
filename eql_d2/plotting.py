"""The look of every figure, and how it is saved.

Figures can be told apart in black and white: every run has a marker, a line style and a hatch of its own.
"""

import io
from pathlib import Path
from typing import Any, Dict, Sequence, Tuple

import numpy as np

from eql_d2.files import write_whole

# Colours that people who do not see red and green tell apart (Okabe and Ito); the rest does without colour.
STYLES: Sequence[Dict[str, Any]] = (
    {"color": "#0072B2", "linestyle": "-", "marker": "o"},
    {"color": "#D55E00", "linestyle": "--", "marker": "s"},
    {"color": "#009E73", "linestyle": "-.", "marker": "^"},
    {"color": "#CC79A7", "linestyle": ":", "marker": "D"},
    {"color": "#000000", "linestyle": (0, (5, 1)), "marker": "x"},
    {"color": "#E69F00", "linestyle": (0, (3, 1, 1, 1, 1, 1)), "marker": "v"},
    {"color": "#56B4E9", "linestyle": (0, (1, 3)), "marker": "P"},
)
HATCHES = ("", "////", "....", "xxxx", "\\\\\\\\", "++++", "oooo")


def style(index: int) -> Dict[str, Any]:
    """Return line and marker of the index-th run; they repeat after seven."""
    return dict(STYLES[index % len(STYLES)])


def bar_style(index: int) -> Dict[str, Any]:
    """Return fill and hatch of the index-th run's bars."""
    color = STYLES[index % len(STYLES)]["color"]
    return {"facecolor": f"{color}66", "edgecolor": color, "hatch": HATCHES[index % len(HATCHES)]}


def panels(columns: int, rows: int = 1, width: float = 6.4, height: float = 4.2) -> Tuple[Any, np.ndarray]:
    """Return a figure and its axes ``[rows, columns]``, on a canvas that needs no display."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def save_figure(figure, path: Path) -> None:
    """Write a matplotlib figure in the format that the path's suffix names; the file appears whole or not at all."""
    path, content = Path(path), io.BytesIO()
    figure.savefig(content, format=path.suffix[1:] or "png", dpi=150)
    write_whole(path, content.getvalue())


def svg(figure) -> bytes:
    """Return a figure as SVG for a page: letters as outlines, no font is needed; the same bytes each time."""
    from matplotlib import rc_context

    content = io.BytesIO()
    with rc_context({"svg.hashsalt": "eql_d2", "svg.fonttype": "path"}):
        figure.savefig(content, format="svg", metadata={"Date": None})
    return content.getvalue()


def save(figure, folder: Path, name: str) -> Tuple[Path, Path]:
    """Write ``name.png`` and ``name.svg``; return their paths."""
    paths = folder / f"{name}.png", folder / f"{name}.svg"
    for path in paths:
        save_figure(figure, path)
    return paths
