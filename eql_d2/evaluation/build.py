"""From a config to the evaluator of a data set."""

import hashlib
import logging
from typing import Optional, Union

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog

from eql_d2.data.catalog import category_frequency
from eql_d2.data.classification import EVALUATOR_TYPE as CLASSIFICATION
from eql_d2.data.frequency import CategoryFrequency
from eql_d2.errors import InputError
from eql_d2.evaluation.classification import ClassificationEvaluator
from eql_d2.evaluation.evaluator import COCOEvaluator, InstanceEvaluator, LVISEvaluator

logger = logging.getLogger("detectron2.eql_d2.evaluation")

_EVALUATORS = {"lvis": LVISEvaluator, "coco": COCOEvaluator}


def build_evaluator(
    cfg: CfgNode, dataset_name: str, output_dir: str, frequency: Optional[CategoryFrequency] = None
) -> Union[InstanceEvaluator, ClassificationEvaluator]:
    """Build the evaluator that a data set's metadata (``evaluator_type``) asks for.

    Reads ``MODEL.LONG_TAIL.EVALUATOR`` and ``AP_FIXED``, ``MODEL.MASK_ON`` and ``TEST.DETECTIONS_PER_IMAGE``, which is
    also the cap of the evaluation. With ``AP_FIXED`` that cap is ``AP_CAP`` (LVIS's 300) at most, so that a model may
    return more for AP-fixed without changing AP.

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
    if kind not in _EVALUATORS:
        raise InputError(
            f"The data set {dataset_name!r} has evaluator_type {kind!r}; there are evaluators for "
            f"{', '.join(map(repr, (*_EVALUATORS, CLASSIFICATION)))}."
        )
    max_detections = cfg.TEST.DETECTIONS_PER_IMAGE
    if cfg.MODEL.LONG_TAIL.AP_CAP < 1:
        raise InputError(f"MODEL.LONG_TAIL.AP_CAP is {cfg.MODEL.LONG_TAIL.AP_CAP}; it must be at least 1.")
    if cfg.MODEL.LONG_TAIL.AP_FIXED and kind == "lvis":
        max_detections = min(max_detections, cfg.MODEL.LONG_TAIL.AP_CAP)
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
