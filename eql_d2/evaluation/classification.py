"""Accuracy of image classifiers: top-1, top-5, by number of training images, per class, and calibration."""

import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from eql_d2.data.frequency import CategoryFrequency
from eql_d2.errors import InputError
from eql_d2.evaluation.report import write_category_csv, write_category_json

logger = logging.getLogger("detectron2.eql_d2.evaluation")

#: A class in more training images than this is many-shot, in fewer than FEW few-shot, else medium-shot.
MANY, FEW = 100, 20
SHOTS = ("Many", "Medium", "Few")
#: Name of the per-category tables, without their suffix.
TABLE_NAME = "per_category_accuracy"
_NUM_TOP = 5
_ECE_BINS = 15


def shot_groups(image_count: Sequence[int]) -> List[str]:
    """Return Many (more than 100 training images), Medium (20 to 100) or Few (below 20) for each class.

    The bounds of ImageNet-LT as United-Perception has them; OLTR's first code counts exactly 100 as many and exactly 20
    as few.
    """
    return ["Many" if n > MANY else "Few" if n < FEW else "Medium" for n in image_count]


def expected_calibration_error(confidence: np.ndarray, correct: np.ndarray, num_bins: int = _ECE_BINS) -> float:
    """Return the expected calibration error (Guo et al., arXiv 1706.04599, equation 3) in [0, 1].

    Predictions fall into bins of equal width by confidence, ``(a, b]``; each bin adds its share of all predictions
    times the distance between its mean confidence and its accuracy.

    Args:
        confidence: float ``[N]`` in [0, 1], the largest score of each image.
        correct: bool ``[N]``.
        num_bins: 15 in the paper.
    """
    bins = np.clip(np.ceil(confidence * num_bins).astype(int) - 1, 0, num_bins - 1)
    gaps = np.zeros(num_bins)
    np.add.at(gaps, bins, confidence - correct)
    return float(np.abs(gaps).sum() / max(len(confidence), 1))


def accuracy_metrics(top: np.ndarray, labels: np.ndarray, shots: Optional[Sequence[str]], num_classes: int):
    """Return the metrics in percent, and the accuracy of each class in [0, 1], ``[K]``, NaN without a test image.

    Args:
        top: int ``[N, 5]`` (or fewer columns): the labels with the largest scores, best first.
        labels: int ``[N]``.
        shots: of each class, see :func:`shot_groups`; without it there are no Many, Medium and Few.
        num_classes: K.

    Returns:
        ``top1``, ``top5``, ``balanced`` (the mean of the classes' accuracies) and ``Many``, ``Medium``, ``Few`` (the
        mean of the group's), NaN for what has no class.
    """
    correct = top == labels[:, None]
    images = np.bincount(labels, minlength=num_classes)
    hits = np.bincount(labels, weights=correct[:, 0], minlength=num_classes)
    with np.errstate(invalid="ignore"):
        per_class = hits / images
    metrics = OrderedDict(top1=_percent(correct[:, 0]), top5=_percent(correct.any(1)))
    if shots is not None:
        for name in SHOTS:
            metrics[name] = _percent(per_class[np.array([shot == name for shot in shots]) & (images > 0)])
    metrics["balanced"] = _percent(per_class[images > 0])
    return metrics, per_class


def _percent(values: np.ndarray) -> float:
    return 100 * float(np.mean(values)) if len(values) else float("nan")


