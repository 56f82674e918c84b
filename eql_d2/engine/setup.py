"""From command-line arguments to a checked, frozen config."""

import logging
import os
import re
from difflib import get_close_matches
from pathlib import Path
from typing import List, Sequence

import torch
from detectron2.config import CfgNode
from detectron2.engine import default_setup
from detectron2.utils import comm

from eql_d2.config import get_cfg
from eql_d2.data.builtin import register_from_config
from eql_d2.errors import InputError
from eql_d2.losses import CLASSIFIER_LOSS_REGISTRY

logger = logging.getLogger(__name__)


def load_config(config_file: str = "", opts: Sequence[str] = ()) -> CfgNode:
    """Return Detectron2's defaults with this package's keys, ``config_file`` and ``opts`` merged in.

    Args:
        config_file: path of a YAML file; empty for the defaults.
        opts: alternating keys and values, as they trail a command line.

    Raises:
        InputError: if the file is missing or no YAML, or a key is unknown or has a value of the wrong type.
    """
    cfg = get_cfg()
    if config_file:
        if not Path(config_file).is_file():
            raise InputError(f"--config-file {config_file}: there is no such file.")
        _merge(cfg, lambda: cfg.merge_from_file(config_file), config_file)
    opts = list(opts)
    if len(opts) % 2:
        raise InputError(f"The config overrides {' '.join(opts)} are not pairs of KEY VALUE.")
    _merge(cfg, lambda: cfg.merge_from_list(opts), "the command line")
    # A name that is misspelt is worth an answer before a data set is read.
    CLASSIFIER_LOSS_REGISTRY.get(cfg.MODEL.LONG_TAIL.LOSS)
    return cfg


def _merge(cfg: CfgNode, merge, source: str) -> None:
    """Call ``merge`` and turn what yacs and PyYAML raise into one sentence."""
    try:
        merge()
    except (KeyError, AssertionError, ValueError) as error:
        message = str(error.args[0]) if error.args else str(error)
        found = re.search(r"Non-existent (?:config )?key: ([\w.\-]+)", message)
        if not found:
            raise InputError(f"{source}: {message}") from None
        near = get_close_matches(found.group(1), _all_keys(cfg), n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise InputError(f"{source}: {found.group(1)} is no config key.{hint}") from None
    except OSError as error:
        raise InputError(f"{source}: cannot be read ({error}).") from None
    except Exception as error:  # PyYAML's errors have no common name without importing it
        if type(error).__module__.startswith("yaml"):
            raise InputError(f"{source} is not valid YAML: {' '.join(str(error).split())}") from None
        raise


def _all_keys(cfg: CfgNode, prefix: str = "") -> List[str]:
    keys = []
    for key, value in cfg.items():
        keys += _all_keys(value, f"{prefix}{key}.") if isinstance(value, CfgNode) else [prefix + key]
    return keys


def setup(args) -> CfgNode:
    """Build the config of a run, register its data sets, and set up its output folder, log and random seed.

    Args:
        args: what :func:`eql_d2.engine.argument_parser` parsed.

    Raises:
        InputError: for anything in the config that the user can mend.
    """
    cfg = load_config(args.config_file, args.opts)
    choose_device(cfg)
    register_from_config(cfg)
    _check_output_dir(cfg.OUTPUT_DIR)
    cfg.freeze()
    default_setup(cfg, args)
    return cfg


def choose_device(cfg: CfgNode) -> None:
    """Fall back to the CPU where the config asks for CUDA and there is none, and say so."""
    if cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available():
        if comm.is_main_process():
            print(f"MODEL.DEVICE is {cfg.MODEL.DEVICE!r}, but torch finds no CUDA device: running on the CPU.")
        cfg.MODEL.DEVICE = "cpu"


def _check_output_dir(output_dir: str) -> None:
    """Make the output folder and see that it can be written, before anything is computed."""
    probe = Path(output_dir) / f".write_test_{os.getpid()}"
    try:
        probe.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InputError(f"OUTPUT_DIR {output_dir!r} cannot be written ({error.strerror}).") from None
