"""Training in two stages with one command that goes on wherever it was stopped."""

import copy
import gc
import logging
import os
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any, Dict, List

import torch
from detectron2.utils import comm
from detectron2.utils.logger import setup_logger

from eql_d2.config import load_config
from eql_d2.engine.launch import argument_parser
from eql_d2.engine.setup import setup
from eql_d2.engine.trainer import run
from eql_d2.errors import InputError
from eql_d2.run_folder import RunFolder


def two_stage_parser() -> ArgumentParser:
    """Return Detectron2's argument parser with ``--stage1`` and ``--stage2`` in the place of ``--config-file``."""
    parser = argument_parser()
    parser.add_argument("--stage1", required=True, metavar="FILE", help="config of the detector")
    parser.add_argument("--stage2", required=True, metavar="FILE", help="config of the training that starts from it")
    return parser


def stage_arguments(args: Namespace) -> List[Namespace]:
    """Return the arguments of eql-d2 train for each stage, with its own ``OUTPUT_DIR`` and ``--resume``.

    The ``KEY VALUE`` pairs are for both stages. If both would write to one folder, as where ``OUTPUT_DIR`` is among the
    pairs, they write to its folders ``stage1`` and ``stage2``. The weights of stage 2 are those of stage 1.

    Raises:
        InputError: for a config that is wrong, or flags that mean nothing here.
    """
    if args.config_file or args.eval_only:
        raise InputError(
            "--config-file and --eval-only are not for two stages; name the configs by --stage1 and --stage2, and "
            "evaluate with eql-d2 train."
        )
    configs = [args.stage1, args.stage2]
    folders = [Path(load_config(config, args.opts).OUTPUT_DIR) for config in configs]
    if os.path.abspath(folders[0]) == os.path.abspath(folders[1]):
        folders = [folders[0] / "stage1", folders[1] / "stage2"]
    weights = ["MODEL.WEIGHTS", str(RunFolder(folders[0]).weights)]
    stages = []
    for config, folder, opts in zip(configs, folders, ([], weights)):
        stage = copy.copy(args)
        stage.config_file, stage.resume, stage.output_dir = config, True, folder
        stage.opts = [*args.opts, "OUTPUT_DIR", str(folder), *opts]
        stages.append(stage)
    return stages


def is_finished(folder: Path) -> bool:
    """Return whether a training has written its last weights and evaluated them; the same answer on every process."""
    return comm.all_gather(RunFolder(folder).has_finished())[0]


def train_two_stages(args: Namespace) -> Dict[str, Any]:
    """Train stage 1, then stage 2 from its weights; to be called on every process of the run.

    A stage that has finished is skipped, one that was interrupted goes on at its last checkpoint.

    Args:
        args: what :func:`two_stage_parser` parsed.

    Returns:
        The metrics of stage 2 on the main process, an empty dict elsewhere or if stage 2 had finished before.

    Raises:
        InputError: for anything that the user can mend.
    """
    results: Dict[str, Any] = {}
    for number, stage in enumerate(stage_arguments(args), 1):
        if is_finished(stage.output_dir):
            if comm.is_main_process():
                print(f"Stage {number} has finished: {stage.output_dir}", flush=True)
            continue
        _close_logs()
        results = run(setup(stage), stage)
        comm.synchronize()
        _release_memory()
    return results


def _close_logs() -> None:
    """Let the next call of ``setup`` open a log of its own, and that alone."""
    for name in ("detectron2", "fvcore"):
        logging.getLogger(name).handlers.clear()
    setup_logger.cache_clear()


def _release_memory() -> None:
    gc.collect()  # trainer, hooks and model refer to each other
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
