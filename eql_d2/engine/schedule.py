"""How long a config trains on the data at hand: images of an epoch, iterations, epochs."""

from argparse import ArgumentParser, Namespace
from typing import List, Sequence, Tuple

from detectron2.config import CfgNode

from eql_d2.data.build import check_num_classes, epoch_length, long_tail_dataset_dicts
from eql_d2.errors import InputError


def schedule_parser() -> ArgumentParser:
    """Return the parser of the command's arguments."""
    parser = ArgumentParser()
    parser.add_argument("--config-file", required=True, metavar="FILE", help="config of the training")
    parser.add_argument(
        "--epochs", type=float, nargs="+", default=[], metavar="N",
        help="print the settings for so many epochs: their number, then those after which the learning rate falls",
    )  # fmt: skip
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides of the config, before --epochs")
    return parser


def describe_schedule(cfg: CfgNode, args: Namespace) -> List[str]:
    """Return lines that say what one epoch is, how many epochs the config trains, and what ``args.epochs`` would take.

    Args:
        cfg: of the training, with its data sets registered.
        args: what :func:`schedule_parser` parsed.

    Raises:
        InputError: for a data set that cannot be trained on, or epochs that do not grow from the steps to their number.
    """
    names = cfg.DATASETS.TRAIN
    if not names:
        raise InputError("DATASETS.TRAIN is empty; name at least one training set.")
    dataset = long_tail_dataset_dicts(names, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
    check_num_classes(cfg, names)
    images, batch = epoch_length(cfg, dataset), cfg.SOLVER.IMS_PER_BATCH
    steps = ", ".join(f"{step:,} ({step * batch / images:.2f} epochs)" for step in cfg.SOLVER.STEPS) or "none"
    max_iter = cfg.SOLVER.MAX_ITER
    lines = [
        f"{', '.join(names)}: {len(dataset):,} images, of {images:,.0f} in an epoch by {_sampler(cfg)}",
        f"{batch} images an iteration: {images / batch:,.2f} iterations an epoch",
        f"SOLVER.MAX_ITER {max_iter:,} ({max_iter * batch / images:.2f} epochs), SOLVER.STEPS {steps}",
    ]
    if args.epochs:
        total, of_steps = iterations_of(args.epochs, images, batch)
        lines.append(f'SOLVER.MAX_ITER {total} SOLVER.STEPS "({"".join(f"{step}," for step in of_steps)})"')
    return lines


def iterations_of(epochs: Sequence[float], images: float, batch: int) -> Tuple[int, List[int]]:
    """Return the iterations of a training and those of its steps, rounded to the nearest.

    Args:
        epochs: of the training, then of its steps.
        images: of one epoch.
        batch: images of an iteration.

    Raises:
        InputError: if the steps do not grow from 0 to the end of the training.
    """
    total, *steps = epochs
    if any(a >= b for a, b in zip([0, *steps], [*steps, total])):
        raise InputError(
            f"--epochs {' '.join(f'{epoch:g}' for epoch in epochs)}: the first is the number of epochs; the steps that "
            f"follow grow from 0 to it, as in --epochs 12 8 11."
        )
    return round(total * images / batch), [round(step * images / batch) for step in steps]


def _sampler(cfg: CfgNode) -> str:
    name = cfg.DATALOADER.SAMPLER_TRAIN
    if name != "RepeatFactorTrainingSampler":
        return name
    return f"{name} (threshold {cfg.DATALOADER.REPEAT_THRESHOLD:g}, {cfg.MODEL.LONG_TAIL.REPEAT_ROUNDING})"
