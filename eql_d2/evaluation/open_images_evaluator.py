"""The evaluator of Open Images' detection challenge 2019."""

import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any, Dict, List, Optional, Set

import numpy as np
from detectron2.data import MetadataCatalog
from detectron2.structures import Instances

from eql_d2.data.frequency import CategoryFrequency
from eql_d2.data.open_images_files import open_images_table
from eql_d2.evaluation.open_images_results import (
    COLUMNS,
    KIND,
    check_training_counts,
    class_rows,
    format_open_images,
    group_of_classes,
    results_ap,
    summarize_groups,
)
from eql_d2.evaluation.report import CATEGORY_TABLE, write_category_csv, write_category_json
from eql_d2.evaluation.store import csv_layout
from eql_d2.evaluation.streaming import StreamingEvaluator

logger = logging.getLogger("detectron2.eql_d2.evaluation")


class OpenImagesEvaluator(StreamingEvaluator):
    """AP at IoU 0.5 by the challenge's rules (:mod:`eql_d2.evaluation.open_images`), from streamed predictions.

    After :meth:`evaluate` ``output_dir`` holds ``open_images_results.csv`` in the official form of predictions, and
    ``per_category_ap.csv`` and ``.json``. Predictions are not expanded by the hierarchy.

    Args:
        dataset_name: of a data set of :func:`~eql_d2.data.open_images.register_open_images`.
        output_dir, fingerprint: see :class:`~eql_d2.evaluation.streaming.StreamingEvaluator`.
        frequency: of the training set, for the groups and the training counts; without it there are no groups.
        group_by: "instances" or "images" of the training set, see
            :func:`~eql_d2.evaluation.open_images_results.group_of_classes`.
        group_of_weight: what a group-of box that is found counts; 1 in the challenge.

    Raises:
        InputError: if the training set has another number of classes, or ``group_by`` is neither.
    """

    results_name = "open_images_results.csv"
    layout = csv_layout(",".join(COLUMNS))

    def __init__(
        self,
        dataset_name: str,
        output_dir: Optional[str] = None,
        *,
        frequency: Optional[CategoryFrequency] = None,
        group_by: str = "instances",
        group_of_weight: float = 1.0,
        fingerprint: str = "",
    ):
        files = MetadataCatalog.get(dataset_name).open_images_files
        super().__init__(dataset_name, output_dir, annotations=files.boxes, fingerprint=fingerprint)
        self._table = open_images_table(files)
        check_training_counts(frequency, self._table, dataset_name)
        self._frequency = frequency
        self._groups = None if frequency is None else group_of_classes(frequency, group_by)
        self._group_of_weight = group_of_weight

    def detections_of(self, image: Dict[str, Any], instances: Instances) -> List[str]:
        """Return the detections of an image as rows of the results file."""
        height, width = instances.image_size
        shares = instances.pred_boxes.tensor.cpu().numpy().astype(np.float64) / (width, height, width, height)
        image_id, class_ids = self._table.image_id(int(image["image_id"])), self._table.header.class_ids
        return [
            f"{image_id},{class_ids[label]},{score:.9g},{x1:.9g},{x2:.9g},{y1:.9g},{y2:.9g}"
            for label, score, (x1, y1, x2, y2) in zip(
                instances.pred_classes.tolist(), instances.scores.tolist(), shares.tolist()
            )
        ]

    def listed_ids(self) -> Set[int]:
        """Return the rows of the table."""
        return set(range(len(self._table)))

    def score(self, path: Path) -> Dict[str, Dict[str, float]]:
        """Score a results file; see :class:`~eql_d2.evaluation.streaming.StreamingEvaluator`.

        Returns:
            ``{"oid": {"AP": ..., "AP-1-rarest": ..., ..., "AP-5-most-frequent": ...}}`` in percent, NaN for a group
            without an object.
        """
        ap = results_ap(self._table, path, self._group_of_weight)
        rows = class_rows(self._table, ap, self._frequency, self._groups)
        write_category_csv(rows, path.with_name(f"{CATEGORY_TABLE}.csv"))
        write_category_json(rows, path.with_name(f"{CATEGORY_TABLE}.json"))
        metrics = summarize_groups(ap, self._groups)
        logger.info("Results on %s in percent:\n%s", self.dataset_name, format_open_images(metrics))
        return OrderedDict({KIND: OrderedDict((name, 100 * value) for name, value in metrics.items())})
