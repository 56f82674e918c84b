"""Scoring a results file of Open Images: detections are read some rows at a time, and those that count are kept."""

import os
from collections import OrderedDict
from typing import Any, Dict, List, Optional, Sequence, Tuple

import numpy as np

from eql_d2.data.annotations import PathLike
from eql_d2.data.frequency import CategoryFrequency
from eql_d2.data.open_images_files import row_chunks
from eql_d2.data.open_images_table import OpenImagesTable
from eql_d2.data.records import entries_of_rows
from eql_d2.errors import InputError
from eql_d2.evaluation.metrics import format_value
from eql_d2.evaluation.open_images import DetectedBoxes, TrueBoxes, countable, per_class_ap

#: Columns of a results file, the official form of predictions.
COLUMNS = ("ImageID", "LabelName", "Score", "XMin", "XMax", "YMin", "YMax")
#: The kind of these metrics.
KIND = "oid"
#: The groups of a fifth of the classes each (100 of 500), rarest first, as EQL v2 and EFL number them. EQL's Table 6
#: numbers them the other way round, so that the names say which end is which.
GROUPS = ("1-rarest", "2", "3", "4", "5-most-frequent")
#: What the classes are ordered by: boxes before expansion (EQL v2, EFL), or images that show the class (EQL).
GROUP_COUNTS = ("instances", "images")


def results_ap(table: OpenImagesTable, results: PathLike, group_of_weight: float = 1.0) -> np.ndarray:
    """Return AP of each class in [0, 1], float64 ``[K]``, NaN without an object.

    Only the detections that count are held: those of classes that are verified in their image.

    Args:
        table: the ground truth, not expanded.
        results: CSV with the columns :data:`COLUMNS`, coordinates as shares of the image. Detections of other images
            and classes are left out.
        group_of_weight: what a group-of box that is found counts; 1 in the challenge, 0 leaves them out.

    Raises:
        InputError: if the file is missing, a column or a number in it is, or the weight is negative.
    """
    if not 0 <= group_of_weight < float("inf"):
        raise InputError(f"The weight of group-of boxes is {group_of_weight}; it is 0 or positive.")
    truth, verified = expanded(table)
    detections = countable_detections(table, results, verified)
    return per_class_ap(truth, detections, len(table.header.class_ids), group_of_weight)


def expanded(table: OpenImagesTable) -> Tuple[TrueBoxes, np.ndarray]:
    """Return the boxes, repeated for every class above theirs, and which classes are verified, bool ``[N, K]``."""
    rows = np.arange(len(table))
    image, box = entries_of_rows(rows, table.box_ends)
    box_place, labels = _expand(table.box_labels, table.above)
    flags = table.header.flags
    is_group_of = table.box_flags[:, flags.index("is_group_of")] != 0 if "is_group_of" in flags else box < 0
    truth = TrueBoxes(image[box_place], labels, table.corners[box_place], is_group_of[box_place])

    verified = np.zeros((len(table), len(table.above)), dtype=bool)
    verified[truth.image, truth.label] = True
    image, _ = entries_of_rows(rows, table.label_ends)
    for present, related in ((table.label_present, table.above), (~table.label_present, table.below)):
        place, labels = _expand(table.label_classes[present], related)
        verified[image[present][place], labels] = True
    return truth, verified


def _expand(labels: np.ndarray, related: Sequence[frozenset]) -> Tuple[np.ndarray, np.ndarray]:
    """Repeat labels for the classes that are related to them; return the place of each in ``labels``, and the label."""
    closure = [[label, *sorted(others)] for label, others in enumerate(related)]
    place, entry = entries_of_rows(labels, np.cumsum([len(one) for one in closure]))
    return place, np.concatenate(closure)[entry]


