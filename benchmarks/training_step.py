"""Time one training step of this package's Mask R-CNN against stock Detectron2's of the same config.

    OMP_NUM_THREADS=1 python benchmarks/training_step.py            # the mini model at 128x128
    OMP_NUM_THREADS=1 python benchmarks/training_step.py --full     # and R-50-FPN at 800x1333, 1230 classes

Forward, backward and the optimizer's step, softmax cross-entropy in both, class-agnostic masks (Detectron2's
class-specific head is compared in benchmarks/mask_head.py). Both models start from the same weights and see the same
images, regions are drawn from the same seed, and the losses of every timed step are asserted to be equal. The two step
in turn in one process, from the same weights each time; peak memory is that of a process of its own. Prints a Markdown
table.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable, Dict, List, Sequence

import torch
from detectron2.modeling import build_model
from detectron2.solver import build_optimizer
from detectron2.structures import Boxes, Instances, PolygonMasks
from detectron2.utils.events import EventStorage

import eql_d2.modeling  # noqa: F401
from eql_d2.config import load_config
from eql_d2.data.frequency import CategoryFrequency

ROOT = Path(__file__).resolve().parent.parent
#: name: config, (height, width), images per step
CASES = {
    "mini": ("configs/mini/softmax.yaml", (128, 128), 8),
    "R-50-FPN": ("configs/LVISv0.5/softmax/mask_rcnn_R_50_FPN_paper.yaml", (800, 1333), 1),
}
STOCK = [
    "MODEL.META_ARCHITECTURE", "GeneralizedRCNN",
    "MODEL.ROI_HEADS.NAME", "StandardROIHeads",
    "MODEL.ROI_MASK_HEAD.NAME", "MaskRCNNConvUpsampleHead",
]  # fmt: skip


def build(case: str, stock: bool, overrides: Sequence = ()):
    """Return a model in training mode and its optimizer.

    The learning rate is so small that a ResNet-50 without pre-trained weights does not diverge on noise.
    """
    config, _, _ = CASES[case]
    common = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "SOLVER.BASE_LR", 1e-8]
    cfg = load_config(str(ROOT / config), [*common, *overrides, *(STOCK if stock else [])])
    with tempfile.TemporaryDirectory() as folder:
        num_classes = cfg.MODEL.ROI_HEADS.NUM_CLASSES
        path = Path(folder) / "frequency.json"
        CategoryFrequency.from_counts([100] * num_classes, num_images=1000).save(path)
        cfg.MODEL.LONG_TAIL.FREQUENCY = str(path)
        model = build_model(cfg).train()
    return model, build_optimizer(cfg, model)


def make_batch(case: str) -> List[Dict]:
    """Return images of noise with 8 objects each."""
    _, (height, width), num_images = CASES[case]
    generator = torch.Generator().manual_seed(1)
    batch = []
    for _ in range(num_images):
        corner = torch.rand(8, 2, generator=generator) * torch.tensor([width * 0.7, height * 0.7])
        boxes = torch.cat([corner, corner + min(height, width) * 0.25], dim=1)
        instances = Instances((height, width))
        instances.gt_boxes = Boxes(boxes)
        instances.gt_classes = torch.randint(60, (8,), generator=generator)
        instances.gt_masks = PolygonMasks([[[x1, y1, x2, y1, x2, y2, x1, y2]] for x1, y1, x2, y2 in boxes.tolist()])
        pixels = torch.randint(0, 255, (3, height, width), generator=generator, dtype=torch.uint8)
        batch.append({"image": pixels, "instances": instances, "height": height, "width": width})
    return batch


def step(model, optimizer, batch: List[Dict], storage: EventStorage) -> Dict[str, float]:
    """Run one step and return its losses."""
    torch.manual_seed(storage.iter)
    losses = model(batch)
    optimizer.zero_grad()
    sum(losses.values()).backward()
    optimizer.step()
    storage.step()
    return {name: float(value.detach()) for name, value in losses.items()}


def compare(
    case: str,
    steps: int,
    overrides: Sequence = (),
    names: Sequence[str] = ("eql_d2", "detectron2"),
    clock: Callable[[], float] = time.perf_counter,
) -> Dict[str, float]:
    """Return the median seconds of a step of each program and of their ratio; assert equal losses.

    Args:
        case: a key of :data:`CASES`.
        steps: timed steps.
        overrides: alternating keys and values of the config.
        names: the programs; "eql_d2" alone is compared with itself.
        clock: counts the seconds.
    """
    programs = {name: build(case, name == "detectron2", overrides) for name in names}
    batch = make_batch(case)
    seconds = {name: [] for name in programs}
    storages = {name: EventStorage() for name in programs}
    for i in range(steps + 1):
        losses = {}
        # The same start for every pair of steps: rounding would grow into other proposals after a few of them.
        programs[names[-1]][0].load_state_dict(programs["eql_d2"][0].state_dict())
        for name in sorted(programs, reverse=bool(i % 2)):
            with storages[name] as storage:
                start = clock()
                losses[name] = step(*programs[name], batch, storage)
                seconds[name].append(clock() - start)
        for key, value in losses[names[-1]].items():
            assert abs(losses["eql_d2"][key] - value) <= 1e-4 * max(1, abs(value)), (i, key, losses)
    ratios = [a / b for a, b in zip(seconds["eql_d2"][1:], seconds[names[-1]][1:])]
    return {
        **{name: statistics.median(values[1:]) for name, values in seconds.items()},
        "ratio": statistics.median(ratios),
    }


def peak_memory(case: str, program: str) -> float:
    """Return the peak resident memory, in MiB, of a process that runs two steps of one program."""
    done = subprocess.run(
        [sys.executable, __file__, "--memory-of", case, program], check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout.splitlines()[-1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--full", action="store_true", help="also R-50-FPN at 800x1333")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each program")
    parser.add_argument("--memory-of", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        case, program = args.memory_of
        model, optimizer = build(case, program == "detectron2")
        with EventStorage() as storage:
            for _ in range(2):
                step(model, optimizer, make_batch(case), storage)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return
    print("| model | eql_d2 | Detectron2 | time ratio | eql_d2 | Detectron2 | memory ratio |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for case in CASES if args.full else ["mini"]:
        times = compare(case, args.steps)
        memory = {name: peak_memory(case, name) for name in ("eql_d2", "detectron2")}
        print(
            f"| {case} | {times['eql_d2']:.3f} s | {times['detectron2']:.3f} s | {times['ratio']:.3f} | "
            f"{memory['eql_d2']:.0f} MiB | {memory['detectron2']:.0f} MiB | "
            f"{memory['eql_d2'] / memory['detectron2']:.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
