"""Evaluators for Detectron2 that stream predictions to disk: LVIS-format and COCO-format sets."""

import logging
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Sequence, Set, Tuple

from detectron2.data import MetadataCatalog
from detectron2.structures import Instances
from detectron2.utils.file_io import PathManager

from eql_d2.data.annotations import read_annotations
from eql_d2.data.frequency import CategoryFrequency
from eql_d2.data.ground_truth import listed_images
from eql_d2.errors import InputError
from eql_d2.evaluation.backends import choose_backend
from eql_d2.evaluation.instances import instances_to_results
from eql_d2.evaluation.report import (
    CATEGORY_TABLE,
    category_rows,
    format_metrics,
    metric_name,
    write_category_csv,
    write_category_json,
)
from eql_d2.evaluation.results_file import first_record
from eql_d2.evaluation.sources import OF_SOURCES, evaluate_sources
from eql_d2.evaluation.streaming import StreamingEvaluator

logger = logging.getLogger("detectron2.eql_d2.evaluation")


class InstanceEvaluator(StreamingEvaluator):
    """AP of boxes and masks from predictions that are streamed to disk, masks run-length encoded at once.

    After :meth:`evaluate` ``output_dir`` holds the results file in the official submission format, box and mask in one
    record, and ``per_category_ap.csv`` and ``.json``.

    Args:
        dataset_name: of a registered data set; its metadata gives ``json_file`` and, where set,
            ``thing_dataset_id_to_contiguous_id``, ``frequency_groups`` and ``has_annotations``.
        output_dir, fingerprint: see :class:`~eql_d2.evaluation.streaming.StreamingEvaluator`.
        json_file: the annotation file, instead of the metadata's.
        tasks: "bbox", "segm" or both. "segm" is left out with a warning if the model predicts no masks.
        backend: "auto", "hotcoco" or "lvis", see :func:`~eql_d2.evaluation.backends.evaluate_tasks`.
        max_detections: detections that count, of each image (LVIS) or of each image and class (COCO).
        frequency: of the training set, for the groups and the training counts in the tables.
        fixed: add AP-fixed, APr-fixed, ... (LVIS only). It uses every detection that the model returns.
    """

    protocol = ""

    def __init__(
        self,
        dataset_name: str,
        output_dir: Optional[str] = None,
        *,
        json_file: Optional[str] = None,
        tasks: Sequence[str] = ("bbox", "segm"),
        backend: str = "auto",
        max_detections: int = 300,
        frequency: Optional[CategoryFrequency] = None,
        fixed: bool = False,
        fingerprint: str = "",
    ):
        metadata = MetadataCatalog.get(dataset_name)
        self.tasks = tuple(tasks)
        self.backend = choose_backend(backend)
        self.max_detections = max_detections
        self.fixed = fixed
        self._json_file = _annotation_file(metadata, json_file)
        given, ids = metadata.get("has_annotations", None), metadata.get("thing_dataset_id_to_contiguous_id", None)
        if given is None or not ids:
            content = read_annotations(self._json_file)
            given = content.has_annotations if given is None else given
            ids = ids or content.contiguous_ids
        super().__init__(
            dataset_name,
            output_dir,
            annotations=self._json_file,
            has_annotations=bool(given),
            fingerprint=fingerprint,
        )
        self._category_ids = {contiguous: category_id for category_id, contiguous in ids.items()}
        self._frequency = frequency
        if frequency is not None and frequency.num_classes != len(self._category_ids):
            raise InputError(
                f"The training set has {frequency.num_classes} categories, but {dataset_name!r} has "
                f"{len(self._category_ids)}; they must be the same ones."
            )
        self._groups = self._letters_by_id(metadata)

    def _letters_by_id(self, metadata) -> Dict[int, str]:
        """Return the letter of each category id: the training set's, the metadata's, or nothing (see the json)."""
        letters = self._frequency.groups if self._frequency is not None else metadata.get("frequency_groups", None)
        if not letters:
            return {}
        return {self._category_ids[contiguous]: letter for contiguous, letter in enumerate(letters)}

    def detections_of(self, image: Dict[str, Any], instances: Instances) -> List[Dict[str, Any]]:
        """Return the detections of an image in the submission format."""
        return instances_to_results(instances, int(image["image_id"]), self._category_ids)

    def listed_ids(self) -> Set[int]:
        """Return the ids of the images that the annotation file lists."""
        return listed_images(self._json_file)

    def score(self, path: Path) -> Dict[str, Dict[str, float]]:
        """Score a results file; see :class:`~eql_d2.evaluation.streaming.StreamingEvaluator`.

        Of a merged file each source has metrics of its own too, as ``AP[coco]``.
        """
        by_source = evaluate_sources(
            self._json_file,
            path,
            self._scorable_tasks(path),
            fixed=(False, True) if self.fixed else (False,),
            backend=self.backend,
            max_detections=self.max_detections,
            groups=self._groups,
            protocol=self.protocol,
        )
        evaluations = by_source.pop("")
        rows = category_rows(evaluations, self._training_counts())
        write_category_csv(rows, path.with_name(f"{CATEGORY_TABLE}.csv"))
        write_category_json(rows, path.with_name(f"{CATEGORY_TABLE}.json"))
        logger.info("Results on %s in percent (%s):\n%s", self.dataset_name, self.backend, format_metrics(evaluations))
        results: Dict[str, Dict[str, float]] = OrderedDict()
        for (task, fixed), evaluation in evaluations.items():
            named = {metric_name(name, fixed): 100 * value for name, value in evaluation.metrics.items()}
            results.setdefault(task, OrderedDict()).update(named)
        for source, of_source in by_source.items():
            logger.info("Of these, on the images of source %s:\n%s", source, format_metrics(of_source))
            for (task, fixed), evaluation in of_source.items():
                results[task].update(
                    {f"{metric_name(n, fixed)}[{source}]": 100 * evaluation.metrics[n] for n in OF_SOURCES}
                )
        return results

    def _scorable_tasks(self, path: Path) -> List[str]:
        """Return the tasks that the predictions allow."""
        record = first_record(path)
        if record is None:
            logger.warning("The model detected nothing on %s.", self.dataset_name)
            return list(self.tasks)
        if "segm" in self.tasks and "segmentation" not in record:
            logger.warning("The model predicts no masks, so no mask AP is computed.")
            return [task for task in self.tasks if task != "segm"]
        return list(self.tasks)

    def _training_counts(self) -> Optional[Mapping[int, Tuple[int, int]]]:
        if self._frequency is None:
            return None
        counts = zip(self._frequency.image_count.tolist(), self._frequency.instance_count.tolist())
        return {self._category_ids[contiguous]: pair for contiguous, pair in enumerate(counts)}


