"""IoU and accuracy of semantic segmentation: streamed into a confusion matrix, per class and by frequency group."""

import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Set

import numpy as np
import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from eql_d2.data.frequency import CategoryFrequency
from eql_d2.data.groups import COMMON_MAX_IMAGES, GROUPS, RARE_MAX_IMAGES, frequency_group
from eql_d2.data.index_masks import read_mask
from eql_d2.data.semantic import segmentation_records
from eql_d2.errors import InputError
from eql_d2.evaluation.metrics import format_value
from eql_d2.evaluation.report import markdown_row, plot_categories, write_category_csv, write_category_json

logger = logging.getLogger("detectron2.eql_d2.evaluation")

#: Name of the per-category tables and of the picture, without their suffix.
TABLE_NAME = "per_category_iou"
#: The groups of DisAlign (arXiv 2103.16370), in the order of the labels.
HEAD_BODY_TAIL = ("head", "body", "tail")
#: Groups of classes by name; a group for each class.
Grouping = Mapping[str, Sequence[str]]


def letters_by_images(
    frequency: CategoryFrequency, rare_max: int = RARE_MAX_IMAGES, common_max: int = COMMON_MAX_IMAGES
) -> List[str]:
    """Return r, c or f for each class by its training images: at most ``rare_max``, at most ``common_max``, or more."""
    return [frequency_group(count, common_max, rare_max) for count in frequency.image_count.tolist()]


def letters_by_pixels(
    frequency: CategoryFrequency, rare_max: int = RARE_MAX_IMAGES, common_max: int = COMMON_MAX_IMAGES
) -> List[str]:
    """Return r, c or f for each class by its training pixels.

    A class is rare if its pixels would fill at most ``rare_max`` images of the training set, each with the mean number
    of labelled pixels, and common if at most ``common_max``: the bounds of images, for what an image can show. LTSS
    (arXiv 2406.03917) reports such groups too; its bounds are not known here.
    """
    pixels = frequency.instance_count.double()
    images = (pixels * frequency.num_images / pixels.sum().clamp(min=1)).tolist()
    return [frequency_group(count, common_max, rare_max) for count in images]


def head_body_tail(num_classes: int, ends: Sequence[int]) -> List[str]:
    """Return head, body or tail for each class by its place: below the first of two ends, below the second, or beyond.

    Raises:
        InputError: if there are not two ends, or they leave a group empty.
    """
    if len(ends) != 2 or not 0 < ends[0] < ends[1] < num_classes:
        raise InputError(
            f"MODEL.LONG_TAIL.SEM_SEG.HEAD_BODY_ENDS is {tuple(ends)}; it must be two rising numbers between 0 and the "
            f"{num_classes} classes: where head and body end."
        )
    return [HEAD_BODY_TAIL[sum(label >= end for end in ends)] for label in range(num_classes)]


def count_pixels(truth: np.ndarray, predicted: np.ndarray, num_classes: int) -> np.ndarray:
    """Return how many pixels of each class were predicted as each class, int64 ``[K, K]``, the truth in the rows.

    Args:
        truth: labels ``[H, W]``; pixels whose label is not below K are left out.
        predicted: int64 ``[H, W]``, labels below K.
        num_classes: K.
    """
    known = truth < num_classes
    pairs = truth[known].astype(np.int64) * num_classes + predicted[known]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def class_scores(confusion: np.ndarray) -> Dict[str, np.ndarray]:
    """Return ``IoU`` and ``ACC`` of each class, float64 ``[K]`` in [0, 1], NaN for a class without a pixel.

    Args:
        confusion: of :func:`count_pixels`, summed over images. A pixel without a label counts nowhere, also not where a
            class was predicted.
    """
    hits = np.diagonal(confusion).astype(np.float64)
    truth, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
    with np.errstate(invalid="ignore"):
        accuracy = np.where(truth > 0, hits / truth, np.nan)
        iou = np.where(truth > 0, hits / (truth + predicted - hits), np.nan)
    return {"IoU": iou, "ACC": accuracy}


