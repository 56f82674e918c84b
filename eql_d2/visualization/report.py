"""One self-contained HTML page about a run or a comparison of runs."""

import csv
import sys
import tempfile
from itertools import islice
from pathlib import Path
from typing import Callable, List, Optional, Sequence, Tuple

import numpy as np

import eql_d2
from eql_d2.errors import InputError
from eql_d2.files import write_whole
from eql_d2.run_folder import RunFolder, open_run_folders
from eql_d2.visualization.comparison import Choice, compare, sort_comparisons
from eql_d2.visualization.curves import curves
from eql_d2.visualization.dataset import AnnotatedSet
from eql_d2.visualization.detections import Detections
from eql_d2.visualization.drawing import encode_jpeg
from eql_d2.visualization.page import (
    Content,
    Html,
    code,
    data_uri,
    details,
    document,
    join,
    legend,
    section,
    table,
    tag,
)
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
    sections: List[Tuple[str, str, Callable[[], Content]]] = [
        ("results", "Results", lambda: result_tables(read)),
        ("configuration", "Configuration", lambda: join([experiment_table(read), settings(read)])),
        ("training", "Training curves", lambda: _training(read)),
        ("classes", "Classes", lambda: category_tables(read, dataset)),
    ]
    if analysis:
        sections.append(("analysis", "Analysis", lambda: _analysis(read, dataset, analysis_images, device)))
    if max_images:
        sections.append(("images", "Images", lambda: _images(read, dataset, max_images)))
    title = f"Report of {read[0].name}" if len(read) == 1 else f"Comparison of {', '.join(run.name for run in read)}"
    folders = join([code(str(run.folder)) for run in read], ", ")
    contents = [tag("li", tag("a", heading, href=f"#{identifier}")) for identifier, heading, _ in sections]
    header = tag(
        "header",
        tag("h1", title),
        tag("p", "Output folder" + ("s: " if len(read) > 1 else ": "), folders, class_="lead"),
        headline(read),
        tag("nav", tag("ul", *contents), aria_label="Contents"),
    )
    body = [section(identifier, heading, _guarded(make, heading)) for identifier, heading, make in sections]
    footer = tag("footer", tag("p", f"Written by eql_d2 {eql_d2.__version__}, tools/report.py."))
    page = document(title, join([header, tag("main", join(body, Html("\n"))), footer], Html("\n")))
    write_whole(output, page)
    return output


def _guarded(make: Callable[[], Content], heading: str) -> Content:
    """Return a section's content, or a note on why there is none."""
    try:
        return make()
    except InputError as error:
        print(f"warning: the section {heading!r} is left out: {error}", file=sys.stderr)
        return tag("p", f"Left out: {error}", class_="note")


def _training(runs: Sequence[RunFolder]) -> Content:
    missing = [run.name for run in runs if not run.history]
    note = [tag("p", f"{', '.join(missing)}: there is no metrics.json.", class_="note")] if missing else []
    return join([*note, curves(runs)]) if len(missing) < len(runs) else join(note)


def _analysis(runs: Sequence[RunFolder], dataset: str, max_images: int, device: str) -> Content:
    from eql_d2.analysis import analyze

    folders, names = [run.folder for run in runs], [run.name for run in runs]
    with tempfile.TemporaryDirectory(prefix="eql_d2_") as folder:
        options = {"names": names, "max_images": max_images, "dataset": dataset or None, "device": device or None}
        produced = analyze(folders, Path(folder), **options)
        return join([_produced(one) for one in produced]) or tag("p", "There is nothing to analyse.", class_="note")


def _produced(one) -> Html:
    """Return one analysis: its figure, its numbers folded, and the CSV to save."""
    parts: List[Content] = [tag("h3", one.title)]
    if one.svg is not None or one.png is not None:
        path, mime = (one.svg, "image/svg+xml") if one.svg is not None else (one.png, "image/png")
        picture = tag("img", src=data_uri(Path(path).read_bytes(), mime), alt=f"{one.title}. {one.caption}")
        parts.append(tag("figure", picture, tag("figcaption", one.caption)))
    else:
        parts.append(tag("p", one.caption))
    content = Path(one.csv).read_bytes()
    link = tag("a", f"Save {Path(one.csv).name}", href=data_uri(content, "text/csv"), download=Path(one.csv).name)
    rows = list(islice(csv.reader(content.decode().splitlines()), _CSV_ROWS + 1))
    if len(rows) > 1:
        left_out = f", the first {_CSV_ROWS} rows" if len(rows) > _CSV_ROWS else ""
        caption = f"Numbers of {one.title}{left_out}"
        body = [[cell or "n/a" for cell in row] for row in rows[1:]]
        parts.append(details(caption, tag("p", link), table(caption, rows[0], body)))
    else:
        parts.append(tag("p", link))
    return join(parts)


def _images(runs: Sequence[RunFolder], dataset: str, max_images: int) -> Content:
    first = runs[0]
    annotated = AnnotatedSet.from_config(first.cfg, dataset, first.frequency_file)
    annotated.require_annotations()
    models = [Detections.read(run.detections_file(annotated.name), run.name, annotated) for run in runs]
    choice = Choice()
    comparisons = list(compare(annotated, models, choice, annotated.order(None)))
    parts: List[Content] = [tag("p", f"Shown: {choice.describe()}. {MEASURE}"), legend()]
    mean = sum(one.mean_f1 for one in comparisons) / max(1, len(comparisons))
    parts.append(tag("p", f"{len(comparisons)} images of {annotated.name} have annotated objects; mean F1 {mean:.3f}."))
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
        # Two images side by side, each beside its ground truth; a row for each image where there are more panels.
        block = tag("div", *scenes, class_="pairs" if len(runs) == 1 else "rows")
        parts += [tag("h3", heading), block if scenes else tag("p", "There is none.")]
    return join(parts)


def _inline(name: str, picture: np.ndarray) -> str:
    """Return the address that holds a picture (uint8 BGR); see :data:`eql_d2.visualization.scene.Place`."""
    return data_uri(encode_jpeg(picture, quality=82), "image/jpeg")
