"""Running the tables of ``configs/tables``: what is left to do, in which order, and how far it is."""

import contextlib
import os
import shlex
import time
from pathlib import Path
from typing import Callable, Dict, List, Mapping, Optional, Sequence, Set, Tuple

from eql_d2.data.builtin import data_root, resolve_path
from eql_d2.errors import InputError
from eql_d2.experiments.execution import (
    BUSY,
    FAILED,
    FINISHED,
    INTERRUPTED,
    NOT_RUN,
    is_locked,
    provenance,
    read_records,
    records_of,
    status_of,
)
from eql_d2.experiments.launchers import Launcher
from eql_d2.experiments.plan import PlannedRun, code_digest, runs_of
from eql_d2.experiments.spec import FIXED, Table
from eql_d2.mini import FORMATS
from eql_d2.mini.photographs import generate_photograph_dataset

OUTPUT = Path("output/tables")
RUNS = OUTPUT / "runs"
RESULTS = OUTPUT / "results.jsonl"


def generate_data(table: Table) -> None:
    """Generate the data sets that the table asks for, unless they are there.

    Raises:
        InputError: if one cannot be made, or the photographs are named by an environment variable that is not set.
    """
    for folder, arguments in table.generate.items():
        output_dir = Path(data_root()) / folder
        if "objects" in arguments:
            objects = resolve_path(arguments["objects"], f"{table.name}: generate.{folder}.objects")
            generate_photograph_dataset(output_dir, **{**arguments, "objects": objects})
        else:
            options = dict(arguments)
            FORMATS[options.pop("format", "lvis")](output_dir, **options)


def run_table(
    table: Table,
    launcher: Launcher,
    runs_dir: Path,
    results_file: Path,
    *,
    only: Optional[Sequence[str]] = None,
    rerun: bool = False,
    report: Callable[[str], None] = print,
    period: float = 5.0,
) -> List[str]:
    """Run what has not finished yet, in an order in which every run finds the weights that it starts from.

    A run that fails does not stop the others, but those that start from it. A run that another process works on is
    left to it, and waited for: several calls share the work.

    Args:
        table: what to run.
        launcher: where.
        runs_dir: folder of all runs; runs of several tables that are the same are shared.
        results_file: a JSON-lines file; runs that are in it are not run again.
        only: names of rows; all by default.
        rerun: run again, in folders of their own, what other code than this has measured.
        report: called with one line for each run that starts or ends.
        period: seconds between two looks at what runs.

    Returns:
        The names of the runs that failed or could not start.

    Raises:
        InputError: if a data set is missing, or ``only`` names no row.
    """
    generate_data(table)
    waiting = select_runs(table, runs_dir, only, code_digest() if rerun else "")
    finished = finished_runs(waiting, results_file)
    skipped = len(finished)
    waiting = [run for run in waiting if run.name not in finished]
    report(f"{table.name}: {skipped} of {skipped + len(waiting)} runs have finished, {len(waiting)} to go.")
    active: Dict[str, Tuple[PlannedRun, object]] = {}
    unfinished: Dict[str, str] = {}
    elsewhere: Set[str] = set()  # runs that another process works on, or did
    try:
        while waiting or active:
            waiting = _drop_orphans(waiting, unfinished, report)
            for run in [run for run in waiting if run.parent is None or run.parent.name in finished]:
                if launcher.slots and len(active) >= launcher.slots:
                    break
                if is_locked(run.folder):
                    if run.name not in elsewhere:
                        elsewhere.add(run.name)
                        report(f"{_clock()} wait  {run.name}: another process works on it")
                    continue
                waiting.remove(run)
                report(f"{_clock()} start {run.name}: {run.folder}")
                active[run.name] = (run, launcher.submit(run))
            time.sleep(period if active or elsewhere else min(period, 0.1))
            for run, job in [pair for pair in active.values() if pair[1].done()]:
                del active[run.name]
                outcome = _outcome(job)
                if outcome["status"] == FINISHED:
                    finished.add(run.name)
                    report(f"{_clock()} done  {run.name} ({len(waiting) + len(active)} to go)")
                elif outcome["status"] == BUSY:  # it was started elsewhere between the look and the start
                    waiting.append(run)
                else:
                    unfinished[run.name] = outcome["error"]
                    report(f"{_clock()} {outcome['status']:5} {run.name}: {unfinished[run.name]}")
    finally:
        launcher.close()
    return list(unfinished)


