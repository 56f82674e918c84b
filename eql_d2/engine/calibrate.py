"""Collecting the statistics that ``MODEL.LONG_TAIL.CALIBRATION`` needs: of logits (LogN), or of boxes (FRACAL)."""

import itertools
from argparse import ArgumentParser, Namespace
from functools import partial
from pathlib import Path
from typing import Any, Callable, Iterable, Iterator, List, Sized, Union, cast

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.events import EventStorage
from torch import nn
from torch.utils.data import DataLoader

from eql_d2.data.build import epoch_length, long_tail_dataset_dicts
from eql_d2.data.fractal import fractal_dimensions_of
from eql_d2.engine.launch import argument_parser
from eql_d2.engine.setup import frees_output_dir
from eql_d2.engine.trainer import Trainer, load_trained_model
from eql_d2.engine.tune import tune
from eql_d2.errors import InputError
from eql_d2.evaluation.loop import with_progress
from eql_d2.losses import CALIBRATION_REGISTRY, LogitStatistics, LogN, RunningLogitStatistics
from eql_d2.losses.fracal import save_dimensions
from eql_d2.modeling.build import statistics_file
from eql_d2.modeling.classifier_layer import classifier_layers
from eql_d2.run_folder import RunFolder


def calibrate_parser() -> ArgumentParser:
    """Return Detectron2's argument parser with the data set, the number of images, the file, and what to tune."""
    parser = argument_parser()
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="default: logit_statistics.pth, fractal_dimensions.pth or, with --tune, tuned.yaml in OUTPUT_DIR",
    )
    parser.add_argument("--dataset", metavar="NAME", help="a registered data set; default: the first of DATASETS.TRAIN")
    parser.add_argument("--max-images", type=int, default=0, metavar="N", help="at most N; 0: all")
    parser.add_argument("--tune", action="store_true", help="tune the free constants on the held-out --dataset")
    parser.add_argument(
        "--metric", metavar="NAME", help="what is tuned for; default: segm/AP, or bbox/AP without masks"
    )
    parser.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="KEY=V,V,...",
        help="values to try of a key below MODEL.LONG_TAIL.CALIBRATION or TAU_NORM; more than once: all combinations",
    )
    return parser


@frees_output_dir
def calibrate(cfg: CfgNode, args: Namespace) -> List[Path]:
    """Write the statistics of a data set that ``MODEL.LONG_TAIL.CALIBRATION.NAME`` needs, LogN's where it is empty.

    LogN: the mean and standard deviation of each logit of a trained model. ``CALIBRATION.LOGN.REGIONS`` says over which
    regions: all that are classified at test time, or those that training samples, as a running mean over one epoch of
    one image a step and process. FRACAL: the fractal dimension of each class's boxes, for which no model is asked.

    With ``--tune``, see :func:`eql_d2.engine.tune.tune`.

    To be called on every process of the run; the statistics are those of all, running ones the first's.

    Args:
        cfg: of the trained model, with ``MODEL.WEIGHTS``; its calibration is left out.
        args: what :func:`calibrate_parser` parsed.

    Returns:
        The files written: one, or, of logits, one for each stage of a cascade.

    Raises:
        InputError: for a calibration that needs none, weights that are missing or do not fit, an unknown data set, or a
            model without a box predictor of this package.
    """
    if args.tune:
        return [tune(cfg, args)]
    if args.grid or args.metric:
        raise InputError("--grid and --metric are for --tune.")
    cfg = cfg.clone()
    cfg.defrost()
    name = cfg.MODEL.LONG_TAIL.CALIBRATION.NAME
    statistics_of = CALIBRATION_REGISTRY.get(name).statistics_of if name else LogN.statistics_of
    if not statistics_of:
        raise InputError(
            f"MODEL.LONG_TAIL.CALIBRATION.NAME is {name}, which needs no statistics: evaluate as it is, or --tune."
        )
    cfg.MODEL.LONG_TAIL.CALIBRATION.NAME = ""
    cfg.MODEL.MASK_ON = False  # only the classifier is asked
    dataset = args.dataset or (cfg.DATASETS.TRAIN[0] if cfg.DATASETS.TRAIN else "")
    if not dataset:
        raise InputError("DATASETS.TRAIN is empty; name a data set by --dataset.")
    if args.max_images < 0:
        raise InputError(f"--max-images is {args.max_images}; it must be 0 (all) or more.")
    output = Path(args.output or RunFolder(cfg.OUTPUT_DIR).statistics_files[statistics_of])
    if statistics_of == "boxes":
        return _write_dimensions(cfg, dataset, args.max_images, output)
    model = load_trained_model(cfg, args.resume, "Calibration", args.allow_missing)
    node = cfg.MODEL.LONG_TAIL.CALIBRATION.LOGN
    loader: Union[_Steps, DataLoader]
    if RunningLogitStatistics.regions == node.REGIONS:
        loader = _one_epoch(cfg, dataset, args.max_images)
        statistics = collect_running_statistics(model, loader, node.MOMENTUM)
    else:
        loader = _thinned(Trainer.build_test_loader(cfg, dataset), args.max_images)
        statistics = collect_logit_statistics(model, loader)
    files = [statistics_file(str(output), stage) for stage in range(len(statistics))]
    if comm.is_main_process():
        output.parent.mkdir(parents=True, exist_ok=True)
        for file, of_stage in zip(files, statistics):
            of_stage.save(file)
            print(f"{file}: {int(of_stage.count)} regions of {dataset}", flush=True)
    comm.synchronize()
    return files


