"""Time of an image classifier's training step: the input, and against a plain PyTorch loop of the same model.

    OMP_NUM_THREADS=1 python benchmarks/classification.py

prints a Markdown table in processor seconds on one thread: ResNet-32 on 256 images of 32 x 32 pixels (random ones, in
the counts of CIFAR-100-LT at imbalance 200), the augmentation of EQL's protocol (crop, flip, AutoAugment, Cutout),
float32 and bfloat16. The plain loop computes normalisation, network and PyTorch's cross-entropy of the same batch,
backward pass and optimizer step; both take turns. Their first losses are asserted to be equal to 1e-5 in float32.
"""

import copy
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, List

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.utils.events import EventStorage
from torch.utils.data import SequentialSampler

from eql_d2.config import load_config
from eql_d2.data.augmentation import BatchAugmentation
from eql_d2.data.classification import long_tail_counts
from eql_d2.data.frequency import CategoryFrequency
from eql_d2.data.images import MemoryTrainLoader
from eql_d2.engine.trainer import Trainer

CONFIG = Path(__file__).resolve().parent.parent / "configs/classification/cifar100lt/softmax.yaml"
BATCH_SIZE = 256
ROUNDS = 7
COUNTS = long_tail_counts(500, 100, 200)


def build_loader() -> MemoryTrainLoader:
    """Return the training loader of the protocol over random images."""
    random = np.random.RandomState(0)
    records = [
        {
            "image_id": i,
            "image": random.randint(0, 256, (32, 32, 3)).astype(np.uint8),
            "annotations": [{"category_id": int(label)}],
        }
        for i, label in enumerate(random.permutation(np.repeat(np.arange(100), COUNTS)))
    ]
    augmentation = BatchAugmentation(4, True, "cifar10", 16)
    return MemoryTrainLoader(records, SequentialSampler(records), augmentation, BATCH_SIZE, seed=0)


def build_steps(model, autocast: bool) -> Dict[str, Callable[[List[Dict[str, Any]]], float]]:
    """Return a training step of the classifier and one of a plain loop over a copy of its network."""
    plain = copy.deepcopy(model)
    network, linear = plain.backbone, plain.head.cls_score
    optimizers = {
        "eql_d2": torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, nesterov=True),
        "plain PyTorch": torch.optim.SGD(plain.parameters(), lr=1e-3, momentum=0.9, nesterov=True),
    }

    def loss_of_classifier(batch: List[Dict[str, Any]]) -> torch.Tensor:
        return model(batch)["loss_cls"]

    def loss_of_plain_loop(batch: List[Dict[str, Any]]) -> torch.Tensor:
        images = torch.stack([image["image"] for image in batch]).float()
        images = ((images - plain.pixel_mean) / plain.pixel_std).contiguous(memory_format=torch.channels_last)
        labels = torch.tensor([image["gt_class"] for image in batch])
        return F.cross_entropy(linear(network(images)["last"].mean((2, 3))), labels)

    def step(name: str, loss_function: Callable) -> Callable:
        def run(batch: List[Dict[str, Any]]) -> float:
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
                loss = loss_function(batch)
            optimizers[name].zero_grad()
            loss.backward()
            optimizers[name].step()
            return loss.item()

        return run

    return {"eql_d2": step("eql_d2", loss_of_classifier), "plain PyTorch": step("plain PyTorch", loss_of_plain_loop)}


def measure(autocast: bool) -> Dict[str, float]:
    """Return the median processor seconds of a batch and of each step."""
    cfg = load_config(str(CONFIG), ["MODEL.DEVICE", "cpu"])
    frequency = CategoryFrequency.from_counts(COUNTS, num_images=sum(COUNTS))
    model = build_model(cfg, frequency)
    steps, batches = build_steps(model, autocast), iter(build_loader())
    seconds: Dict[str, List[float]] = {"input": [], **{name: [] for name in steps}}
    with EventStorage():
        for round_ in range(ROUNDS + 1):
            start = time.process_time()
            batch = next(batches)
            taken, losses = {"input": time.process_time() - start}, []
            # Each goes first in every other round.
            for name in list(steps)[:: 1 if round_ % 2 else -1]:
                start = time.process_time()
                losses.append(steps[name](batch))
                taken[name] = time.process_time() - start
            if round_ == 0 and not autocast:
                torch.testing.assert_close(*map(torch.tensor, losses), rtol=1e-5, atol=1e-5)
            if round_:  # the first warms up
                for name, value in taken.items():
                    seconds[name].append(value)
    return {name: statistics.median(values) for name, values in seconds.items()}


def build_model(cfg, frequency: CategoryFrequency):
    """Build the classifier with these counts, which no data set stands behind."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "counts.json"
        frequency.save(path)
        cfg.MODEL.LONG_TAIL.FREQUENCY = str(path)
        return Trainer.build_model(cfg).train()


def main() -> None:
    torch.set_num_threads(1)
    print("| precision | input (s) | step, eql_d2 (s) | step, plain PyTorch (s) | input / step | eql_d2 / plain |")
    print("| --- | --- | --- | --- | --- | --- |")
    for autocast, name in ((False, "float32"), (True, "bfloat16")):
        found = measure(autocast)
        ours, plain = found["eql_d2"], found["plain PyTorch"]
        print(
            f"| {name} | {found['input']:.3f} | {ours:.3f} | {plain:.3f} | {100 * found['input'] / ours:.1f}% "
            f"| {ours / plain:.2f} |"
        )


if __name__ == "__main__":
    main()
