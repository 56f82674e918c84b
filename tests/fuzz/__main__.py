"""Run damaged files through everything that reads such files. It ends with an error if one of them brought anything but
a result or a clear refusal: a signal, a hang, a raw exception, over 2 GiB of memory, or a file that the check finds
sound and the loader or the mapper refuses.

    python -m tests.fuzz --files 100000 --seed 0
    python -m tests.fuzz --seed 0 --only 1234        # one of them again, in this process
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

from tests.fuzz.shards import run_shard


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=int, default=0, help="number of the first file, to go on with an earlier run")
    parser.add_argument("--shard", type=int, default=1000, help="files a process")
    parser.add_argument("--only", type=int, help="number of the only file, run in this process")
    args = parser.parse_args()
    if args.only is not None:
        run_one(args.seed, args.only)
        return
    failures, accepted, refused, peak, start = 0, 0, 0, 0.0, time.monotonic()
    for first in range(args.first, args.first + args.files, args.shard):
        end = min(first + args.shard, args.first + args.files)
        found = run_shard(args.seed, first, end)
        failures += len(found.failures)
        accepted, refused, peak = accepted + found.accepted, refused + found.refused, max(peak, found.mebibytes)
        for failure in found.failures:
            print(f"seed {args.seed}, {failure}", flush=True)
        print(
            f"{end - args.first} files, seed {args.seed}: taken {accepted} times, refused {refused} times, "
            f"{failures} failures, peak {peak:.0f} MiB, {time.monotonic() - start:.0f} s",
            flush=True,
        )
    sys.exit(bool(failures))


def run_one(seed: int, number: int) -> None:
    from tests.fuzz.mutate import make_case
    from tests.fuzz.targets import Runner

    case = make_case(seed, number)
    print(case.kind, case.format)
    print((case.results if case.kind == "results" else case.annotations).decode(errors="replace")[:20000])
    with tempfile.TemporaryDirectory() as folder:
        print(Runner(Path(folder), seed).run(number))


if __name__ == "__main__":
    main()
