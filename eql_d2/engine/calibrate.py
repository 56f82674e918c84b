"""Collecting the logit statistics that ``MODEL.LONG_TAIL.CALIBRATION.LOGN`` needs."""

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any, List

import torch
from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn
from torch.utils.data import DataLoader

from eql_d2.engine.launch import argument_parser
from eql_d2.engine.trainer import Trainer, load_trained_model
from eql_d2.errors import InputError
from eql_d2.evaluation.loop import with_progress
from eql_d2.losses import LogitStatistics
from eql_d2.modeling.box_predictor import box_predictors
from eql_d2.modeling.build import statistics_file


def calibrate_parser() -> ArgumentParser:
    """Return Detectron2's argument parser with the data set, the number of images and the file to write."""
    parser = argument_parser()
    parser.add_argument("--output", metavar="FILE", help="default: logit_statistics.pth in OUTPUT_DIR")
    parser.add_argument("--dataset", metavar="NAME", help="a registered data set; default: the first of DATASETS.TRAIN")
    parser.add_argument("--max-images", type=int, default=0, metavar="N", help="every n-th image, at most N; 0: all")
    return parser


def calibrate(cfg: CfgNode, args: Namespace) -> List[Path]:
    """Write the mean and standard deviation of each logit of a trained model over a data set.

    To be called on every process of the run; the statistics are those of all.

    Args:
        cfg: of the trained model, with ``MODEL.WEIGHTS``; its calibration is left out.
        args: what :func:`calibrate_parser` parsed.

    Returns:
        The files written: one, or one for each stage of a cascade.

    Raises:
        InputError: for weights that are missing or do not fit, an unknown data set, or a model without a box predictor
            of this package.
    """
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.LONG_TAIL.CALIBRATION.NAME = ""
    cfg.MODEL.MASK_ON = False  # only the classifier is asked
    dataset = args.dataset or (cfg.DATASETS.TRAIN[0] if cfg.DATASETS.TRAIN else "")
    if not dataset:
        raise InputError("DATASETS.TRAIN is empty; name a data set by --dataset.")
    if args.max_images < 0:
        raise InputError(f"--max-images is {args.max_images}; it must be 0 (all) or more.")
    model = load_trained_model(cfg, args.resume, "Calibration")
    loader = _thinned(Trainer.build_test_loader(cfg, dataset), args.max_images)
    statistics = collect_logit_statistics(model, loader)
    output = Path(args.output or Path(cfg.OUTPUT_DIR) / "logit_statistics.pth")
    files = [statistics_file(str(output), stage) for stage in range(len(statistics))]
    if comm.is_main_process():
        output.parent.mkdir(parents=True, exist_ok=True)
        for file, of_stage in zip(files, statistics):
            of_stage.save(file)
            print(f"{file}: {int(of_stage.count)} regions of {dataset}", flush=True)
    comm.synchronize()
    return files


@torch.no_grad()
def collect_logit_statistics(model: nn.Module, data_loader: Any) -> List[LogitStatistics]:
    """Return the statistics of the logits of all regions that the model classifies at test time, for each stage.

    Args:
        model: with box predictors of this package; put in evaluation mode for the time.
        data_loader: gives what the model takes. May be empty on this process; a collective if there are several.

    Raises:
        InputError: if the model has no such predictor, or no process saw a region.
    """
    predictors = [predictor for _, predictor in box_predictors(model)]
    if not predictors:
        raise InputError(
            "The model has no box predictor of this package; set MODEL.ROI_HEADS.NAME to one of its ROI heads."
        )
    statistics = [LogitStatistics(predictor.classifier_loss.num_logits) for predictor in predictors]
    handles = [
        predictor.register_forward_hook(lambda module, args, output, of_stage=of_stage: of_stage.update(output[0]))
        for predictor, of_stage in zip(predictors, statistics)
    ]
    training = model.training
    model.eval()
    try:
        for inputs in with_progress(data_loader):
            model(inputs)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    for of_stage in statistics:
        of_stage.reduce_over_ranks(predictors[0].cls_score.weight.device)
    if not all(of_stage.count for of_stage in statistics):
        raise InputError("The model found no region in any image, so there are no statistics of its logits.")
    return statistics


def _thinned(loader: DataLoader, max_images: int) -> DataLoader:
    """Return a loader of every n-th image, at most ``max_images`` of all processes together."""
    indices = list(loader.sampler)  # of this process
    total = len(loader.dataset)
    step = -(-total // max_images) if max_images else 1
    kept = [index for index in indices if index % step == 0]
    return DataLoader(
        loader.dataset, sampler=kept, batch_size=1, num_workers=loader.num_workers, collate_fn=loader.collate_fn
    )
