"""Numbers of each category against its rank by training images: gradients, probabilities, ratios, weight norms."""

import csv
import re
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Tuple

import torch
from torch import Tensor

from eql_d2.analysis.figures import nan_tensor, plot_by_category, smoothing_note
from eql_d2.analysis.passes import Pass
from eql_d2.analysis.produced import Produced, write_tables
from eql_d2.analysis.trained_model import TrainedModel
from eql_d2.data.categories import CategoryRow, CategoryTable
from eql_d2.errors import InputError
from eql_d2.modeling.regions import region_columns
from eql_d2.plotting import panels, save

#: Name of the classifier's weights in a checkpoint; a cascade has one for each stage.
_CLASSIFIER = re.compile(r"(?:^|\.)box_predictor\.(?:(\d+)\.)?cls_score\.weight$")


def _stage_note(passes: Sequence[Pass]) -> str:
    return " The figure is of the first stage." if any(len(one.statistics) > 1 for one in passes) else ""


def pass_note(passes: Sequence[Pass]) -> str:
    """Return the sentences of a caption that say which regions the numbers are of."""
    seen = {f"{one.num_images} images of {one.dataset}" for one in passes}
    return f" Regions as training samples them, from {' and '.join(sorted(seen))}." + _stage_note(passes)


def _region_table(
    runs: Sequence[TrainedModel], passes: Sequence[Pass], categories: CategoryTable, columns: Sequence[str]
) -> List[CategoryRow]:
    rows: List[CategoryRow] = []
    for run, one in zip(runs, passes):
        for stage, statistics in enumerate(one.statistics):
            values = region_columns(statistics)
            rows += categories.rows({c: values[c] for c in columns}, run=run.name, stage=stage)
    return rows


def gradients(
    runs: Sequence[TrainedModel], passes: Sequence[Pass], categories: CategoryTable, folder: Path
) -> Produced:
    """Mean gradient norm of positive and of negative samples (EQL, arXiv 2003.05176, Figure 1).

    One row for each run, stage and category: regions, and the mean L2 norm of the gradient of the category's classifier
    weights, see :class:`~eql_d2.modeling.regions.RegionStatistics`.
    """
    kinds = ("positive", "negative")
    columns = ["positives", "negatives", *(f"{kind}_gradient_norm" for kind in kinds)]
    figure, axes = panels(2)
    for place, kind, panel in zip((0, 1), kinds, axes[0]):
        series = [(run.name, one.statistics[0].means()[columns[2 + place]]) for run, one in zip(runs, passes)]
        plot_by_category(panel, series, categories, f"mean gradient norm, {kind} samples", log=True)
    return write_tables(
        "gradients",
        "Mean L2 norm of the gradient of a category's classifier weights over its positive and its negative samples "
        "(EQL, Figure 1)." + pass_note(passes) + smoothing_note(categories),
        folder,
        {"gradients": _region_table(runs, passes, categories, columns)},
        save(figure, folder, "gradients"),
    )


def probabilities(
    runs: Sequence[TrainedModel], passes: Sequence[Pass], categories: CategoryTable, folder: Path
) -> Produced:
    """Mean predicted probability of a category over its positive proposals (EQL, Figure 2)."""
    figure, axes = panels(1)
    series = [(run.name, one.statistics[0].means()["mean_probability"]) for run, one in zip(runs, passes)]
    plot_by_category(axes[0, 0], series, categories, "mean probability of positive proposals")
    axes[0, 0].set_ylim(bottom=0)
    return write_tables(
        "probabilities",
        "Mean of the score that each loss gives a positive proposal's own category (EQL, Figure 2)."
        + pass_note(passes)
        + smoothing_note(categories),
        folder,
        {"probabilities": _region_table(runs, passes, categories, ["positives", "mean_probability"])},
        save(figure, folder, "probabilities"),
    )


