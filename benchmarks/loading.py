#!/usr/bin/env python
"""Loading an LVIS json: this package against Detectron2's ``load_lvis_json``, in seconds and peak memory.

Generates a json of the size of LVIS v0.5 train (57,263 images, 693,958 polygon instances; lengths of polygons as in
LVIS), loads it with each loader in fresh processes, one and four at once, checks that all records are equal, and prints
a table with ratios. "first" parses the json and writes the cache, "cached" is every later run; "read all" loads, then
makes the dict of every image once, which training does bit by bit. On a busy machine, compare processor seconds.

    python benchmarks/loading.py
    python benchmarks/loading.py --images 2000
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

IMAGES, INSTANCES, CATEGORIES = 57263, 693958, 1230
# Logarithm of the number of points of an instance's polygon, mean and deviation over LVIS v0.5 photographs.
LOG_POINTS, LOG_POINTS_DEVIATION = 3.19, 0.75

LOADERS = ("Detectron2", "eql_d2, first", "eql_d2, cached", "eql_d2, cached, read all")


def generate(path: Path, num_images: int, num_categories: int = CATEGORIES) -> None:
    """Write an LVIS json with polygons, image by image, so that generating needs little memory."""
    random = np.random.default_rng(0)
    num_instances = num_images * INSTANCES // IMAGES
    per_image = np.bincount(random.integers(0, num_images, num_instances), minlength=num_images)
    with path.open("w") as file:
        file.write('{"images": [')
        for i in range(num_images):
            file.write((", " if i else "") + json.dumps(make_image(i + 1, random, num_categories)))
        file.write('], "annotations": [')
        id_ = 0
        for i in range(num_images):
            for _ in range(per_image[i]):
                file.write((", " if id_ else "") + json.dumps(make_annotation(id_ + 1, i + 1, random, num_categories)))
                id_ += 1
        categories = [
            {"id": i + 1, "name": f"class_{i}", "synonyms": [f"class_{i}"], "synset": f"class.n.{i}", "frequency": "f"}
            for i in range(num_categories)
        ]
        file.write('], "categories": ' + json.dumps(categories) + "}")


def make_image(id_: int, random: np.random.Generator, num_categories: int) -> dict:
    """Return an image with the fields that LVIS v0.5 has."""
    return {
        "id": id_,
        "height": 480,
        "width": 640,
        "license": 3,
        "date_captured": "2013-11-19 20:30:17",
        "file_name": f"COCO_train2014_{id_:012d}.jpg",
        "coco_url": f"http://images.cocodataset.org/train2017/{id_:012d}.jpg",
        "flickr_url": "http://farm9.staticflickr.com/0000/0000000000_0000000000_z.jpg",
        "neg_category_ids": random.integers(1, num_categories + 1, 9).tolist(),
        "not_exhaustive_category_ids": [],
    }


def make_annotation(id_: int, image_id: int, random: np.random.Generator, num_categories: int) -> dict:
    """Return an instance with one polygon."""
    num_points = max(3, int(np.exp(random.normal(LOG_POINTS, LOG_POINTS_DEVIATION))))
    return {
        "id": id_,
        "image_id": image_id,
        "category_id": int(random.integers(1, num_categories + 1)),
        "area": 960.5,
        "bbox": random.uniform(0, 240, 4).round(2).tolist(),
        "segmentation": [random.uniform(0, 480, 2 * num_points).round(2).tolist()],
    }


def loader_function(loader: str):
    """Import a loader and return it as a function of the json."""
    if loader == "Detectron2":
        import lvis  # noqa: F401  imported by Detectron2's function, which should not pay for it here
        from detectron2.data.datasets.lvis import load_lvis_json

        return lambda json_file: load_lvis_json(json_file, "coco/")
    from eql_d2.data import cache
    from eql_d2.data.lvis import load_lvis

    cache.MIN_CACHED_BYTES = 0  # so that a scaled-down run takes the same way
    return lambda json_file: load_lvis(json_file, "coco/")


def load_in_this_process(loader: str, json_file: str) -> None:
    """Load once; print seconds, seconds of processor time, and growth of the peak memory in MiB, imports left out."""
    load = loader_function(loader)
    before = peak_memory()
    start, processor_start = time.perf_counter(), time.process_time()
    records = load(json_file)
    if loader.endswith("read all"):
        for _ in records:
            pass
    seconds, processor_seconds = time.perf_counter() - start, time.process_time() - processor_start
    print(json.dumps([seconds, processor_seconds, peak_memory() - before]))


def peak_memory() -> float:
    """Return the peak resident memory of this process in MiB; mapped pages count, also where processes share them."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def check_equal(json_file: str) -> int:
    """Check that every record has the same values from both loaders, and return how many there are.

    Raises:
        AssertionError: if one differs.
    """
    theirs, ours = loader_function("Detectron2")(json_file), loader_function("eql_d2, cached")(json_file)
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs):
        for key in ("file_name", "height", "width", "image_id", "annotations"):
            assert mine[key] == other[key], f"image {other['image_id']}: {key}"
        negative = sorted({category_id - 1 for category_id in other["neg_category_ids"]})
        assert mine["image_labels"]["negative"] == negative, f"image {other['image_id']}: neg_category_ids"
    return len(ours)


