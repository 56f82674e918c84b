"""One self-contained HTML page about a run or a comparison of runs."""

import csv
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
from markupsafe import Markup

from eql_d2.errors import InputError
from eql_d2.evaluation.metrics import NOT_AVAILABLE
from eql_d2.files import write_whole
from eql_d2.run_folder import RunFolder, open_run_folders
from eql_d2.visualization.comparison import Choice, compare, sort_comparisons
from eql_d2.visualization.curves import curves
from eql_d2.visualization.dataset import AnnotatedSet
from eql_d2.visualization.detections import Detections
from eql_d2.visualization.drawing import encode_jpeg
from eql_d2.visualization.page import data_uri, render
from eql_d2.visualization.results import MEASURE, comparison_scene
from eql_d2.visualization.tables import (
    category_tables,
    datasets_of,
    experiment_table,
    headline,
    result_tables,
    settings,
)

#: Longer side of the images in the page, in pixels.
_IMAGE_SIZE = 480
#: Rows of a CSV that are shown; all of them can be saved from the page.
_CSV_ROWS = 200
_ORDERS = {
    "difference": "Images on which the runs differ most",
    "worst": "Worst images",
    "best": "Best images",
}


def write_report(
    runs: Sequence[Path],
    output: Path,
    names: Optional[Sequence[str]] = None,
    dataset: str = "",
    analysis: bool = True,
    max_images: int = 6,
    analysis_images: int = 0,
    device: str = "",
) -> Path:
    """Write the report of one run, or the comparison of several.

    What cannot be had on this machine (the images of the data set, the weights) is left out, and the page says so.

    Args:
        runs: output folders of trainings; the first is the one that the others are compared with.
        output: the page.
        names: of the runs; by default the ends of their paths.
        dataset: for classes and images; by default the first that a run was evaluated on.
        analysis: whether to run :func:`eql_d2.analysis.analyze` and show its figures.
        max_images: of the best images, of the worst, and of those on which the runs differ most; 0 for none.
        analysis_images: images that the analyses look at; 0 for all.
        device: where the analyses run the model; as the config says if empty.

    Returns:
        ``output``.

    Raises:
        InputError: if a folder is no run, or the page cannot be written.
    """
    if max_images < 0:
        raise InputError(f"--max-images {max_images}: give a positive number, or 0 for no images.")
    if output.is_dir():
        raise InputError(f"--output {output} is a folder; name a file, such as {output / 'report.html'}.")
    read = open_run_folders(runs, names)
    known = datasets_of(read)
    dataset = dataset or next(iter(known or read[0].cfg.DATASETS.TEST), "")
    sections: List[Tuple[str, str, Callable[[], Markup]]] = [
        ("results", "Results", lambda: result_tables(read)),
        ("configuration", "Configuration", lambda: experiment_table(read) + settings(read)),
        ("training", "Training curves", lambda: curves(read)),
        ("classes", "Classes", lambda: category_tables(read, dataset)),
    ]
    if analysis:
        sections.append(("analysis", "Analysis", lambda: _analysis(read, dataset, analysis_images, device)))
    if max_images:
        sections.append(("images", "Images", lambda: _images(read, dataset, max_images)))
    title = f"Report of {read[0].name}" if len(read) == 1 else f"Comparison of {', '.join(run.name for run in read)}"
    page = render(
        "report",
        title=title,
        folders=[str(run.folder) for run in read],
        headline=headline(read),
        sections=[
            {"identifier": identifier, "heading": heading, **_guarded(make, heading)}
            for identifier, heading, make in sections
        ],
    )
    write_whole(output, page)
    return output


def _guarded(make: Callable[[], Markup], heading: str) -> Dict[str, str]:
    """Return a section's ``content``, or under ``missing`` why there is none."""
    try:
        return {"content": make(), "missing": ""}
    except InputError as error:
        print(f"warning: the section {heading!r} is left out: {error}", file=sys.stderr)
        return {"content": "", "missing": str(error)}


def _analysis(runs: Sequence[RunFolder], dataset: str, max_images: int, device: str) -> Markup:
    from eql_d2.analysis import analyze

    folders, names = [run.folder for run in runs], [run.name for run in runs]
    with tempfile.TemporaryDirectory(prefix="eql_d2_") as folder:
        options = {"names": names, "max_images": max_images, "dataset": dataset or None, "device": device or None}
        produced = analyze(folders, Path(folder), **options)
        return render("analysis", analyses=[_produced(one) for one in produced])


def _produced(one) -> Dict[str, Any]:
    """Return one analysis as the template takes it: its figure, its numbers, and the CSV to save."""
    picture = ""
    if one.svg is not None or one.png is not None:
        path, mime = (one.svg, "image/svg+xml") if one.svg is not None else (one.png, "image/png")
        picture = data_uri(Path(path).read_bytes(), mime)
    content = Path(one.csv).read_bytes()
    header, *rows = islice(csv.reader(content.decode().splitlines()), _CSV_ROWS + 2)
    left_out = f", the first {_CSV_ROWS} rows" if len(rows) > _CSV_ROWS else ""
    return {
        "title": one.title,
        "caption": one.caption,
        "picture": picture,
        "file": Path(one.csv).name,
        "csv": data_uri(content, "text/csv"),
        "table_caption": f"Numbers of {one.title}{left_out}",
        "header": header,
        "rows": [[cell or NOT_AVAILABLE for cell in row] for row in rows[:_CSV_ROWS]],
    }


def _images(runs: Sequence[RunFolder], dataset: str, max_images: int) -> Markup:
    first = runs[0]
    annotated = AnnotatedSet.from_config(first.cfg, dataset, first.frequency_file)
    annotated.require_annotations()
    models = [Detections.read(run.detections_file(annotated.name), run.name, annotated) for run in runs]
    choice = Choice()
    comparisons = list(compare(annotated, models, choice, annotated.order(None)))
    mean = sum(one.mean_f1 for one in comparisons) / max(1, len(comparisons))
    blocks = []
    shown = set()
    for order, heading in _ORDERS.items():
        if order == "difference" and len(runs) == 1:
            continue
        fresh = [one for one in sort_comparisons(comparisons, order) if one.index not in shown]
        if order == "difference":
            fresh = [one for one in fresh if one.difference]
        scenes = []
        for comparison in fresh[:max_images]:
            shown.add(comparison.index)
            name = str(annotated.records[comparison.index]["image_id"])
            scenes.append(comparison_scene(annotated, models, choice, comparison, _inline, _IMAGE_SIZE, name))
        blocks.append((heading, scenes))
    return render(
        "images",
        shown=f"Shown: {choice.describe()}. {MEASURE}",
        summary=f"{len(comparisons)} images of {annotated.name} have annotated objects; mean F1 {mean:.3f}.",
        blocks=blocks,
        # Two images side by side, each beside its ground truth; a row for each image where there are more panels.
        **{"class": "pairs" if len(runs) == 1 else "rows"},
    )


def _inline(name: str, picture: np.ndarray) -> str:
    """Return the address that holds a picture (uint8 BGR); see :data:`eql_d2.visualization.scene.Place`."""
    return data_uri(encode_jpeg(picture, quality=82), "image/jpeg")
