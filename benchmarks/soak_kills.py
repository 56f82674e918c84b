"""Kill a small training many times at random moments, and compare how it ends with one that was not.

    python benchmarks/soak_kills.py --kills 50

For each sampler, without workers, with two, and on two processes: a training on generated images whose processes get
SIGKILL so many times, each time after none, one or two more checkpoints and a random while, and start again from what
is on the disk. Weights, optimizer, sums of the loss, position, metrics and results must be the same to the bit.
"""

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.engine.kills import CASES, configured, differences, outcome, run_to_the_end, write_dataset


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50, help="of each training")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    failed = 0
    for case, (world_size, opts) in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            write_dataset(Path(folder), 60)
            opts = [*opts, "SOLVER.MAX_ITER", 3 * args.kills, "TEST.EVAL_PERIOD", 20]
            whole, killed = (configured(Path(folder), name, *opts) for name in ("whole", "killed"))
            run_to_the_end(whole, Path(folder), world_size, kills=0)
            began = time.monotonic()
            at = run_to_the_end(killed, Path(folder), world_size, args.kills, args.seed)
            found = differences(outcome(whole), outcome(killed))
        failed += bool(found)
        print(
            f"{case}: {len(at)} kills in {time.monotonic() - began:.0f} s, at {len(Counter(at))} different checkpoints "
            f"of {3 * args.kills} iterations: {f'differs in {found[:5]}' if found else 'the same to the bit'}",
            file=sys.stderr,
            flush=True,
        )
    sys.exit(failed)


if __name__ == "__main__":
    main()
