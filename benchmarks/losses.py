#!/usr/bin/env python
"""Cost of every registered classifier loss against the plain loss of the same shape.

Forward and backward on ``[1024, num_logits]`` logits: median time and peak memory, and their ratios to PyTorch's
``cross_entropy`` (losses with a softmax) or ``binary_cross_entropy_with_logits`` on dense targets that are ready (the
others) on logits of the same shape. Loss and peer take turns, so that both see the same load of the machine; so does
one pass over the matrix, ``torch.mul`` into another one, which reads every logit and writes every gradient: no loss can
take less than that, and ``passes`` is how many of them it takes. Before
anything is timed, value and gradient of each loss are compared with the slow re-implementation of the tests.

    python benchmarks/losses.py [--classes 1230 5000 20000] [--device cuda] [--only BAGS SEQL] [--json out.json]

On a CPU one thread is used, its processor time is measured (other processes count less), and memory is what the
profiler sees allocated, temporaries inside operators included. On CUDA it is ``max_memory_allocated``.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import time
from pathlib import Path
from typing import Callable, Dict, List, Optional

# The profiler would write a line to stderr for each of its runs.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from eql_d2.losses import CLASSIFIER_LOSS_REGISTRY, ClassifierLoss
from eql_d2.losses.state import StatefulLoss
from tests.losses.helpers import assert_equals_slow, long_tailed_frequency, make_loss, random_labels

NUM_REGIONS = 1024
#: Compared with cross_entropy; the others with binary_cross_entropy_with_logits.
SOFTMAX_LOSSES = {
    "BAGS",
    "BALANCED_SOFTMAX",
    "CLASS_BALANCED",
    "IIF",
    "INVERSE_FREQUENCY",
    "LDAM",
    "LOCE",
    "SEESAW",
    "SEQL",
    "SOFTMAX",
    "SOFTMAX_EQL",
}
#: Ratios of time and of memory that are aimed at.
STATELESS_AIM, STATEFUL_AIM = 2.0, 3.0


def forward_backward(function: Callable[[Tensor], Tensor], logits: Tensor) -> Callable[[], None]:
    """Return a function that runs forward and backward once."""

    def run() -> None:
        logits.grad = None
        function(logits).backward()

    return run


def peer_of(name: str, logits: Tensor, gt_classes: Tensor, num_classes: int) -> Callable[[Tensor], Tensor]:
    """Return the plain loss that ``name`` is compared with, on logits of the same width."""
    if name in SOFTMAX_LOSSES:
        return lambda z: F.cross_entropy(z, gt_classes)
    width = max(logits.shape[1], num_classes + 1)
    targets = F.one_hot(gt_classes, width)[:, : logits.shape[1]].float()
    return lambda z: F.binary_cross_entropy_with_logits(z, targets, reduction="sum") / len(z)


def seconds(run: Callable[[], None], device: torch.device) -> float:
    """Time one run."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        torch.cuda.synchronize()
        return time.perf_counter() - start
    start = time.process_time()
    run()
    return time.process_time() - start


def median_times(runs: List[Callable[[], None]], device: torch.device, repetitions: int) -> List[float]:
    """Return the median time of each run; the runs take turns."""
    times = [[seconds(run, device) for run in runs] for _ in range(repetitions + 2)][2:]
    return [statistics.median(column) for column in zip(*times)]


def peak_memory(run: Callable[[], None], device: torch.device) -> int:
    """Return the largest amount of memory, in bytes, that one run holds on top of what there was before."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = [event for event in profiler.profiler.kineto_results.events() if event.name() == "[memory]"]
    current = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        current += event.nbytes()
        peak = max(peak, current)
    return peak


def measure(name: str, num_classes: int, device: torch.device, repetitions: int, verified: bool) -> Dict[str, object]:
    """Measure one loss and its peer at one number of classes."""
    loss: ClassifierLoss = make_loss(name, num_classes).to(device)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(NUM_REGIONS, loss.num_logits, generator=generator) + loss.initial_bias()
    logits = logits.to(device).requires_grad_()
    gt_classes = random_labels(NUM_REGIONS, num_classes, background=0.75).to(device)
    sets = None
    if verified:
        sets = (torch.rand(NUM_REGIONS, num_classes, generator=generator) < 0.02).to(device)
    runs = [
        forward_backward(lambda z: loss(z, gt_classes, sets), logits),
        forward_backward(peer_of(name, logits, gt_classes, num_classes), logits),
    ]
    source, target = logits.detach(), torch.empty_like(logits)
    own_time, peer_time, pass_time = median_times(
        [*runs, lambda: torch.mul(source, 0.5, out=target)], device, repetitions
    )
    logits.grad = None
    own_memory, peer_memory = [], []
    for run, peaks in zip(runs, (own_memory, peer_memory)):
        run()
        logits.grad = None
        peaks.append(peak_memory(run, device))
        logits.grad = None
    return {
        "loss": name + (" with image-level sets" if verified else ""),
        "classes": num_classes,
        "peer": "cross_entropy" if name in SOFTMAX_LOSSES else "bce_with_logits",
        "ms": 1000 * own_time,
        "time_ratio": own_time / peer_time,
        "passes": own_time / pass_time,
        "gb_per_second": 2 * source.numel() * source.element_size() / pass_time / 1e9,
        "mib": own_memory[0] / 2**20,
        "memory_ratio": own_memory[0] / peer_memory[0],
        "aim": STATEFUL_AIM if isinstance(loss, StatefulLoss) else STATELESS_AIM,
    }


def print_table(rows: List[Dict[str, object]]) -> None:
    """Print the rows as a Markdown table; a ratio above the aim is marked."""
    speed = statistics.median(row["gb_per_second"] for row in rows)
    print(f"One pass reads and writes {speed:.1f} GB a second (median over the rows).\n")
    print("| loss | classes | peer | ms | time ratio | passes | MiB | memory ratio | aim |")
    print("| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
    for row in rows:
        ratios = [
            f"{row[key]:.2f}" + (" (!)" if row[key] > row["aim"] else "") for key in ("time_ratio", "memory_ratio")
        ]
        print(
            f"| {row['loss']} | {row['classes']} | {row['peer']} | {row['ms']:.1f} | {ratios[0]} | {row['passes']:.1f} "
            f"| {row['mib']:.1f} "
            f"| {ratios[1]} | {row['aim']:.0f} |"
        )


def main(arguments: Optional[List[str]] = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = sorted(name for name, _ in CLASSIFIER_LOSS_REGISTRY)
    parser.add_argument("--classes", type=int, nargs="+", default=[1230, 5000, 20000], help="numbers of classes K")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="LOSS", help="some losses only")
    parser.add_argument("--repetitions", type=int, default=21, help="timed runs of each loss")
    parser.add_argument("--json", help="also write the rows to this file")
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    torch.set_num_threads(1)
    for name in options.only:
        assert_equals_slow(make_loss(name))
    where = (
        torch.cuda.get_device_name() if device.type == "cuda" else f"one thread of {platform.processor() or 'a CPU'}"
    )
    print(f"PyTorch {torch.__version__}, {where}, {NUM_REGIONS} regions; all losses equal their slow formula.\n")
    rows = []
    for num_classes in options.classes:
        assert long_tailed_frequency(num_classes).num_classes == num_classes
        for name in options.only:
            for verified in (False, True) if name == "EQL" else (False,):
                rows.append(measure(name, num_classes, device, options.repetitions, verified))
    print_table(rows)
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
