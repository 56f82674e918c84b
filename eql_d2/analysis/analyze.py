"""Analyses of finished runs, by name."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import List, Mapping, Optional, Sequence

#: The analyses that there are: name, title.
ANALYSES: Mapping[str, str] = {
    "gradients": "Mean gradient norm of positive and negative samples",
    "probabilities": "Mean predicted probability of positive proposals",
    "weights": "Norm of the classifier's weights",
    "gradient-ratio": "Accumulated gradient ratio, positive to negative",
    "ap": "AP against training images",
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


def analyze(
    runs: Sequence[Path],
    output_dir: Path,
    only: Optional[Sequence[str]] = None,
    names: Optional[Sequence[str]] = None,
    max_images: int = 0,
    dataset: Optional[str] = None,
    device: Optional[str] = None,
    weights: str = "model_final.pth",
) -> List[Produced]:
    """Analyse finished runs and write tables and figures to ``output_dir``."""
    raise NotImplementedError
