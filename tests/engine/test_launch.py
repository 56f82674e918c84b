"""Processes that join, are started again, and are killed."""

import os
import signal
import threading
import time

import pytest
import torch.distributed as dist
from detectron2.utils import comm

from eql_d2.engine import argument_parser, launch
from eql_d2.engine.launch import agree_on_attempt
from tests.engine.kills import configured, differences, outcome, run_to_the_end, run_under_torchrun, write_dataset


def attempt_of(ranks, world_size, port):
    """Let ranks agree, each on a connection of its own to a store that outlives them."""
    found = {}

    def join(rank):
        store = dist.TCPStore("localhost", port, None, False)
        found[rank] = agree_on_attempt(store, rank, world_size)

    threads = [threading.Thread(target=join, args=(rank,), daemon=True) for rank in ranks]
    for thread in threads:
        thread.start()
        time.sleep(0.05)
    for thread in threads:
        thread.join(20)
    return found


def test_processes_that_are_started_again_agree_on_the_attempt():
    """Also after attempts that not all of them lived to see, and with another number of them."""
    server = dist.TCPStore("localhost", 0, None, True, wait_for_workers=False)
    first = attempt_of([2, 0, 1], 3, server.port)
    assert {attempt for attempt, _ in first.values()} == {1} and len(first) == 3
    server.add("eql_d2/question 1", 1)  # has asked and died
    server.add("eql_d2/attempts", 1)  # so has the main process
    second = attempt_of([0, 2, 1], 3, server.port)
    assert {attempt for attempt, _ in second.values()} == {3} and len(second) == 3
    last = attempt_of([1, 0], 2, server.port)
    assert {attempt for attempt, _ in last.values()} == {4} and len(last) == 2
    assert len({began for _, began in [*first.values(), *second.values(), *last.values()]}) == 1
    assert 0 <= time.time() - last[0][1] < 60


def die_on_rank_one(args):
    if comm.get_rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    comm.synchronize()


def test_a_rank_that_is_killed_is_named(capfd):
    arguments = argument_parser().parse_args(["--num-gpus", "2", "--dist-url", "auto"])
    with pytest.raises(SystemExit) as ended:
        launch(die_on_rank_one, arguments)
    assert ended.value.code == 1
    error = capfd.readouterr().err
    assert "error: rank 1 was killed by SIGKILL, as the kernel does where memory runs out." in error
    assert "Traceback" not in error


@pytest.mark.end_to_end
def test_torchrun_s_restart_resumes(tmp_path):
    """Without --resume, and to the bit; torchrun names the rank that was killed."""
    write_dataset(tmp_path, 12)
    opts = ["DATALOADER.NUM_WORKERS", 1, "SOLVER.IMS_PER_BATCH", 4]
    whole, killed = (configured(tmp_path, name, *opts) for name in ("whole", "killed"))
    run_to_the_end(whole, tmp_path, 2, kills=0)
    said = run_under_torchrun(killed, tmp_path, restarts=1)
    assert "Starting training from iteration 0" in said
    assert said.count("Starting training from iteration") == 2 and "exitcode: -9" in said.replace(" :", ":")
    found = differences(outcome(whole), outcome(killed))
    # A process that ends with an error because another is gone writes its metrics up to then: lines that are more.
    assert not [name for name in found if not name.startswith("/history")]
