"""Cases run in processes that may die of them: of a signal, of the alarm, of the limit to their memory."""

import argparse
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import List, NamedTuple, Sequence

SECONDS_A_CASE = 20
MEMORY_BYTES = 2 * 2**30
ROOT = Path(__file__).resolve().parent.parent.parent


class Summary(NamedTuple):
    """What came of some cases: how often a program took the file and refused it, the failures, the peak memory in
    MiB of the process that needed most."""

    accepted: int
    refused: int
    failures: List[str]
    mebibytes: float


def run_shard(
    seed: int, first: int, end: int, program: Sequence[str] = (sys.executable, "-m", "tests.fuzz.shards")
) -> Summary:
    """Run the cases ``first`` to ``end - 1`` in a process of its own, in another one if it dies of one of them."""
    accepted, refused, failures, mebibytes = 0, 0, [], 0.0
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory(prefix="fuzz_") as folder:
        while first < end:
            output, place = Path(folder) / "output", Path(folder) / "place"
            output.unlink(missing_ok=True)
            place.write_text(str(first))
            command = [*program, str(seed), str(first), str(end), folder]
            done = subprocess.run(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE)
            for line in output.read_text().splitlines() if output.is_file() else ():
                one = json.loads(line)
                accepted, refused = accepted + one["accepted"], refused + one["refused"]
                mebibytes = max(mebibytes, one["mebibytes"])
                failures += [f"case {one['number']}: {failure}" for failure in one["failures"]]
            if done.returncode == 0:
                break
            stopped = int(place.read_text())
            words = done.stderr.decode(errors="replace").strip().splitlines()[-12:]
            died = signal.Signals(-done.returncode).name if done.returncode < 0 else f"status {done.returncode}"
            failures.append(f"case {stopped}: the process ended with {died}: {' | '.join(words)}")
            first = stopped + 1
    return Summary(accepted, refused, failures, mebibytes)


def run_here(seed: int, first: int, end: int, folder: Path) -> None:
    import faulthandler

    from tests.fuzz.targets import Runner

    faulthandler.enable()
    logging.disable(logging.CRITICAL)  # what is odd is said in thousands of warnings
    with tempfile.TemporaryDirectory(dir=folder) as own, open(folder / "output", "w") as output:
        runner = Runner(Path(own), seed)
        runner.run(first)  # imports what the limits should not count
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MEMORY_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        signal.signal(signal.SIGALRM, signal.SIG_DFL)  # ends the process, also within an extension
        for number in range(first, end):
            (folder / "place").write_text(str(number))
            signal.alarm(SECONDS_A_CASE)
            outcome = runner.run(number)
            signal.alarm(0)
            peak = _peak_memory()
            print(json.dumps({"number": number, "mebibytes": peak, **outcome._asdict()}), file=output, flush=True)


def _peak_memory() -> float:
    """Return the peak memory of this process in MiB; that of ``getrusage`` begins with the parent's."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("numbers", type=int, nargs=3)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    run_here(*arguments.numbers, arguments.folder)


if __name__ == "__main__":
    main()
