"""Time and peak memory of class-specific masks: one row of the last layer per region against all channels.

    OMP_NUM_THREADS=1 python benchmarks/mask_head.py

prints two Markdown tables, forward and backward pass on one thread: the last layer with its loss, and the whole head.
``eql_d2`` is ``LongTailMaskHead``; ``all classes`` is Detectron2's head of K channels; ``class-agnostic`` is
Detectron2's head of one channel. Losses and gradients of the first two are asserted to be equal to 1e-5 (on 4 regions
where all channels of all regions would not fit into memory). Every case runs in a process of its own. Linux only.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Dict, Optional

import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from torch import Tensor

from eql_d2.modeling.mask_head import LongTailMaskHead

NUM_REGIONS = 128
CHANNELS = 256
SIDE = 28
NUM_CLASSES = (80, 1230, 5000, 13000, 20000)
NUM_CLASSES_WHOLE_HEAD = (80, 1230)
#: The logits and their gradient are alive at once.
COPIES_OF_THE_LOGITS = 2
TOLERANCE = 1e-5


def build_head(kind: str, num_classes: int) -> MaskRCNNConvUpsampleHead:
    """Build the head of one of the kinds gather, all and agnostic, with the same weights for the first two."""
    torch.manual_seed(0)
    head_type = LongTailMaskHead if kind == "gather" else MaskRCNNConvUpsampleHead
    shape = ShapeSpec(channels=CHANNELS)
    return head_type(shape, num_classes=1 if kind == "agnostic" else num_classes, conv_dims=[CHANNELS] * 5)


def loss_of(kind: str, head: MaskRCNNConvUpsampleHead, x: Tensor, classes: Tensor, targets: Tensor) -> Tensor:
    """Return the mask loss of ``[R, C, H, W]`` features of the last layer, or of the head's input."""
    whole_head = x.shape[-1] < SIDE
    if kind == "gather":
        logits = head.class_logits(head.features(x) if whole_head else x, classes)[:, 0]
    else:
        logits = head.layers(x) if whole_head else head.predictor(x)
        logits = logits[:, 0] if kind == "agnostic" else logits[torch.arange(len(x)), classes]
    return F.binary_cross_entropy_with_logits(logits, targets)


def memory_bytes(field: str) -> int:
    """Return a field of ``/proc/self/status``: VmRSS, memory held now, or VmHWM, its peak so far.

    ``getrusage`` would not do: the peak that it gives starts with that of the parent process.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def measure(kind: str, num_classes: int, num_regions: int, whole_head: bool, repeats: int) -> Dict[str, Tensor]:
    """Run one case; return its seconds, its peak memory above that of the inputs in bytes, its loss and gradients."""
    torch.set_num_threads(1)
    head = build_head(kind, num_classes)
    side = SIDE // 2 if whole_head else SIDE
    x = torch.rand(num_regions, CHANNELS, side, side, requires_grad=True)
    classes = torch.randint(num_classes, (num_regions,))
    targets = (torch.rand(num_regions, SIDE, SIDE) > 0.5).float()
    before, seconds = memory_bytes("VmRSS"), []
    for step in range(repeats):
        x.grad = None
        head.zero_grad(set_to_none=True)
        start = time.perf_counter()
        loss = loss_of(kind, head, x, classes, targets)
        loss.backward()
        seconds.append(time.perf_counter() - start)
        if step == 0:
            peak = memory_bytes("VmHWM") - before
    weight_gradient = head.predictor.weight.grad.flatten(1)
    return {
        "seconds": torch.tensor(min(seconds)),
        "peak": torch.tensor(peak),
        "loss": loss.detach(),
        "features": x.grad,
        "weight": weight_gradient,
        "bias": head.predictor.bias.grad,
    }


def run_case(kind: str, num_classes: int, num_regions: int, whole_head: bool) -> Dict[str, Tensor]:
    """Call :func:`measure` in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "result.pt")
        # A step of all channels, and of the whole head, takes seconds; the last layer alone is timed five times.
        repeats = 2 if kind == "all" and num_classes > 80 else 3 if whole_head else 5
        command = [sys.executable, __file__, "--case", kind, str(num_classes), str(num_regions)]
        command += [str(int(whole_head)), str(repeats), path]
        subprocess.run(command, check=True)
        return torch.load(path)


def assert_equal(result: Dict[str, Tensor], expected: Dict[str, Tensor]) -> None:
    """Assert that loss and gradients differ by at most 1e-5, the gradients relative to their largest entry."""
    for name in ("loss", "features", "weight", "bias"):
        scale = float(expected[name].abs().max())
        difference = float((result[name] - expected[name]).abs().max()) / scale
        if not difference <= TOLERANCE:
            raise AssertionError(f"{name} differs by {difference:.2e} of its largest entry.")


def cells_of(result: Optional[Dict[str, Tensor]], reference: Dict[str, Tensor]) -> str:
    """Return seconds, peak memory and their ratios to ``reference``."""
    if result is None:
        return "not run | not run | | "
    seconds, peak = float(result["seconds"]), float(result["peak"])
    ratio = f"{seconds / float(reference['seconds']):.2f}x"
    return f"{seconds:.3f} | {peak / 2**20:,.0f} | {ratio} | {peak / float(reference['peak']):.2f}x"


def print_table(num_classes_list, whole_head: bool, memory: float) -> None:
    """Measure and print the cases of one table; ``memory`` in GiB is what a case may take."""
    print("| classes | | seconds | peak (MiB) | seconds / eql_d2 | peak / eql_d2 | equal |")
    print("| ---: | --- | ---: | ---: | ---: | ---: | --- |")
    for num_classes in num_classes_list:
        size = COPIES_OF_THE_LOGITS * 4 * NUM_REGIONS * num_classes * SIDE**2
        fits = size <= memory * 2**30
        ours = run_case("gather", num_classes, NUM_REGIONS, whole_head)
        agnostic = run_case("agnostic", num_classes, NUM_REGIONS, whole_head)
        if fits:
            theirs = run_case("all", num_classes, NUM_REGIONS, whole_head)
            assert_equal(ours, theirs)
        else:
            theirs = None
            assert_equal(run_case("gather", num_classes, 4, whole_head), run_case("all", num_classes, 4, whole_head))
        print(f"| {num_classes:,} | eql_d2 | {cells_of(ours, ours)} | |")
        print(f"| {num_classes:,} | all classes | {cells_of(theirs, ours)} | {'yes' if fits else 'yes, 4 regions'} |")
        print(f"| {num_classes:,} | class-agnostic | {cells_of(agnostic, ours)} | |")
        sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memory", type=float, default=8, help="GiB that a case may take; larger ones are not run")
    parser.add_argument("--classes", type=int, nargs="+", default=NUM_CLASSES, help="numbers of classes")
    parser.add_argument("--case", nargs=6, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        kind, num_classes, num_regions, whole_head, repeats, path = args.case
        result = measure(kind, int(num_classes), int(num_regions), bool(int(whole_head)), int(repeats))
        torch.save(result, path)
        return
    print(f"Forward and backward pass, {NUM_REGIONS} regions, {CHANNELS} channels, {SIDE}x{SIDE}, one thread.\n")
    print("The last layer and its loss:\n")
    print_table(args.classes, False, args.memory)
    print("\nThe whole head (four 3x3 convolutions, the upsampling and the last layer):\n")
    print_table([k for k in args.classes if k in NUM_CLASSES_WHOLE_HEAD], True, args.memory)


if __name__ == "__main__":
    main()