class ClassificationEvaluator(DatasetEvaluator):
    """Accuracy of the scores that a :class:`~eql_d2.modeling.classifier.LongTailClassifier` gives.

    After :meth:`evaluate` the output folder holds ``per_category_accuracy.csv`` and ``.json``.

    Args:
        dataset_name: of a registered classification set; the class names come from its metadata.
        output_dir: where to write; nothing is written if it is ``None``.
        frequency: of the training set, for Many, Medium and Few and the training counts.
    """

    def __init__(
        self, dataset_name: str, output_dir: Optional[str] = None, frequency: Optional[CategoryFrequency] = None
    ):
        self.dataset_name = dataset_name
        self._output_dir = output_dir
        self._frequency = frequency
        self.reset()

    def reset(self) -> None:
        """Forget all predictions."""
        self._rows: Dict[int, Any] = {}
        self._num_classes = 0

    def process(self, inputs: List[Dict[str, Any]], outputs: List[Dict[str, Any]]) -> None:
        """Take a batch: ``image_id`` and ``gt_class`` of the inputs, ``scores [K]`` of the outputs.

        Raises:
            InputError: if a score is no finite number.
        """
        scores = torch.stack([output["scores"] for output in outputs]).float().cpu()
        for image, is_number in zip(inputs, torch.isfinite(scores).all(dim=1).tolist()):
            if not is_number:
                raise InputError(f"The model's scores of image {image['image_id']} hold NaN or infinity.")
        self._num_classes = scores.shape[1]
        top_scores, top = scores.topk(min(_NUM_TOP, scores.shape[1]), dim=1)
        for image, best, labels in zip(inputs, top_scores[:, 0].tolist(), top.tolist()):
            self._rows[int(image["image_id"])] = (int(image["gt_class"]), best, labels)

    def evaluate(self) -> Dict[str, Dict[str, float]]:
        """Return ``{"classification": {...}}`` on the main process, an empty dict elsewhere.

        ``top1``, ``top5``, ``Many``, ``Medium``, ``Few``, ``balanced`` and ``ECE`` (of the best score, 15 bins), all in
        percent.

        Raises:
            InputError: if the predictions are not those of every image, or the training set has another number of
                classes.
        """
        gathered = comm.gather((self._num_classes, self._rows))
        if not comm.is_main_process():
            return {}
        rows = {image_id: row for _, part in gathered for image_id, row in part.items()}
        num_classes = max(number for number, _ in gathered)
        if not rows:
            raise InputError(f"The data set {self.dataset_name!r} gave no prediction to evaluate.")
        if self.dataset_name in DatasetCatalog and len(rows) != len(DatasetCatalog.get(self.dataset_name)):
            raise InputError(
                f"The predictions are of {len(rows)} of the {len(DatasetCatalog.get(self.dataset_name))} images of "
                f"{self.dataset_name!r}, so no accuracy is computed; the loader must give every image of it."
            )
        if self._frequency is not None and self._frequency.num_classes != num_classes:
            raise InputError(
                f"The training set has {self._frequency.num_classes} categories, the model gives {num_classes} scores."
            )
        labels, best, top = (np.array(column) for column in zip(*rows.values()))
        shots = None if self._frequency is None else shot_groups(self._frequency.image_count.tolist())
        metrics, per_class = accuracy_metrics(top, labels, shots, num_classes)
        metrics["ECE"] = 100 * expected_calibration_error(best, top[:, 0] == labels)
        self._write(self._category_rows(per_class, labels, shots))
        return OrderedDict(classification=metrics)

    def _category_rows(self, per_class: np.ndarray, labels: np.ndarray, shots: Optional[Sequence[str]]):
        names = MetadataCatalog.get(self.dataset_name).get("thing_classes") or range(len(per_class))
        test_images = np.bincount(labels, minlength=len(per_class))
        rows = []
        for label, (name, accuracy) in enumerate(zip(names, per_class)):
            row = {"id": label, "name": str(name), "group": None if shots is None else shots[label]}
            row["train_images"] = None if self._frequency is None else int(self._frequency.image_count[label])
            row["test_images"] = int(test_images[label])
            row["accuracy"] = None if np.isnan(accuracy) else 100 * float(accuracy)
            rows.append(row)
        return rows

    def _write(self, rows: List[Dict[str, Any]]) -> None:
        if self._output_dir is None:
            return
        path = Path(self._output_dir, TABLE_NAME)
        write_category_csv(rows, path.with_suffix(".csv"))
        write_category_json(rows, path.with_suffix(".json"))
        logger.info("Wrote the accuracy of each category to %s.csv and .json.", path)
