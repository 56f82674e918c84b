"""The demonstration: sigmoid cross-entropy against EQL on the generated data set, from the same seed."""

import os
import time
from pathlib import Path
from typing import Dict, List, Optional, Sequence

import cv2
import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from eql_d2.config_files import get_config_file
from eql_d2.experiments.jobs import Job, run_jobs
from eql_d2.files import write_whole
from eql_d2.mini.generate import STAMP, generate_mini_dataset
from eql_d2.predictor import Predictor
from eql_d2.visualization import draw_panel

METRICS = ("AP", "APr", "APc", "APf")
#: The generated set that configs/mini/Base-demo.yaml is made for.
DATASET = {"num_classes": 24, "num_train": 600, "num_val": 150, "num_test": 10, "image_size": 96}


def run_demo(output_dir: Path, data_dir: Path, opts: Sequence[str] = ()) -> Path:
    """Generate the data, train both methods side by side, print and write one table, and draw one picture.

    Args:
        output_dir: receives ``sigmoid/``, ``eql/``, ``table.md`` and ``detections.png``. What is there already is kept:
            an interrupted demonstration goes on where it stopped.
        data_dir: the generated data set, made if absent; must be called ``mini_demo``, since the configs name it so.
            Its parent becomes ``DETECTRON2_DATASETS``.
        opts: config overrides for both methods.

    Returns:
        The path of the table.
    """
    start = time.monotonic()
    print(f"Data: {data_dir}", flush=True)
    if not (data_dir / STAMP).is_file():
        generate_mini_dataset(data_dir, **DATASET)
    environment = {"DETECTRON2_DATASETS": str(data_dir.resolve().parent)}
    jobs = [
        Job(method, get_config_file(f"mini/demo_{method}"), output_dir / method, opts, environment)
        for method in ("sigmoid", "eql")
    ]
    print("Training " + " and ".join(f"{job.name} ({job.output_dir})" for job in jobs), flush=True)
    run_jobs(jobs, parallel=2, report=lambda line: print(line, flush=True))
    table = comparison_table({job.name: job.results["results"] for job in jobs})
    print(f"\n{table}\n")
    path = output_dir / "table.md"
    write_whole(path, table + "\n")
    os.environ.update(environment)
    picture = draw_detections(jobs, output_dir / "detections.png")
    print(f"Table: {path}\nPicture: {picture}\n{time.monotonic() - start:.0f} s in total")
    return path


def comparison_table(results: Dict[str, Dict]) -> str:
    """Return a Markdown table of box and mask AP, one row per method, the last row the difference to the first.

    Args:
        results: metrics by method; of each ``{"bbox": {...}, "segm": {...}}``.
    """
    kinds = [kind for kind in ("bbox", "segm") if all(kind in r for r in results.values())]
    columns = [(kind, metric) for kind in kinds for metric in METRICS]
    names = {"bbox": "box", "segm": "mask"}
    rows = [["method"] + [f"{names[kind]} {metric}" for kind, metric in columns], ["---"] * (len(columns) + 1)]
    rows += [[method] + [_number(r[kind][metric]) for kind, metric in columns] for method, r in results.items()]
    first, last = next(iter(results)), list(results)[-1]
    pairs = [(results[first][kind][metric], results[last][kind][metric]) for kind, metric in columns]
    rows.append([f"{last} - {first}"] + [_number(None if None in pair else pair[1] - pair[0], "+") for pair in pairs])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _number(value: Optional[float], sign: str = "") -> str:
    """Return ``value`` with one decimal, ``n/a`` for ``None``."""
    return "n/a" if value is None else f"{value:{sign}.1f}"


def draw_detections(jobs: List[Job], path: Path, num_images: int = 6, score_threshold: float = 0.3) -> Path:
    """Write a picture with one row per validation image: the ground truth, then each job's detections.

    The images are those whose ground truth holds the most rare classes. Scores are compared within a method only, so
    each method shows its best ``number of ground-truth objects`` detections above ``score_threshold`` of its best.
    """
    torch.set_num_threads(os.cpu_count() or 1)
    predictors = []
    for job in jobs:
        predictors.append((job.name, Predictor(job.folder.config_file, weights=str(job.folder.weights))))
    dataset_name = predictors[0][1].cfg.DATASETS.TEST[0]
    metadata = MetadataCatalog.get(dataset_name)
    records = DatasetCatalog.get(dataset_name)
    groups = metadata.frequency_groups
    rare = [sum(groups[a["category_id"]] == "r" for a in record["annotations"]) for record in records]
    chosen = sorted(range(len(records)), key=lambda i: (-rare[i], i))[:num_images]

    rows = []
    for i in chosen:
        record = records[i]
        image = cv2.imread(record["file_name"])
        cells = [draw_panel(image, record["annotations"], metadata, "ground truth")]
        for name, predictor in predictors:
            instances = predictor(image)
            order = instances.scores.argsort(descending=True)[: max(1, len(record["annotations"]))]
            kept = instances[order]
            kept = kept[kept.scores >= score_threshold * kept.scores.max()] if len(kept) else kept
            found = [
                {"bbox": box.tolist(), "category_id": int(c), "mask": mask.numpy()}
                for box, c, mask in zip(kept.pred_boxes.tensor, kept.pred_classes, kept.pred_masks)
            ]
            cells.append(draw_panel(image, found, metadata, name))
        rows.append(np.hstack(cells))
    if not cv2.imwrite(str(path), np.vstack(rows)):
        raise OSError(f"{path} could not be written")
    return path
