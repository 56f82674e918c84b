"""AP of a results file, by whichever evaluator is installed; all give the same numbers."""

import importlib.util
import itertools
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Dict, Iterable, List, Mapping, Sequence, Tuple

import numpy as np

from eql_d2.data.annotations import Category, check_content, read_annotations
from eql_d2.errors import InputError
from eql_d2.evaluation import hotcoco_backend, reference_backend
from eql_d2.evaluation.checks import check_ground_truth, check_results
from eql_d2.evaluation.metrics import (
    FIXED_DETECTIONS_PER_CATEGORY,
    category_ap,
    summarize,
)
from eql_d2.evaluation.results_file import Results, source_name, with_encoded_masks

BACKENDS = ("auto", "hotcoco", "lvis")
IOU_TYPES = ("bbox", "segm")
PROTOCOLS = ("lvis", "coco")


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The metrics of one IoU type.

    Attributes:
        iou_type: "bbox" or "segm".
        metrics: AP, AP50, AP75, APs, APm, APl, APr, APc, APf, AR@N, ARs@N, ARm@N, ARl@N in [0, 1]; NaN where a group
            has no ground truth. Without a cap the recalls are AR, ARs, ARm, ARl.
        categories: the K categories of the annotation file, by ascending id.
        groups: the letter r, c or f of each category.
        category_ap: float64 ``[K]`` in [0, 1]; NaN for a category without ground truth.
    """

    iou_type: str
    metrics: Dict[str, float]
    categories: List[Category]
    groups: List[str]
    category_ap: np.ndarray


#: By IoU type and whether it is AP-fixed, all of the same annotation file.
Evaluations = Dict[Tuple[str, bool], Evaluation]


def choose_backend(name: str = "auto") -> str:
    """Return "hotcoco" or "lvis" for a name in ``MODEL.LONG_TAIL.EVALUATOR``.

    Raises:
        InputError: if the name is unknown or its package is not installed.
    """
    if name not in BACKENDS:
        raise InputError(f"MODEL.LONG_TAIL.EVALUATOR is {name!r}; it must be one of {', '.join(BACKENDS)}.")
    installed = importlib.util.find_spec("hotcoco") is not None
    if name == "auto":
        return "hotcoco" if installed else "lvis"
    if name == "hotcoco" and not installed:
        raise InputError("MODEL.LONG_TAIL.EVALUATOR is 'hotcoco', which is not installed; 'auto' falls back on lvis.")
    return name


def evaluate_results(
    annotations: Any,
    results: Results,
    iou_type: str = "bbox",
    *,
    fixed: bool = False,
    **options: Any,
) -> Evaluation:
    """Compute AP and AR of one IoU type, under a cap or AP-fixed; the options: :func:`evaluate_tasks`."""
    return evaluate_tasks(annotations, results, (iou_type,), fixed=(fixed,), **options)[iou_type, fixed]


def evaluate_tasks(
    annotations: Any,
    results: Results,
    tasks: Sequence[str],
    *,
    fixed: Sequence[bool] = (False,),
    backend: str = "auto",
    max_detections: int = 300,
    groups: Mapping[int, str] = MappingProxyType({}),
    protocol: str = "lvis",
) -> Evaluations:
    """Compute AP and AR as ``lvis`` 0.5.3 (or pycocotools) does, for each IoU type and each way to count detections.

    Detections of area 0 and of categories that the annotation file does not list count towards the cap and are then
    ignored, as lvis does it. Mask evaluation uses the area of the mask even if a detection has a box too.

    Args:
        annotations: path of an annotation file in LVIS or COCO format, or its parsed content.
        results: path of a results file in the official format (a json list of ``image_id``, ``category_id``,
            ``score``, ``bbox`` and/or ``segmentation``), or the list itself. Masks may be polygons, or run lengths as
            numbers or compressed. Nothing in it is changed.
        tasks: "bbox" and/or "segm".
        fixed: ``False`` for AP under the cap, ``True`` for AP-fixed (Dave et al., arXiv 2102.01066): no cap per image,
            but the 10,000 best detections of each category over the whole set. LVIS protocol only.
        backend: "auto", "hotcoco" or "lvis"; "lvis" means pycocotools for the COCO protocol.
        max_detections: detections that count of each image over all classes (LVIS), or of each image and class
            (COCO); negative for all of them. LVIS's own value is 300.
        groups: letter r, c or f by category id; where absent, the annotation file's
            (:class:`~eql_d2.data.annotations.CategoryCounts`).
        protocol: "lvis" (federated: only verified categories count) or "coco".

    Returns:
        By IoU type and whether it is AP-fixed: the metrics, and AP of each category.

    Raises:
        InputError: for files that are missing, damaged or do not fit each other.
    """
    _check_allowed([(task, IOU_TYPES, "IoU type") for task in tasks] + [(protocol, PROTOCOLS, "protocol")])
    if any(fixed) and protocol != "lvis":
        raise InputError("AP-fixed is defined for the LVIS protocol only; leave it out for a COCO-format set.")
    content = read_annotations(annotations)
    source = source_name(annotations, "annotations")
    check_content(content, source, allow_ignore=True)
    if content.sources:
        raise InputError(
            f"{source} was merged of several sources; eql_d2.evaluation.evaluate_sources knows what they verify."
        )
    if not content.has_annotations:
        raise InputError(f"{source} has no 'annotations', so nothing can be evaluated on it.")
    program = hotcoco_backend if choose_backend(backend) == "hotcoco" else reference_backend
    if protocol == "lvis" and any(one.iscrowd or one.ignore for one in content.annotations or ()):
        # lvis takes a crowd region for an object and knows "ignore"; hotcoco does as pycocotools does.
        program = reference_backend
    check_ground_truth(annotations, content, "segm" in tasks)
    check_results(results, content, tasks, each_mask=program is reference_backend)
    categories = content.sorted_categories
    letters = [groups.get(category.id, own) for category, own in zip(categories, content.counts().groups)]
    results = with_encoded_masks(results, {image.id: (image.height, image.width) for image in content.images})
    del content  # it is large, and the evaluators read the file themselves

    evaluations: Evaluations = {}
    for task, is_fixed in itertools.product(tasks, fixed):
        cap = -1 if is_fixed else max_detections
        if protocol == "coco":
            curves = program.coco_curves(annotations, results, task, cap)
        else:
            per_category = FIXED_DETECTIONS_PER_CATEGORY if is_fixed else 0
            curves = program.lvis_curves(annotations, results, task, cap, per_category)
        metrics = summarize(curves, letters, cap)
        evaluations[task, is_fixed] = Evaluation(task, metrics, categories, letters, category_ap(curves))
    return evaluations


def _check_allowed(values: Iterable[Tuple[str, Sequence[str], str]]) -> None:
    for value, allowed, what in values:
        if value not in allowed:
            raise InputError(f"{value!r} is no {what}; there are {' and '.join(allowed)}.")
