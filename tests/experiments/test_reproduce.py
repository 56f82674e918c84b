"""Running a table: order, resuming, failures, locks, launchers."""

import fcntl
import json
import os
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from typing import Sequence

import pytest

from eql_d2.errors import InputError
from eql_d2.experiments import execution, plan, reproduce
from eql_d2.experiments.comparison import collect_lines
from eql_d2.experiments.execution import append_record, execute, is_locked, read_records, status_of
from eql_d2.experiments.launchers import LocalLauncher, SubmititLauncher
from eql_d2.experiments.plan import runs_of
from eql_d2.experiments.reproduce import dry_run, last_errors, run_table, select_runs, status_lines

ROWS = [
    {"name": "first", "config": "tiny", "opts": ["SOLVER.BASE_LR", 0.1]},
    {"name": "second", "config": "tiny", "opts": ["SOLVER.BASE_LR", 0.2], "start": "first"},
]


@pytest.fixture
def run_all(place):
    """Run a table with the local launcher; return what failed and what was reported."""

    def run(table, jobs=2, **keywords):
        lines = []
        results = place / "results.jsonl"
        launcher = LocalLauncher(results, jobs, tidy=keywords.pop("tidy", False))
        runs_dir = place / "runs"
        failed = run_table(table, launcher, runs_dir, results, report=lines.append, period=0.02, **keywords)
        return failed, lines

    return run


def test_a_table_runs_in_order_and_is_recorded(place, write_table, run_all):
    table = write_table(ROWS, seeds=[0, 1])
    failed, lines = run_all(table)
    assert not failed and lines[0] == "tiny: 0 of 4 runs have finished, 4 to go."
    records = read_records(place / "results.jsonl")
    assert sorted((r["name"], r["seed"], r["metrics"]["segm"]["AP"]) for r in records) == [
        ("first", 0, 10.0), ("first", 1, 11.0), ("second", 0, 20.0), ("second", 1, 21.0),
    ]  # fmt: skip
    for record in records:
        assert record["seconds"] > 0 and record["peak_memory_mib"] > 1 and record["machine"]["cores"] >= 1
        assert record["data_digest"] and record["code_digest"] and record["started"].endswith("+00:00")
        assert record["settings"]["SOLVER.BASE_LR"] in (0.1, 0.2)
    # Stage 2 started from the weights of the same seed.
    second = runs_of(table, place / "runs")["second", 1]
    assert f"MODEL.WEIGHTS {second.parent.folder}/model_final.pth" in (second.folder / "calls.txt").read_text()


def test_finished_runs_are_not_run_again(place, write_table, run_all):
    table = write_table(ROWS)
    run_all(table)
    failed, lines = run_all(table)
    assert not failed and lines == ["tiny: 2 of 2 runs have finished, 0 to go."]
    assert all(len(p.read_text().splitlines()) == 1 for p in (place / "runs").glob("*/calls.txt"))


@pytest.mark.parametrize("change", ["config", "data"])
def test_what_a_result_depends_on_makes_it_run_again(place, write_table, run_all, change):
    run_all(write_table(ROWS))
    rows = [dict(row) for row in ROWS]
    if change == "config":
        rows[0]["opts"] = ["SOLVER.BASE_LR", 0.3]
    else:
        path = place / "data" / "val.json"
        path.write_text(path.read_text() + " ")
    # Stage 2 depends on stage 1, so it runs again too.
    assert run_all(write_table(rows))[1][0] == "tiny: 0 of 2 runs have finished, 2 to go."


def test_other_code_runs_nothing_again_unless_asked(place, write_table, run_all, monkeypatch):
    table = write_table(ROWS)
    run_all(table)
    for module in (plan, execution, reproduce):
        monkeypatch.setattr(module, "code_digest", lambda: "0123456789")
    assert run_all(table)[1] == ["tiny: 2 of 2 runs have finished, 0 to go."]
    for to_go in (2, 0):
        failed, lines = run_all(table, rerun=True)
        assert not failed and lines[0] == f"tiny: {2 - to_go} of 2 runs have finished, {to_go} to go."
    # Not the finished training in its folder: each was trained once more, in another one.
    assert len(list((place / "runs").glob("first-seed0-*/calls.txt"))) == 2
    status = status_lines(table, place / "runs", place / "results.jsonl")
    assert all(line.endswith(", code 01234567") for line in status[:2])
    assert status[2] == "2 of 2 runs have finished; the code here is 01234567."


