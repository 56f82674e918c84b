"""What the benchmarks share: processor seconds, peak memory, equality, and processes that are ended in time.

Processor seconds (of all threads of the process) are compared where other programs may run beside a benchmark.
"""

import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Optional, Tuple

import torch
from torch import Tensor

#: Exit status of a process of :func:`run_within` that ran out of memory.
OUT_OF_MEMORY = 77
TOLERANCE = 1e-5
MIN_SAMPLE_SECONDS = 0.1


def timed(function: Callable, repeats: int = 5, budget: float = 3.0) -> Tuple[float, Any]:
    """Return the processor seconds of a call, the median of at most ``repeats`` samples, and the call's result.

    A sample is as many calls as take a tenth of a second: the clock is coarse on a busy machine. None is begun after
    ``budget`` seconds.
    """
    num_calls, samples, spent = 1, [], 0.0
    while len(samples) < repeats and spent < budget:
        start = time.process_time()
        for _ in range(num_calls):
            result = function()
        seconds = time.process_time() - start
        spent += seconds
        if seconds < MIN_SAMPLE_SECONDS:
            num_calls, samples = 2 * num_calls, []
        else:
            samples.append(seconds / num_calls)
    return statistics.median(samples), result


def run_within(function: Callable, seconds: float = 600, gibibytes: Optional[float] = None) -> Any:
    """Call a function in a forked process and return its result; ``None`` if it needs more than it may.

    Args:
        function: returns what ``torch.save`` takes.
        seconds: processor time that it may take.
        gibibytes: memory that the process may take beside files; any if ``None``.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.pt"
        process = multiprocessing.get_context("fork").Process(
            target=_call_and_save, args=(function, path, seconds, gibibytes)
        )
        process.start()
        process.join()
        if path.is_file() and process.exitcode == 0:
            return torch.load(path, weights_only=False)  # written by ourselves just now; holds numpy's numbers too
        # The kernel ends a process whose processor time is up with SIGXCPU, and a second later with SIGKILL.
        if process.exitcode in (-24, -9, OUT_OF_MEMORY):
            return None
        raise RuntimeError(f"A measured process ended with status {process.exitcode}.")


def _call_and_save(function: Callable, path: Path, seconds: float, gibibytes: Optional[float]) -> None:
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds), int(seconds) + 1))
    if gibibytes is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (int(gibibytes * 2**30),) * 2)
    try:
        result = function()
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            os._exit(OUT_OF_MEMORY)
        raise
    torch.save(result, path)


def memory_bytes(field: str) -> int:
    """Return a field of ``/proc/self/status``: VmRSS, memory held now, or VmHWM, its peak so far.

    ``getrusage`` would not do: the peak that it gives starts with that of the parent process.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise KeyError(field)


def assert_close(result: Dict[str, Tensor], expected: Dict[str, Tensor], names: Iterable[str]) -> None:
    """Assert that tensors differ by at most 1e-5 of their largest entry.

    Raises:
        AssertionError: naming one that differs by more.
    """
    for name in names:
        scale = float(expected[name].abs().max())
        difference = float((result[name] - expected[name]).abs().max()) / scale
        if not difference <= TOLERANCE:
            raise AssertionError(f"{name} differs by {difference:.2e} of its largest entry.")
