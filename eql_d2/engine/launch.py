"""Starting one process, several processes, or joining those that torchrun started."""

import logging
import os
import sys
import threading
import time
import traceback
from datetime import timedelta
from functools import partial
from typing import Any, Callable, Dict, Optional, Tuple

import torch
import torch.distributed as dist
from detectron2.engine import default_argument_parser
from detectron2.engine import launch as detectron2_launch
from detectron2.utils import comm

from eql_d2.compat import quiet_warnings
from eql_d2.errors import INPUT_ERROR_STATUS, one_line

#: Evaluation runs on the main process while the others wait for it.
TIMEOUT = timedelta(hours=2)
#: What the flag of that name does, in every tool that runs a trained model.
ALLOW_MISSING = "run the model even if MODEL.WEIGHTS lacks some of its parameters, which then stay as initialized"
#: Seconds that ranks other than 0 leave to rank 0, and the launcher, before they report an error themselves.
OTHER_RANKS_WAIT = 5.0


def argument_parser():
    """Return Detectron2's argument parser: ``--config-file --num-gpus --num-machines --machine-rank --dist-url``,
    ``--resume --eval-only`` and trailing ``KEY VALUE`` pairs; and ``--allow-missing``."""
    parser = default_argument_parser()
    parser.add_argument("--allow-missing", action="store_true", help=ALLOW_MISSING)
    return parser


def launch(main: Callable, args) -> None:
    """Run ``main(args)`` in every process of the run; exit with status 2 and one line on an
    :class:`~eql_d2.errors.InputError`.

    Under ``torchrun`` (``RANK`` and ``LOCAL_RANK`` are set) this process joins the group that torchrun's environment
    describes; else ``args.num_gpus`` processes are started on this machine. Without CUDA the processes use gloo.

    If torchrun has started the processes again, ``args.restarted_since`` is set: the seconds since the epoch at which
    it first started them.
    """
    if "RANK" in os.environ and "LOCAL_RANK" in os.environ:
        args.restarted_since = _join_torchrun()
        try:
            _guarded(main, args)
        finally:
            dist.destroy_process_group()
        return
    try:
        detectron2_launch(
            _guarded,
            args.num_gpus,
            num_machines=args.num_machines,
            machine_rank=args.machine_rank,
            dist_url=args.dist_url,
            args=(main, args),
            timeout=TIMEOUT,
        )
    except torch.multiprocessing.ProcessExitedException as error:
        # A process that failed has said why, one that was killed could not; a stack here would name torch's files.
        if error.signal_name:
            rank = args.machine_rank * args.num_gpus + error.error_index
            hint = ", as the kernel does where memory runs out" if error.signal_name == "SIGKILL" else ""
            print(f"error: rank {rank} was killed by {error.signal_name}{hint}.", file=sys.stderr, flush=True)
        sys.exit(error.exit_code if error.exit_code and error.exit_code > 0 else 1)


def _join_torchrun() -> Optional[float]:
    """Join the processes that torchrun started; return when it did so first, ``None`` if that is now."""
    has_gpu = torch.cuda.is_available()
    local_rank = int(os.environ["LOCAL_RANK"])
    if has_gpu:
        torch.cuda.set_device(local_rank)
    store, rank, world_size = next(dist.rendezvous("env://", timeout=TIMEOUT))
    attempt, began = agree_on_attempt(store, rank, world_size)
    dist.init_process_group(
        backend="nccl" if has_gpu else "gloo",
        timeout=TIMEOUT,
        store=dist.PrefixStore(f"eql_d2/attempt {attempt}", store),
        rank=rank,
        world_size=world_size,
    )
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    comm.create_local_process_group(local_size)
    comm.synchronize()
    restarts = comm.all_gather(int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)))
    return began if attempt > 1 or any(restarts) else None


def agree_on_attempt(store: dist.Store, rank: int, world_size: int) -> Tuple[int, float]:
    """Return which attempt of torchrun this is, the same number on every process, and when the first one began.

    The store of an elastic run outlives its processes, and so does what those of an earlier attempt have written into
    it, which would be taken for this one's. torchrun's own count of restarts is no help: it is one of each machine, and
    differs after one of them has joined again. So the main process counts, and answers each other one, which asks by a
    number that it has never asked by before.

    Args:
        store: that all processes share.
        rank: of this process.
        world_size: number of processes.

    Returns:
        The attempt, from 1 on, and seconds since the epoch; 0 if the store has not lived as long.
    """

    def count(key: str, step: int = 0) -> int:
        return store.add(f"eql_d2/{key}", step)

    if rank:
        question = count(f"question {rank}", 1)
        attempt = int(store.get(f"eql_d2/answer {rank} {question}"))
        count(f"joined {attempt} {rank}", 1)
        return attempt, float(count("began"))
    attempt = count("attempts", 1)
    if attempt == 1:
        count("began", int(time.time()))
    answered: Dict[int, int] = {}
    deadline = time.monotonic() + TIMEOUT.total_seconds()
    while not all(count(f"joined {attempt} {other}") for other in range(1, world_size)):
        for other in range(1, world_size):
            question = count(f"question {other}")
            if question and question != answered.get(other):
                store.set(f"eql_d2/answer {other} {question}", str(attempt))
                answered[other] = question
        if time.monotonic() > deadline:
            raise RuntimeError(f"Not all of {world_size} processes have come within {TIMEOUT}.")
        time.sleep(0.02)
    return attempt, float(count("began"))


def _guarded(main: Callable, args) -> None:
    """Call ``main(args)``; print what the user can mend as one line, anything else with its stack, and exit."""
    quiet_warnings()
    _say_a_full_disk_once()
    try:
        main(args)
    except Exception as error:
        line = one_line(error)
        if line is not None:
            # Most often every rank meets the same error. Rank 0 says so first and the launcher ends the others
            # meanwhile; an error of one rank alone (an image that only it reads) is said by that rank.
            if comm.get_rank() > 0:
                time.sleep(OTHER_RANKS_WAIT)
            print(f"error: {line}", file=sys.stderr, flush=True)
            _exit(INPUT_ERROR_STATUS)
        if comm.get_world_size() == 1:
            raise
        if "onnection" in str(error):
            # Another process is gone. The launcher, which knows which, says so and ends this one meanwhile.
            time.sleep(OTHER_RANKS_WAIT)
        traceback.print_exc()
        _exit(1)


def _say_a_full_disk_once() -> None:
    """Keep logs, TensorBoard's thread and files that are closed at exit from printing a stack each."""
    logging.raiseExceptions = False
    threading.excepthook = partial(_unless_one_line, threading.excepthook)
    sys.unraisablehook = partial(_unless_one_line, sys.unraisablehook)


def _unless_one_line(hook: Callable, arguments: Any) -> None:
    if arguments.exc_value is None or one_line(arguments.exc_value) is None:
        hook(arguments)


def _exit(status: int) -> None:
    sys.stdout.flush()
    if comm.get_world_size() == 1:
        sys.exit(status)
    # A rank that waits in a collective would keep an ordinary exit of this one from ending.
    os._exit(status)