def gradient_ratio(
    runs: Sequence[TrainedModel], passes: Sequence[Pass], categories: CategoryTable, folder: Path
) -> Produced:
    """Accumulated gradient of positive over that of negative samples (EQL v2, arXiv 2012.08548, Figure 1).

    One row for each run, stage and category. ``gradient_ratio`` is of the pass, with the trained weights standing
    still. Of the first stage also ``logged_ratio``, accumulated during training by
    :class:`~eql_d2.engine.gradient_hook.GradientHook`, and ``loss_ratio``, that of a loss which keeps its own (EQL v2,
    EFL).
    """
    rows, accumulated = [], []
    for place, (run, one) in enumerate(zip(runs, passes)):
        logged = logged_ratio(run, len(categories))
        for stage, statistics in enumerate(one.statistics):
            values = region_columns(statistics)
            columns = {c: values[c] for c in ("positive_gradient", "negative_gradient", "gradient_ratio")}
            empty = torch.full((len(categories),), float("nan"), dtype=torch.float64)
            for name, ratio in (("logged_ratio", logged), ("loss_ratio", one.state_ratio)):
                columns[name] = empty if ratio is None or stage else ratio
            rows += categories.rows(columns, run=run.name, stage=stage)
        if logged is not None or one.state_ratio is not None:
            accumulated.append((place, run.name, one.state_ratio if logged is None else logged))
    figure, axes = panels(2 if accumulated else 1)
    series = [(run.name, one.statistics[0].means()["gradient_ratio"]) for run, one in zip(runs, passes)]
    plot_by_category(axes[0, 0], series, categories, "gradient ratio, trained weights", log=True)
    if accumulated:
        series, styles = [entry[1:] for entry in accumulated], [entry[0] for entry in accumulated]
        label = "gradient ratio, accumulated in training"
        plot_by_category(axes[0, 1], series, categories, label, log=True, styles=styles)
    for panel in axes[0]:
        panel.axhline(1, color="black", linewidth=0.8)
    return write_tables(
        "gradient-ratio",
        "Sum of the absolute logit gradients of a category's positive samples over that of its negative samples "
        "(EQL v2, Figure 1); 1 is balance." + pass_note(passes) + smoothing_note(categories),
        folder,
        {"gradient_ratio": rows},
        save(figure, folder, "gradient_ratio"),
    )


def logged_ratio(run: TrainedModel, num_classes: int) -> Optional[Tensor]:
    """Return the first stage's gradient ratio that the training hook wrote, float64 ``[K]``; ``None`` without it.

    Raises:
        InputError: if the file is none of the hook's.
    """
    path = run.gradients_file
    if not path.is_file():
        return None
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("stage") == "0"]
    try:
        values = {int(row["label"]): row["gradient_ratio"] for row in rows}
        # Earlier versions wrote "n/a" where there is nothing now.
        return nan_tensor([None if values[label] in ("", "n/a") else values[label] for label in range(num_classes)])
    except (KeyError, ValueError) as error:
        raise InputError(f"{path} is no table of {num_classes} classes as training writes it ({error!r}).") from None


def weight_norms(run: TrainedModel) -> List[Tensor]:
    """Return the L2 norm of each class's weights in the last layer, float64 ``[K]`` for each stage (BAGS, Figure 1).

    Factors that LWS learnt (``cls_scale``) are part of the weights.

    Raises:
        InputError: if there is no checkpoint, or it has no classifier of that many classes.
    """
    num_classes = run.cfg.MODEL.ROI_HEADS.NUM_CLASSES
    found: List[Tuple[int, str]] = []
    for key in run.state:
        match = _CLASSIFIER.search(key)
        if match:
            found.append((int(match.group(1) or 0), key))
    norms = []
    for _, key in sorted(found):
        weight, scale = run.state[key].double(), run.state.get(key.replace("cls_score.weight", "cls_scale"))
        norm = weight.norm(dim=1) if scale is None else weight.norm(dim=1) * scale.double().abs()
        if len(norm) < num_classes:
            raise InputError(
                f"{run.weights}: {key} has {len(norm)} rows, but MODEL.ROI_HEADS.NUM_CLASSES is {num_classes}."
            )
        norms.append(norm[:num_classes])
    if not norms:
        raise InputError(f"{run.weights} has no roi_heads.box_predictor.cls_score.weight; it is no detector's.")
    return norms


def weights(runs: Sequence[TrainedModel], categories: CategoryTable, folder: Path) -> Produced:
    """L2 norm of each category's classifier weights (BAGS, arXiv 2006.10408), from the checkpoints alone."""
    rows: List[CategoryRow] = []
    norms: Dict[str, List[Tensor]] = {run.name: weight_norms(run) for run in runs}
    for name, stages in norms.items():
        for stage, norm in enumerate(stages):
            rows += categories.rows({"weight_norm": norm}, run=name, stage=stage)
    figure, axes = panels(1)
    series = [(name, stages[0]) for name, stages in norms.items()]
    plot_by_category(axes[0, 0], series, categories, "L2 norm of the classifier's weights")
    axes[0, 0].set_ylim(bottom=0)
    several = " The figure is of the first stage." if any(len(stages) > 1 for stages in norms.values()) else ""
    return write_tables(
        "weights",
        "L2 norm of each category's weights in the last layer of the classifier (BAGS)."
        + several
        + smoothing_note(categories),
        folder,
        {"weights": rows},
        save(figure, folder, "weights"),
    )
