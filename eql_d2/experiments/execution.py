"""Running one run of a table: its processes, its lock, what is known of it afterwards."""

import contextlib
import datetime
import fcntl
import functools
import json
import os
import platform
import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence

import torch

from eql_d2.experiments.jobs import ROOT
from eql_d2.experiments.plan import PlannedRun, code_digest
from eql_d2.experiments.scheduling import Processes, start_process
from eql_d2.files import write_whole
from eql_d2.run_folder import RunFolder

STATE_FILE = "run.json"
LOCK_FILE = "run.lock"
#: Exit statuses of a process that was ended from outside.
_STOPPED = (-signal.SIGTERM, -signal.SIGINT, -signal.SIGKILL, 128 + signal.SIGTERM)
FINISHED, FAILED, BUSY = "finished", "failed", "busy"
RUNNING, INTERRUPTED, NOT_RUN = "running", "interrupted", "not run"


def execute(
    run: PlannedRun,
    results_file: Path,
    num_gpus: int = 0,
    environment: Optional[Dict[str, str]] = None,
    tidy: bool = False,
    processes: Optional[Processes] = None,
) -> Dict[str, Any]:
    """Run the commands of a run, append its record to the results file if all went well.

    Called again after an interruption it goes on at the last checkpoint. Two processes never work on the same run: the
    lock is inherited by the training itself, so it holds as long as any of them lives. What another one has finished
    in the meantime is not done again.

    Args:
        run: what to do.
        results_file: a JSON-lines file; written once, with a lock, at the end.
        num_gpus: see :meth:`PlannedRun.commands`.
        environment: variables added to this process's own.
        tidy: delete the checkpoints before the last one when the training has finished.
        processes: what can stop the run from another thread.

    Returns:
        ``{"status": "finished"}``; "failed" or "interrupted" with the last words of the log under ``error``; or "busy",
        if another process works on it.
    """
    run.folder.mkdir(parents=True, exist_ok=True)
    with open(run.folder / LOCK_FILE, "a") as lock:
        if not _lock(lock):
            return {"status": BUSY}
        if is_recorded(run, read_records(results_file)):
            return {"status": FINISHED}
        start = functools.partial(start_process, environment=environment or {}, keep_open=(lock.fileno(),))
        return _execute(run, results_file, run.commands(num_gpus), start, tidy, processes or Processes())


def _execute(
    run: PlannedRun,
    results_file: Path,
    commands: Sequence[List[str]],
    launch: Callable[[List[str], Path], subprocess.Popen],
    tidy: bool,
    processes: Processes,
) -> Dict[str, Any]:
    state, output = read_run_state(run.folder), RunFolder(run.folder)
    state.update(status=RUNNING, error=None, attempts=state.get("attempts", 0) + 1, started=_now())
    state.update(machine=describe_machine(), commit=current_commit())
    seconds_before = state.get("seconds", 0.0)
    start = time.monotonic()
    _write_state(run.folder, state)
    for command in commands:
        code, peak = processes.wait(launch(command, output.console_file))
        state["seconds"] = seconds_before + time.monotonic() - start
        state["peak_memory_mib"] = max(peak, state.get("peak_memory_mib", 0.0))
        if code:
            # A training that was told to stop is not a failure: it goes on at its checkpoint.
            stopped = processes.stopped or code in _STOPPED
            error = f"{output.last_words()} (exit status {code}, all of it in {output.console_file})"
            state.update(status=INTERRUPTED if stopped else FAILED, error=error)
            _write_state(run.folder, state)
            return {"status": state["status"], "error": state["error"]}
        _write_state(run.folder, state)
    append_record(results_file, _record(run, state, output.read_results()))
    if tidy:
        _delete_early_checkpoints(run.folder)
    state["status"] = FINISHED
    _write_state(run.folder, state)
    return {"status": FINISHED}


def _record(run: PlannedRun, state: Dict[str, Any], content: Dict[str, Any]) -> Dict[str, Any]:
    """Return the row of the results file."""
    identity = run.identity()
    # Not where the weights lay on this machine, but what they are.
    experiment = {**content["experiment"], "weights": identity["settings"].get("MODEL.WEIGHTS", "")}
    if run.row.calibrate:
        experiment["calibration"] = {"name": run.cfg.MODEL.LONG_TAIL.CALIBRATION.NAME}
    return {
        "name": run.row.name,
        "config": os.path.relpath(run.row.config, ROOT),
        "seed": run.seed,
        "config_digest": run.config_digest,
        "data_digest": run.data_digest(),
        "code_digest": code_digest(),
        **{name: state[name] for name in ("started", "seconds", "attempts", "peak_memory_mib", "machine", "commit")},
        "metrics": content["results"],
        "experiment": experiment,
        "settings": identity["settings"],
    }