def test_keys_that_change_no_result_change_no_key(place, write_table):
    def key(*opts):
        table = write_table([{"name": "a", "config": "tiny", "opts": [*opts]}])
        return runs_of(table, place)["a", 0].key

    assert key() == key("SOLVER.CHECKPOINT_PERIOD", 7) == key("SOLVER.BASE_LR", "0.001")  # the default
    assert key() != key("SOLVER.BASE_LR", 0.002)


def test_weights_that_a_new_row_needs_are_made_again(place, write_table, run_all):
    run_all(write_table(ROWS[:1]))
    first = runs_of(write_table(ROWS), place / "runs")["first", 0]
    assert run_all(write_table(ROWS))[1][0] == "tiny: 1 of 2 runs have finished, 1 to go."
    (place / "results.jsonl").write_text("\n".join((place / "results.jsonl").read_text().splitlines()[:1]) + "\n")
    (first.folder / "model_final.pth").unlink()
    assert run_all(write_table(ROWS))[1][0] == "tiny: 0 of 2 runs have finished, 2 to go."
    # Both rows are recorded: nobody needs the weights any more.
    (first.folder / "model_final.pth").unlink()
    assert run_all(write_table(ROWS))[1][0] == "tiny: 2 of 2 runs have finished, 0 to go."


def test_a_failure_stops_only_what_starts_from_it(place, write_table, run_all):
    rows = [dict(ROWS[0], opts=["SOLVER.MAX_ITER", 13]), ROWS[1], {"name": "third", "config": "tiny"}]
    table = write_table(rows)
    failed, lines = run_all(table)
    assert sorted(failed) == ["first (seed 0)", "second (seed 0)"]
    assert any(
        "failed first (seed 0): error: SOLVER.MAX_ITER is 13; that is unlucky. (exit status 1" in x for x in lines
    )
    assert [record["name"] for record in read_records(place / "results.jsonl")] == ["third"]
    assert "unlucky" in last_errors(table, place / "runs")["first"]
    assert "first (seed 0): failed, iteration 0 of 13: error: SOLVER.MAX_ITER is 13" in "\n".join(
        status_lines(table, place / "runs", place / "results.jsonl")
    )


def test_only_brings_what_it_starts_from(place, write_table, run_all):
    table = write_table([*ROWS, {"name": "third", "config": "tiny"}])
    names = [run.name for run in select_runs(table, place / "runs", ["second"])]
    assert names == ["first (seed 0)", "second (seed 0)"]
    with pytest.raises(InputError, match="no row 'fourth'; there are first, second, third"):
        select_runs(table, place / "runs", ["fourth"])


def test_evaluation_and_calibration(place, write_table, run_all):
    logn = {"name": "logn", "config": "tiny", "opts": ["MODEL.LONG_TAIL.CALIBRATION.NAME", "LOGN"]}
    rows = [*ROWS[:1], {**logn, "start": "first", "action": "evaluate", "calibrate": True}]
    table = write_table(rows)
    assert not run_all(table)[0]
    logn = runs_of(table, place / "runs")["logn", 0]
    calibration, evaluation = (logn.folder / "calls.txt").read_text().splitlines()
    statistics = f"{logn.folder}/logit_statistics.pth"
    assert f"--output {statistics}" in calibration and "--eval-only" not in calibration
    assert "--eval-only" in evaluation and f"LOGN.STATISTICS {statistics}" in evaluation
    assert f"MODEL.WEIGHTS {logn.parent.weights}" in evaluation


def test_second_evaluation_gives_the_fixed_metrics(place, write_table, run_all):
    rows = [*ROWS[:1], {"name": "norcal", "config": "tiny", "start": "first", "action": "evaluate"}]
    fixed_opts = ["SOLVER.BASE_LR", 0.5]
    table = write_table(rows, fixed_opts=fixed_opts, metrics=["segm/AP", "segm/AP-fixed"])
    failed, lines = run_all(table, only=["first"])
    assert not failed and lines[0] == "tiny: 0 of 2 runs have finished, 2 to go."
    assert not run_all(table)[0]
    every = runs_of(table, place / "runs")
    first, again, other = every["first", 0], every["first-fixed", 0], every["norcal-fixed", 0]
    assert again.parent is first and other.parent is first and other.row.action == "evaluate"
    assert f"MODEL.WEIGHTS {first.weights}" in (again.folder / "calls.txt").read_text()
    assert "--eval-only" in (again.folder / "calls.txt").read_text()
    line = collect_lines(table, place / "results.jsonl")[0]
    # The script's AP is 100 times the learning rate: 10 from the training, 50 from the second evaluation.
    assert line.cells["segm/AP"].values == [10.0] and line.cells["segm/AP-fixed"].values == [50.0]


