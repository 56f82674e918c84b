"""Processes of a training that can be killed, forked from a server that has imported what they need, and no more.

From the test's own process they would have copies of the locks of an evaluation's threads, and wait for ever.
"""

import multiprocessing
import traceback
from pathlib import Path
from typing import Any, Callable, List

import torch
from detectron2.utils import comm

FORK = multiprocessing.get_context("forkserver")
FORK.set_forkserver_preload(["eql_d2.engine.trainer", "eql_d2.evaluation.evaluator", "tests.engine.kills"])


def start_ranks(function: Callable[..., Any], world_size: int, meeting_place: Path, *args: Any) -> List[Any]:
    """Start ``function(*args)`` in as many processes, one gloo group, and return them.

    Args:
        function: of a module, as the arguments are values that can be pickled.
        meeting_place: a file that is not there yet.
    """
    processes = [FORK.Process(target=_run, args=(function, rank, world_size, meeting_place, args))
                 for rank in range(world_size)]  # fmt: skip
    for process in processes:
        process.start()
    return processes


def run_ranks(function: Callable[..., Any], world_size: int, meeting_place: Path, *args: Any) -> None:
    """Run ``function(*args)`` in as many processes and see that all of them end well."""
    processes = start_ranks(function, world_size, meeting_place, *args)
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0] * world_size


def _run(function: Callable[..., Any], rank: int, world_size: int, meeting_place: Path, args: Any) -> None:
    torch.set_num_threads(1)
    if world_size > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{meeting_place}", rank=rank, world_size=world_size
        )
        comm.create_local_process_group(world_size)
    try:
        function(*args)
    except BaseException:
        traceback.print_exc()
        raise
