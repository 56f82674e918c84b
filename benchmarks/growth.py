"""How the costs grow with the number of classes, beside those of the programs that people use today.

    OMP_NUM_THREADS=1 python benchmarks/growth.py

prints a Markdown table and draws docs/figures/growth.png and .svg. Processor seconds throughout, medians of up to five
calls. A peer that needs more than ``--seconds`` or ``--gibibytes`` for a number of classes is not run there, nor on
more; where it runs, both results are asserted to be equal. The inputs come from the benchmarks of the single costs.
"""

import argparse
import importlib
import math
import os
import sys
import tempfile
import time
from functools import cache, partial
from pathlib import Path
from typing import Callable, Dict, List, NamedTuple, Optional, Sequence

import box_deltas
import evaluation
import loading
import mask_head
import postprocessing
import torch
import training_step
from detectron2.modeling.roi_heads import fast_rcnn as detectron2_fast_rcnn
from growth_figure import draw
from measuring import assert_close, run_within, timed

NUM_CLASSES = (80, 1230, 5000, 13000, 20000)
#: The table's ratio and exponent are taken from here to the largest number of classes.
FIRST_OF_RATIO = 1230
DETECTIONS = 300
EVALUATION_IMAGES = 50
LOADING_IMAGES = 2000
BOX_REGIONS = 512
STEPS = 3
CLASS_SPECIFIC = ["MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG", False, "MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", False]


class Seconds(NamedTuple):
    """Processor seconds of this package and of the peer, ``None`` where that was not run."""

    ours: float
    peer: Optional[float]


class Budget(NamedTuple):
    """What a peer may take for one number of classes."""

    seconds: float
    gibibytes: float


class Cost(NamedTuple):
    """One panel of the figure. ``measure`` is called with the number of classes and the peer's budget or ``None``."""

    title: str
    peer: str
    measure: Callable[[int, Optional[Budget]], Seconds]


def compare(ours: Callable, peer: Callable, assert_equal: Callable, budget: Optional[Budget]) -> Seconds:
    """Run both in processes of their own; each returns its seconds and a result. Assert that the results are equal."""
    seconds, result = run_within(ours)
    found = run_within(peer, *budget) if budget else None
    if found is None:
        return Seconds(seconds, None)
    assert_equal(result, found[1])
    return Seconds(seconds, found[0])


def measure_postprocessing(threshold: float, num_classes: int, budget: Optional[Budget]) -> Seconds:
    boxes, scores = postprocessing.random_predictions(num_classes, class_specific=False)

    def detect(module) -> tuple:
        found = module.fast_rcnn_inference_single_image(
            boxes, scores, postprocessing.IMAGE_SHAPE, threshold, postprocessing.NMS_THRESH, DETECTIONS
        )
        return postprocessing.tensors_of(*found)

    def assert_equal(result, expected) -> None:
        assert all(map(torch.equal, result, expected)), f"{num_classes} classes at {threshold}: detections differ"

    ours, peer = (partial(timed, partial(detect, module)) for module in (postprocessing, detectron2_fast_rcnn))
    return compare(ours, peer, assert_equal, budget)


@cache
def evaluation_folder(num_classes: int) -> tempfile.TemporaryDirectory:
    """Generate annotations and detections once, for boxes and masks."""
    folder = tempfile.TemporaryDirectory()
    evaluation.generate(Path(folder.name), EVALUATION_IMAGES, seed=0, num_classes=num_classes)
    return folder


def measure_evaluation(iou_type: str, num_classes: int, budget: Optional[Budget]) -> Seconds:
    folder = Path(evaluation_folder(num_classes).name)
    arguments = (str(folder / "gt.json"), str(folder / f"{evaluation.TASKS[iou_type]}.json"), iou_type)

    def score(program: str) -> tuple:
        importlib.import_module({"eql_d2": "hotcoco", "lvis": "lvis.eval"}[program])  # which should not count
        return timed(partial(evaluation.PROGRAMS[program], *arguments))

    return compare(partial(score, "eql_d2"), partial(score, "lvis"), evaluation.assert_equal, budget)


def measure_mask_head(num_classes: int, budget: Optional[Budget]) -> Seconds:
    def steps(kind: str) -> tuple:
        return timed(mask_head.build_step(kind, num_classes, mask_head.NUM_REGIONS, whole_head=False))

    assert_equal = partial(assert_close, names=mask_head.GRADIENTS)
    return compare(partial(steps, "gather"), partial(steps, "all"), assert_equal, budget)


def measure_box_deltas(num_classes: int, budget: Optional[Budget]) -> Seconds:
    def steps(kind: str) -> tuple:
        return timed(box_deltas.build_step(kind, num_classes, BOX_REGIONS))

    assert_equal = partial(assert_close, names=box_deltas.GRADIENTS)
    return compare(partial(steps, "gather"), partial(steps, "all"), assert_equal, budget)


def measure_loading(num_classes: int, budget: Optional[Budget]) -> Seconds:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.json"
        os.environ["EQL_D2_CACHE"] = folder
        loading.generate(path, LOADING_IMAGES, num_classes)

        def load(loader: str) -> tuple:
            function = loading.loader_function(loader)
            start = time.process_time()
            function(str(path))
            return time.process_time() - start, loader

        def first_load() -> tuple:
            for cache_file in Path(folder).glob("*.eql_d2_cache"):
                cache_file.unlink()
            return load("eql_d2, first")

        def assert_equal(*_) -> None:
            assert run_within(partial(loading.check_equal, str(path))) == LOADING_IMAGES

        return compare(first_load, partial(load, "Detectron2"), assert_equal, budget)