def _write_dimensions(cfg: CfgNode, dataset: str, max_images: int, output: Path) -> List[Path]:
    records = long_tail_dataset_dicts([dataset], filter_empty=False)
    records = records[:: _step(len(records), max_images)]
    dimensions = torch.from_numpy(fractal_dimensions_of(records, cfg.MODEL.ROI_HEADS.NUM_CLASSES))
    if comm.is_main_process():
        output.parent.mkdir(parents=True, exist_ok=True)
        save_dimensions(dimensions, output)
        print(f"{output}: fractal dimensions of {len(dimensions)} classes of {dataset}", flush=True)
    comm.synchronize()
    return [output]


@torch.no_grad()
def collect_logit_statistics(model: nn.Module, data_loader: Any) -> List[LogitStatistics]:
    """Return the statistics of the logits of all regions that the model classifies at test time, for each stage.

    Args:
        model: with box predictors of this package; put in evaluation mode for the time.
        data_loader: gives what the model takes. May be empty on this process; a collective if there are several.

    Raises:
        InputError: if the model has no such predictor, or no process saw a region.
    """
    model_was_training = model.training
    model.eval()
    try:
        return _collect(model, data_loader, LogitStatistics)
    finally:
        model.train(model_was_training)


@torch.no_grad()
def collect_running_statistics(model: nn.Module, data_loader: Any, momentum: float) -> List[LogitStatistics]:
    """Return the running statistics of the logits of the regions that training samples, for each stage.

    Nothing is trained, and batch norm keeps its statistics.

    Args:
        model: with box predictors of this package; put in training mode for the time.
        data_loader: gives what the model takes in training, a step at a time.
        momentum: share of each step.

    Raises:
        InputError: if the model has no such predictor, or no process saw a region.
    """
    model_was_training = model.training
    model.train()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    try:
        with EventStorage():
            return _collect(model, data_loader, partial(RunningLogitStatistics, momentum=momentum))
    finally:
        model.train(model_was_training)


def _collect(
    model: nn.Module, data_loader: Any, new_statistics: Callable[[int], LogitStatistics]
) -> List[LogitStatistics]:
    """Return one ``new_statistics(num_logits)`` for each box predictor, fed with its logits of all batches."""
    predictors = [predictor for _, predictor in classifier_layers(model)]
    if not predictors:
        raise InputError(
            "The model has no box predictor of this package; set MODEL.ROI_HEADS.NAME to one of its ROI heads."
        )
    statistics = [new_statistics(predictor.classifier_loss.num_logits) for predictor in predictors]
    handles = [
        predictor.register_forward_hook(lambda module, args, output, of_stage=of_stage: of_stage.update(output[0]))
        for predictor, of_stage in zip(predictors, statistics)
    ]
    try:
        for inputs in with_progress(data_loader):
            model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    for of_stage in statistics:
        of_stage.reduce_over_ranks(predictors[0].cls_score.weight.device)
    if not all(of_stage.count for of_stage in statistics):
        raise InputError("The model found no region in any image, so there are no statistics of its logits.")
    return statistics


class _Steps:
    """The first batches of an endless loader, with the length that a progress bar asks for."""

    def __init__(self, loader: Iterable, num_steps: int):
        self._loader, self._num_steps = loader, num_steps

    def __len__(self) -> int:
        return self._num_steps

    def __iter__(self) -> Iterator:
        return itertools.islice(self._loader, self._num_steps)


def _one_epoch(cfg: CfgNode, dataset: str, max_images: int) -> _Steps:
    """Return the training loader's first epoch, or ``max_images`` of it, one image a step on each process."""
    cfg = cfg.clone()
    cfg.DATASETS.TRAIN = (dataset,)
    cfg.SOLVER.IMS_PER_BATCH = comm.get_world_size()
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    filter_empty = cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    images = round(epoch_length(cfg, long_tail_dataset_dicts([dataset], filter_empty)))
    images = min(images, max_images or images)
    return _Steps(Trainer.build_train_loader(cfg), -(-images // comm.get_world_size()))


def _thinned(loader: DataLoader, max_images: int) -> DataLoader:
    """Return a loader of every n-th image, at most ``max_images`` of all processes together."""
    indices = list(loader.sampler)  # of this process
    total = len(cast(Sized, loader.dataset))
    step = _step(total, max_images)
    kept = [index for index in indices if index % step == 0]
    return DataLoader(
        loader.dataset, sampler=kept, batch_size=1, num_workers=loader.num_workers, collate_fn=loader.collate_fn
    )


def _step(total: int, max_images: int) -> int:
    """Return n such that every n-th of ``total`` images are at most ``max_images``; 0 stands for all."""
    return -(-total // max_images) if max_images and total else 1
