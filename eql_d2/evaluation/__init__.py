"""Evaluation: AP of LVIS, COCO and Open Images sets, IoU of segmentation, streamed predictions, per-category tables.

The names below are imported on first use, so that re-scoring a results file loads neither torch nor Detectron2.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eql_d2.evaluation.backends import Evaluation, evaluate_results, evaluate_tasks
    from eql_d2.evaluation.build import build_evaluator
    from eql_d2.evaluation.evaluator import COCOEvaluator, LVISEvaluator
    from eql_d2.evaluation.loop import evaluate
    from eql_d2.evaluation.open_images import open_images_ap
    from eql_d2.evaluation.open_images_evaluator import OpenImagesEvaluator
    from eql_d2.evaluation.sem_seg import SegmentationEvaluator
    from eql_d2.evaluation.sources import evaluate_sources

_HOME = {
    "COCOEvaluator": "evaluator",
    "Evaluation": "backends",
    "LVISEvaluator": "evaluator",
    "OpenImagesEvaluator": "open_images_evaluator",
    "SegmentationEvaluator": "sem_seg",
    "build_evaluator": "build",
    "evaluate": "loop",
    "evaluate_results": "backends",
    "evaluate_sources": "sources",
    "evaluate_tasks": "backends",
    "open_images_ap": "open_images",
}

__all__ = [
    "COCOEvaluator",
    "Evaluation",
    "LVISEvaluator",
    "OpenImagesEvaluator",
    "SegmentationEvaluator",
    "build_evaluator",
    "evaluate",
    "evaluate_results",
    "evaluate_sources",
    "evaluate_tasks",
    "open_images_ap",
]


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