def measure_training_step(num_classes: int, budget: Optional[Budget]) -> Seconds:
    overrides = ["MODEL.ROI_HEADS.NUM_CLASSES", num_classes, *CLASS_SPECIFIC]
    step = partial(training_step.compare, "mini", STEPS, overrides, clock=time.process_time)
    # The two step in turn in one process, which asserts that their losses are equal.
    found = run_within(step, 2 * (STEPS + 1) * budget.seconds, budget.gibibytes) if budget else None
    if found is None:
        return Seconds(run_within(partial(step, names=["eql_d2"]))["eql_d2"], None)
    return Seconds(found["eql_d2"], found["detectron2"])


COSTS = [
    Cost("Post-processing, scores > 1e-4", "Detectron2", partial(measure_postprocessing, 1e-4)),
    Cost("Post-processing, scores > 0.05", "Detectron2", partial(measure_postprocessing, 0.05)),
    Cost("LVIS evaluation, boxes", "lvis 0.5.3", partial(measure_evaluation, "bbox")),
    Cost("LVIS evaluation, masks", "lvis 0.5.3", partial(measure_evaluation, "segm")),
    Cost("Class-specific masks, last layer", "Detectron2", measure_mask_head),
    Cost("Class-specific boxes, training", "Detectron2", measure_box_deltas),
    Cost("First load of annotations", "Detectron2", measure_loading),
    Cost("Training step, small model", "Detectron2", measure_training_step),
]


def measure_all(num_classes_list: Sequence[int], costs: Sequence[Cost], budget: Budget) -> Dict[str, List[Seconds]]:
    """Measure every cost for every number of classes, in ascending order."""
    results = {}
    for cost in costs:
        points: List[Seconds] = []
        for num_classes in num_classes_list:
            allowed = budget if all(point.peer is not None for point in points) else None
            points.append(cost.measure(num_classes, allowed))
            print(f"{cost.title}, {num_classes} classes: {points[-1]}", file=sys.stderr, flush=True)
        results[cost.title] = points
    return results


def row_of(num_classes_list: Sequence[int], program: str, seconds: Sequence[Optional[float]]) -> str:
    """Return the seconds of one program, and their growth from 1,230 classes to the largest number that it ran with."""
    cells = ["not run" if value is None else f"{value:.3g}" for value in seconds]
    measured = {k: value for k, value in zip(num_classes_list, seconds) if value is not None}
    last = max(measured, default=0)
    if FIRST_OF_RATIO in measured and last > FIRST_OF_RATIO:
        ratio = measured[last] / measured[FIRST_OF_RATIO]
        growth = [f"{ratio:.2f}", f"{math.log(ratio) / math.log(last / FIRST_OF_RATIO):.2f}"]
        growth[0] += "" if last == max(num_classes_list) else f" (to {last:,})"
    else:
        growth = ["", ""]
    return " | ".join([program, *cells, *growth])


def print_table(num_classes_list: Sequence[int], costs: Sequence[Cost], results: Dict[str, List[Seconds]]) -> None:
    """Print two rows for each cost."""
    numbers = " | ".join(f"{k:,}" for k in num_classes_list)
    largest = f"{max(num_classes_list):,} / {FIRST_OF_RATIO:,}"
    print(f"| cost | program | {numbers} | {largest} | exponent | peer / eql_d2 at most |")
    print("| --- | --- |" + " ---: |" * (len(num_classes_list) + 3))
    for cost in costs:
        points = results[cost.title]
        shared = [k for k, point in zip(num_classes_list, points) if point.peer is not None]
        ratio = max((point.peer / point.ours for point in points if point.peer is not None), default=None)
        print(f"| {cost.title} | {row_of(num_classes_list, 'eql_d2', [p.ours for p in points])} | |")
        most = "" if ratio is None else f"{ratio:.1f}x" if ratio < 10 else f"{ratio:.0f}x"
        print(f"| | {row_of(num_classes_list, cost.peer, [p.peer for p in points])} | {most} |", flush=True)
        assert not shared or list(num_classes_list)[: len(shared)] == shared


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30, help="processor seconds that a peer may take")
    parser.add_argument("--gibibytes", type=float, default=8, help="memory that a peer may take")
    parser.add_argument("--classes", type=int, nargs="+", default=NUM_CLASSES, help="numbers of classes, ascending")
    parser.add_argument("--costs", nargs="+", default=[""], help="only costs with one of these words in their title")
    parser.add_argument("--figure", type=Path, default=Path("docs/figures/growth.png"), help="and .svg beside it")
    args = parser.parse_args()
    costs = [cost for cost in COSTS if any(word in cost.title for word in args.costs)]
    results = measure_all(args.classes, costs, Budget(args.seconds, args.gibibytes))
    panels = {f"{cost.title}\n(peer: {cost.peer})": results[cost.title] for cost in costs}
    draw(args.classes, panels, args.figure)
    print(f"![Processor seconds against the number of classes]({args.figure.parent.name}/{args.figure.name})\n")
    print(
        f"Processor seconds; one image of {postprocessing.NUM_REGIONS} regions for post-processing; "
        f"{EVALUATION_IMAGES} images x {evaluation.DETECTIONS_PER_IMAGE} detections for evaluation; "
        f"{mask_head.NUM_REGIONS} regions for masks and {BOX_REGIONS} for boxes, forward and backward; "
        f"{LOADING_IMAGES} images for loading, no cache; 8 images of 128x128 for the training step, with "
        f'class-specific boxes and masks. "not run": over {args.seconds:g} s or {args.gibibytes:g} GiB. '
        f"Where both ran, results are equal. "
        f"An exponent of 1 is growth in proportion to the classes.\n"
    )
    print_table(args.classes, costs, results)


if __name__ == "__main__":
    main()
