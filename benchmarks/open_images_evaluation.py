#!/usr/bin/env python
"""Scoring Open Images' results: this package against loops over images and classes.

Generates ground truth and detections of the size of a validation (41,620 images, 500 classes, 300 detections of each
image) as the official files, and scores the results file. The peer does what TensorFlow's official evaluation does
(mmdetection's goes through classes outside and images inside), written again with numpy, without its CorLoc: rows are
grouped by image; in each image, for each of the 500 classes, its boxes, flags, detections and counts are selected, and
where there is a detection, a matrix of overlaps and a loop over the detections by falling score follow. Both read the
same files; results are asserted to be equal to 1e-9.

The peer scores a part of the images alone (its time is in proportion to their number), this package that part and all.

    python benchmarks/open_images_evaluation.py                     # the peer on a twentieth of the images
    python benchmarks/open_images_evaluation.py --images 500 --peer-fraction 1
"""

import argparse
import json
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Dict, List, Tuple

import numpy as np
import pandas as pd
from measuring import memory_bytes, run_within

from eql_d2.data.open_images_files import open_images_table
from eql_d2.data.open_images_table import OpenImagesFiles
from eql_d2.evaluation.open_images_results import COLUMNS, results_ap

IMAGES, CLASSES, PARENTS, DETECTIONS = 41_620, 500, 57, 300
BOXES_PER_IMAGE, LABELS_PER_IMAGE = 7, 5
TOLERANCE = 1e-9
#: While files are generated.
IMAGES_AT_ONCE = 2000


def generate(folder: Path, num_images: int) -> Tuple[OpenImagesFiles, str]:
    """Write annotations and results. Half of the detections are of classes that are verified in their image."""
    random = np.random.default_rng(0)
    ids = np.array([f"{number:016x}" for number in range(num_images)])
    labels = np.array([f"/m/{number:05d}" for number in range(CLASSES)])
    leaves = [{"LabelName": label} for label in labels[PARENTS:]]
    tree = [{"LabelName": label, "Subcategory": leaves[k::PARENTS]} for k, label in enumerate(labels[:PARENTS])]
    (folder / "hierarchy.json").write_text(json.dumps({"LabelName": "root", "Subcategory": tree}))
    (folder / "classes.csv").write_text("".join(f"{label},{label}\n" for label in labels))

    image = np.sort(random.integers(0, num_images, num_images * BOXES_PER_IMAGE))
    label = random.integers(PARENTS, CLASSES, len(image))
    corners = _corners(random, len(image))
    boxes = pd.DataFrame({"ImageID": ids[image], "LabelName": labels[label], **_columns(corners)})
    boxes["IsGroupOf"] = (random.random(len(image)) < 0.06).astype(int)
    boxes.to_csv(folder / "boxes.csv", index=False, float_format="%.6f")
    verified_image = np.repeat(np.arange(num_images), LABELS_PER_IMAGE)
    verified_label = random.integers(0, CLASSES, len(verified_image))
    verified = pd.DataFrame({"ImageID": ids[verified_image], "LabelName": labels[verified_label]})
    verified["Confidence"] = random.integers(0, 2, len(verified))
    verified.to_csv(folder / "labels.csv", index=False)

    # A third of the detections are boxes, moved a little, a sixth of other verified classes, the rest anything.
    first, count = np.searchsorted(image, np.arange(num_images)), np.bincount(image, minlength=num_images)
    scores = random.permutation(num_images * DETECTIONS) / (num_images * DETECTIONS)  # no ties: their order is nobody's
    for start in range(0, num_images, IMAGES_AT_ONCE):
        found_image = np.repeat(np.arange(start, min(start + IMAGES_AT_ONCE, num_images)), DETECTIONS)
        kind = np.where(count[found_image] > 0, random.integers(0, 6, len(found_image)), 5)
        near = first[found_image] + (random.random(len(found_image)) * count[found_image]).astype(int)
        near = np.where(kind < 2, near, 0)
        moved = np.clip(corners[near] + random.normal(0, 0.02, (len(near), 4)), 0, 1)
        found = np.where((kind < 2)[:, None], moved, _corners(random, len(found_image)))
        other = verified_label[found_image * LABELS_PER_IMAGE + random.integers(0, LABELS_PER_IMAGE, len(found_image))]
        found_label = np.select([kind < 2, kind == 2], [label[near], other], random.integers(0, CLASSES, len(kind)))
        results = pd.DataFrame({"ImageID": ids[found_image], "LabelName": labels[found_label]})
        here = scores[start * DETECTIONS :][: len(found_image)]
        results = results.assign(Score=[f"{score:.9g}" for score in here], **_columns(found))[list(COLUMNS)]
        results.to_csv(
            folder / "results.csv", index=False, float_format="%.6f", header=not start, mode="a" if start else "w"
        )
    paths = (str(folder / name) for name in ("boxes.csv", "classes.csv", "labels.csv", "hierarchy.json"))
    return OpenImagesFiles(*paths), str(folder / "results.csv")


