"""The demonstration: the rows of the table ``mini_demo`` with its first seed, one printed table and one picture."""

import time
from pathlib import Path
from typing import List, Mapping, Optional, Sequence, Tuple

import numpy as np

import eql_d2.mini
from eql_d2.experiments.jobs import Job, run_jobs
from eql_d2.experiments.spec import Table, load_specification
from eql_d2.files import write_whole
from eql_d2.mini.folder import STAMP
from eql_d2.mini.generate import generate_mini_dataset
from eql_d2.visualization.comparison import Choice, shown_objects
from eql_d2.visualization.dataset import AnnotatedSet
from eql_d2.visualization.detections import Detections
from eql_d2.visualization.drawing import draw_panel, encode_jpeg
from eql_d2.visualization.matching import match_image
from eql_d2.visualization.objects import VisualObject

TABLE = "mini_demo"
#: Folder of the data below ``$DETECTRON2_DATASETS``, by which the configs name it.
DATA = "mini"
#: Where every method starts: a softmax detector, in 8 bits (tools/make_demo_start.py).
START = Path(eql_d2.mini.__file__).with_name("demo_start.safetensors")
METRICS = ("AP", "APr", "APc", "APf")
KINDS = {"bbox": "box", "segm": "mask"}
NUM_PICTURES = 3
#: Longer side of an image in the picture, in pixels.
PANEL_SIZE = 312


def run_demo(output_dir: Path, data_dir: Path, opts: Sequence[str] = ()) -> Path:
    """Generate the data, train every method of the table once, two at a time, print one table, and draw one picture.

    Args:
        output_dir: receives a folder for each method, ``table.md`` and ``detections.jpg``. What is there already is
            kept: an interrupted demonstration goes on where it stopped.
        data_dir: the generated data set, made if absent; must be called ``mini``, since the configs name it so.
            Its parent becomes ``DETECTRON2_DATASETS``.
        opts: config overrides for all methods.

    Returns:
        The path of the table.
    """
    start = time.monotonic()
    specification = load_specification(TABLE)
    print(f"Data: {data_dir}", flush=True)
    if not (data_dir / STAMP).is_file():
        generate_mini_dataset(data_dir, **specification.generate[DATA])
    environment = {"DETECTRON2_DATASETS": str(data_dir.resolve().parent)}
    jobs = []
    for row in specification.rows:
        words = [*row.opts, "SEED", str(row.seeds[0]), "MODEL.WEIGHTS", str(START), *opts]
        jobs.append(Job(row.name, row.config, output_dir / row.name, words, environment))
    print("Training " + ", ".join(f"{job.name} ({job.output_dir})" for job in jobs), flush=True)
    run_jobs(jobs, parallel=2, report=lambda line: print(line, flush=True))
    table = comparison_table(specification, {job.name: job.results["results"] for job in jobs})
    notes = "\n".join(f"- {caveat}" for caveat in specification.caveats)
    print(f"\n{table}\n\n{notes}\n")
    path = output_dir / "table.md"
    write_whole(path, f"{table}\n\n{notes}\n")
    annotated = AnnotatedSet.from_files(data_dir / "val.json", data_dir / "val")
    dataset = jobs[0].folder.cfg.DATASETS.TEST[0]
    labels = {row.name: row.label for row in specification.rows}
    found = [Detections.read(job.folder.detections_file(dataset), labels[job.name], annotated) for job in jobs]
    picture = output_dir / "detections.jpg"
    draw_detections(annotated, found, picture)
    runs = " ".join(str(job.output_dir) for job in jobs)
    print(
        f"Table: {path}\nPicture: {picture}, the {NUM_PICTURES} images in which the methods together find most objects "
        f"of rare, then of common classes\n{time.monotonic() - start:.0f} s in total\n"
        f"Next: eql-d2 report {runs} --output {output_dir / 'report.html'} shows curves, categories and images; "
        'README.md, "Your own data", trains on yours.'
    )
    return path


def comparison_table(specification: Table, results: Mapping[str, Mapping[str, Mapping[str, Optional[float]]]]) -> str:
    """Return a Markdown table of box and mask AP: a row for each method, then one for each difference to a baseline.

    Args:
        specification: its rows' labels and baselines.
        results: metrics by row; of each ``{"bbox": {...}, "segm": {...}}``.
    """
    rows = {row.name: row for row in specification.rows}
    kinds = [kind for kind in KINDS if all(kind in metrics for metrics in results.values())]
    columns = [(kind, metric) for kind in kinds for metric in METRICS]
    lines = [["method"] + [f"{KINDS[kind]} {metric}" for kind, metric in columns], ["---"] * (len(columns) + 1)]
    for name, metrics in results.items():
        lines.append([rows[name].label] + [_number(metrics[kind][metric]) for kind, metric in columns])
    for name, metrics in results.items():
        baseline = rows[name].baseline
        if baseline not in results or baseline == name:
            continue
        pairs = [(results[baseline][kind][metric], metrics[kind][metric]) for kind, metric in columns]
        differences = [_number(None if None in pair else pair[1] - pair[0], "+") for pair in pairs]
        lines.append([f"{rows[name].label} - {rows[baseline].label}", *differences])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _number(value: Optional[float], sign: str = "") -> str:
    """Return ``value`` with one decimal, ``n/a`` for ``None``."""
    return "n/a" if value is None else f"{value:{sign}.1f}"


def draw_detections(annotated: AnnotatedSet, models: Sequence[Detections], path: Path) -> None:
    """Write a picture: a row for each of three images, on the left the ground truth, then what each model found.

    The images are those in which the models together find most objects of rare classes, then most of common ones, then
    the first. Scores of different methods are not comparable, so each shows as many of its best detections as the image
    has annotated objects, with a tick if right and a cross if wrong; those that the annotations cannot judge are left
    out.

    Args:
        annotated: the data set.
        models: detections with masks or boxes.
        path: of the JPEG file.
    """
    ranked: List[Tuple[int, int, int]] = []
    for index in range(len(annotated.records)):
        _, *found = _judged(annotated, models, index)
        hits = [annotated.groups[one.label] for shown in found for one in shown if one.verdict == "hit"]
        ranked.append((-hits.count("r"), -hits.count("c"), index))
    rows = []
    for _, _, index in sorted(ranked)[:NUM_PICTURES]:
        image = annotated.read_image(annotated.records[index])
        titles = ["ground truth", *(model.name for model in models)]
        panels = [
            draw_panel(image, shown, annotated.class_names, annotated.groups, title, PANEL_SIZE)
            for title, shown in zip(titles, _judged(annotated, models, index))
        ]
        rows.append(np.hstack(panels))
    write_whole(path, encode_jpeg(np.vstack(rows)))


def _judged(annotated: AnnotatedSet, models: Sequence[Detections], index: int) -> List[List[VisualObject]]:
    """Return the objects of an image, then each model's best detections that are right or wrong."""
    record = annotated.records[index]
    truth, found = shown_objects(record, models, annotated, Choice())
    for shown in found:
        match_image(truth, shown, record)
    return [truth, *([one for one in shown if one.verdict != "unjudged"] for shown in found)]
