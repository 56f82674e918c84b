"""One pass of a trained model over a data set, as in training, that leaves the model as it was."""

from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Iterator, List, Optional

import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from eql_d2.analysis.trained_model import TrainedModel
from eql_d2.data.build import check_num_classes, long_tail_dataset_dicts
from eql_d2.data.catalog import describe_dataset
from eql_d2.data.ignored import ignored_boxes
from eql_d2.data.mapper import LongTailDatasetMapper
from eql_d2.engine.trainer import load_trained_model
from eql_d2.errors import InputError
from eql_d2.evaluation.loop import with_progress
from eql_d2.losses import ClassifierLoss
from eql_d2.modeling.classifier_layer import classifier_layers
from eql_d2.modeling.regions import RegionStatistics, Watcher


@dataclass(eq=False)
class Pass:
    """What a pass over a data set gives.

    Attributes:
        dataset: its name.
        num_images: images seen.
        statistics: one for each stage.
        state_ratio: of the first stage's loss, the gradient ratio that it accumulated in training, float64 ``[K]``;
            ``None`` for a loss that has none.
    """

    dataset: str
    num_images: int
    statistics: List[RegionStatistics]
    state_ratio: Optional[Tensor]


def pass_over(run: TrainedModel, dataset: Optional[str] = None, max_images: int = 0) -> Pass:
    """Run a trained model over a data set with the regions that training would sample, and sum up what they say.

    Proposals are labelled and sampled as in training (``label_and_sample_proposals``: ground truth boxes are among
    them, and background regions in the configured share), with numbers drawn from the run's seed; images are of test
    size, not flipped; images without an instance are left out if training leaves them out. Batch norm and the sums of
    losses stand still.

    Args:
        run: with a checkpoint.
        dataset: with annotations; the first of ``DATASETS.TRAIN`` if not given.
        max_images: every n-th image, at most that many; 0 for all.

    Raises:
        InputError: for a checkpoint that is missing or does not fit, a data set that is unknown, has no annotations or
            other categories, or a model without a box predictor of this package.
    """
    if max_images < 0:
        raise InputError(f"--max-images is {max_images}; it must be 0 (all) or more.")
    dataset = run.dataset(dataset)
    run.check_weights()  # a missing file is worth an answer before a data set is read
    cfg = _analysis_config(run.cfg, dataset)
    loader = _loader(cfg, dataset, max_images)
    model = load_trained_model(cfg, resume=False, purpose="Analysis", allow_missing=run.allow_missing)
    predictors = [predictor for _, predictor in classifier_layers(model)]
    if not predictors:
        raise InputError(
            f"{run.config_file}: MODEL.ROI_HEADS.NAME is {cfg.MODEL.ROI_HEADS.NAME!r}, whose box predictor "
            f"is not of this package; there are LongTailStandardROIHeads, LongTailRes5ROIHeads and "
            f"LongTailCascadeROIHeads."
        )
    statistics = collect_statistics(model, predictors, loader, seed=max(cfg.SEED, 0))
    return Pass(dataset, len(loader), statistics, _state_ratio(predictors[0].classifier_loss))


def _analysis_config(cfg: CfgNode, dataset: str) -> CfgNode:
    """Return the run's config for boxes alone, test-size images without augmentation, and plain scores."""
    cfg = cfg.clone()
    cfg.defrost()
    cfg.MODEL.MASK_ON = False
    cfg.MODEL.LONG_TAIL.CALIBRATION.NAME = ""
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING = (cfg.INPUT.MIN_SIZE_TEST,), "choice"
    cfg.INPUT.MAX_SIZE_TRAIN = cfg.INPUT.MAX_SIZE_TEST
    cfg.INPUT.RANDOM_FLIP, cfg.INPUT.CROP.ENABLED = "none", False
    # The counts of the loss stay those of the training set.
    if not cfg.MODEL.LONG_TAIL.FREQUENCY and dataset not in cfg.DATASETS.TRAIN:
        raise InputError(
            f"{dataset} is not in DATASETS.TRAIN, and the run has no category_frequency.json with the training counts."
        )
    if cfg.MODEL.LONG_TAIL.FREQUENCY:
        cfg.DATASETS.TRAIN = (dataset,)
    return cfg


def _loader(cfg: CfgNode, dataset: str, max_images: int) -> Any:
    """Return a loader of training examples, one image a batch, each image at most once."""
    filter_empty = cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
    records = long_tail_dataset_dicts([dataset], filter_empty, ignored_boxes(cfg, [dataset]))
    check_num_classes(cfg, [dataset])
    if MetadataCatalog.get(dataset).get("has_annotations") is False:
        raise InputError(f"{describe_dataset(dataset)} has no annotations, so its regions have no classes.")
    step = -(-len(records) // max_images) if max_images else 1
    return build_detection_test_loader(
        records,
        mapper=LongTailDatasetMapper(cfg, True),
        sampler=list(range(0, len(records), step)),
        batch_size=1,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


@torch.no_grad()
def collect_statistics(
    model: nn.Module, predictors: List[nn.Module], loader: Any, seed: int = 0
) -> List[RegionStatistics]:
    """Return the statistics of each stage over the training examples of a loader.

    The model's parameters, buffers and modes, what its losses accumulated, and torch's random generators are afterwards
    as they were.

    Args:
        model: a GeneralizedRCNN.
        predictors: its box predictors.
        loader: gives lists of examples with ``instances``.
        seed: of the proposal sampling.
    """
    watcher = Watcher(predictors, with_confusion=True, frozen=True)
    devices = sorted({p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices), EventStorage(), _sampling_mode(model), watcher.attached():
        torch.manual_seed(seed)
        for inputs in with_progress(loader):
            model(inputs)
    return watcher.statistics


@contextmanager
def _sampling_mode(model: nn.Module) -> Iterator[None]:
    """Let proposals and heads do what they do in training, while no layer and no loss changes its state."""
    modes = {module: module.training for module in model.modules()}
    try:
        for module in modes:
            # Layers (batch norm, dropout) and losses have no parts; what consists of parts samples and labels.
            has_parts = next(module.children(), None) is not None
            module.training = has_parts and not isinstance(module, ClassifierLoss)
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _state_ratio(loss: nn.Module) -> Optional[Tensor]:
    """Return the gradient ratio that a loss with state (EQL v2, EFL) accumulated, float64 ``[K]`` on the CPU."""
    ratio = getattr(loss, "gradient_ratio", None)
    return None if ratio is None else ratio().double().cpu()