def segmentation_metrics(confusion: np.ndarray, groupings: Optional[Grouping] = None) -> Dict[str, float]:
    """Return the means over classes and pixels, in percent, NaN for what has no pixel.

    As Detectron2's ``SemSegEvaluator``, a class without a pixel in the truth is left out of every mean.

    Args:
        confusion: int64 ``[K, K]``, the truth in the rows.
        groupings: lists of K group names, by what the metrics of these groups are called: a ``{}`` for the group.

    Returns:
        ``mIoU``, ``fwIoU`` (weighted by the classes' pixels), ``mACC``, ``pACC`` (of all pixels), and ``mIoU`` and
        ``mACC`` of the groups, such as ``mIoUr``.
    """
    scores = class_scores(confusion)
    truth = confusion.sum(axis=1)
    total = int(truth.sum())
    weighted = np.nansum(scores["IoU"] * truth) / total if total else float("nan")
    metrics = OrderedDict(mIoU=_mean(scores["IoU"]), fwIoU=100 * float(weighted), mACC=_mean(scores["ACC"]))
    metrics["pACC"] = 100 * float(np.trace(confusion)) / total if total else float("nan")
    for name, groups in (groupings or {}).items():
        letters = np.array(groups)
        for mean, values in (("mIoU", scores["IoU"]), ("mACC", scores["ACC"])):
            for group in HEAD_BODY_TAIL if groups[0] in HEAD_BODY_TAIL else GROUPS:
                metrics[mean + name.format(group)] = _mean(values[letters == group])
    return metrics


def _mean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return 100 * float(known.mean()) if len(known) else float("nan")


def format_segmentation(metrics: Mapping[str, float]) -> str:
    """Return :func:`segmentation_metrics` as a Markdown table: a row for each mean, a column for each group of classes.

    Detectron2's console leaves out metrics with a hyphen in their names.
    """
    groups = [name[len("mIoU") :] for name in metrics if name.startswith("mIoU")]
    rows = [["", *(group.lstrip("-") or "all" for group in groups)], ["---"] * (len(groups) + 1)]
    rows += [[mean, *(format_value(metrics[mean + group], 1) for group in groups)] for mean in ("mIoU", "mACC")]
    # These have no groups.
    rows += [[mean, format_value(metrics[mean], 1), *[""] * (len(groups) - 1)] for mean in ("fwIoU", "pACC")]
    return "\n".join(map(markdown_row, rows))


