"""Kill a small training many times at random moments, and compare how it ends with one that was not.

    python benchmarks/soak_kills.py --kills 50

For each sampler, without workers, with two, and on two processes: a training on generated images whose processes get
SIGKILL so many times, each time after none, one or two more checkpoints and a random while, and start again from what
is on the disk. Weights, optimizer, sums of the loss, position, metrics and results must be the same to the bit. Then a
training on two processes under ``torchrun --max-restarts``, of which one gets SIGKILL ``--restarts`` times, and which
torchrun starts again each time: checkpoint and results must be the same to the bit.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import List

from tests.engine.kills import (
    CASES,
    configured,
    differences,
    outcome,
    run_to_the_end,
    run_under_torchrun,
    write_dataset,
)


def kill(case: str, kills: int, seed: int) -> List[str]:
    """Return what differs after so many kills of one of the trainings."""
    world_size, opts = CASES[case]
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(Path(folder), 60)
        opts = [*opts, "SOLVER.MAX_ITER", 3 * kills, "TEST.EVAL_PERIOD", 20]
        whole, killed = (configured(Path(folder), name, *opts) for name in ("whole", "killed"))
        run_to_the_end(whole, Path(folder), world_size, kills=0)
        began = time.monotonic()
        at = run_to_the_end(killed, Path(folder), world_size, kills, seed)
        found = differences(outcome(whole), outcome(killed))
    seconds, checkpoints = time.monotonic() - began, len(Counter(at))
    say(
        f"{case}: {kills} kills in {seconds:.0f} s, at {checkpoints} different checkpoints of {3 * kills} iterations",
        found,
    )
    return found


def restart(restarts: int, seed: int) -> List[str]:
    """Return what differs after so many restarts by torchrun, lines of the metrics apart.

    A process that ends with an error because another is gone writes its metrics up to then: lines that are more.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_dataset(Path(folder), 60)
        opts = ["DATALOADER.NUM_WORKERS", 1, "SOLVER.IMS_PER_BATCH", 4, "SOLVER.MAX_ITER", 6 * (restarts + 1)]
        whole, killed = (configured(Path(folder), name, *opts, "TEST.EVAL_PERIOD", 20) for name in ("whole", "killed"))
        run_to_the_end(whole, Path(folder), 2, kills=0)
        said = run_under_torchrun(killed, Path(folder), restarts, seed)
        found = [name for name in differences(outcome(whole), outcome(killed)) if not name.startswith("/history")]
    anew = said.count("Starting training from iteration 0") - 1
    resumed = said.count("Starting training from iteration") - anew - 1
    # A restart whose predecessor wrote one more checkpoint while it was ended may be killed before it trains.
    say(f"torchrun --max-restarts {restarts}: {resumed} went on from a checkpoint, {anew} began anew", found)
    return [*found, "where it went on"] if anew else found


def say(what: str, found: List[str]) -> None:
    """Print what was done and what came of it."""
    print(f"{what}: {f'differs in {found[:5]}' if found else 'the same to the bit'}", file=sys.stderr, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="of each training")
    parser.add_argument("--restarts", type=int, default=10, help="by torchrun")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    failed = sum(bool(kill(case, args.kills, args.seed)) for case in CASES if args.kills)
    failed += bool(args.restarts and restart(args.restarts, args.seed))
    sys.exit(failed)


if __name__ == "__main__":
    main()
