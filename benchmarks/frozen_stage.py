"""Time a second stage that trains the classifier alone: all losses, the classifier's alone, and cached region features.

    OMP_NUM_THREADS=1 python benchmarks/frozen_stage.py [--images 200] [--iterations 100]

The generated data set and its config of BAGS (``configs/mini/bags.yaml``, 8 images a step, flips), from random weights
of a detector, whose cost is that of trained ones. Four trainings, each from the first iteration to the last checkpoint:

- all losses: as it was before the losses of frozen parts were left out;
- frozen losses left out: the same, without them;
- filling the cache: ``MODEL.LONG_TAIL.FEATURE_CACHE`` names an empty folder;
- from the cache: the same folder again, as another epoch or another method finds it.

Asserted, to the bit: the classifier of the second is that of the first, and that of the fourth that of the third. With
one image a step, all four are one; with eight, convolutions round in another order, and the largest difference between
the first and the third is printed. Processor seconds of the process, images loaded in it.
"""

import argparse
import contextlib
import io
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Dict, Tuple
from unittest.mock import patch

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from eql_d2.engine import argument_parser
from eql_d2.engine import setup as setup_run
from eql_d2.engine.trainer import Trainer
from eql_d2.mini.generate import generate_mini_dataset

ROOT = Path(__file__).resolve().parents[1]
RUNS = ("all losses", "frozen losses left out", "filling the cache", "from the cache")


def train(folder: Path, number: int, images: int, iterations: int) -> Tuple[float, Tensor]:
    """Train a second stage; return its processor seconds and the classifier's weights.

    Args:
        folder: with the data set ``mini`` and the weights ``detector.pth``.
        number: of :data:`RUNS`.
        images: in a step.
        iterations: steps.
    """
    cache = str(folder / f"features{images}") if number >= 2 else ""
    opts = {
        "MODEL.DEVICE": "cpu",
        "MODEL.WEIGHTS": folder / "detector.pth",
        "MODEL.LONG_TAIL.FEATURE_CACHE": cache,
        "MODEL.LONG_TAIL.DATASETS": [["mini_train", str(folder / "mini/train.json"), str(folder / "mini/train")]],
        "DATASETS.TEST": "()",
        "DATALOADER.NUM_WORKERS": 0,
        "SOLVER.IMS_PER_BATCH": images,
        "SOLVER.MAX_ITER": iterations,
        "SOLVER.STEPS": "()",
        "SOLVER.WARMUP_ITERS": 10,
        "OUTPUT_DIR": folder / f"run{images}_{number}",
    }
    words = [str(word) for pair in opts.items() for word in pair]
    config = str(ROOT / "configs/mini/bags.yaml")
    places = [f"eql_d2.modeling.{name}.is_frozen" for name in ("box_predictor", "roi_heads", "ignored")]
    with contextlib.ExitStack() as stack:
        if number == 0:
            for place in places:
                stack.enter_context(patch(place, lambda module: False))
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        trainer = Trainer(setup_run(argument_parser().parse_args(["--config-file", config, *words])))
        trainer.resume_or_load(resume=False)
        start = time.process_time()
        trainer.train()
        seconds = time.process_time() - start
    return seconds, trainer.model.roi_heads.box_predictor.cls_score.weight.detach()


def make_detector(folder: Path) -> None:
    """Write the data set's detector with random weights."""
    from detectron2.modeling import build_model

    from eql_d2.config import load_config

    torch.manual_seed(0)
    opts = ["MODEL.DEVICE", "cpu", "MODEL.ROI_HEADS.NUM_CLASSES", 60]
    model = build_model(load_config(str(ROOT / "configs/mini/softmax.yaml"), opts))
    for name, value in model.state_dict().items():
        if name.endswith("running_var"):  # keep the activations of untrained layers in bounds
            value.fill_(4.0)
    torch.save({"model": model.state_dict()}, folder / "detector.pth")


def measure(folder: Path, images: int, iterations: int) -> Dict[str, Tuple[float, Tensor]]:
    """Return seconds and weights of each of :data:`RUNS`, equal ones asserted."""
    results = {name: train(folder, number, images, iterations) for number, name in enumerate(RUNS)}
    weights = [weight for _, weight in results.values()]
    assert torch.equal(weights[0], weights[1]) and torch.equal(weights[2], weights[3])
    assert images > 1 or torch.equal(weights[0], weights[2])
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=200, help="training images of the generated set")
    parser.add_argument("--iterations", type=int, default=100, help="steps of 8 images")
    args = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate_mini_dataset(folder / "mini", num_train=args.images, num_val=1, num_test=1)
        make_detector(folder)
        measure(folder, 1, 16)
        results = measure(folder, 8, args.iterations)
        files = list((folder / "features8").glob("*/*/*.safetensors"))
        size = sum(file.stat().st_size for file in files) / 2**20
    first, third = results[RUNS[0]], results[RUNS[2]]
    difference = float((first[1] - third[1]).abs().max() / first[1].abs().max())
    print(
        f"BAGS on {args.images} images of the generated set, {args.iterations} steps of 8 images: "
        f"{args.iterations * 8 / args.images:.0f} epochs, {len(files)} images and flips in the cache, {size:.0f} MiB.\n"
    )
    print("| second stage | ms a step | times as fast |")
    print("| --- | ---: | ---: |")
    for run, (seconds, _) in results.items():
        print(f"| {run} | {1000 * seconds / args.iterations:.1f} | {first[0] / seconds:.1f} |")
    print(
        f"\nEqual to the bit: the first two, the last two, and with one image a step all. With eight, weights of the "
        f"last two differ from those of the first two by at most {difference:.1e} of the largest."
    )


if __name__ == "__main__":
    main()
