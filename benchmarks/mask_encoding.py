"""Run lengths straight from the masks within boxes, against pasting them into the image and encoding the image.

    OMP_NUM_THREADS=1 python benchmarks/mask_encoding.py

prints a Markdown table, one row for each size of an image. The peer is Detectron2: ``paste_masks_in_image``, and
pycocotools as its evaluators call it. Both encode the same masks on one thread, in turn in one process; processor
seconds, so that other programs matter little, and every text is asserted to be equal. Memory is the peak of a process
of its own beyond what it holds before.
"""

import argparse
import statistics
import sys
import time
from functools import partial
from typing import Any, Callable, Dict, List, Tuple

import torch
from detectron2.layers.mask_ops import paste_masks_in_image
from detectron2.structures import ROIMasks  # noqa: F401  (compiles Detectron2's function before it is timed)
from measuring import memory_bytes, run_within
from torch import Tensor

from eql_d2.evaluation.mask_encoding import encode_box_masks, encode_mask

MASK_SIZE = 28
#: Height, width, and the sides of the boxes in pixels, logarithmically uniform between two numbers.
CASES = [(480, 640, 8, 300), (800, 1333, 16, 600), (2160, 3840, 16, 600), (480, 640, 300, 470)]
PROGRAMS = ("Detectron2 and pycocotools", "eql_d2")


def random_masks(num_masks: int, height: int, width: int, smallest: float, largest: float) -> Tuple[Tensor, Tensor]:
    """Return masks ``[R, 28, 28]`` of dented ellipses with soft edges, as mask heads predict them, and their boxes."""
    generator = torch.Generator().manual_seed(0)
    axis = torch.linspace(-1, 1, MASK_SIZE)
    radii = 0.5 + 0.5 * torch.rand(num_masks, 2, 1, 1, generator=generator)
    distance = (axis[:, None] / radii[:, 0]) ** 2 + (axis / radii[:, 1]) ** 2
    dents = torch.randn(num_masks, 1, 7, 7, generator=generator)
    dents = torch.nn.functional.interpolate(dents, size=(MASK_SIZE, MASK_SIZE), mode="bicubic")[:, 0]
    span = torch.tensor(largest / smallest).log()
    sides = smallest * (span * torch.rand(num_masks, 2, generator=generator)).exp()
    corners = torch.rand(num_masks, 2, generator=generator) * (torch.tensor([width, height]) - sides)
    return (6 * (1 - distance) + 2 * dents).sigmoid(), torch.cat([corners, corners + sides], dim=1)


def paste_and_encode(masks: Tensor, boxes: Tensor, height: int, width: int) -> List[Dict[str, Any]]:
    """Encode as Detectron2 does it."""
    return [encode_mask(mask.numpy()) for mask in paste_masks_in_image(masks, boxes, (height, width), 0.5)]


def cpu_seconds(functions: List[Callable], rounds: int) -> List[float]:
    """Return the median processor seconds of each function over rounds in which they take turns."""
    spent: List[List[float]] = [[] for _ in functions]
    for _ in range(rounds):
        for samples, function in zip(spent, functions):
            start = time.process_time()
            function()
            samples.append(time.process_time() - start)
    return [statistics.median(samples) for samples in spent]


def peak_mib(function: Callable) -> float:
    """Return what a process of its own takes beyond what it held before, in MiB."""

    def measure() -> float:
        before = memory_bytes("VmRSS")
        function()
        return (memory_bytes("VmHWM") - before) / 2**20

    return run_within(measure)


def print_rows(num_masks: int, case: Tuple[int, int, int, int], rounds: int) -> None:
    """Measure one case and print its two rows."""
    height, width, smallest, largest = case
    masks, boxes = random_masks(num_masks, height, width, smallest, largest)
    functions: List[Callable] = [
        partial(function, masks, boxes, height, width) for function in (paste_and_encode, encode_box_masks)
    ]
    expected, result = (function() for function in functions)
    if expected != result:
        raise AssertionError(f"{height} x {width}: the run lengths differ.")
    seconds, memory = cpu_seconds(functions, rounds), [peak_mib(function) for function in functions]
    for program, own_seconds, own_memory in zip(PROGRAMS, seconds, memory):
        print(
            f"| {height} x {width} | {smallest} to {largest} | {program} | {1000 * own_seconds:.1f} | "
            f"{own_memory:.0f} | {seconds[0] / own_seconds:.1f}x | {own_memory / memory[0]:.2f}x | yes |"
        )
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--masks", type=int, default=300, help="masks of an image (default: 300)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds in which both take turns (default: 5)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{args.masks} masks of {MASK_SIZE} x {MASK_SIZE} to run lengths, one image, one thread; CPU ms and MiB.\n")
    print("| image | sides of boxes | program | CPU ms | MiB | faster | memory | equal |")
    print("| --- | --- | --- | ---: | ---: | ---: | ---: | --- |")
    for case in CASES:
        print_rows(args.masks, case, args.rounds)


if __name__ == "__main__":
    main()