def test_what_is_prepared_is_trained_once_for_all_seeds(place, write_table, run_all):
    table = write_table([dict(ROWS[0], start="base", seeds=[3, 4])], prepare={"base": {"config": "tiny"}})
    assert not run_all(table)[0]
    assert sorted((r["name"], r["seed"]) for r in read_records(place / "results.jsonl")) == [
        ("base", 0), ("first", 3), ("first", 4),
    ]  # fmt: skip


def test_tidy_keeps_the_last_weights_only(place, write_table, run_all):
    run_all(write_table(ROWS), tidy=True)
    assert len(list((place / "runs").glob("*/model_final.pth"))) == 2
    assert not list((place / "runs").glob("*/model_0*.pth"))


def test_a_run_is_executed_by_one_process_at_a_time(place, write_table):
    run = runs_of(write_table([dict(ROWS[0], opts=["SOLVER.MAX_ITER", 17])]), place / "runs")["first", 0]
    outcome = {}
    thread = threading.Thread(target=lambda: outcome.update(execute(run, place / "results.jsonl")))
    thread.start()
    while not is_locked(run.folder) or not (run.folder / "run.json").is_file():
        time.sleep(0.02)
    assert execute(run, place / "results.jsonl") == {"status": "busy"}
    assert status_of(run)["status"] == "running"
    # The training is stopped, as by a scheduler: no failure, and the next attempt may go on.
    os.kill(_pid_of(run), signal.SIGTERM)
    thread.join(timeout=20)
    assert outcome["status"] == "interrupted" and not is_locked(run.folder)
    assert status_of(run)["status"] == "interrupted"


def test_two_commands_share_the_work(place, write_table, run_all):
    """The second waits for what the first works on, goes on with what starts from it, and does nothing twice."""
    table = write_table([dict(ROWS[0], opts=[*ROWS[0]["opts"], "SOLVER.MAX_ITER", 21]), ROWS[1]])
    first = runs_of(table, place / "runs")["first", 0]
    outcome = {}
    thread = threading.Thread(target=lambda: outcome.update(execute(first, place / "results.jsonl")))
    thread.start()
    while not is_locked(first.folder):
        time.sleep(0.01)
    failed, lines = run_all(table)
    thread.join(timeout=20)
    assert outcome == {"status": "finished"} and not failed
    assert sum("wait  first (seed 0): another process works on it" in line for line in lines) == 1
    assert any("done  second (seed 0)" in line for line in lines)
    assert (first.folder / "calls.txt").read_text().count("\n") == 1
    assert sorted(record["name"] for record in read_records(place / "results.jsonl")) == ["first", "second"]


def test_what_is_recorded_is_done_again_only_for_its_weights(place, write_table):
    run = runs_of(write_table(ROWS), place / "runs")["first", 0]
    for calls in (1, 1):
        assert execute(run, place / "results.jsonl") == {"status": "finished"}
        assert (run.folder / "calls.txt").read_text().count("\n") == calls
    (run.folder / "model_final.pth").unlink()
    assert execute(run, place / "results.jsonl") == {"status": "finished"}
    assert (run.folder / "calls.txt").read_text().count("\n") == 2 and (run.folder / "model_final.pth").is_file()


def _pid_of(run) -> int:
    for _ in range(200):
        found = subprocess.run(["pgrep", "-f", str(run.folder)], capture_output=True, text=True).stdout.split()
        if found:
            return int(found[0])
        time.sleep(0.02)
    raise AssertionError("the run has not started")


def test_a_driver_that_was_killed_is_no_run_in_progress(place, write_table):
    run = runs_of(write_table(ROWS), place / "runs")["first", 0]
    run.folder.mkdir(parents=True)
    (run.folder / "run.json").write_text(json.dumps({"status": "running", "attempts": 1, "seconds": 5.0}))
    assert status_of(run)["status"] == "interrupted"
    assert execute(run, place / "results.jsonl") == {"status": "finished"}
    (record,) = read_records(place / "results.jsonl")
    assert record["attempts"] == 2 and record["seconds"] > 5.0


def test_results_file_survives_a_line_that_was_cut_off(tmp_path):
    path = tmp_path / "new" / "results.jsonl"
    append_record(path, {"config_digest": "a"})
    with path.open("a") as file:
        file.write('{"config_digest": "b", "met')
    append_record(path, {"config_digest": "c"})
    assert [record["config_digest"] for record in read_records(path)] == ["a", "c"]