class SegmentationEvaluator(DatasetEvaluator):
    """IoU and accuracy of what a segmentation model gives; no prediction is kept.

    After :meth:`evaluate` the output folder holds ``per_category_iou.csv``, ``.json`` and, with training counts, a
    picture of IoU against them, ``.png``.

    Args:
        dataset_name: of a registered set of semantic segmentation.
        output_dir: where to write; nothing is written if it is ``None``.
        frequency: of the training set, images and pixels, for the groups r, c and f and the training counts.
        rare_max, common_max: bounds of these groups, see :func:`letters_by_images` and :func:`letters_by_pixels`.
        head_body_ends: for the groups head, body and tail, see :func:`head_body_tail`; empty for none.

    Raises:
        InputError: if the training set has another number of classes, or the ends are none.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: Optional[str] = None,
        frequency: Optional[CategoryFrequency] = None,
        rare_max: int = RARE_MAX_IMAGES,
        common_max: int = COMMON_MAX_IMAGES,
        head_body_ends: Sequence[int] = (),
    ):
        self.dataset_name = dataset_name
        self._output_dir = output_dir
        self._frequency = frequency
        self._masks = segmentation_records(dataset_name).table.masks
        self._row = {image: row for row, image in enumerate(self._masks.images)}
        self._num_classes = self._masks.values.num_classes
        if frequency is not None and frequency.num_classes != self._num_classes:
            raise InputError(
                f"The training set has {frequency.num_classes} categories, but {dataset_name!r} has "
                f"{self._num_classes}; they must be the same ones."
            )
        # What the metrics of a group are called after mIoU and mACC.
        self._groupings: Dict[str, List[str]] = {}
        if frequency is not None:
            self._groupings["{}"] = letters_by_images(frequency, rare_max, common_max)
            self._groupings["{}-pixels"] = letters_by_pixels(frequency, rare_max, common_max)
        if head_body_ends:
            self._groupings["-{}"] = head_body_tail(self._num_classes, head_body_ends)
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._confusion = np.zeros((self._num_classes, self._num_classes), np.int64)
        self._seen: Set[int] = set()

    def process(self, inputs: List[Dict[str, Any]], outputs: List[Dict[str, Any]]) -> None:
        """Take a batch: ``file_name`` of the inputs, ``sem_seg`` of the outputs, scores ``[K, H, W]``.

        The best score of a pixel is its class. An image that comes again counts once.

        Raises:
            InputError: if an image is none of the data set, the scores are of another number of classes, of another
                size than the image, or no finite numbers; or as :func:`~eql_d2.data.index_masks.read_mask`.
        """
        for image, output in zip(inputs, outputs):
            row = self._row.get(image["file_name"])
            if row is None:
                raise InputError(f"{image['file_name']} is no image of {self.dataset_name!r}.")
            scores = output["sem_seg"]
            if len(scores) != self._num_classes:
                raise InputError(
                    f"The model gives {len(scores)} scores for each pixel of {image['file_name']}; "
                    f"{self.dataset_name!r} has {self._num_classes} classes."
                )
            best, labels = scores.max(dim=0)
            if not bool(torch.isfinite(best).all()):
                raise InputError(f"The model's scores of {image['file_name']} hold NaN or infinity.")
            if row in self._seen:
                continue
            predicted = labels.cpu().numpy()
            truth = read_mask(self._masks.masks[row], self._masks.values, predicted.shape[::-1])
            self._confusion += count_pixels(truth, predicted, self._num_classes)
            self._seen.add(row)

    def evaluate(self) -> Dict[str, Dict[str, float]]:
        """Return ``{"sem_seg": {...}}`` on the main process, see :func:`segmentation_metrics`; nothing elsewhere.

        By training images the groups' metrics are ``mIoUr``, ``mACCr``, ...; by pixels ``mIoUr-pixels``, ...;
        ``mIoU-head``, ... of head, body and tail.

        Raises:
            InputError: if the predictions are not those of every image, once.
        """
        gathered = comm.gather((self._confusion, self._seen))
        if not comm.is_main_process():
            return {}
        seen, expected = sum(len(part) for _, part in gathered), len(self._row)
        if seen != expected or len(set().union(*(part for _, part in gathered))) != expected:
            raise InputError(
                f"There are predictions of {seen} images, and {self.dataset_name!r} has {expected}, so nothing is "
                f"computed; the loader must give every image of it, each to one process."
            )
        confusion = np.sum([part for part, _ in gathered], axis=0)
        self._write(confusion)
        metrics = segmentation_metrics(confusion, self._groupings)
        logger.info("Results on %s in percent:\n%s", self.dataset_name, format_segmentation(metrics))
        return OrderedDict(sem_seg=metrics)

    def category_rows(self, confusion: np.ndarray) -> List[Dict[str, Any]]:
        """Return a row for each class: label, name, groups, training counts, pixels of the truth, IoU and accuracy."""
        names = MetadataCatalog.get(self.dataset_name).stuff_classes
        columns = {"{}": "group", "{}-pixels": "pixel_group", "-{}": "head_body_tail"}
        test_pixels, scores = confusion.sum(axis=1), class_scores(confusion)
        rows = []
        for label, name in enumerate(names):
            row: Dict[str, Any] = {"id": label, "name": name, "group": None}
            row.update({columns[key]: groups[label] for key, groups in self._groupings.items()})
            row["train_images"] = None if self._frequency is None else int(self._frequency.image_count[label])
            row["train_pixels"] = None if self._frequency is None else int(self._frequency.instance_count[label])
            row["test_pixels"] = int(test_pixels[label])
            for column, values in scores.items():
                row[column] = None if np.isnan(values[label]) else 100 * float(values[label])
            rows.append(row)
        return rows

    def _write(self, confusion: np.ndarray) -> None:
        if self._output_dir is None:
            return
        rows = self.category_rows(confusion)
        path = Path(self._output_dir, TABLE_NAME)
        write_category_csv(rows, path.with_suffix(".csv"))
        write_category_json(rows, path.with_suffix(".json"))
        if self._frequency is not None:
            plot_categories(rows, ["IoU", "ACC"], path.with_suffix(".png"))
        logger.info("Wrote IoU and accuracy of each category to %s.csv and .json.", path)
