"""From a config to a classifier loss and a calibration."""

from pathlib import Path
from typing import Any, Mapping, Optional

from eql_d2.data.catalog import category_frequency
from eql_d2.data.frequency import CategoryFrequency
from eql_d2.errors import InputError
from eql_d2.losses import (
    CALIBRATION_REGISTRY,
    CLASSIFIER_LOSS_REGISTRY,
    ClassifierLoss,
    add_regularizer,
    build_calibration,
    build_classifier_loss,
    default_settings,
)
from eql_d2.losses.base import Categories
from eql_d2.losses.calibration import Calibration


def build_classifier_loss_from_config(cfg) -> ClassifierLoss:
    """Build the loss that ``MODEL.LONG_TAIL.LOSS`` names, with the settings of its own node.

    The category counts come from ``MODEL.LONG_TAIL.FREQUENCY`` or the data sets of ``DATASETS.TRAIN``. A loss that does
    not compute with them is told them for its statistics of rare, common and frequent classes, and does without them
    where they cannot be had.

    Raises:
        InputError: for an unknown loss or setting, one that cannot do what ``UNVERIFIED`` says, or if the counts are of
            another number of classes than ``MODEL.ROI_HEADS.NUM_CLASSES``.
    """
    node = cfg.MODEL.LONG_TAIL
    categories = _categories(cfg, needs_frequency=CLASSIFIER_LOSS_REGISTRY.get(node.LOSS).needs_frequency)
    loss = build_classifier_loss(node.LOSS, categories, node.get(node.LOSS, {}))
    return _completed(loss, node)


def build_foreground_loss_from_config(cfg, region: str, head: str = "ROI_HEADS") -> ClassifierLoss:
    """Build the loss that ``MODEL.LONG_TAIL.LOSS`` names for regions that always show a class: K logits.

    As :func:`build_classifier_loss_from_config`, with ``BACKGROUND`` False for the losses that have such a setting.

    Args:
        cfg: with ``MODEL.LONG_TAIL``.
        region: what a region is, for the message: "an image", "a pixel".
        head: the node of ``MODEL`` whose ``NUM_CLASSES`` counts.

    Raises:
        InputError: also if the loss has other logits than those of the K classes.
    """
    node = cfg.MODEL.LONG_TAIL
    categories = _categories(cfg, CLASSIFIER_LOSS_REGISTRY.get(node.LOSS).needs_frequency, head)
    loss = build_foreground_loss(node.LOSS, categories, node.get(node.LOSS, {}))
    if loss.has_background_logits:
        raise InputError(
            f"MODEL.LONG_TAIL.LOSS is {node.LOSS!r} with {loss.num_logits} logits for {loss.num_classes} classes: some "
            f"tell foreground from background, and {region} is never background. Choose a loss of the K classes alone, "
            f"such as SOFTMAX, SEQL, SOFTMAX_EQL or SIGMOID, or settings without them (CATEGORY_AGNOSTIC False)."
        )
    return _completed(loss, node)


def _completed(loss: ClassifierLoss, node) -> ClassifierLoss:
    """Return ``loss`` doing what ``UNVERIFIED`` says, with what ``REGULARIZER.NAME`` names in its own settings."""
    if node.UNVERIFIED not in ("loss", "exempt"):
        raise InputError(f"MODEL.LONG_TAIL.UNVERIFIED is {node.UNVERIFIED!r}; there are 'loss' and 'exempt'.")
    if node.UNVERIFIED == "exempt":
        loss.spare_unverified()
    add_regularizer(loss, node.REGULARIZER.NAME, node.REGULARIZER.get(node.REGULARIZER.NAME, {}))
    return loss


def build_foreground_loss(name: str, categories: Categories, settings: Mapping[str, Any]) -> ClassifierLoss:
    """Build the loss ``name`` as :func:`~eql_d2.losses.build_classifier_loss`, without background where it can be."""
    without = {"BACKGROUND": False} if "background" in default_settings(name) else {}
    return build_classifier_loss(name, categories, {**settings, **without})


def check_plain(cfg, name: str) -> None:
    """Check that a config asks a detector for nothing that ``LongTailStandardROIHeads`` alone have.

    Args:
        cfg: with ``MODEL.LONG_TAIL``.
        name: of the heads or the detector that is built.

    Raises:
        InputError: if it does.
    """
    node = cfg.MODEL.LONG_TAIL
    asked = {"FEATURE_MEMORY.SIZE": node.FEATURE_MEMORY.SIZE, "REFINEMENT.LOSS_WEIGHTS": node.REFINEMENT.LOSS_WEIGHTS}
    for key, value in asked.items():
        if value:
            raise InputError(
                f"MODEL.LONG_TAIL.{key} is {value}, which {name} has not; LongTailStandardROIHeads has it (FPN, no "
                f"cascade)."
            )


def build_calibration_from_config(cfg, stage: int = 0, head: str = "ROI_HEADS") -> Optional[Calibration]:
    """Build what ``MODEL.LONG_TAIL.CALIBRATION.NAME`` names, with the settings of its own node; ``None`` for no name.

    Args:
        cfg: with ``MODEL.LONG_TAIL``.
        stage: of the cascade; each stage has logit statistics of its own, see :func:`statistics_file`.
        head: the node of ``MODEL`` whose ``NUM_CLASSES`` counts.

    Raises:
        InputError: for an unknown calibration or setting, statistics or counts that are missing or do not fit.
    """
    node = cfg.MODEL.LONG_TAIL.CALIBRATION
    if not node.NAME:
        return None
    kind = CALIBRATION_REGISTRY.get(node.NAME)
    categories = _categories(cfg, kind.needs_frequency, head)
    settings = dict(node.get(node.NAME, {}))
    if settings.get("STATISTICS") and kind.is_of_one_stage:
        settings["STATISTICS"] = str(statistics_file(settings["STATISTICS"], stage))
    return build_calibration(node.NAME, categories, settings)


def statistics_file(path: str, stage: int) -> Path:
    """Return the file with the logit statistics of a stage: ``x.pth`` of the first, ``x_stage1.pth`` of the second."""
    path = Path(path)
    return path.with_name(f"{path.stem}_stage{stage}{path.suffix}") if stage else path


def _categories(cfg, needs_frequency: bool, head: str = "ROI_HEADS") -> Categories:
    """Return the category counts, or the number of classes where they cannot be had and are not needed."""
    try:
        return _checked_frequency(cfg, head)
    except InputError:
        if needs_frequency:
            raise
        return cfg.MODEL[head].NUM_CLASSES


def _checked_frequency(cfg, head: str) -> CategoryFrequency:
    frequency_file, num_classes = cfg.MODEL.LONG_TAIL.FREQUENCY, cfg.MODEL[head].NUM_CLASSES
    frequency = category_frequency(cfg.DATASETS.TRAIN, frequency_file)
    if frequency.num_classes != num_classes:
        if not num_classes:
            raise InputError(
                f"MODEL.{head}.NUM_CLASSES is 0, the number of the data's categories: call "
                "eql_d2.data.fit.fit_to_data(cfg) before the model is built, as eql-d2 train does."
            )
        source = frequency_file or ", ".join(cfg.DATASETS.TRAIN)
        raise InputError(
            f"MODEL.{head}.NUM_CLASSES is {num_classes}, but {source} has {frequency.num_classes} categories; "
            f"the two must be equal."
        )
    return frequency
