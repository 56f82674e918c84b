#!/usr/bin/env python
"""Loading Open Images' CSV files and class-aware sampling: this package against pandas into dicts.

Generates files of the size of the challenge's training set (1,674,979 images, 12,195,144 boxes of 500 classes, three
verified labels of each image), loads them in fresh processes, builds the class-aware sampler and draws 1000 images.
The peer reads the same columns with pandas and holds one dict for each image and each box, as Detectron2's data sets
are held. "first" reads the CSV files and writes the cache, "cached" is every later run. Memory is what the process
holds more than before, mapped pages of the cache included. All records and all images of all classes are compared.

    python benchmarks/open_images_loading.py        # both at a quarter of the size, this package at all of it
    python benchmarks/open_images_loading.py --fraction 0.01 --peer-fraction 0.01
"""

import argparse
import itertools
import os
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any, Dict, List, NamedTuple

import numpy as np
import pandas as pd
from detectron2.structures import BoxMode
from measuring import memory_bytes, run_within

from eql_d2.data.catalog import annotation_labels
from eql_d2.data.open_images import OpenImagesFiles, load_open_images
from eql_d2.data.open_images_files import open_images_table
from eql_d2.data.open_images_table import FLAGS
from eql_d2.data.samplers import ClassAwareSampler

IMAGES, BOXES, CLASSES = 1_674_979, 12_195_144, 500
LABELS_PER_IMAGE = 3
DRAWN = 1000
BUSY = "Where other programs run beside it, compare CPU seconds."


def generate(folder: Path, fraction: float) -> OpenImagesFiles:
    """Write boxes and labels, sorted by image as the official files are, classes by a power law."""
    random = np.random.default_rng(0)
    num_images, num_boxes = int(IMAGES * fraction), int(BOXES * fraction)
    ids = np.array([f"{number:016x}" for number in range(10**6, 10**6 + num_images)])
    labels = np.array([f"/m/{number:05d}" for number in range(CLASSES)])
    share = 1 / np.arange(1, CLASSES + 1) ** 1.5
    boxes = pd.DataFrame({"ImageID": ids[np.sort(random.integers(0, num_images, num_boxes))], "Source": "xclick"})
    boxes["LabelName"] = labels[random.choice(CLASSES, num_boxes, p=share / share.sum())]
    boxes["Confidence"] = 1
    for axis in ("X", "Y"):
        ends = np.sort(random.random((num_boxes, 2)), axis=1)
        boxes[f"{axis}Min"], boxes[f"{axis}Max"] = ends[:, 0], ends[:, 1]
    for column in FLAGS.values():
        boxes[column] = (random.random(num_boxes) < 0.1).astype(np.int8)
    boxes.to_csv(folder / "boxes.csv", index=False, float_format="%.6f")
    verified = pd.DataFrame({"ImageID": np.repeat(ids, LABELS_PER_IMAGE)})
    verified["LabelName"] = labels[random.integers(0, CLASSES, len(verified))]
    verified["Confidence"] = random.integers(0, 2, len(verified))
    verified.to_csv(folder / "labels.csv", index=False)
    (folder / "classes.csv").write_text("".join(f"{label},{label}\n" for label in labels))
    return OpenImagesFiles(str(folder / "boxes.csv"), str(folder / "classes.csv"), str(folder / "labels.csv"))


class Loaded(NamedTuple):
    """What a loader took, and what it loaded."""

    seconds: float
    processor_seconds: float
    peak_mib: float
    held_mib: float
    drawn: List[int]
    records: Any
    classes: Any


def pandas_records(files: OpenImagesFiles) -> List[Dict[str, Any]]:
    """Return a dict for each image with a dict for each box, boxes as shares of the image."""
    names = [line.split(",")[0] for line in Path(files.classes).read_text().splitlines()]
    number = {label: k for k, label in enumerate(names)}
    frame = pd.read_csv(files.boxes)
    annotations = defaultdict(list)
    columns = ("XMin", "YMin", "XMax", "YMax", *FLAGS.values())
    for image, label, *values in zip(frame["ImageID"], frame["LabelName"], *(frame[name].tolist() for name in columns)):
        annotation = {"bbox": values[:4], "bbox_mode": BoxMode.XYXY_ABS, "category_id": number[label]}
        annotations[image].append({**annotation, **dict(zip(FLAGS, values[4:]))})
    del frame
    frame = pd.read_csv(files.image_labels)
    labels = defaultdict(lambda: (set(), set()))
    for image, label, confidence in zip(frame["ImageID"], frame["LabelName"], frame["Confidence"].tolist()):
        labels[image][0 if confidence else 1].add(number[label])
    del frame
    records = []
    for row, image in enumerate(sorted(annotations.keys() | labels.keys())):
        positive = {one["category_id"] for one in annotations[image]} | labels[image][0]
        verified = {"positive": sorted(positive), "negative": sorted(labels[image][1])}
        record = {"file_name": f"{image}.jpg", "image_id": row, "annotations": annotations[image]}
        records.append({**record, "image_labels": verified})
    return records