def _drop_orphans(
    waiting: List[PlannedRun], unfinished: Dict[str, str], report: Callable[[str], None]
) -> List[PlannedRun]:
    """Return the runs whose weights may still come; say of the others why they are left out."""
    kept = []
    for run in waiting:
        if run.parent is not None and run.parent.name in unfinished:
            unfinished[run.name] = f"{run.parent.name} has no weights for it"
            report(f"{_clock()} skip  {run.name}: {unfinished[run.name]}")
        else:
            kept.append(run)
    return kept


def _outcome(job) -> Mapping:
    try:
        return job.result()
    except Exception as error:  # a job that a cluster lost; the others go on
        return {"status": FAILED, "error": f"{type(error).__name__}: {error}"}


def select_runs(table: Table, runs_dir: Path, only: Optional[Sequence[str]] = None, code: str = "") -> List[PlannedRun]:
    """Return the runs of the rows ``only`` with those that they start from, in an order in which they can run.

    ``code`` is that of :class:`~eql_d2.experiments.plan.PlannedRun`.

    Raises:
        InputError: if there is no such row.
    """
    runs = runs_of(table, runs_dir, code)
    names = [row.name for row in table.rows]
    unknown = sorted(set(only or ()) - set(names) - set(table.prepare))
    if unknown:
        raise InputError(f"{table.name} has no row {unknown[0]!r}; there are {', '.join(names)}.")
    for row in table.rows:
        if row.not_expressible and row.name in (only or ()):
            raise InputError(f"The row {row.name!r} of {table.name} cannot be run: {row.not_expressible}")
    chosen: Dict[str, PlannedRun] = {}
    for run in runs.values():
        if only and run.row.name not in only and run.row.name.removesuffix(FIXED) not in only:
            continue
        chain: List[PlannedRun] = []
        current: Optional[PlannedRun] = run
        while current is not None:
            chain.insert(0, current)
            current = current.parent
        for link in chain:
            chosen.setdefault(link.name, link)
    return list(chosen.values())


def finished_runs(runs: Sequence[PlannedRun], results_file: Path) -> Set[str]:
    """Return the names of the runs that need not be run: they are in the results file.

    One that is there is run again all the same if its weights are gone and a run that is not there starts from them.
    """
    records = read_records(results_file)
    known = {run.name for run in runs if records_of(run, records)}
    unfinished: Set[str] = set()
    for run in runs:
        current: Optional[PlannedRun] = None if run.name in known else run
        while current is not None:
            unfinished.add(current.name)
            parent = current.parent
            current = None if parent is None or (parent.name in known and Path(parent.weights).is_file()) else parent
    return {run.name for run in runs} - unfinished


def last_errors(table: Table, runs_dir: Path) -> Dict[str, str]:
    """Return the last error of each row of which a run failed, by name; empty where the data is not there."""
    errors = {}
    for run in runs_of(table, runs_dir).values():
        with contextlib.suppress(InputError):
            state = status_of(run)
            if state["status"] == FAILED:
                errors[run.row.name.removesuffix(FIXED)] = state["error"]
    return errors


def dry_run(table: Table, runs_dir: Path, num_gpus: int = 0, only: Optional[Sequence[str]] = None) -> List[str]:
    """Return every command of a table, as it would be typed. Data sets that are missing are generated, or an error."""
    lines = []
    for run in select_runs(table, runs_dir, only):
        lines.append(f"# {run.name}")
        for command in run.commands(num_gpus):
            words = ["python", *(os.path.relpath(word) if os.path.isabs(word) else word for word in command[1:])]
            lines.append(" ".join(shlex.quote(word) for word in words))
    return lines


def status_lines(table: Table, runs_dir: Path, results_file: Path) -> List[str]:
    """Return a line for each run: finished and by which code, running, interrupted, failed and why, or not run."""
    generate_data(table)
    records = read_records(results_file)
    lines = []
    for run in select_runs(table, runs_dir):
        done = records_of(run, records)
        if done:
            lines.append(f"{run.name}: {FINISHED}, {done[-1]['seconds']:.0f} s, {provenance(done[-1])}")
            continue
        state = status_of(run)
        text = f"{run.name}: {state['status']}"
        if state["status"] not in (NOT_RUN, FINISHED) and run.row.action == "train":
            text += f", iteration {state['iteration']} of {run.cfg.SOLVER.MAX_ITER}"
        if state["status"] in (FAILED, INTERRUPTED) and state.get("error"):
            text += f": {state['error']}"
        lines.append(text)
    count = sum(f": {FINISHED}" in line for line in lines)
    lines.append(f"{count} of {len(lines)} runs have finished; the code here is {code_digest()[:8]}.")
    return lines + [f"{row.name}: not expressible: {row.not_expressible}" for row in table.rows if row.not_expressible]


def _clock() -> str:
    return time.strftime("%H:%M:%S")