def test_results_file_is_appended_to_by_many_at_once(tmp_path):
    path = tmp_path / "results.jsonl"
    threads = [
        threading.Thread(target=append_record, args=(path, {"config_digest": str(i), "text": "x" * 5000}))
        for i in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {record["config_digest"] for record in read_records(path)} == {str(i) for i in range(20)}


def test_dry_run_prints_commands_that_can_be_typed(place, write_table):
    lines = dry_run(write_table(ROWS), place / "runs", num_gpus=8)
    assert [line for line in lines if line.startswith("#")] == ["# first (seed 0)", "# second (seed 0)"]
    assert all("--num-gpus 8" in line and "--resume" in line for line in lines if not line.startswith("#"))
    assert not (place / "runs").exists()


def test_missing_data_is_an_error_that_names_the_file(place, write_table, run_all):
    (place / "data" / "val.json").unlink()
    with pytest.raises(InputError, match=r"val\.json: there is no such file; .* annotations of tiny_val"):
        run_all(write_table(ROWS))


@pytest.mark.parametrize("cluster", ["debug", "local"])
def test_submitit(place, write_table, cluster):
    pytest.importorskip("submitit")
    results = place / "results.jsonl"
    table = write_table(ROWS)
    launcher = SubmititLauncher(results, place / "logs", options={"timeout_min": 5}, cluster=cluster)
    if cluster == "local":
        # Processes of their own do not see what this test has patched; they are given the command instead.
        launcher.submit = _with_own_commands(launcher)
    failed = run_table(table, launcher, place / "runs", results, report=lambda line: None, period=0.05)
    assert not failed and [record["name"] for record in read_records(results)] == ["first", "second"]


def _with_own_commands(launcher):
    """Return ``submit`` for runs whose commands are fixed before they are sent."""
    submit = launcher.submit

    def submit_fixed(run):
        return submit(FixedRun(run.row, run.seed, run.runs_dir, run.parent, fixed=run.commands()))

    return submit_fixed


@dataclass(frozen=True)
class FixedRun(plan.PlannedRun):
    """A run with given commands."""

    fixed: Sequence[Sequence[str]] = ()

    def commands(self, num_gpus=0):
        return self.fixed


def test_submitit_is_told_what_is_wrong(place):
    pytest.importorskip("submitit")
    with pytest.raises(InputError, match=r"--slurm: .*slurm_partitoin"):
        SubmititLauncher(place / "r.jsonl", place / "logs", options={"slurm_partitoin": "x"}, cluster="debug")


def test_a_preempted_job_is_queued_again():
    submitit = pytest.importorskip("submitit")
    from eql_d2.experiments.launchers import Resumable

    again = Resumable().checkpoint("run", "results", 8, {}, False)
    assert isinstance(again, submitit.helpers.DelayedSubmission) and again.args == ("run", "results", 8, {}, False)


def test_local_launcher_gives_each_job_its_gpus(monkeypatch, tmp_path):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 8)
    launcher = LocalLauncher(tmp_path / "r.jsonl", gpus_per_job=2)
    assert launcher.slots == 4
    assert launcher._places.environment(3)["CUDA_VISIBLE_DEVICES"] == "6,7"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7,0,1,2,3")
    assert launcher._places.environment(0)["CUDA_VISIBLE_DEVICES"] == "4,5"
    with pytest.raises(InputError, match="3 jobs of 4 GPUs need 12; torch finds 8"):
        LocalLauncher(tmp_path / "r.jsonl", jobs=3, gpus_per_job=4)


def test_local_launcher_shares_the_cores_and_keeps_to_what_is_set(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    launcher = LocalLauncher(tmp_path / "r.jsonl", jobs=2)
    assert launcher._places.environment(1) == {"OMP_NUM_THREADS": "4"}
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert launcher._places.environment(1) == {"OMP_NUM_THREADS": "1"}


def test_locks_are_of_this_process_until_it_ends(tmp_path):
    assert not is_locked(tmp_path)
    with open(tmp_path / execution.LOCK_FILE, "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert is_locked(tmp_path)
    assert not is_locked(tmp_path)
    assert reproduce.RESULTS.name == "results.jsonl"


def test_the_commit_says_when_files_differ_from_it(monkeypatch, tmp_path):
    def git(*words):
        who = ("-c", "user.name=a", "-c", "user.email=a@b.c")
        return subprocess.run(["git", *who, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    monkeypatch.setattr(execution, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert execution.current_commit() is None
    git("init", "-q")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "-q", "-m", "One")
    git("tag", "v1")
    commit = git("rev-parse", "HEAD").strip()
    assert execution.current_commit() == commit
    (tmp_path / "file").write_text("two")
    assert execution.current_commit() == f"{commit}-dirty"
