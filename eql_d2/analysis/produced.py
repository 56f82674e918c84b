"""The analyses by name, and what each leaves behind."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, List, Mapping, Optional, Sequence, Tuple

from eql_d2.evaluation.report import write_category_csv

#: The analyses that there are: name, title.
ANALYSES: Mapping[str, str] = {
    "gradients": "Mean gradient norm of positive and negative samples",
    "probabilities": "Mean predicted probability of positive proposals",
    "weights": "Norm of the classifier's weights",
    "gradient-ratio": "Accumulated gradient ratio, positive to negative",
    "ap": "AP against training images",
    "ap-cap": "AP against the cap on the detections of an image",
    "weight-functions": "Weight functions over category frequency",
    "tail-ratio": "Tail ratio over the frequency threshold",
    "confusion": "What rare categories are taken for",
}


@dataclass
class Produced:
    """What one analysis wrote.

    Attributes:
        name: of the analysis, a key of :data:`ANALYSES`.
        title: one line.
        caption: what the figure shows and on what, in a sentence or two.
        csv: the main table.
        png: the figure; ``None`` if there is nothing to draw.
        svg: the same figure as vectors.
        csvs: every table, the main one first.
    """

    name: str
    title: str
    caption: str
    csv: Path
    png: Optional[Path] = None
    svg: Optional[Path] = None
    csvs: List[Path] = field(default_factory=list)


def write_tables(
    name: str,
    caption: str,
    folder: Path,
    tables: Mapping[str, Sequence[Mapping[str, Any]]],
    figure: Tuple[Optional[Path], Optional[Path]] = (None, None),
) -> Produced:
    """Write each table as ``<its name>.csv``, the main one first; tables without a row are left out.

    Args:
        name: of the analysis.
        caption: of the figure.
        folder: where to.
        tables: rows by name.
        figure: the PNG and the SVG.
    """
    paths = []
    for table, rows in tables.items():
        if rows:
            paths.append(folder / f"{table}.csv")
            write_category_csv(rows, paths[-1])
    return Produced(name, ANALYSES[name], caption, paths[0], *figure, csvs=paths)
