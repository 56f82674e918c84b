"""Starting one process, several processes, or joining those that torchrun started."""

import logging
import os
import sys
import threading
import time
import traceback
from datetime import timedelta
from functools import partial
from typing import Any, Callable

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
    """Run ``main(args)`` in every process of the run, and exit with status 2 and one line on an :class:`InputError`.

    Under ``torchrun`` (``RANK`` and ``LOCAL_RANK`` are set) this process joins the group that torchrun's environment
    describes; else ``args.num_gpus`` processes are started on this machine. Without CUDA the processes use gloo.
    """
    if "RANK" in os.environ and "LOCAL_RANK" in os.environ:
        _join_torchrun()
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
        # The process that failed has said why; its stack here would only name torch's own files.
        sys.exit(error.exit_code if error.exit_code and error.exit_code > 0 else 1)


def _join_torchrun() -> None:
    has_gpu = torch.cuda.is_available()
    local_rank = int(os.environ["LOCAL_RANK"])
    if has_gpu:
        torch.cuda.set_device(local_rank)
    dist.init_process_group(backend="nccl" if has_gpu else "gloo", timeout=TIMEOUT)
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"]))
    comm.create_local_process_group(local_size)
    comm.synchronize()


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
