"""From command-line arguments to a checked, frozen config."""

import os
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Callable

from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm

from eql_d2.config import choose_device, load_config
from eql_d2.config_files import find_config_file
from eql_d2.data.builtin import register_from_config
from eql_d2.data.fit import fit_to_data
from eql_d2.engine.console import setup_console
from eql_d2.errors import InputError, cannot_write
from eql_d2.files import FolderLock
from eql_d2.run_folder import RunFolder

#: Bytes: config and log of a run. Detectron2 empties the earlier config before it finds that there is no room.
_LEAST_SPACE = 1 << 20


def setup(args) -> CfgNode:
    """Build the config of a run, register its data sets, and set up its output folder, log and random seed.

    The output folder is this run's until what :func:`frees_output_dir` decorates returns, or the main process ends
    (:class:`eql_d2.files.FolderLock`).

    Args:
        args: what :func:`eql_d2.engine.argument_parser` parsed.

    Raises:
        InputError: for anything in the config that the user can mend, and if another run uses the output folder.
    """
    if args.config_file:
        args.config_file = find_config_file(args.config_file)  # a name becomes a path: Detectron2 prints the file
    cfg = load_config(args.config_file, args.opts)
    choose_device(cfg)
    _take_output_dir(cfg.OUTPUT_DIR)
    cfg.freeze()
    setup_console(cfg.OUTPUT_DIR)
    default_setup(cfg, args)
    register_from_config(cfg)  # after the log is set up: it tells what is left out of a data set
    fit_to_data(cfg)
    if comm.is_main_process():
        RunFolder(cfg.OUTPUT_DIR).write_config(cfg)  # with what was left to the data
    return cfg


def frees_output_dir(tool: Callable) -> Callable:
    """Decorate a function of a config that :func:`setup` made: its output folder is free for others afterwards."""

    @wraps(tool)
    def run_and_free(cfg: CfgNode, *args, **kwargs):
        try:
            return tool(cfg, *args, **kwargs)
        finally:
            FolderLock.release_folder(cfg.OUTPUT_DIR)

    return run_and_free


def _take_output_dir(output_dir: str) -> None:
    """Make the output folder, see that it can be written, and lock it, before anything is computed; on every rank."""
    if not output_dir.strip():
        raise InputError("OUTPUT_DIR is empty; name the folder that weights, metrics and logs are written to.")
    problem = ""
    if comm.is_main_process():
        try:
            _try_to_write(Path(output_dir))
            FolderLock(output_dir)
        except InputError as error:
            problem = f"OUTPUT_DIR: {error}"
    problem = comm.all_gather(problem)[0]
    if problem:
        raise InputError(problem)


def _try_to_write(folder: Path) -> None:
    probe = folder / f".write_test_{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(bytes(_LEAST_SPACE))  # also a full disk makes empty files
    except OSError as error:
        raise InputError(cannot_write(folder, error)) from None
    finally:
        with suppress(OSError):
            probe.unlink()
