"""From a config to the evaluator of a data set."""

import hashlib
import logging
import math
from typing import Optional, Union

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from eql_d2.data.catalog import category_frequency
from eql_d2.data.classification import EVALUATOR_TYPE as CLASSIFICATION
from eql_d2.data.frequency import CategoryFrequency
from eql_d2.data.open_images import EVALUATOR_TYPE as OPEN_IMAGES
from eql_d2.data.registration import open_table
from eql_d2.data.semantic import EVALUATOR_TYPE as SEM_SEG
from eql_d2.errors import InputError
from eql_d2.evaluation.classification import ClassificationEvaluator
from eql_d2.evaluation.evaluator import COCOEvaluator, LVISEvaluator
from eql_d2.evaluation.metrics import FIXED_DETECTIONS_PER_CATEGORY
from eql_d2.evaluation.open_images_evaluator import OpenImagesEvaluator
from eql_d2.evaluation.sem_seg import SegmentationEvaluator
from eql_d2.evaluation.streaming import StreamingEvaluator

logger = logging.getLogger("detectron2.eql_d2.evaluation")

_EVALUATORS = {"lvis": LVISEvaluator, "coco": COCOEvaluator}


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_dir: str, frequency: Optional[CategoryFrequency] = None
) -> Union[StreamingEvaluator, ClassificationEvaluator, SegmentationEvaluator]:
    """Build the evaluator that a data set's metadata (``evaluator_type``) asks for.

    Semantic segmentation's reads ``MODEL.LONG_TAIL.SEM_SEG``. Open Images' reads ``OPEN_IMAGES``; it counts every
    detection that the model returns. LVIS's and COCO's read ``MODEL.LONG_TAIL.EVALUATOR`` and ``AP_FIXED``,
    ``MODEL.MASK_ON`` and ``TEST.DETECTIONS_PER_IMAGE``, which is also the cap of the evaluation. On an LVIS-format set,
    and with ``AP_FIXED``, that cap is ``AP_CAP`` (LVIS's 300) at most, so that a model may return more without changing
    AP. Of a model that returns fewer than AP-fixed can count, a warning says so.

    Args:
        cfg: with ``MODEL.LONG_TAIL``.
        dataset_name: of a registered data set.
        output_dir: where to write.
        frequency: of the training set, for groups and training counts; counted in ``DATASETS.TRAIN`` or read from
            ``MODEL.LONG_TAIL.FREQUENCY`` if not given, left out if neither is there.

    Raises:
        InputError: if the data set is of another kind, or ``AP_CAP`` is no number of detections.
    """
    kind = MetadataCatalog.get(dataset_name).get("evaluator_type", None)
    if kind == CLASSIFICATION:
        return ClassificationEvaluator(dataset_name, output_dir, frequency or _training_frequency(cfg))
    if kind == SEM_SEG:
        node = cfg.MODEL.LONG_TAIL.SEM_SEG
        return SegmentationEvaluator(
            dataset_name,
            output_dir,
            frequency or _training_frequency(cfg),
            rare_max=node.RARE_MAX_IMAGES,
            common_max=node.COMMON_MAX_IMAGES,
            head_body_ends=node.HEAD_BODY_ENDS or MetadataCatalog.get(dataset_name).get("head_body_ends", ()),
        )
    if kind == OPEN_IMAGES:
        return OpenImagesEvaluator(
            dataset_name,
            output_dir,
            frequency=frequency or _training_frequency(cfg),
            group_by=cfg.MODEL.LONG_TAIL.OPEN_IMAGES.GROUP_BY,
            group_of_weight=cfg.MODEL.LONG_TAIL.OPEN_IMAGES.GROUP_OF_WEIGHT,
            fingerprint=settings_digest(cfg),
        )
    if kind not in _EVALUATORS:
        raise InputError(
            f"The data set {dataset_name!r} has evaluator_type {kind!r}; there are evaluators for "
            f"{', '.join(map(repr, (*_EVALUATORS, OPEN_IMAGES, CLASSIFICATION, SEM_SEG)))}."
        )
    max_detections = cfg.TEST.DETECTIONS_PER_IMAGE
    if cfg.MODEL.LONG_TAIL.AP_CAP < 1:
        raise InputError(f"MODEL.LONG_TAIL.AP_CAP is {cfg.MODEL.LONG_TAIL.AP_CAP}; it must be at least 1.")
    if kind == "lvis" or cfg.MODEL.LONG_TAIL.AP_FIXED:
        cap = cfg.MODEL.LONG_TAIL.AP_CAP
        max_detections = cap if max_detections < 0 else min(max_detections, cap)
    if kind == "lvis" and cfg.MODEL.LONG_TAIL.AP_FIXED:
        _warn_of_few_detections(cfg, dataset_name)
    return _EVALUATORS[kind](
        dataset_name,
        output_dir,
        tasks=("bbox", "segm") if cfg.MODEL.MASK_ON else ("bbox",),
        backend=cfg.MODEL.LONG_TAIL.EVALUATOR,
        max_detections=max_detections,
        frequency=frequency or _training_frequency(cfg),
        fixed=cfg.MODEL.LONG_TAIL.AP_FIXED,
        fingerprint=settings_digest(cfg),
    )


def fixed_detections_per_image(num_classes: int, num_images: int) -> int:
    """Return how many detections of an image AP-fixed counts on average where every class has its 10,000."""
    return math.ceil(num_classes * FIXED_DETECTIONS_PER_CATEGORY / num_images)


def _warn_of_few_detections(cfg: CfgNode, dataset_name: str) -> None:
    table = open_table(MetadataCatalog.get(dataset_name).json_file)
    num_classes, num_images = len(table.class_names), len(table)
    needed = fixed_detections_per_image(num_classes, num_images)
    if 0 <= cfg.TEST.DETECTIONS_PER_IMAGE < needed:
        logger.warning(
            f"The model returns {cfg.TEST.DETECTIONS_PER_IMAGE} detections of an image, so AP-fixed on {dataset_name} "
            f"is AP under that cap; {FIXED_DETECTIONS_PER_CATEGORY} of each of {num_classes} classes in {num_images} "
            f"images need at least TEST.DETECTIONS_PER_IMAGE {needed}."
        )


def _training_frequency(cfg: CfgNode) -> Optional[CategoryFrequency]:
    """Return the counts of the training set, ``None`` where they cannot be had: evaluation works without."""
    try:
        return category_frequency(cfg.DATASETS.TRAIN, cfg.MODEL.LONG_TAIL.FREQUENCY)
    except InputError as error:
        logger.warning("The per-category tables get no training counts: %s", error)
        return None


def settings_digest(cfg: CfgNode) -> str:
    """Return a digest of the settings that predictions depend on besides the weights."""
    text = "\n".join(cfg[node].dump() for node in ("MODEL", "INPUT", "TEST"))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