def countable_detections(table: OpenImagesTable, results: PathLike, verified: np.ndarray) -> DetectedBoxes:
    """Return the detections of a results file that count.

    Args:
        table, results: as :func:`results_ap`.
        verified: of :func:`expanded`.
    """
    parts: List[DetectedBoxes] = []
    for rows in row_chunks(results, table.header.class_ids, COLUMNS[2:]):
        place = np.minimum(np.searchsorted(table.image_ids, rows.run_ids), len(table) - 1)
        place[table.image_ids[place] != rows.run_ids] = -1
        image = np.repeat(place, rows.run_lengths)
        if not np.isfinite(rows.values).all():
            bad = rows.values[(~np.isfinite(rows.values)).any(axis=1)][0]
            raise InputError(f"{os.fspath(results)} has a detection with a number that is not finite: {bad.tolist()}.")
        known = image >= 0
        score, corners = rows.values[known, 0], rows.values[known][:, [1, 3, 2, 4]]
        parts.append(
            countable(DetectedBoxes(image[known].astype(np.int32), rows.labels[known], score, corners), verified)
        )
    if not parts:
        empty = np.empty(0)
        return DetectedBoxes(empty.astype(np.int32), empty.astype(np.int32), empty, np.empty((0, 4)))
    return DetectedBoxes(*map(np.concatenate, zip(*parts)))


def group_of_classes(frequency: CategoryFrequency, group_by: str = "instances") -> np.ndarray:
    """Return the group of each class, 0 (rarest) to 4, int ``[K]``: fifths of the classes by their training counts.

    Raises:
        InputError: if ``group_by`` is none of :data:`GROUP_COUNTS`.
    """
    if group_by not in GROUP_COUNTS:
        raise InputError(
            f"MODEL.LONG_TAIL.OPEN_IMAGES.GROUP_BY is {group_by!r}; there are {' and '.join(GROUP_COUNTS)}."
        )
    counts = frequency.instance_count if group_by == "instances" else frequency.image_count
    order = np.argsort(counts.numpy(), kind="stable")
    groups = np.empty(len(order), dtype=int)
    for number, classes in enumerate(np.array_split(order, len(GROUPS))):
        groups[classes] = number
    return groups


def summarize_groups(ap: np.ndarray, groups: Optional[np.ndarray]) -> Dict[str, float]:
    """Return the mean over the classes that have an object, and over those of each group; NaN where there is none.

    Args:
        ap: of :func:`results_ap`.
        groups: of :func:`group_of_classes`; ``None`` leaves the groups out.

    Returns:
        ``AP``, ``AP-1-rarest``, ``AP-2``, ``AP-3``, ``AP-4``, ``AP-5-most-frequent`` in [0, 1], all at IoU 0.5.
    """
    metrics = OrderedDict(AP=_mean(ap))
    if groups is not None:
        for number, name in enumerate(GROUPS):
            metrics[f"AP-{name}"] = _mean(ap[groups == number])
    return metrics


def _mean(ap: np.ndarray) -> float:
    known = ap[~np.isnan(ap)]
    return float(known.mean()) if len(known) else float("nan")


def class_rows(
    table: OpenImagesTable, ap: np.ndarray, frequency: Optional[CategoryFrequency], groups: Optional[np.ndarray]
) -> List[Dict[str, Any]]:
    """Return one row for each class by official id: label, name, groups, training counts, ``oid_AP`` in percent."""
    header = table.header
    rows = []
    for k, (label, name) in enumerate(zip(header.class_ids, header.class_names)):
        row: Dict[str, Any] = {"id": k + 1, "name": name, "label": label}
        row["group"] = None if frequency is None else frequency.groups[k]
        row["fifth"] = None if groups is None else GROUPS[groups[k]]
        row["train_images"] = None if frequency is None else int(frequency.image_count[k])
        row["train_instances"] = None if frequency is None else int(frequency.instance_count[k])
        row[f"{KIND}_AP"] = None if np.isnan(ap[k]) else 100 * float(ap[k])
        rows.append(row)
    return rows


def format_open_images(metrics: Dict[str, float]) -> str:
    """Return the metrics in percent as a Markdown table, "n/a" without an object."""
    lines = [["", *metrics], ["---"] * (len(metrics) + 1), ["box", *map(format_value, metrics.values())]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def check_training_counts(frequency: Optional[CategoryFrequency], table: OpenImagesTable, name: str) -> None:
    """Raise an :class:`~eql_d2.errors.InputError` unless the counts are of as many classes as the data set ``name``."""
    if frequency is not None and frequency.num_classes != len(table.header.class_ids):
        raise InputError(
            f"The training set has {frequency.num_classes} categories, but {name} has {len(table.header.class_ids)}; "
            f"they must be the same ones."
        )
