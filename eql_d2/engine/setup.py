"""From command-line arguments to a checked, frozen config."""

import os
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm

from eql_d2.config import choose_device, load_config
from eql_d2.config_files import find_config_file
from eql_d2.data.builtin import register_from_config
from eql_d2.data.fit import fit_to_data
from eql_d2.errors import InputError
from eql_d2.run_folder import RunFolder


def setup(args) -> CfgNode:
    """Build the config of a run, register its data sets, and set up its output folder, log and random seed.

    Args:
        args: what :func:`eql_d2.engine.argument_parser` parsed.

    Raises:
        InputError: for anything in the config that the user can mend.
    """
    if args.config_file:
        args.config_file = find_config_file(args.config_file)  # a name becomes a path: Detectron2 prints the file
    cfg = load_config(args.config_file, args.opts)
    choose_device(cfg)
    _check_output_dir(cfg.OUTPUT_DIR)
    cfg.freeze()
    default_setup(cfg, args)
    register_from_config(cfg)  # after the log is set up: it tells what is left out of a data set
    fit_to_data(cfg)
    if comm.is_main_process():
        RunFolder(cfg.OUTPUT_DIR).write_config(cfg)  # with what was left to the data
    return cfg


def _check_output_dir(output_dir: str) -> None:
    """Make the output folder and see that it can be written, before anything is computed."""
    probe = Path(output_dir) / f".write_test_{os.getpid()}"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"OUTPUT_DIR {output_dir!r} cannot be written ({error.strerror}).") from None
