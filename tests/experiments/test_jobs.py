"""Several trainings side by side: their share of the machine, their progress, their end."""

import os
import signal
import sys
import time

import pytest

from eql_d2.errors import InputError
from eql_d2.experiments.jobs import Job, run_jobs
from eql_d2.experiments.scheduling import Slots, start_process, threads_per_job


@pytest.mark.parametrize(
    "given, jobs, expected",
    [(None, 1, "8"), (None, 3, "2"), (None, 20, "1"), ("1", 2, "1"), ("16", 2, "4"), ("many", 2, "4"), ("0", 2, "4")],
)
def test_jobs_share_the_cores_and_keep_to_what_is_set(monkeypatch, given, jobs, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert threads_per_job(jobs) == expected


def test_a_job_is_started_with_its_share_of_the_cores(monkeypatch, tmp_path):
    class Printing(Job):
        def command(self):
            return [sys.executable, "-c", "import os; print(os.environ['OMP_NUM_THREADS']); raise SystemExit(1)"]

    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    jobs = [Printing(str(i), tmp_path / "config.yaml", tmp_path / str(i)) for i in range(2)]
    with pytest.raises(InputError, match=r"^0 failed: 3 \(all of it in .*; 1 failed: 3 "):
        run_jobs(jobs, 2)
    assert [(job.output_dir / "console.txt").read_text().splitlines()[-1] for job in jobs] == ["3", "3"]


def test_jobs_take_turns_and_say_how_far_they_are(tmp_path):
    class Training(Job):
        def command(self):
            script = (
                f"import time, pathlib; folder = pathlib.Path({str(self.output_dir)!r}); "
                '(folder / \'metrics.json\').write_text(\'{"iteration": 4, "total_loss": 2.5, "eta_seconds": 7}\'); '
                "time.sleep(0.5); (folder / 'model_final.pth').touch(); (folder / 'results.json').write_text('{}')"
            )
            return [sys.executable, "-c", script]

    said = []
    jobs = [Training(str(i), tmp_path / "config.yaml", tmp_path / str(i)) for i in range(2)]
    run_jobs(jobs, 1, report=said.append, period=0.1)
    assert all(job.results == {} for job in jobs)
    assert "0: iteration 5, loss 2.50, 7 s left" in said and "1: iteration 5, loss 2.50, 7 s left" in said
    assert not any("|" in line for line in said)  # one at a time


def test_processes_end_when_the_slots_are_closed(tmp_path):
    slots = Slots(1)

    def sleep(environment):
        return slots.processes.wait(start_process(["sleep", "60"], tmp_path / "console.txt", environment))

    first, second = slots.submit(sleep), slots.submit(sleep)
    while not (tmp_path / "console.txt").exists():
        time.sleep(0.01)
    slots.close()
    assert first.result(timeout=20)[0] == -signal.SIGTERM and second.cancelled()
