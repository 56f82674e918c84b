"""When region features may be cached (``MODEL.LONG_TAIL.FEATURE_CACHE``), and whether the disk has room for them."""

import hashlib
import logging
import shutil
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm
from torch import nn

from eql_d2.config import flatten
from eql_d2.data.feature_cache import FeatureCache
from eql_d2.data.stream import TrainLoader
from eql_d2.engine.protocol import is_part_of_classifier
from eql_d2.errors import InputError
from eql_d2.evaluation.loop import weights_digest
from eql_d2.modeling.ignored import LongTailRPN

logger = logging.getLogger("detectron2.eql_d2")
_KEY = "MODEL.LONG_TAIL.FEATURE_CACHE"
_GIB = 2**30


def check_feature_cache(cfg: CfgNode) -> None:
    """Check that an image and its flip are all that region features depend on.

    Raises:
        InputError: naming the first setting that stands against it.
    """
    node = cfg.MODEL.LONG_TAIL
    if not node.FEATURE_CACHE:
        return
    obstacles = {
        "MODEL.LONG_TAIL.TRAINABLE": ("'classifier' or 'scale'", node.TRAINABLE in ("classifier", "scale")),
        "MODEL.META_ARCHITECTURE": ("'LongTailRCNN'", cfg.MODEL.META_ARCHITECTURE == "LongTailRCNN"),
        "INPUT.MIN_SIZE_TRAIN": ("one size", len(set(cfg.INPUT.MIN_SIZE_TRAIN)) == 1),
        "INPUT.CROP.ENABLED": ("False", not cfg.INPUT.CROP.ENABLED),
        "MODEL.LONG_TAIL.AUGMENT.SCALE_JITTER": ("()", not node.AUGMENT.SCALE_JITTER),
        "MODEL.LONG_TAIL.AUGMENT.COPY_PASTE": ("0", not node.AUGMENT.COPY_PASTE),
        "MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES": ("False", not cfg.MODEL.ROI_BOX_HEAD.TRAIN_ON_PRED_BOXES),
        "MODEL.LONG_TAIL.FEATURE_MEMORY.SIZE": ("0", not node.FEATURE_MEMORY.SIZE),
        "MODEL.LONG_TAIL.REFINEMENT.LOSS_WEIGHTS": ("()", not node.REFINEMENT.LOSS_WEIGHTS),
        "SOLVER.AMP.ENABLED": ("False", not cfg.SOLVER.AMP.ENABLED),
    }
    for key, (needed, is_so) in obstacles.items():
        if not is_so:
            raise InputError(f"{_KEY} needs {key} {needed}, and it is {flatten(cfg)[key]!r}; set that, or {_KEY} ''.")


def open_feature_cache(cfg: CfgNode, model: nn.Module, loader: TrainLoader) -> None:
    """Open the cache of the loader's mapper for a model that has its weights; say how large it will be.

    Raises:
        InputError: if the model is none whose regions can be cached, or the disk lacks the room.
    """
    model = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    heads: Any = model.roi_heads
    if not hasattr(heads, "region_features") or not isinstance(model.proposal_generator, LongTailRPN):
        raise InputError(
            f"{_KEY} is for MODEL.ROI_HEADS.NAME LongTailStandardROIHeads and LongTailRes5ROIHeads with "
            f"MODEL.PROPOSAL_GENERATOR.NAME RPN: in a cascade the boxes of a stage depend on the sampled ones."
        )
    cache: FeatureCache = loader.mapper.cache
    place = cache.open(_digest(cfg, model))
    if not comm.is_main_process():
        return
    flips = 1 if cfg.INPUT.RANDOM_FLIP == "none" else 2
    files = min(flips * len(loader.dataset), cfg.SOLVER.MAX_ITER * cfg.SOLVER.IMS_PER_BATCH)
    width = heads.box_predictor.cls_score.in_features
    largest = files * cache.largest_file(cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN, width)
    there = cache.num_bytes()
    place.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(place).free
    sizes = f"at most {largest / _GIB:.3g} GiB for {files} images and flips, of which {there / _GIB:.3g} GiB are there"
    logger.info("Region features in %s: %s; the disk has %.3g GiB free.", place, sizes, free / _GIB)
    if largest - there > free:
        raise InputError(
            f"{_KEY} {place.parent} would take {sizes}, and its disk has {free / _GIB:.3g} GiB free; name a folder on "
            f"another disk, lower MODEL.RPN.POST_NMS_TOPK_TRAIN, or set it to ''."
        )


def _digest(cfg: CfgNode, model: nn.Module) -> str:
    """Return a digest of all that the features of an image depend on: the frozen weights, the input and the model."""
    nodes = cfg.MODEL.clone()
    nodes.defrost()
    for key in ("LONG_TAIL", "WEIGHTS"):
        del nodes[key]
    weights = weights_digest(model, lambda name: is_part_of_classifier(model, name))
    text = "\n".join((weights, nodes.dump(), cfg.INPUT.dump(), cfg.MODEL.LONG_TAIL.IGNORED.dump()))
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()
