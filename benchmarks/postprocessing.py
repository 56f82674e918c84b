"""Time the exact top-k post-processing against Detectron2's, and assert that both return the same to the last bit.

    OMP_NUM_THREADS=1 python benchmarks/postprocessing.py

prints a Markdown table, one row for each number of classes and each score threshold. Both run on the same 1000 random
regions, on one thread. A run of Detectron2's that takes more than ``--limit`` processor seconds is ended and has no
ratio.
"""

import argparse
import sys
import time
from functools import partial
from typing import Callable, Tuple

import torch
from detectron2.modeling.roi_heads import fast_rcnn as detectron2_fast_rcnn
from detectron2.structures import Instances
from measuring import run_within
from torch import Tensor

from eql_d2.modeling.postprocessing import fast_rcnn_inference_single_image

IMAGE_SHAPE = (800, 1333)
NUM_REGIONS = 1000
NMS_THRESH = 0.5
#: (number of classes, one box per class)
CASES = [(80, False), (80, True), (1230, False), (1230, True), (5000, False), (13000, False), (20000, False)]
SCORE_THRESHOLDS = (0.0, 1e-4, 0.05)


def random_predictions(num_classes: int, class_specific: bool, seed: int = 0) -> Tuple[Tensor, Tensor]:
    """Return boxes ``[R, 4]`` or ``[R, 4 K]`` and scores ``[R, K + 1]`` as a sigmoid classifier gives them.

    Most logits lie around that of the prior 0.001, so that nearly all scores exceed 1e-4 and a few hundred 0.05. The
    regions surround 40 objects; half of them peak at the class of their object.
    """
    generator = torch.Generator().manual_seed(seed)
    num_objects = 40
    corner = torch.rand(num_objects, 2, generator=generator) * torch.tensor([1200.0, 700.0])
    objects = torch.cat([corner, corner + 20 + 300 * torch.rand(num_objects, 2, generator=generator)], dim=1)
    object_of = torch.randint(num_objects, (NUM_REGIONS,), generator=generator)
    boxes = objects[object_of].repeat(1, num_classes if class_specific else 1)
    boxes += 15 * torch.randn(boxes.shape, generator=generator)
    prior = torch.logit(torch.tensor(0.001))
    logits = prior + torch.randn(NUM_REGIONS, num_classes + 1, generator=generator)
    label_of = torch.randint(num_classes, (num_objects,), generator=generator)
    peaked = torch.arange(0, NUM_REGIONS, 2)
    logits[peaked, label_of[object_of[peaked]]] += 6 + 2 * torch.randn(len(peaked), generator=generator)
    return boxes, logits.sigmoid()


def best_time(function: Callable, repeats: int, budget: float = 3.0) -> Tuple[float, Tuple[Tensor, ...]]:
    """Return the least seconds of at most ``repeats`` calls within about ``budget`` seconds, and the detections."""
    best, spent = float("inf"), 0.0
    for _ in range(repeats):
        start = time.perf_counter()
        instances, rows = function()
        seconds = time.perf_counter() - start
        best, spent = min(best, seconds), spent + seconds
        if spent > budget:
            break
    return best, tensors_of(instances, rows)


def tensors_of(instances: Instances, rows: Tensor) -> Tuple[Tensor, ...]:
    """Return the scores, classes, boxes and rows of the detections."""
    return instances.scores, instances.pred_classes, instances.pred_boxes.tensor, rows


def row_of(num_classes: int, class_specific: bool, score_thresh: float, topk: int, limit: float) -> str:
    """Time one case, assert equality, and return its row of the table."""
    boxes, scores = random_predictions(num_classes, class_specific)
    arguments = (boxes, scores, IMAGE_SHAPE, score_thresh, NMS_THRESH, topk)
    ours, detections = best_time(lambda: fast_rcnn_inference_single_image(*arguments), repeats=7)
    peer = partial(detectron2_fast_rcnn.fast_rcnn_inference_single_image, *arguments)
    theirs, expected = run_within(partial(best_time, peer, repeats=7), limit) or (None, None)
    if expected is not None and not all(map(torch.equal, detections, expected)):
        raise AssertionError(f"{num_classes} classes at threshold {score_thresh}: the detections differ.")
    cells = [
        f"{num_classes:,}",
        "per class" if class_specific else "shared",
        f"{score_thresh:g}",
        f"{int((scores[:, :-1] > score_thresh).sum()):,}",
        f"> {limit:.0f}" if theirs is None else f"{theirs:.4f}",
        f"{ours:.4f}",
        f"> {limit / ours:.0f}x" if theirs is None else f"{theirs / ours:.1f}x",
        "not compared" if theirs is None else "yes",
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=float, default=30, help="seconds allowed to Detectron2's function per case")
    parser.add_argument("--topk", type=int, default=300, help="detections per image")
    parser.add_argument("--classes", type=int, nargs="+", help="only these numbers of classes")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"Post-processing of one image: {NUM_REGIONS} regions, the best {args.topk} detections, one thread.\n")
    print("| classes | boxes | threshold | boxes above it | Detectron2 (s) | eql_d2 (s) | ratio | equal |")
    print("| ---: | --- | ---: | ---: | ---: | ---: | ---: | --- |")
    for num_classes, class_specific in CASES:
        if args.classes and num_classes not in args.classes:
            continue
        for score_thresh in SCORE_THRESHOLDS:
            print(row_of(num_classes, class_specific, score_thresh, args.topk, args.limit))
            sys.stdout.flush()


if __name__ == "__main__":
    with torch.no_grad():
        main()
