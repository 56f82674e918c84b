"""What rare categories are taken for: predictions of the proposals that cover them."""

from pathlib import Path
from typing import Dict, List, Sequence

import torch
from torch import Tensor

from eql_d2.analysis.curves import pass_note
from eql_d2.analysis.passes import Pass
from eql_d2.analysis.produced import Produced, write_tables
from eql_d2.analysis.trained_model import TrainedModel
from eql_d2.data.categories import CategoryRow, CategoryTable
from eql_d2.data.groups import GROUP_NAMES, GROUPS
from eql_d2.plotting import panels, save

#: Predictions listed of each category.
MOST_FREQUENT = 5
#: Columns of the matrix by group: the right class, another one of each group, background.
PREDICTIONS = ("right", *(f"other {GROUP_NAMES[group]}" for group in GROUPS), "background")
_KINDS = {True: "with background", False: "classes only"}


def group_confusion(confusion: Tensor, groups: Sequence[str]) -> Tensor:
    """Sum a matrix of classes up by group.

    Args:
        confusion: int64 ``[K + 1, K + 1]``, ground truth by prediction, K for background; or ``[K, K]`` without it.
        groups: K letters.

    Returns:
        int64 ``[4, 5]``: rows r, c, f and background; columns :data:`PREDICTIONS`. Background that is taken for
        background is in that column, not in "right".
    """
    num_classes, size = len(groups), len(confusion)
    group = torch.tensor([GROUPS.index(letter) for letter in groups] + [len(GROUPS)])[:size]
    right = confusion.diagonal().clone()
    wrong = confusion.clone()
    wrong.diagonal()[:num_classes] = 0
    right[num_classes:] = 0
    by_row = torch.zeros(len(GROUPS) + 1, size, dtype=torch.int64).index_add_(0, group, wrong)
    others = torch.zeros(len(GROUPS) + 1, len(GROUPS) + 1, dtype=torch.int64).index_add_(1, group, by_row)
    own = torch.zeros(len(GROUPS) + 1, dtype=torch.int64).index_add_(0, group, right)
    return torch.cat([own.unsqueeze(1), others], dim=1)


def confusion_rows(run: str, matrix: Tensor, with_background: bool) -> List[CategoryRow]:
    """Return one row for each group of ground truth and kind of prediction: regions, and share of the group's."""
    rows = []
    for letter, counts in zip((*GROUPS, "background"), matrix.tolist()):
        if not with_background and letter == "background":
            continue
        for prediction, count in zip(PREDICTIONS, counts):
            if with_background or prediction != "background":
                share = count / sum(counts) if sum(counts) else None
                row = {"run": run, "kind": _KINDS[with_background], "group": letter}
                rows.append({**row, "prediction": prediction, "regions": count, "share": share})
    return rows


def prediction_rows(run: str, confusion: Tensor, categories: CategoryTable, kind: str) -> List[CategoryRow]:
    """Return the most frequent predictions of the regions of each category, the rarest category first.

    Args:
        run: name.
        confusion: int64 ``[K + 1, K + 1]``, or ``[K, K]``.
        categories: K of them; those without a region have no row.
        kind: for the column of that name.
    """
    num_classes = len(categories)
    rows = []
    for label in categories.order().flip(0).tolist():
        counts = confusion[label]
        total = int(counts.sum())
        top = torch.sort(counts, descending=True, stable=True).indices[:MOST_FREQUENT].tolist()
        for rank, predicted in enumerate([j for j in top if counts[j] > 0], start=1):
            is_background = predicted == num_classes
            rows.append(
                {
                    "run": run,
                    "kind": kind,
                    **categories.row(label),
                    "regions": total,
                    "rank": rank,
                    "prediction": "background" if is_background else categories.names[predicted],
                    "prediction_group": "background" if is_background else categories.frequency.groups[predicted],
                    "is_right": predicted == label,
                    "predicted": int(counts[predicted]),
                    "share": int(counts[predicted]) / total,
                }
            )
    return rows


def confusion(
    runs: Sequence[TrainedModel], passes: Sequence[Pass], categories: CategoryTable, folder: Path
) -> Produced:
    """What the proposals of each group and category are taken for.

    "with background": the highest of the K + 1 scores; "classes only": the highest of the K classes'. Losses without a
    background column give background to regions where no class reaches one half.
    """
    groups: List[CategoryRow] = []
    per_class: List[CategoryRow] = []
    matrices: Dict[bool, List[Tensor]] = {True: [], False: []}
    for run, one in zip(runs, passes):
        first = one.statistics[0]
        for with_background, counts in ((True, first.confusion), (False, first.foreground_confusion)):
            matrix = group_confusion(counts, categories.frequency.groups)
            matrices[with_background].append(matrix)
            groups += confusion_rows(run.name, matrix, with_background)
            per_class += prediction_rows(run.name, counts, categories, _KINDS[with_background])
    figure, axes = panels(len(runs), 2, width=4.6, height=3.0)
    for row, with_background in enumerate((True, False)):
        for column, (run, matrix) in enumerate(zip(runs, matrices[with_background])):
            _draw(axes[row, column], matrix, with_background)
            axes[row, column].set_title(f"{run.name}, {_KINDS[with_background]}", fontsize=9)
    return write_tables(
        "confusion",
        "Share of the proposals that cover a group's ground truth (rows) by what the highest score makes of them "
        "(columns), above with background, below among the classes alone." + pass_note(passes),
        folder,
        {"confusion": groups, "confusion_categories": per_class},
        save(figure, folder, "confusion"),
    )


def _draw(axes, matrix: Tensor, with_background: bool) -> None:
    """Draw shares as shades with their numbers: percent of the row."""
    shown = matrix if with_background else matrix[:-1, :-1]
    totals = shown.sum(1, keepdim=True)
    shares = 100 * shown / totals.clamp(min=1)
    axes.imshow(shares.numpy(), cmap="Greys", vmin=0, vmax=100, aspect="auto")
    for i, row in enumerate(shares.tolist()):
        for j, value in enumerate(row):
            text = f"{value:.1f}" if int(totals[i]) else "n/a"
            axes.text(j, i, text, ha="center", va="center", fontsize=8, color="white" if value > 55 else "black")
    names = [*(GROUP_NAMES[group] for group in GROUPS), "background"][: len(shown)]
    axes.set_yticks(range(len(names)), [f"{name}\n({int(total)})" for name, total in zip(names, totals)], fontsize=8)
    predictions = PREDICTIONS[: shown.shape[1]]
    axes.set_xticks(range(len(predictions)), [name.replace(" ", "\n") for name in predictions], fontsize=8)
