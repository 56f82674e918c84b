"""Two thousand damaged files through everything that reads such files; ``make soak`` runs a hundred thousand.

What is found here is run again by ``python -m tests.fuzz --seed 0 --only NUMBER``.
"""

import json
import sys

import pytest

from tests.fuzz.mutate import make_case, sound_annotations, sound_results
from tests.fuzz.shards import run_shard
from tests.fuzz.targets import BACKENDS, Runner

FILES = 2000


def test_damaged_files_bring_a_result_or_a_clear_error():
    summary = run_shard(seed=0, first=0, end=FILES)
    assert not summary.failures, "\n".join(summary.failures)
    assert summary.accepted > FILES and summary.refused > FILES, "not all are sound, and not all are refused at once"
    assert summary.mebibytes < 2048


@pytest.mark.parametrize("format_", ["lvis", "coco"])
def test_every_program_takes_the_files_that_are_damaged_later(tmp_path, monkeypatch, format_):
    annotations, results = json.dumps(sound_annotations(format_)), json.dumps(sound_results())
    case = make_case(0, 0)._replace(
        kind="annotations", format=format_, annotations=annotations.encode(), results=results.encode(), image=("", b"")
    )
    monkeypatch.setattr("tests.fuzz.targets.make_case", lambda seed, number: case)
    outcome = Runner(tmp_path, seed=0).run(0)
    assert outcome == (3 + len(BACKENDS), 0, [])


DEADLY = """
import os, signal, sys, types
from collections import namedtuple
from tests.fuzz import shards

Outcome = namedtuple("Outcome", "accepted refused failures")


class Runner:
    def __init__(self, folder, seed):
        pass

    def run(self, number):
        if number == 3:
            os.kill(os.getpid(), signal.SIGSEGV)
        return Outcome(1, 2, [])


sys.modules["tests.fuzz.targets"] = types.SimpleNamespace(Runner=Runner)
shards.main()
"""


def test_a_process_that_dies_is_told_with_the_number_of_its_file(tmp_path):
    (tmp_path / "deadly.py").write_text(DEADLY)
    summary = run_shard(seed=0, first=2, end=5, program=[sys.executable, str(tmp_path / "deadly.py")])
    assert [failure.split(":")[0] for failure in summary.failures] == ["case 3"]
    assert "SIGSEGV" in summary.failures[0] and (summary.accepted, summary.refused) == (2, 4)