def _corners(random: np.random.Generator, count: int) -> np.ndarray:
    """Return boxes, x1, y1, x2, y2."""
    return np.sort(random.random((count, 2, 2)), axis=1).reshape(count, 4)


def _columns(corners: np.ndarray) -> Dict[str, np.ndarray]:
    return dict(zip(("XMin", "YMin", "XMax", "YMax"), corners.T))


def overlaps(one: np.ndarray, other: np.ndarray, of_first: bool) -> np.ndarray:
    """Return IoU, or the share of the first box that lies in the second, ``[n, m]``."""
    sides = np.minimum(one[:, None, 2:], other[None, :, 2:]) - np.maximum(one[:, None, :2], other[None, :, :2])
    intersection = np.clip(sides, 0, None).prod(axis=2)
    area = (one[:, 2:] - one[:, :2]).prod(axis=1)[:, None]
    if of_first:
        return intersection / area
    return intersection / (area + (other[:, 2:] - other[:, :2]).prod(axis=1)[None] - intersection)


def match(scores: np.ndarray, corners: np.ndarray, boxes: np.ndarray, groups: np.ndarray) -> Tuple[List, List]:
    """Match detections of one class in one image as TensorFlow does; return their scores and whether they are true."""
    if not len(scores):
        return [], []
    order = np.argsort(scores)[::-1]
    scores, corners = scores[order], corners[order]
    true, in_group = np.zeros(len(scores), dtype=bool), np.zeros(len(scores), dtype=bool)
    if len(boxes):
        iou = overlaps(corners, boxes, of_first=False)
        best = iou.argmax(axis=1)
        taken = np.zeros(len(boxes), dtype=bool)
        for k in range(len(scores)):
            if iou[k, best[k]] >= 0.5 and not taken[best[k]]:
                true[k] = taken[best[k]] = True
    group_scores = np.zeros(len(groups))
    if len(groups):
        share = overlaps(corners, groups, of_first=True)
        best = share.argmax(axis=1)
        for k in range(len(scores)):
            if not true[k] and share[k, best[k]] >= 0.5:
                in_group[k] = True
                group_scores[best[k]] = max(group_scores[best[k]], scores[k])
    found = group_scores[group_scores > 0]
    return [*scores[~in_group], *found], [*true[~in_group], *np.ones(len(found), dtype=bool)]


def peer_ap(files: OpenImagesFiles, results: str) -> np.ndarray:
    """Return AP of each class, image after image and class after class."""
    names = [line.split(",")[0] for line in Path(files.classes).read_text().splitlines()]
    number = {label: k for k, label in enumerate(names)}
    tree = json.loads(Path(files.hierarchy).read_text())["Subcategory"]
    parent = {leaf["LabelName"]: node["LabelName"] for node in tree for leaf in node["Subcategory"]}
    below = {node["LabelName"]: [leaf["LabelName"] for leaf in node["Subcategory"]] for node in tree}
    boxes = pd.read_csv(files.boxes)
    above = boxes[boxes["LabelName"].isin(list(parent))].copy()
    above["LabelName"] = above["LabelName"].map(parent)
    boxes = pd.concat([boxes, above])
    verified = defaultdict(set)
    for image, label in zip(boxes["ImageID"], boxes["LabelName"]):
        verified[image].add(number[label])
    for row in pd.read_csv(files.image_labels).itertuples():
        related = [parent[row.LabelName]] if row.Confidence and row.LabelName in parent else []
        related = related if row.Confidence else below.get(row.LabelName, [])
        verified[row.ImageID].update(number[label] for label in (row.LabelName, *related))
    truth_of, found_of = dict(list(boxes.groupby("ImageID"))), dict(list(pd.read_csv(results).groupby("ImageID")))

    scores: List[List[float]] = [[] for _ in names]
    true: List[List[bool]] = [[] for _ in names]
    num_objects = np.zeros(len(names))
    columns = ["XMin", "YMin", "XMax", "YMax"]
    nothing = np.empty((0, 4))
    for image, allowed in verified.items():
        truth, found = truth_of.get(image), found_of.get(image)
        if truth is None:
            truth_label, truth_corners, is_group = np.empty(0, int), nothing, np.empty(0, bool)
        else:
            truth_label, truth_corners = truth["LabelName"].map(number).to_numpy(), truth[columns].to_numpy()
            is_group = truth["IsGroupOf"].to_numpy().astype(bool)
        if found is None:
            found_label, found_corners, found_scores = np.empty(0, int), nothing, np.empty(0)
        else:
            found_label, found_corners = found["LabelName"].map(number).to_numpy(), found[columns].to_numpy()
            valid = (found_corners[:, :2] < found_corners[:, 2:]).all(axis=1) & np.isin(found_label, list(allowed))
            found_label, found_corners = found_label[valid], found_corners[valid]
            found_scores = found["Score"].to_numpy()[valid]
        for k in range(len(names)):
            num_objects[k] += np.sum(truth_label[~is_group] == k) + np.sum(truth_label[is_group] == k)
            groups_here = is_group[truth_label == k]
            selected, detected = truth_label == k, found_label == k
            boxes_here = truth_corners[selected]
            boxes_here, groups_here = boxes_here[~groups_here], boxes_here[groups_here]
            more_scores, more_true = match(found_scores[detected], found_corners[detected], boxes_here, groups_here)
            scores[k] += more_scores
            true[k] += more_true
    return np.array([_average_precision(*column) for column in zip(scores, true, num_objects)])


