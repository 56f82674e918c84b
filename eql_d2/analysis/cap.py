"""AP under rising caps on the detections of an image: whether a method detects better or only ranks differently."""

import math
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from detectron2.data import MetadataCatalog

from eql_d2.analysis.figures import AP_TITLES, capitalized, group_labels
from eql_d2.analysis.produced import Produced, write_tables
from eql_d2.analysis.trained_model import TrainedModel
from eql_d2.data.categories import CategoryRow, CategoryTable
from eql_d2.data.groups import GROUP_NAMES
from eql_d2.data.registration import open_table
from eql_d2.evaluation.backends import evaluate_results
from eql_d2.plotting import panels, save, style

FIXED = "fixed"


def caps(detections_per_image: int) -> List[int]:
    """Return the caps to evaluate: 10, 20, 50, 100, ... below ``detections_per_image``, and that."""
    steps = (factor * 10**power for power in range(1, 10) for factor in (1, 2, 5))
    return [cap for cap in steps if cap < detections_per_image] + [detections_per_image]


def cap_rows(run: TrainedModel, dataset: str, iou_type: str) -> List[CategoryRow]:
    """Evaluate the detections that a run left, under each cap.

    Args:
        run: that was evaluated on the data set.
        dataset: its name, registered.
        iou_type: "bbox" or "segm".

    Returns:
        A row for each of :func:`caps` of ``TEST.DETECTIONS_PER_IMAGE``: ``run``, ``iou_type``, ``cap``, and AP, APr,
        APc, APf in percent, ``None`` for a group without ground truth. On an LVIS-format set a last one with the cap
        "fixed" (AP-fixed, Dave et al., arXiv 2102.01066); on a COCO-format set a cap is one on each image and class.

    Raises:
        InputError: if detections or annotations are missing, or do not fit each other.
    """
    metadata = MetadataCatalog.get(dataset)
    labels = open_table(metadata.json_file).contiguous_ids
    options: Dict[str, Any] = {
        "annotations": metadata.json_file,
        "results": str(run.detections_file(dataset)),
        "iou_type": iou_type,
        "backend": run.cfg.MODEL.LONG_TAIL.EVALUATOR,
        "protocol": metadata.evaluator_type,
        "groups": {category_id: run.frequency.groups[label] for category_id, label in labels.items()},
    }
    rows = []
    settings = [(cap, {"max_detections": cap}) for cap in caps(run.cfg.TEST.DETECTIONS_PER_IMAGE)]
    if metadata.evaluator_type == "lvis":
        settings.append((FIXED, {"fixed": True}))
    for cap, setting in settings:
        metrics = evaluate_results(**options, **setting).metrics
        values = {name: metrics[name] for name in ("AP", "APr", "APc", "APf")}
        percent = {name: None if math.isnan(value) else 100 * value for name, value in values.items()}
        rows.append({"run": run.name, "iou_type": iou_type, "cap": cap, **percent})
    return rows


def ap_cap(
    runs: Sequence[TrainedModel], categories: CategoryTable, folder: Path, dataset: Optional[str] = None
) -> Produced:
    """AP of all categories and of each group against the cap on the detections of an image, and AP-fixed."""
    name = runs[0].evaluated_dataset(dataset)
    for run in runs:
        run.dataset(name)
    iou_type = "segm" if all(run.cfg.MODEL.MASK_ON for run in runs) else "bbox"
    rows = [row for run in runs for row in cap_rows(run, name, iou_type)]
    columns = ["AP", *(f"AP{letter}" for letter in group_labels(categories))]
    figure, axes = panels(len(columns), width=4.0, height=3.8)
    last = max(row["cap"] for row in rows if row["cap"] != FIXED)
    for panel, column in zip(axes[0], columns):
        for index, run in enumerate(runs):
            _draw(panel, [row for row in rows if row["run"] == run.name], column, last, style(index))
        _label(panel, last, any(row["cap"] == FIXED for row in rows))
        panel.set_title("all categories" if column == "AP" else GROUP_NAMES[column[-1]], fontsize=9)
        panel.set_ylabel(AP_TITLES[iou_type])
    axes[0, 0].legend(loc="best", fontsize=8)
    of_what = "of each image and class" if MetadataCatalog.get(name).evaluator_type == "coco" else "of each image"
    caption = (
        f"{capitalized(AP_TITLES[iou_type])} on {name} against the number of detections {of_what} that count. "
        f"Where the lines of two runs meet as the cap rises, they detect equally well and rank the detections of "
        f"different categories differently."
    )
    return write_tables("ap-cap", caption, folder, {"ap_cap": rows}, save(figure, folder, "ap_cap"))


def _draw(axes, rows: Sequence[CategoryRow], column: str, last: int, look: Dict[str, Any]) -> None:
    rows = [row for row in rows if row[column] is not None]
    curve = [row for row in rows if row["cap"] != FIXED]
    label = rows[0]["run"] if rows else None
    axes.plot([row["cap"] for row in curve], [row[column] for row in curve], markersize=4, label=label, **look)
    fixed = [row[column] for row in rows if row["cap"] == FIXED]
    axes.plot([_place_of_fixed(last)] * len(fixed), fixed, markersize=4, **{**look, "linestyle": ""})


def _label(axes, last: int, has_fixed: bool) -> None:
    """Mark the caps, and AP-fixed to the right of the last."""
    ticks = [cap for cap in caps(last) if str(cap)[0] == "1" or cap == last]
    labels = [str(cap) for cap in ticks]
    if has_fixed:
        ticks, labels = [*ticks, _place_of_fixed(last)], [*labels, FIXED]
    axes.set_xscale("log")
    axes.set_xticks(ticks, labels, fontsize=8)
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("detections of an image that count", fontsize=8)
    axes.grid(alpha=0.3)


def _place_of_fixed(last: int) -> float:
    return last * 2.5
