"""Time and peak memory of class-specific masks: one row of the last layer per region against all channels.

    OMP_NUM_THREADS=1 python benchmarks/mask_head.py

prints two Markdown tables, forward and backward pass on one thread: the last layer with its loss, and the whole head.
``eql_d2`` is ``LongTailMaskHead``; ``all classes`` is Detectron2's head of K channels; ``class-agnostic`` is
Detectron2's head of one channel. Losses and gradients of the first two are asserted to be equal to 1e-5 (on 4 regions
where all channels of all regions would not fit into memory). Peak memory is that of a process of its own. Linux only.
"""

import argparse
import statistics
import time
from functools import partial
from typing import Callable, Dict, List, Sequence

import torch
import torch.nn.functional as F
from detectron2.layers import ShapeSpec
from detectron2.modeling.roi_heads.mask_head import MaskRCNNConvUpsampleHead
from measuring import assert_close, memory_bytes, run_within
from torch import Tensor

from eql_d2.modeling.mask_head import LongTailMaskHead

NUM_REGIONS = 128
CHANNELS = 256
SIDE = 28
NUM_CLASSES = (80, 1230, 5000, 13000, 20000)
NUM_CLASSES_WHOLE_HEAD = (80, 1230)
#: The logits and their gradient are alive at once.
COPIES_OF_THE_LOGITS = 2
#: Turns of each head; a step of the whole head takes seconds.
ROUNDS, ROUNDS_WHOLE_HEAD = 9, 5
GRADIENTS = ("loss", "features", "weight", "bias")
LABELS = {"gather": "eql_d2", "all": "all classes", "agnostic": "class-agnostic"}


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


def build_step(kind: str, num_classes: int, num_regions: int, whole_head: bool) -> Callable[[], Dict[str, Tensor]]:
    """Return a function that runs one forward and backward pass and returns the loss and the gradients."""
    head = build_head(kind, num_classes)
    side = SIDE // 2 if whole_head else SIDE
    x = torch.rand(num_regions, CHANNELS, side, side, requires_grad=True)
    classes = torch.randint(num_classes, (num_regions,))
    targets = (torch.rand(num_regions, SIDE, SIDE) > 0.5).float()

    def step() -> Dict[str, Tensor]:
        x.grad = None
        head.zero_grad(set_to_none=True)
        loss = loss_of(kind, head, x, classes, targets)
        loss.backward()
        weight, bias = head.predictor.weight.grad.flatten(1), head.predictor.bias.grad
        return {"loss": loss.detach(), "features": x.grad, "weight": weight, "bias": bias}

    return step


def measure_once(kind: str, num_classes: int, num_regions: int, whole_head: bool) -> Dict[str, Tensor]:
    """Run one pass; return its loss, its gradients and its peak memory above that of the inputs, in bytes."""
    step = build_step(kind, num_classes, num_regions, whole_head)
    before = memory_bytes("VmRSS")
    result = step()
    return {**result, "peak": torch.tensor(memory_bytes("VmHWM") - before)}


def measure_in_turn(kinds: Sequence[str], num_classes: int, whole_head: bool, rounds: int) -> Dict[str, List[float]]:
    """Return the processor seconds of each pass; the kinds take turns, so that all see the same moods of the machine.

    All channels of all regions take long: they take part in the first two rounds only.
    """
    steps = {kind: build_step(kind, num_classes, NUM_REGIONS, whole_head) for kind in kinds}
    seconds = {kind: [] for kind in kinds}
    for turn in range(rounds):
        for kind in kinds if turn % 2 else reversed(kinds):
            if kind == "all" and turn >= 2:
                continue
            start = time.process_time()
            steps[kind]()
            seconds[kind].append(time.process_time() - start)
    return seconds


def cells_of(kind: str, seconds: Dict[str, List[float]], peaks: Dict[str, float]) -> str:
    """Return the median seconds and the peak memory of a kind, and their ratios to those of "gather"."""
    if kind not in seconds:
        return "not run | not run | | "
    ratio = statistics.median(mine / other for mine, other in zip(seconds[kind], seconds["gather"]))
    return (
        f"{statistics.median(seconds[kind]):.3f} | {peaks[kind] / 2**20:,.0f} | {ratio:.2f}x | "
        f"{peaks[kind] / peaks['gather']:.2f}x"
    )


def print_table(num_classes_list, whole_head: bool, memory: float) -> None:
    """Measure and print the cases of one table; ``memory`` in GiB is what a case may take."""
    print("| classes | | CPU seconds | peak (MiB) | seconds / eql_d2 | peak / eql_d2 | equal |")
    print("| ---: | --- | ---: | ---: | ---: | ---: | --- |")
    for num_classes in num_classes_list:
        size = COPIES_OF_THE_LOGITS * 4 * NUM_REGIONS * num_classes * SIDE**2
        fits = size <= memory * 2**30
        kinds = [kind for kind in LABELS if fits or kind != "all"]
        regions = NUM_REGIONS if fits else 4
        compared = {
            k: run_within(partial(measure_once, k, num_classes, regions, whole_head)) for k in ("gather", "all")
        }
        assert_close(compared["gather"], compared["all"], GRADIENTS)
        peaks = {
            kind: float(run_within(partial(measure_once, kind, num_classes, NUM_REGIONS, whole_head))["peak"])
            for kind in kinds
        }
        rounds = ROUNDS_WHOLE_HEAD if whole_head else ROUNDS
        seconds = run_within(partial(measure_in_turn, kinds, num_classes, whole_head, rounds))
        for kind, label in LABELS.items():
            equal = ("yes" if fits else "yes, 4 regions") if kind == "all" else ""
            print(f"| {num_classes:,} | {label} | {cells_of(kind, seconds, peaks)} | {equal} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--memory", type=float, default=8, help="GiB that a case may take; larger ones are not run")
    parser.add_argument("--classes", type=int, nargs="+", default=NUM_CLASSES, help="numbers of classes")
    args = parser.parse_args()
    print(f"Forward and backward pass, {NUM_REGIONS} regions, {CHANNELS} channels, {SIDE}x{SIDE}, one thread.")
    print(
        "Seconds are medians of processor time; the heads take turns in one process, ratios are medians over the turns."
    )
    print("\nThe last layer and its loss:\n")
    print_table(args.classes, False, args.memory)
    print("\nThe whole head (four 3x3 convolutions, the upsampling and the last layer):\n")
    print_table([k for k in args.classes if k in NUM_CLASSES_WHOLE_HEAD], True, args.memory)


if __name__ == "__main__":
    main()
