"""Processes side by side on this machine: each on its share of the cores or GPUs, all stopped when this one is."""

import os
import signal
import subprocess
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Sequence, Tuple

import torch


class Processes:
    """The processes that work for this one, so that they can be stopped when it is."""

    def __init__(self):
        self._running: List[subprocess.Popen] = []
        self._lock = threading.Lock()
        self.stopped = False

    def wait(self, process: subprocess.Popen) -> Tuple[int, float]:
        """Wait for a process; return its exit status and its peak resident memory, children included, in MiB."""
        with self._lock:
            self._running.append(process)
            if self.stopped:
                os.kill(process.pid, signal.SIGTERM)
        _, status, usage = os.wait4(process.pid, 0)
        with self._lock:
            self._running.remove(process)
            process.returncode = os.waitstatus_to_exitcode(status)
        return process.returncode, usage.ru_maxrss / 1024

    def stop(self) -> None:
        """End every process, and each that starts from now on."""
        with self._lock:
            self.stopped = True
            for process in self._running:
                # Not Popen.terminate(): it would collect the exit status that wait() is waiting for.
                os.kill(process.pid, signal.SIGTERM)


class Slots:
    """A number of places to work at; what is submitted waits until one is free.

    Args:
        number: how many, at least 1.
        gpus: of each; 0 for a share of the cores alone.

    Attributes:
        processes: of the work, stopped by :meth:`close`.
    """

    def __init__(self, number: int, gpus: int = 0):
        self.processes = Processes()
        self._number, self._gpus = number, gpus
        self._free = list(range(number))
        self._lock = threading.Lock()
        self._pool = ThreadPoolExecutor(number)

    def submit(self, work: Callable[[Dict[str, str]], Any]) -> Future:
        """Call ``work`` in a thread, with the variables that its processes need to keep to their place."""
        return self._pool.submit(self._on_a_slot, work)

    def _on_a_slot(self, work: Callable[[Dict[str, str]], Any]) -> Any:
        with self._lock:
            slot = self._free.pop(0)
        try:
            return work(self.environment(slot))
        finally:
            with self._lock:
                self._free.append(slot)

    def environment(self, slot: int) -> Dict[str, str]:
        """Return the variables of the processes in a slot."""
        variables = {"OMP_NUM_THREADS": threads_per_job(self._number)}
        if self._gpus:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
            names = visible if visible != [""] else [str(i) for i in range(torch.cuda.device_count())]
            variables["CUDA_VISIBLE_DEVICES"] = ",".join(names[slot * self._gpus : (slot + 1) * self._gpus])
        return variables

    def close(self) -> None:
        """Stop the processes that run; what still waits is never started."""
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.processes.stop()


def start_process(
    command: Sequence[str], console: Path, environment: Mapping[str, str], keep_open: Sequence[int] = ()
) -> subprocess.Popen:
    """Start a command that writes to a file, after a line ``$ COMMAND``.

    Args:
        command: its words.
        console: appended to.
        environment: variables added to this process's own.
        keep_open: descriptors that it holds as long as it lives, as that of a lock.
    """
    with open(console, "ab") as log:
        log.write(f"$ {' '.join(command)}\n".encode())
        log.flush()
        variables = {**os.environ, **environment}
        return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=variables, pass_fds=keep_open)


def threads_per_job(jobs: int) -> str:
    """Return ``OMP_NUM_THREADS`` for jobs that run side by side: an equal share of the cores, and no more than is set.

    More threads than cores wait for each other; who shares the machine with others sets the variable.

    Args:
        jobs: how many run at a time.
    """
    # What this process may use, where the system says so: a cluster's job has a few cores of a large machine.
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    share = max(1, cores // max(1, jobs))
    given = os.environ.get("OMP_NUM_THREADS", "")
    return str(min(share, int(given)) if given.isdecimal() and int(given) else share)