def append_record(path: Path, record: Dict[str, Any]) -> None:
    """Append a line to a JSON-lines file, safe against others that do so at the same time and against a cut-off line.

    Args:
        path: created, with its folder, if it is absent.
        record: what json can write.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        end = file.seek(0, os.SEEK_END)
        file.seek(max(end - 1, 0))
        # A line that was cut off by a full disk or a crash must not swallow this one.
        prefix = b"\n" if end and file.read(1) != b"\n" else b""
        file.write(prefix + json.dumps(record, sort_keys=True).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def read_records(path: Path) -> List[Dict[str, Any]]:
    """Return the rows of a results file, oldest first; lines that were cut off are left out."""
    if not path.is_file():
        return []
    records = []
    for line in path.read_text().splitlines():
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict) and "config_digest" in record:
                records.append(record)
    return records


def records_of(run: PlannedRun, records: Sequence[Mapping[str, Any]]) -> List[Mapping[str, Any]]:
    """Return the records of a run, oldest first: those of its config, seed, start weights and data.

    Raises:
        InputError: if the data is not there.
    """
    digests = (run.config_digest, run.data_digest())
    fitting = [record for record in records if (record["config_digest"], record["data_digest"]) == digests]
    return [record for record in fitting if run.code in ("", record["code_digest"])]


def is_recorded(run: PlannedRun, records: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a run is in the results file and, if it is a training, its weights are there."""
    return bool(records_of(run, records)) and (run.row.action == "evaluate" or Path(run.weights).is_file())


def provenance(record: Mapping[str, Any]) -> str:
    """Return what code a record comes from, as ``commit 1234567, code 89abcdef``; neither decides what is run."""
    commit, _, dirty = (record.get("commit") or "unknown").partition("-")
    return f"commit {commit[:7]}{'-dirty' if dirty else ''}, code {record['code_digest'][:8]}"


def status_of(run: PlannedRun) -> Dict[str, Any]:
    """Return what a run's folder says: ``status``, ``error``, ``attempts``, ``iteration``."""
    state = read_run_state(run.folder)
    if not state:
        return {"status": NOT_RUN}
    if state["status"] == RUNNING and not is_locked(run.folder):
        state["status"] = INTERRUPTED
    metrics = RunFolder(run.folder).last_metrics()
    state["iteration"] = metrics["iteration"] + 1 if metrics else 0
    return state


def is_locked(folder: Path) -> bool:
    """Return whether a process works on the run of this folder."""
    path = folder / LOCK_FILE
    if not path.is_file():
        return False
    with open(path, "a") as lock:
        return not _lock(lock)


def _lock(file) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def read_run_state(folder: Path) -> Dict[str, Any]:
    """Return the content of ``run.json``, empty if there is none."""
    path = folder / STATE_FILE
    return json.loads(path.read_text()) if path.is_file() else {}


def _write_state(folder: Path, state: Dict[str, Any]) -> None:
    write_whole(folder / STATE_FILE, json.dumps(state, indent=1))


def _delete_early_checkpoints(folder: Path) -> None:
    if RunFolder(folder).has_finished():
        for path in folder.glob("model_*.pth"):
            if re.fullmatch(r"model_\d+\.pth", path.name):
                path.unlink()


def describe_machine() -> Dict[str, Any]:
    """Return processor, cores and GPUs."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text())
        model = found.group(1) if found else model
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {"processor": model, "cores": os.cpu_count(), "gpus": gpus}


def current_commit() -> Optional[str]:
    """Return the git commit of this checkout, with "-dirty" if files differ from it; ``None`` where there is none.

    An installed package has none, also where its environment lies within somebody's repository.
    """
    if not (ROOT / ".git").exists():
        return None
    with contextlib.suppress(OSError):
        # No tag matches the empty pattern, so what is printed is the commit and never a tag's name.
        command = ["git", "describe", "--match=", "--always", "--abbrev=40", "--dirty"]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        if not done.returncode:
            return done.stdout.strip()
    return None


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
