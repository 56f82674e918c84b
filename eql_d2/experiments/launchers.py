"""Where the runs of a table are executed: on this machine, or on a SLURM cluster through submitit."""

import functools
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Dict, Optional, Protocol

import torch

from eql_d2.errors import InputError
from eql_d2.experiments.execution import execute
from eql_d2.experiments.plan import PlannedRun
from eql_d2.experiments.scheduling import Slots


class Launcher(Protocol):
    """Starts runs; ``slots`` says how many at a time (0: as many as there are)."""

    slots: int

    def submit(self, run: PlannedRun) -> Any:
        """Start a run; return an object with ``done()`` and ``result()``, as :class:`concurrent.futures.Future`."""

    def close(self) -> None:
        """Stop what still runs on this machine; what was handed to a cluster goes on."""


class LocalLauncher:
    """Processes on this machine, each on its share of the GPUs, or of the cores where there are none.

    Args:
        results_file: where finished runs are recorded.
        jobs: runs at a time; 0 for as many as GPUs (by ``gpus_per_job``) allow, or 1 on CPUs.
        gpus_per_job: GPUs of one run; 0 for CPUs.
        tidy: see :func:`~eql_d2.experiments.execution.execute`.

    Raises:
        InputError: if there are fewer GPUs than asked for.
    """

    def __init__(self, results_file: Path, jobs: int = 0, gpus_per_job: int = 0, tidy: bool = False):
        available = torch.cuda.device_count()
        if gpus_per_job < 0 or jobs < 0:
            raise InputError(f"--jobs is {jobs} and --gpus-per-job {gpus_per_job}; both must be 0 or more.")
        wanted = gpus_per_job * max(jobs, 1)
        if wanted > available:
            raise InputError(f"{max(jobs, 1)} jobs of {gpus_per_job} GPUs need {wanted}; torch finds {available}.")
        self.slots = jobs or (available // gpus_per_job if gpus_per_job else 1)
        self._places = Slots(self.slots, gpus_per_job)
        self._execute = functools.partial(
            execute, results_file=results_file, num_gpus=gpus_per_job, tidy=tidy, processes=self._places.processes
        )

    def submit(self, run: PlannedRun) -> Future:
        return self._places.submit(lambda environment: self._execute(run, environment=environment))

    def close(self) -> None:
        self._places.close()


class SubmititLauncher:
    """Jobs of a SLURM cluster; the folder of the runs must be one that the machines share.

    A job that SLURM preempts or that reaches its time limit is queued again and goes on at its last checkpoint.

    Args:
        results_file: where finished runs are recorded.
        log_dir: submitit's folder.
        jobs: runs queued at a time; 0 for all that can start.
        gpus_per_job: GPUs of one run.
        options: parameters of ``submitit.AutoExecutor.update_parameters``, as ``timeout_min`` or ``slurm_partition``.
        cluster: ``slurm``, or ``local`` or ``debug``, submitit's own, on this machine.
        tidy: see :func:`~eql_d2.experiments.execution.execute`.

    Raises:
        InputError: if submitit is not installed, or it does not know an option.
    """

    def __init__(
        self,
        results_file: Path,
        log_dir: Path,
        jobs: int = 0,
        gpus_per_job: int = 0,
        options: Optional[Dict[str, Any]] = None,
        cluster: str = "slurm",
        tidy: bool = False,
    ):
        try:
            import submitit
        except ImportError:
            raise InputError("--launcher submitit needs the package submitit: pip install submitit") from None
        try:
            self._executor = submitit.AutoExecutor(folder=str(log_dir), cluster=cluster)
        except RuntimeError as error:
            raise InputError(f"submitit cannot use the cluster {cluster!r}: {error}") from None
        parameters = {"timeout_min": 24 * 60, "gpus_per_node": gpus_per_job, **(options or {})}
        try:
            self._executor.update_parameters(name="eql_d2", **parameters)
        except (NameError, TypeError, AssertionError) as error:
            raise InputError(f"--slurm: {error}") from None
        self.slots = jobs
        self._results_file, self._gpus_per_job, self._tidy = results_file, gpus_per_job, tidy

    def submit(self, run: PlannedRun) -> Any:
        return self._executor.submit(Resumable(), run, self._results_file, self._gpus_per_job, {}, self._tidy)

    def close(self) -> None:
        pass


class Resumable:
    """:func:`~eql_d2.experiments.execution.execute` as submitit calls it; queued again when it is preempted."""

    def __call__(self, *args) -> Dict[str, Any]:
        return execute(*args)

    def checkpoint(self, *args) -> Any:
        """Return what is to be queued in the place of a job that is being stopped."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, *args)