class LVISEvaluator(InstanceEvaluator):
    """AP of an LVIS-format set, as ``lvis`` 0.5.3 computes it; writes ``lvis_instances_results.json``."""

    protocol = "lvis"
    results_name = "lvis_instances_results.json"


class COCOEvaluator(InstanceEvaluator):
    """AP of a COCO-format set, as pycocotools computes it, with APr, APc and APf from the training counts; writes
    ``coco_instances_results.json``."""

    protocol = "coco"
    results_name = "coco_instances_results.json"

    def __init__(self, dataset_name: str, output_dir: Optional[str] = None, *, max_detections: int = 100, **kwargs):
        super().__init__(dataset_name, output_dir, max_detections=max_detections, **kwargs)
        if self.fixed:
            logger.warning("AP-fixed is defined for LVIS-format sets only; it is left out on %s.", dataset_name)
            self.fixed = False


def _annotation_file(metadata, json_file: Optional[str]) -> str:
    """Return the local path of the annotation file.

    Raises:
        InputError: if there is none.
    """
    json_file = json_file or metadata.get("json_file", None)
    if not json_file:
        raise InputError(f"The data set {metadata.name!r} has no json_file in its metadata; register it with one.")
    path = PathManager.get_local_path(str(json_file))
    if not os.path.isfile(path):
        raise InputError(f"{path}: there is no such file; it should hold the annotations of {metadata.name!r}.")
    return path
