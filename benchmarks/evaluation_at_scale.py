"""LVIS evaluation of ten thousand classes and more: lvis on as many images as it can hold, this package on all.

    OMP_NUM_THREADS=1 python benchmarks/evaluation_at_scale.py

From json files to metrics, as in benchmarks/evaluation.py, whose generator it uses: one file for boxes and one for
masks. lvis keeps an entry for each image, class and area, whether there is anything or not, so that its time and memory
grow with the product of images and classes; on its share of the images both run, and all metrics and every category's
AP are asserted to be equal to 1e-12. Each program runs once in a process of its own, from where it is imported.
Processor seconds are of all threads together, since other programs may run beside it; memory is the peak beyond that of
the imports.
"""

import argparse
import importlib
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, Tuple

from evaluation import DETECTIONS_PER_IMAGE, PROGRAMS, TASKS, TOLERANCE, assert_equal, generate
from measuring import memory_bytes, run_within

MODULES = {"eql_d2": "hotcoco", "lvis": "lvis.eval"}
LIMIT_SECONDS = 7200


def folder_of(parent: Path, num_classes: int, num_images: int, seed: int) -> Path:
    """Return the folder of a generated set; files that are there already are used."""
    folder = parent / f"{num_classes}_{num_images}"
    if not (folder / "gt.json").is_file():
        folder.mkdir(parents=True, exist_ok=True)
        generate(folder, num_images, seed, num_classes, tuple(TASKS.values()))
    return folder


def measure(program: str, folder: Path, iou_type: str) -> Tuple[Any, float, float]:
    """Return the numbers of a program, its processor seconds and its peak memory in GB."""
    importlib.import_module(MODULES[program])
    importlib.import_module("eql_d2.evaluation.backends")
    before, start = memory_bytes("VmRSS"), time.process_time()
    numbers = PROGRAMS[program](str(folder / "gt.json"), str(folder / f"{TASKS[iou_type]}.json"), iou_type)
    return numbers, time.process_time() - start, (memory_bytes("VmHWM") - before) / 1e9


def print_rows(parent: Path, num_classes: int, iou_type: str, args: argparse.Namespace) -> None:
    """Print a row for lvis and for this package on the images that lvis can hold, and for this package on all."""
    peer = None
    for program, num_images in (("lvis", args.peer_images), ("eql_d2", args.peer_images), ("eql_d2", args.images)):
        folder = folder_of(parent, num_classes, num_images, args.seed)
        numbers, cpu, memory = run_within(partial(measure, program, folder, iou_type), LIMIT_SECONDS)
        peer = peer or (numbers, cpu, memory)
        ratios = ["", ""]
        if num_images == args.peer_images:
            assert_equal(numbers, peer[0])
            ratios = [f"{peer[1] / cpu:.0f}x", f"{memory / peer[2]:.2f}x"]
        cells = [
            f"{num_classes:,}",
            TASKS[iou_type],
            program,
            f"{num_images:,}",
            f"{cpu:.1f}",
            f"{1000 * cpu / num_images:.2f}",
            f"{memory:.2f}",
            *ratios,
            f"{100 * numbers[0]['AP']:.2f}",
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, nargs="+", default=[13000, 20000])
    parser.add_argument("--images", type=int, default=20000, help="images for this package (default: 20000)")
    parser.add_argument("--peer-images", type=int, default=250, help="images for lvis (default: 250)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="keep the generated files here, and use those that are there")
    args = parser.parse_args()
    print(f"{DETECTIONS_PER_IMAGE} detections of each image; on the images that both evaluate, equal to {TOLERANCE}.\n")
    print(
        "| classes | task | program | images | CPU seconds | CPU ms an image | peak GB | faster (CPU) | memory | AP |"
    )
    print("| ---: | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as temporary:
        for num_classes in args.classes:
            for iou_type in TASKS:
                print_rows(args.folder or Path(temporary), num_classes, iou_type, args)


if __name__ == "__main__":
    main()
