"""Run for hours what the test suite runs for seconds, and end with an error if anything did not hold.

    python benchmarks/soak.py                                       # all parts, as make soak: about a day
    python benchmarks/soak.py --part memory --hours 0.5 --seed 7    # some of it

Each part is a program of its own, here started with ``--seed`` and as much work as is asked for, one after the other;
all of them run even if one fails. docs/reliability.md says what was run and what came of it.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import Callable, Dict, List

ROOT = Path(__file__).resolve().parent.parent
#: Of each part, the words after ``python``.
PARTS: Dict[str, Callable[[argparse.Namespace], List[str]]] = {
    "fuzz": lambda args: ["-m", "tests.fuzz", "--files", str(args.files), "--seed", str(args.seed)],
    "kills": lambda args: ["benchmarks/soak_kills.py", "--kills", str(args.kills), "--seed", str(args.seed)],
    "hosts": lambda args: ["benchmarks/soak_hosts.py"],
    "memory": lambda args: ["benchmarks/soak_memory.py", "--hours", str(args.hours), "--seed", str(args.seed)],
}


def run_part(words: List[str]) -> int:
    """Run one part and return its exit status."""
    print(" ".join(["python", *words]), flush=True)
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *words], cwd=ROOT, env=environment).returncode


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn")
    parser.add_argument("--files", type=int, default=100_000, help="damaged files of the part fuzz")
    parser.add_argument("--hours", type=float, default=6.0, help="of training in the part memory")
    parser.add_argument("--kills", type=int, default=50, help="of each training in the part kills")
    args = parser.parse_args()
    failed = [name for name in args.part if run_part(PARTS[name](args))]
    if failed:
        sys.exit(f"error: {', '.join(failed)} did not hold.")


if __name__ == "__main__":
    main()
