"""Running trainings in processes of their own, several at a time, with one progress line for all."""

import sys
from concurrent.futures import wait
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Callable, Dict, List, Mapping, Optional, Sequence

from eql_d2.config_files import configs_root
from eql_d2.errors import InputError
from eql_d2.experiments.scheduling import Processes, Slots, start_process
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

    def run(self, processes: Processes, environment: Mapping[str, str]) -> Optional[str]:
        """Train and evaluate; return what went wrong, ``None`` if nothing did.

        Args:
            processes: what can stop it from another thread.
            environment: variables besides the job's own.
        """
        self.output_dir.mkdir(parents=True, exist_ok=True)
        console = self.folder.console_file
        status, _ = processes.wait(start_process(self.command(), console, {**environment, **self.environment}))
        if status == 0 and self.results is not None:
            return None
        return f"{self.name} failed: {self.folder.last_words()} (all of it in {console})"

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
    slots = Slots(max(1, min(parallel, len(waiting))))
    running = {slots.submit(partial(job.run, slots.processes)): job for job in waiting}
    try:
        while wait(running, timeout=period).not_done:
            report(" | ".join(_progress_line(job) for future, job in running.items() if future.running()))
    finally:
        slots.close()
    failed = [error for error in (future.result() for future in running) if error]
    if failed:
        raise InputError("; ".join(failed))


def _progress_line(job: Job) -> str:
    metrics = job.folder.last_metrics()
    if metrics is None:
        return f"{job.name}: starting"
    eta = f", {metrics['eta_seconds']:.0f} s left" if "eta_seconds" in metrics else ""
    return f"{job.name}: iteration {metrics['iteration'] + 1}, loss {metrics['total_loss']:.2f}{eta}"
