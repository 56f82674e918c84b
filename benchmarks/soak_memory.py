"""Train the mini model for hours, with evaluations, and measure whether memory, file handles or time per step grow.

    python benchmarks/soak_memory.py --hours 6

The training is ``eql-d2 train`` in a process of its own with two workers, looked at from outside. It is divided into
four quarters; the first, in which caches fill, is left out of the comparison. Prints a Markdown table, and ends with an
error if the last quarter, compared with the second, holds over 2% more memory or two open files more, or takes over 20%
more processor time for an iteration and its share of the evaluations.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import List, NamedTuple, Tuple

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
EVALUATION_PERIOD = 100
SETTINGS = [
    "MODEL.ROI_HEADS.NUM_CLASSES", 12,
    "SOLVER.MAX_ITER", 10**7,
    "SOLVER.IMS_PER_BATCH", 4,
    "SOLVER.STEPS", "()",
    "SOLVER.BASE_LR", 0.001,
    "SOLVER.CHECKPOINT_PERIOD", 10**7,
    "TEST.EVAL_PERIOD", EVALUATION_PERIOD,
    "DATALOADER.NUM_WORKERS", 2,
]  # fmt: skip
MEMORY_GROWTH = 1.02
TIME_GROWTH = 1.2


class Sample(NamedTuple):
    """What a training process was like at a moment: seconds since the start, iterations done, processor seconds used,
    MiB of memory and open files held. Its workers are not counted."""

    seconds: float
    iterations: int
    processor_seconds: float
    mebibytes: float
    handles: int


def look_at(pid: int, start: float, metrics: Path) -> Sample:
    """Look at a training process that writes to ``metrics``.

    Raises:
        OSError: if it has ended.
    """
    process = Path(f"/proc/{pid}")
    status = (process / "status").read_text().splitlines()
    resident = next(int(line.split()[1]) for line in status if line.startswith("VmRSS:"))
    user, system = (process / "stat").read_text().rpartition(")")[2].split()[11:13]
    seconds = (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
    handles = len(os.listdir(process / "fd"))
    return Sample(time.monotonic() - start, last_iteration(metrics), seconds, resident / 1024, handles)


def last_iteration(metrics: Path) -> int:
    """Return the iteration of the last line of ``metrics.json``, 0 if there is none."""
    if not metrics.is_file():
        return 0
    with metrics.open("rb") as file:
        file.seek(max(0, metrics.stat().st_size - 2**14))
        lines = file.read().splitlines()
    return next((json.loads(line)["iteration"] for line in reversed(lines) if line.endswith(b"}")), 0)


def watch(process: subprocess.Popen, metrics: Path, hours: float, interval: float) -> List[Sample]:
    """Look at a running training until the hours are over, and then end it."""
    start, samples = time.monotonic(), []
    while time.monotonic() - start < 3600 * hours:
        if process.poll() is not None:
            raise SystemExit(f"error: the training ended by itself with status {process.returncode}.")
        samples.append(look_at(process.pid, start, metrics))
        time.sleep(interval)
    process.send_signal(signal.SIGINT)
    try:
        process.wait(timeout=120)
    except subprocess.TimeoutExpired:  # on a busy machine; what was seen counts all the same
        process.kill()
        process.wait()
    return samples


def quarters(values: list) -> List[list]:
    """Cut a list into four parts of nearly equal length."""
    cuts = [len(values) * quarter // 4 for quarter in range(5)]
    return [values[start:end] for start, end in zip(cuts, cuts[1:])]


def train(folder: Path, hours: float, seed: int, interval: float) -> List[Sample]:
    """Train on generated data in a process of its own and return what was seen of it."""
    from eql_d2.mini.generate import generate_mini_dataset

    generate_mini_dataset(folder / "mini", num_classes=12, num_train=120, num_val=24, num_test=4, image_size=96)
    words = ["tools/train_net.py", "--config-file", "configs/mini/eql.yaml", *SETTINGS, "SEED", seed]
    command = [sys.executable, *map(str, words), "OUTPUT_DIR", str(folder / "output")]
    with open(folder / "log.txt", "w") as log:
        environment = {**os.environ, "DETECTRON2_DATASETS": str(folder)}
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            return watch(process, folder / "output" / "metrics.json", hours, interval)
        except BaseException:
            process.kill()
            print((folder / "log.txt").read_text()[-2000:], file=sys.stderr)
            raise


def report(samples: List[Sample]) -> Tuple[str, List[str]]:
    """Return the table, and what grew from the second quarter to the last."""
    parts = quarters(samples)
    memory = [statistics.median(sample.mebibytes for sample in part) for part in parts]
    peak = [max(sample.mebibytes for sample in part) for part in parts]
    handles = [statistics.median(sample.handles for sample in part) for part in parts]
    seconds = [
        (part[-1].processor_seconds - part[0].processor_seconds) / max(1, part[-1].iterations - part[0].iterations)
        for part in parts
    ]
    rows = zip("1234", memory, peak, handles, seconds)
    settled = samples[len(samples) // 4 :]
    slope = np.polyfit([sample.seconds / 3600 for sample in settled], [sample.mebibytes for sample in settled], 1)[0]
    last = samples[-1]
    lines = [
        f"{last.seconds / 3600:.2f} hours, {last.iterations} iterations, "
        f"{last.iterations // EVALUATION_PERIOD} evaluations.",
        "",
        "| quarter | memory, median (MiB) | memory, peak (MiB) | open files, median | processor seconds an iteration |",
        "| ---: | ---: | ---: | ---: | ---: |",
        *("| {} | {:.0f} | {:.0f} | {:.0f} | {:.3f} |".format(*row) for row in rows),
        "",
        f"Slope of the memory after the first quarter: {slope:+.1f} MiB an hour.",
    ]
    grew = {
        "memory": memory[3] > MEMORY_GROWTH * memory[1],
        "the number of open files": handles[3] > handles[1] + 1,
        "the time of an iteration": seconds[3] > TIME_GROWTH * seconds[1],
    }
    return "\n".join(lines), list(filter(grew.get, grew))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--hours", type=float, default=6.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--interval", type=float, default=2.0, help="seconds between two looks")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        samples = train(Path(folder), args.hours, args.seed, args.interval)
    table, grew = report(samples)
    print(table)
    if grew:
        sys.exit(f"error: from the second quarter to the last, {' and '.join(grew)} grew.")


if __name__ == "__main__":
    main()