def pandas_images_of_classes(records: List[Dict[str, Any]]) -> Dict[int, List[int]]:
    """Return the images of each class that has any."""
    images = defaultdict(list)
    for row, record in enumerate(records):
        for label in {annotation["category_id"] for annotation in record["annotations"]}:
            images[label].append(row)
    return images


def draw(images: Dict[int, List[int]]) -> List[int]:
    """Draw a class, then an image of it."""
    random, labels = np.random.default_rng(0), sorted(images)
    return [int(random.choice(images[labels[random.integers(len(labels))]])) for _ in range(DRAWN)]


def load(loader: str, files: OpenImagesFiles) -> Loaded:
    """Load once and draw; imports are left out."""
    before, start, processor_start = memory_bytes("VmRSS"), time.perf_counter(), time.process_time()
    if loader == "pandas into dicts":
        records = pandas_records(files)
        classes = pandas_images_of_classes(records)
        drawn = draw(classes)
        for row in drawn:
            _ = records[row]
    else:
        records = load_open_images(files, "")
        classes = ClassAwareSampler(*annotation_labels(records), seed=0)
        drawn = list(itertools.islice(classes, DRAWN))
        for row in drawn:
            records.table.unpack(row)
    seconds, processor_seconds = time.perf_counter() - start, time.process_time() - processor_start
    peak, held = ((memory_bytes(field) - before) / 2**20 for field in ("VmHWM", "VmRSS"))
    return Loaded(seconds, processor_seconds, peak, held, drawn, records, classes)


def compare(files: OpenImagesFiles) -> int:
    """Assert that all records and the images of all classes are equal; return the number of records.

    Raises:
        AssertionError: if one differs.
    """
    theirs, table = pandas_records(files), open_images_table(files)
    assert len(theirs) == len(table)
    for row, record in enumerate(theirs):
        assert table.unpack(row) == record, f"image {row}"
    ours = ClassAwareSampler(*table.labels(np.arange(len(table))), seed=0)._images_of_class
    images = pandas_images_of_classes(theirs)
    assert [part.tolist() for part in ours] == [images[label] for label in sorted(images)]
    return len(theirs)


def measure(fraction: float, loaders: List[str], with_comparison: bool) -> Dict[str, float]:
    """Generate files of a size, print a row for each loader, and return the peaks in MiB."""
    peaks: Dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        files = run_within(lambda: generate(Path(folder), fraction))
        os.environ["EQL_D2_CACHE"] = folder
        for loader in loaders:
            # Records and classes stay in the measured process.
            took = run_within(lambda loader=loader: tuple(load(loader, files)[:5]), seconds=3600)
            peaks[loader] = took[2]
            size = f"{int(IMAGES * fraction):,} | {int(BOXES * fraction):,}"
            times = f"{took[0]:.1f} | {took[1]:.1f}"
            print(f"| {loader} | {size} | {times} | {took[2]:.0f} | {took[3]:.0f} |", flush=True)
        if with_comparison:
            print(f"| all {run_within(lambda: compare(files), seconds=3600):,} records equal | | | | | | |", flush=True)
    return peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fraction", type=float, default=1.0, help="of the training set, this package (default: all)")
    parser.add_argument(
        "--peer-fraction", type=float, default=0.25, help="of it, both sides (default: a quarter; 0: none)"
    )
    arguments = parser.parse_args()
    ours = ["eql_d2, first", "eql_d2, cached"]
    print("| loader | images | boxes | seconds | CPU seconds | MiB at the peak | MiB held |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |", flush=True)
    peaks = {}
    if arguments.peer_fraction:
        peaks = measure(arguments.peer_fraction, ["pandas into dicts", *ours], with_comparison=True)
    if arguments.fraction != arguments.peer_fraction:
        measure(arguments.fraction, ours, with_comparison=False)
    if peaks:
        theirs, *both = peaks.values()
        times = " and ".join(f"{theirs / peak:.1f}" for peak in both)
        print(f"\nAt the peak the dicts take {times} times the memory of eql_d2, first and cached. {BUSY}")


if __name__ == "__main__":
    main()