def _average_precision(scores: List[float], true: List[bool], num_objects: float) -> float:
    """Return the area under the monotone precision curve; NaN without an object."""
    if not num_objects:
        return float("nan")
    if not scores:
        return 0.0
    hits = np.cumsum(np.array(true)[np.argsort(scores)[::-1]])
    recall = np.concatenate([[0], hits / num_objects, [1]])
    precision = np.concatenate([[0], hits / np.arange(1, len(hits) + 1), [0]])
    for k in range(len(precision) - 2, -1, -1):
        precision[k] = max(precision[k], precision[k + 1])
    steps = np.flatnonzero(recall[1:] != recall[:-1]) + 1
    return float(((recall[steps] - recall[steps - 1]) * precision[steps]).sum())


def our_ap(files: OpenImagesFiles, results: str) -> np.ndarray:
    """Return AP of each class as this package computes it, from the same files."""
    return results_ap(open_images_table(files), results)


def measure(function, files: OpenImagesFiles, results: str):
    """Return the AP of each class, seconds, processor seconds and the growth of the peak memory in MiB."""

    def run():
        before, start, processor_start = memory_bytes("VmRSS"), time.perf_counter(), time.process_time()
        ap = function(files, results)
        seconds, processor_seconds = time.perf_counter() - start, time.process_time() - processor_start
        return ap, seconds, processor_seconds, (memory_bytes("VmHWM") - before) / 2**20

    return run_within(run, seconds=7200)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=IMAGES, help="of the validation (default: %(default)s)")
    parser.add_argument("--peer-fraction", type=float, default=0.05, help="of them, both (default: a twentieth)")
    arguments = parser.parse_args()
    print("| program | images | detections | seconds | CPU seconds | CPU s per 1000 images | MiB at the peak |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
    per_image = {}
    for num_images in sorted({round(arguments.images * arguments.peer_fraction), arguments.images}):
        programs = {"eql_d2": our_ap}
        if num_images <= round(arguments.images * arguments.peer_fraction):
            programs = {"per image and class": peer_ap, **programs}
        with tempfile.TemporaryDirectory() as folder:
            files, results = run_within(lambda folder=folder, n=num_images: generate(Path(folder), n), seconds=3600)
            aps = []
            for program, function in programs.items():
                ap, seconds, processor_seconds, mib = measure(function, files, results)
                aps.append(ap)
                per_image[program] = processor_seconds / num_images
                size = f"{num_images:,} | {num_images * DETECTIONS:,}"
                times = f"{seconds:.1f} | {processor_seconds:.1f} | {1000 * per_image[program]:.2f}"
                print(f"| {program} | {size} | {times} | {mib:.0f} |", flush=True)
            if len(aps) == 2:
                difference = np.nanmax(np.abs(aps[0] - aps[1]))
                assert difference <= TOLERANCE and (np.isnan(aps[0]) == np.isnan(aps[1])).all(), difference
                equal = f"AP of {len(aps[0])} classes equal to {difference:.0e}, mean {np.nanmean(aps[0]):.4f}"
    ratio = per_image["per image and class"] / per_image["eql_d2"]
    print(f"\n{equal}. Of one image, the processor time of the peer is {ratio:.0f} times that of eql_d2 on all images.")


if __name__ == "__main__":
    main()