def run_at_once(arguments: list, num_processes: int, cache_folder: Path) -> list:
    """Run this script in several processes at once and return what each prints."""
    root = Path(__file__).resolve().parent.parent
    environment = {
        **os.environ,
        "EQL_D2_CACHE": str(cache_folder),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")])),
    }
    command = [sys.executable, "-W", "ignore", __file__, *arguments]
    processes = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) for _ in range(num_processes)
    ]
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        sys.exit(f"{' '.join(arguments)} failed")
    return outputs


def measure(loader: str, json_file: Path, num_processes: int) -> tuple:
    """Load in several processes at once.

    Returns:
        Seconds of the slowest, the mean of their processor seconds, the mean of their peak memories in MiB.
    """
    if loader == "eql_d2, first":
        for cache_file in json_file.parent.glob("*.eql_d2_cache"):
            cache_file.unlink()
    outputs = run_at_once(["--load", loader, "--json", str(json_file)], num_processes, json_file.parent)
    seconds, processor_seconds, memory = np.transpose([json.loads(output) for output in outputs])
    return seconds.max(), processor_seconds.mean(), memory.mean()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=IMAGES, help="images of the json (default: %(default)s)")
    parser.add_argument("--folder", help="where the json is generated (default: a temporary folder)")
    parser.add_argument("--load", choices=LOADERS, help=argparse.SUPPRESS)
    parser.add_argument("--check-equal", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.load:
        load_in_this_process(arguments.load, arguments.json)
    elif arguments.check_equal:
        print(f"All {check_equal(arguments.json)} records are equal.")
    else:
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            compare(Path(folder) / "train.json", arguments.images)


def compare(json_file: Path, num_images: int) -> None:
    """Generate the json, measure all loaders and print the table."""
    generate(json_file, num_images)
    num_instances = num_images * INSTANCES // IMAGES
    print(f"{num_images} images, {num_instances} instances, {json_file.stat().st_size / 2**20:.0f} MiB of json")
    print("One process: medians of three rounds in which the loaders take turns.\n")
    print("| loader | processes | seconds | times faster | CPU s each | times less | MiB each | share of memory |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for num_processes, rounds in ((1, 3), (4, 1)):
        measured = [[measure(loader, json_file, num_processes) for loader in LOADERS] for _ in range(rounds)]
        figures = np.median(measured, axis=0)
        reference = figures[0]
        for loader, (seconds, processor_seconds, memory) in zip(LOADERS, figures):
            print(
                f"| {loader} | {num_processes} | {seconds:.2f} | {reference[0] / seconds:.1f} | "
                f"{processor_seconds:.2f} | {reference[1] / processor_seconds:.1f} | "
                f"{memory:.0f} | {memory / reference[2]:.2f} |",
                flush=True,
            )
    print(run_at_once(["--check-equal", "--json", str(json_file)], 1, json_file.parent)[0].strip())


if __name__ == "__main__":
    main()
