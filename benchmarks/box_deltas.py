"""Time and peak memory of class-specific box regression in training: the deltas of one class per region, or of all.

    OMP_NUM_THREADS=1 python benchmarks/box_deltas.py

prints a Markdown table, forward and backward pass of the box layer and its loss on one thread. ``eql_d2`` is
``LongTailOutputLayers``, which computes the deltas of the ground-truth classes; ``all classes`` is Detectron2's
``FastRCNNOutputLayers``, which computes those of every class. Both have the same weights; loss and gradients are
asserted to be equal to 1e-5. A quarter of the regions are foreground. Linux only.
"""

import argparse
import statistics
import time
from functools import partial
from typing import Callable, Dict, List

import torch
from detectron2.layers import ShapeSpec
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.roi_heads.fast_rcnn import FastRCNNOutputLayers
from measuring import assert_close, memory_bytes, run_within
from torch import Tensor

from eql_d2.data.frequency import CategoryFrequency
from eql_d2.losses import CLASSIFIER_LOSS_REGISTRY
from eql_d2.modeling.box_predictor import LongTailOutputLayers

CHANNELS = 1024
CASES = [(512, 1230), (1024, 1230)]
ROUNDS = 9
#: The clock of processor time is coarse on a busy machine, and a step takes milliseconds.
STEPS_PER_TURN = 5
GRADIENTS = ("loss", "features", "weight", "bias")
LABELS = {"gather": "eql_d2", "all": "all classes"}


def build_predictor(kind: str, num_classes: int) -> FastRCNNOutputLayers:
    """Build the predictor of a kind, with the same box layer for both."""
    arguments = {"box2box_transform": Box2BoxTransform((10.0, 10.0, 5.0, 5.0)), "num_classes": num_classes}
    if kind == "gather":
        frequency = CategoryFrequency.from_counts([10] * num_classes, num_images=1000)
        arguments["classifier_loss"] = CLASSIFIER_LOSS_REGISTRY.get("SOFTMAX")(frequency)
    predictor = (LongTailOutputLayers if kind == "gather" else FastRCNNOutputLayers)(
        ShapeSpec(channels=CHANNELS), **arguments
    )
    with torch.no_grad():
        predictor.bbox_pred.weight.normal_(std=0.001, generator=torch.Generator().manual_seed(0))
    return predictor.train()


def build_step(kind: str, num_classes: int, num_regions: int) -> Callable[[], Dict[str, Tensor]]:
    """Return a function that runs one forward and backward pass and returns the loss and the gradients."""
    predictor = build_predictor(kind, num_classes)
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(num_regions, CHANNELS, generator=generator).requires_grad_()
    gt_classes = torch.randint(num_classes, (num_regions,), generator=generator)
    gt_classes[num_regions // 4 :] = num_classes
    corner = 500 * torch.rand(num_regions, 2, generator=generator)
    proposals = torch.cat([corner, corner + 20 + 100 * torch.rand(num_regions, 2, generator=generator)], dim=1)
    gt_boxes = proposals + torch.rand(num_regions, 4, generator=generator)

    def step() -> Dict[str, Tensor]:
        x.grad = None
        predictor.zero_grad(set_to_none=True)
        deltas = predictor._deltas_of_gt_classes(x, gt_classes) if kind == "gather" else predictor.bbox_pred(x)
        loss = predictor.box_reg_loss(proposals, gt_boxes, deltas, gt_classes)
        loss.backward()
        layer = predictor.bbox_pred
        return {"loss": loss.detach(), "features": x.grad, "weight": layer.weight.grad, "bias": layer.bias.grad}

    return step


def peak_memory(kind: str, num_classes: int, num_regions: int) -> int:
    """Return the peak memory of one pass above that of the layer and its inputs, in bytes."""
    step = build_step(kind, num_classes, num_regions)
    before = memory_bytes("VmRSS")
    step()
    return memory_bytes("VmHWM") - before


def measure_in_turn(num_classes: int, num_regions: int) -> Dict[str, List[float]]:
    """Return the processor seconds of each pass, the two kinds in turn; assert equal losses and gradients."""
    steps = {kind: build_step(kind, num_classes, num_regions) for kind in LABELS}
    assert_close(steps["gather"](), steps["all"](), GRADIENTS)
    seconds = {kind: [] for kind in LABELS}
    for turn in range(ROUNDS):
        for kind in sorted(LABELS, reverse=bool(turn % 2)):
            start = time.process_time()
            for _ in range(STEPS_PER_TURN):
                steps[kind]()
            seconds[kind].append((time.process_time() - start) / STEPS_PER_TURN)
    return seconds


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    print(f"Forward and backward pass of the box layer and its loss, {CHANNELS} channels, one thread.")
    print("Medians of processor time, the two in turn in one process; loss and gradients equal to 1e-5.\n")
    print("| regions | classes | | CPU ms | peak (MiB) | time / eql_d2 | peak / eql_d2 |")
    print("| ---: | ---: | --- | ---: | ---: | ---: | ---: |")
    for num_regions, num_classes in CASES:
        seconds = run_within(partial(measure_in_turn, num_classes, num_regions))
        peaks = {kind: run_within(partial(peak_memory, kind, num_classes, num_regions)) for kind in LABELS}
        for kind, label in LABELS.items():
            ratio = statistics.median(mine / other for mine, other in zip(seconds[kind], seconds["gather"]))
            print(
                f"| {num_regions} | {num_classes:,} | {label} | {1000 * statistics.median(seconds[kind]):.1f} | "
                f"{peaks[kind] / 2**20:.0f} | {ratio:.2f}x | {peaks[kind] / peaks['gather']:.2f}x |",
                flush=True,
            )


if __name__ == "__main__":
    main()
