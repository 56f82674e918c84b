"""What a config leaves to the data: the number of classes, and thresholds that are given as tail ratios."""

import logging

from detectron2.config import CfgNode

from eql_d2.data.build import long_tail_dataset_dicts, repeat_threshold
from eql_d2.data.catalog import category_frequency, class_head

logger = logging.getLogger("detectron2.eql_d2.data")


def fit_to_data(cfg: CfgNode) -> None:
    """Fill in, in place, what the config leaves to the training set; its data sets are registered.

    ``MODEL.ROI_HEADS.NUM_CLASSES`` 0, of semantic segmentation ``MODEL.SEM_SEG_HEAD.NUM_CLASSES`` 0, becomes the number
    of categories; ``LAMBDA`` of the loss is chosen by its ``TAIL_RATIO``, and ``DATALOADER.REPEAT_THRESHOLD`` by
    ``MODEL.LONG_TAIL.REPEAT_TAIL_RATIO`` where that sampler samples. The ratios stay as they are: the same training set
    gives the same thresholds again.

    Raises:
        InputError: if the counts cannot be had, or a ratio is given by no threshold.
    """
    node = cfg.MODEL.LONG_TAIL
    loss = node.get(node.LOSS, {})
    repeats = node.REPEAT_TAIL_RATIO and cfg.DATALOADER.SAMPLER_TRAIN == "RepeatFactorTrainingSampler"
    frozen = cfg.is_frozen()
    cfg.defrost()
    head = class_head(cfg.DATASETS.TRAIN[0]) if cfg.DATASETS.TRAIN else "ROI_HEADS"
    if not cfg.MODEL[head].NUM_CLASSES or loss.get("TAIL_RATIO"):
        frequency = category_frequency(cfg.DATASETS.TRAIN, node.FREQUENCY)
        if not cfg.MODEL[head].NUM_CLASSES:
            cfg.MODEL[head].NUM_CLASSES = frequency.num_classes
            logger.info("MODEL.%s.NUM_CLASSES, from the data: %d.", head, frequency.num_classes)
        if loss.get("TAIL_RATIO"):
            loss.LAMBDA = frequency.lambda_of(loss.TAIL_RATIO)
    if repeats and cfg.DATASETS.TRAIN:
        records = long_tail_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
        cfg.DATALOADER.REPEAT_THRESHOLD = repeat_threshold(cfg, records)
    if frozen:
        cfg.freeze()
