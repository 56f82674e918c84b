"""Checking Open Images' files: classes, hierarchy, counts, boxes, image-level labels and image files."""

import os
from typing import Callable, Dict, Iterable, Optional, Tuple

import numpy as np

from eql_d2.data.annotations import PathLike, duplicates
from eql_d2.data.check import Report, try_image
from eql_d2.data.frequency import CategoryFrequency
from eql_d2.data.image_files import path_below
from eql_d2.data.open_images_files import open_images_table, read_hierarchy
from eql_d2.data.open_images_table import OpenImagesFiles, OpenImagesTable
from eql_d2.data.records import entries_of_rows

#: The published sizes of the challenge of 2019, by the name of the registered set: images and boxes (``None``: not
#: published).
OFFICIAL_COUNTS: Dict[str, Tuple[Optional[int], Optional[int]]] = {
    "openimages_challenge2019_train": (1_674_979, 12_195_144),
    "openimages_challenge2019_val": (None, None),
}
_OFFICIAL_CLASSES = 500


def check_open_images(
    name: str,
    files: OpenImagesFiles,
    image_root: Optional[PathLike],
    max_examples: int = 5,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Report:
    """Check a data set of Open Images' files.

    Args:
        name: of the data set; counts of an official one are compared with the published ones.
        files: the annotations.
        image_root: the image folder; ``None`` leaves the images unchecked.
        max_examples: examples of each kind of finding.
        progress: wraps the images while their files are read, for a progress bar.

    Raises:
        InputError: if a file cannot be read at all; everything else is in the report.
    """
    report = Report(max_examples)
    table = open_images_table(files)
    header = table.header
    report.summary.append(
        f"{files.boxes}: {len(table)} images, {len(table.corners)} boxes ({_count_flag(table)} group-of), "
        f"{len(table.label_classes)} image-level labels of {len(header.class_ids)} classes"
    )
    sizes = CategoryFrequency.of_counts(header.counts).group_sizes()
    report.summary.append(f"r/c/f: {sizes['r']}, {sizes['c']} and {sizes['f']} classes")
    _check_counts(name, table, report)
    _check_classes(table, files, report)
    _check_boxes(table, report)
    _check_labels(table, report)
    if image_root is not None:
        for row in progress(range(len(table))):
            path = path_below(os.fspath(image_root), f"{table.image_id(row)}.jpg")
            if path is None:
                report.add("image ids that lead out of the image folder", table.image_id(row))
            else:
                try_image(path, report)
    return report


def _count_flag(table: OpenImagesTable, flag: str = "is_group_of") -> int:
    flags = table.header.flags
    return int((table.box_flags[:, flags.index(flag)] == 1).sum()) if flag in flags else 0


def _check_counts(name: str, table: OpenImagesTable, report: Report) -> None:
    if name not in OFFICIAL_COUNTS:
        return
    num_images, num_boxes = OFFICIAL_COUNTS[name]
    found = (("classes", _OFFICIAL_CLASSES, len(table.header.class_ids)), ("images", num_images, len(table)))
    for what, expected, number in (*found, ("boxes", num_boxes, len(table.corners))):
        if expected is not None and number != expected:
            report.add(
                "a count is not the published one (an incomplete download or another file)",
                f"{name} should have {expected} {what}, found {number}",
            )


def _check_classes(table: OpenImagesTable, files: OpenImagesFiles, report: Report) -> None:
    header = table.header
    for class_name in duplicates(header.class_names):
        report.add("class names that occur more than once (the labels tell them apart)", class_name, is_error=False)
    for label, class_name, count in zip(header.class_ids, header.class_names, header.counts.image_count):
        if count == 0:
            what = "classes without a box (they cannot be learnt; a class above them may have some in evaluation)"
            report.add(what, f"{label}: {class_name}", is_error=False)
    if not files.hierarchy:
        report.add("there is no hierarchy: labels are not expanded", is_error=False)
        return
    in_tree = set(read_hierarchy(files.local().hierarchy).labels)
    for label in header.class_ids:
        if label not in in_tree:
            report.add("classes that the hierarchy does not have", label)
    for label in sorted(in_tree - set(header.class_ids)):
        report.add("labels of the hierarchy that are no class", label, is_error=False)


def _check_boxes(table: OpenImagesTable, report: Report) -> None:
    corners = table.corners
    empty = (corners[:, :2] >= corners[:, 2:]).any(axis=1)
    outside = ((corners < 0) | (corners > 1)).any(axis=1)
    for what, wrong, is_error in (
        ("boxes without an area (Detectron2 leaves them out of training)", empty, False),
        ("boxes that reach out of their image (coordinates are shares, 0 to 1)", outside, True),
    ):
        for box in np.flatnonzero(wrong):
            row = int(np.searchsorted(table.box_ends, box, side="right"))
            report.add(what, f"image {table.image_id(row)}: {corners[box].tolist()}", is_error)
    if table.header.num_left_out:
        report.add(
            "boxes of classes that are not in the list of classes (they are not used)",
            f"{table.header.num_left_out} boxes",
            is_error=False,
        )


def _check_labels(table: OpenImagesTable, report: Report) -> None:
    if not table.header.has_image_labels:
        report.add("there are no image-level labels: the exemption of EQL is off", is_error=False)
        return
    rows, classes = np.arange(len(table)), len(table.header.class_ids)
    label_image, label = entries_of_rows(rows, table.label_ends)
    box_image, box = entries_of_rows(rows, table.box_ends)
    key = label_image * classes + table.label_classes[label]
    absent, present = key[~table.label_present[label]], key[table.label_present[label]]
    boxed = np.unique(box_image * classes + table.box_labels[box])
    for what, where in (
        ("classes that are verified to be absent from an image with a box of them", np.intersect1d(absent, boxed)),
        ("classes that are verified both to be in an image and not to be", np.intersect1d(absent, present)),
    ):
        for image, label_ in zip((where // classes).tolist(), (where % classes).tolist()):
            report.add(what, f"image {table.image_id(image)}: {table.header.class_ids[label_]}")
