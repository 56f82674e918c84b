"""Running trainings in processes of their own, several at a time, with one progress line for all."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Dict, List, Optional, Sequence

from eql_d2.config_files import configs_root
from eql_d2.errors import InputError
from eql_d2.run_folder import RunFolder

#: The folder that ``configs`` lies in: the checkout, or the installed package.
ROOT = configs_root().parent
#: The words that start a training; a command of the package, so that an installed one needs no checkout.
TRAIN = (sys.executable, "-m", "eql_d2", "train")


@dataclass
class Job:
    """One run of ``eql-d2 train``.

    Attributes:
        name: how tables and progress lines call it.
        config_file: its config.
        output_dir: its ``OUTPUT_DIR``; ``console.txt``, ``metrics.json`` and ``results.json`` end up there.
        opts: config overrides, alternating keys and values.
        environment: variables added to this process's own.
    """

    name: str
    config_file: Path
    output_dir: Path
    opts: Sequence[str] = ()
    environment: Dict[str, str] = field(default_factory=dict)

    def command(self) -> List[str]:
        """The command line, as a list; it resumes from the last checkpoint if there is one."""
        arguments = ["--config-file", str(self.config_file), "--resume", "OUTPUT_DIR", str(self.output_dir)]
        return [*TRAIN, *arguments, *map(str, self.opts)]

    @property
    def results(self) -> Optional[Dict]:
        """What ``results.json`` holds, ``None`` until the run has finished."""
        return self.folder.read_results() if self.folder.has_finished() else None

    @property
    def folder(self) -> RunFolder:
        """What is in ``output_dir``."""
        return RunFolder(self.output_dir)


def run_jobs(
    jobs: Sequence[Job], parallel: int = 1, report: Callable[[str], None] = print, period: float = 15.0
) -> None:
    """Run every job that has not finished yet, ``parallel`` at a time, each on its share of the cores.

    Args:
        jobs: what to run.
        parallel: how many processes at a time.
        report: called with a progress line every ``period`` seconds.
        period: seconds.

    Raises:
        InputError: if a job fails; the message holds its last words and the path of its log. The others run to their
            end first.
    """
    waiting = [job for job in jobs if job.results is None]
    running: Dict[subprocess.Popen, Job] = {}
    failed: List[str] = []
    threads = threads_per_job(min(parallel, len(waiting)))
    last_report = time.monotonic()
    try:
        while waiting or running:
            while waiting and len(running) < parallel:
                job = waiting.pop(0)
                running[_start(job, threads)] = job
            for process in [p for p in running if p.poll() is not None]:
                job = running.pop(process)
                if process.returncode or job.results is None:
                    failed.append(_last_words(job))
            if running and time.monotonic() - last_report >= period:
                report(" | ".join(_progress_line(job) for job in running.values()))
                last_report = time.monotonic()
            time.sleep(0.2)
    finally:
        for process in running:
            process.terminate()
    if failed:
        raise InputError("; ".join(failed))


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


def _start(job: Job, threads: str) -> subprocess.Popen:
    job.output_dir.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": threads, **job.environment}
    with open(job.folder.console_file, "ab") as console:
        return subprocess.Popen(job.command(), stdout=console, stderr=subprocess.STDOUT, env=environment)


def _progress_line(job: Job) -> str:
    metrics = job.folder.last_metrics()
    if metrics is None:
        return f"{job.name}: starting"
    eta = f", {metrics['eta_seconds']:.0f} s left" if "eta_seconds" in metrics else ""
    return f"{job.name}: iteration {metrics['iteration'] + 1}, loss {metrics['total_loss']:.2f}{eta}"


def _last_words(job: Job) -> str:
    return f"{job.name} failed: {job.folder.last_words()} (all of it in {job.folder.console_file})"
