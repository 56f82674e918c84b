"""Evaluators for Detectron2 that stream predictions to disk: LVIS-format and COCO-format sets."""

import json
import logging
import os
import tempfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, Dict, FrozenSet, List, Mapping, Optional, Sequence, Set, Tuple

from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from eql_d2.data.annotations import read_annotations
from eql_d2.data.frequency import CategoryFrequency
from eql_d2.data.ground_truth import listed_images
from eql_d2.errors import InputError
from eql_d2.evaluation.backends import choose_backend, evaluate_tasks
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
from eql_d2.evaluation.store import PredictionStore
from eql_d2.files import FolderLock

logger = logging.getLogger("detectron2.eql_d2.evaluation")


class InstanceEvaluator(DatasetEvaluator):
    """Write predictions to disk as they come, then score the results file on the main process.

    Each process appends to a file of its own under ``output_dir/predictions``; masks are run-length encoded at once
    and nothing is gathered. ``output_dir`` must be one folder that all processes see, and is this evaluation's alone
    from :meth:`reset` to :meth:`evaluate` (:class:`eql_d2.files.FolderLock`). After :meth:`evaluate` it holds the
    results file in the official submission format, box and mask in one record, and ``per_category_ap.csv`` and
    ``.json``; ``predictions`` is then gone.

    Args:
        dataset_name: of a registered data set; its metadata gives ``json_file`` and, where set,
            ``thing_dataset_id_to_contiguous_id``, ``frequency_groups`` and ``has_annotations``.
        output_dir: where to write; a temporary folder, deleted at the end, if it is ``None``.
        json_file: the annotation file, instead of the metadata's.
        tasks: "bbox", "segm" or both. "segm" is left out with a warning if the model predicts no masks.
        backend: "auto", "hotcoco" or "lvis", see :func:`~eql_d2.evaluation.backends.evaluate_tasks`.
        max_detections: detections that count, of each image (LVIS) or of each image and class (COCO).
        frequency: of the training set, for the groups and the training counts in the tables.
        fixed: add AP-fixed, APr-fixed, ... (LVIS only). It uses every detection that the model returns.
        fingerprint: says which model and settings the predictions come from. Only predictions with the same
            fingerprint are used again when an evaluation is resumed.
    """

    protocol = ""
    results_name = ""

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
        self.dataset_name = dataset_name
        self.tasks = tuple(tasks)
        self.backend = choose_backend(backend)
        self.max_detections = max_detections
        self.fixed = fixed
        self.fingerprint = fingerprint
        self._json_file = _annotation_file(metadata, json_file)
        given, ids = metadata.get("has_annotations", None), metadata.get("thing_dataset_id_to_contiguous_id", None)
        if given is None or not ids:
            content = read_annotations(self._json_file)
            given = content.has_annotations if given is None else given
            ids = ids or content.contiguous_ids
        self._has_annotations = bool(given)
        self._category_ids = {contiguous: category_id for category_id, contiguous in ids.items()}
        self._frequency = frequency
        if frequency is not None and frequency.num_classes != len(self._category_ids):
            raise InputError(
                f"The training set has {frequency.num_classes} categories, but {dataset_name!r} has "
                f"{len(self._category_ids)}; they must be the same ones."
            )
        self._groups = self._letters_by_id(metadata)
        self._output_dir = output_dir
        self._temporary: Optional[tempfile.TemporaryDirectory] = None
        self._store: Optional[PredictionStore] = None
        self._lock: Optional[FolderLock] = None
        #: Image ids whose predictions an interrupted evaluation left on disk; set by :meth:`reset`.
        self.done: FrozenSet[int] = frozenset()
        self._processed: Set[int] = set()

    def _letters_by_id(self, metadata) -> Dict[int, str]:
        """Return the letter of each category id: the training set's, the metadata's, or nothing (see the json)."""
        letters = self._frequency.groups if self._frequency is not None else metadata.get("frequency_groups", None)
        if not letters:
            return {}
        return {self._category_ids[contiguous]: letter for contiguous, letter in enumerate(letters)}

    def reset(self, resume: bool = False, weights: str = "") -> None:
        """Start with no predictions, or, with ``resume``, with those that an interrupted evaluation left.

        To be called on every process. Predictions of another data set, with another fingerprint or of other weights
        are deleted, never used.

        Args:
            resume: whether to go on.
            weights: a digest of the model's weights, see :func:`eql_d2.evaluation.loop.weights_digest`.

        Raises:
            InputError: if another evaluation writes to the folder, or it cannot be written.
        """
        self.close()
        store = self._store = PredictionStore(Path(self._shared_folder()) / "predictions", comm.get_rank())
        # The main process's, for all: buffers that are not shared may differ from process to process.
        identity = comm.all_gather(json.dumps([self.dataset_name, self.fingerprint, weights]))[0]
        problem = ""
        if comm.is_main_process():
            try:
                self._lock = FolderLock(store.folder.parent)
                store.prepare(identity, resume)
            except InputError as error:
                problem = str(error)
        problem = comm.all_gather(problem)[0]
        if problem:
            raise InputError(problem)
        self._processed = set()
        self.done = frozenset(store.open(identity))
        comm.synchronize()  # nobody may write before everybody has read
        if self.done:
            logger.info("Going on after %d images that an earlier evaluation finished.", len(self.done))

    @property
    def _open_store(self) -> PredictionStore:
        if self._store is None:
            raise RuntimeError("reset() comes before process() and evaluate().")
        return self._store

    def _shared_folder(self) -> str:
        """Return the output folder, the same on every process; to be called on every process."""
        if self._output_dir is not None:
            os.makedirs(self._output_dir, exist_ok=True)
            return self._output_dir
        if comm.is_main_process() and self._temporary is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="eql_d2_")
        return comm.all_gather(self._temporary.name if self._temporary is not None else "")[0]

    def process(self, inputs: List[Dict[str, Any]], outputs: List[Dict[str, Any]]) -> None:
        """Write the predictions of a batch to disk, skipping images that are there already."""
        for image, output in zip(inputs, outputs):
            image_id = int(image["image_id"])
            if "instances" in output and image_id not in self.done:
                detections = instances_to_results(output["instances"], image_id, self._category_ids)
                self._open_store.append(image_id, detections)
                self._processed.add(image_id)

    def evaluate(self) -> Dict[str, Dict[str, float]]:
        """Score all predictions.

        Returns:
            On the main process, ``{"bbox": {"AP": ..., "APr": ..., ...}, "segm": ...}`` in percent, NaN where a group
            has no ground truth; empty on other processes and for a set without annotations.

        Raises:
            InputError: if the predictions are not those of every image of the data set. Nothing is computed of a part.
        """
        self._open_store.close()
        processed = comm.gather(self._processed)
        if not comm.is_main_process():
            comm.synchronize()
            return {}
        try:
            return self._evaluate_on_main_process(set(self.done).union(*processed))
        finally:
            self.close()
            comm.synchronize()

    def close(self) -> None:
        """Let others write to the folder, also where the evaluation has not come to its end; not a collective."""
        if self._store is not None:
            self._store.close()
        if self._lock is not None:
            self._lock.release()

    def _evaluate_on_main_process(self, processed: Set[int]) -> Dict[str, Dict[str, float]]:
        store = self._open_store
        self._check_complete(processed, store.image_ids())
        path = store.folder.with_name(self.results_name)
        num_images = store.merge(path)
        logger.info("Wrote the predictions of %d images to %s.", num_images, path)
        results: Dict[str, Dict[str, float]] = OrderedDict()
        if self._has_annotations:
            results = self._score(path)
        else:
            logger.warning(
                "%s has no annotations, so no AP is computed; submit %s to the evaluation server.",
                self.dataset_name,
                path,
            )
        store.delete()
        if self._temporary is not None:
            self._temporary.cleanup()
            self._temporary = None
        return results

    def _check_complete(self, processed: Set[int], stored: Set[int]) -> None:
        """Compare the images that were processed, and those whose predictions are on disk, with the data set's."""
        lost, listed = processed - stored, listed_images(self._json_file)
        folder = self._open_store.folder
        if lost:
            raise InputError(
                f"{folder} on the main process lacks the predictions of {len(lost)} images that were processed (the "
                f"first: image {min(lost)}); the output folder must be one that all machines share and that no other "
                f"program writes to."
            )
        if stored != listed:
            missing, strange = sorted(listed - stored), sorted(stored - listed)
            first = f"image {missing[0]} is missing" if missing else f"image {strange[0]} is not one of it"
            raise InputError(
                f"{folder} has the predictions of {len(stored & listed)} of the {len(listed)} images of "
                f"{self.dataset_name!r} ({first}), so no AP is computed; the loader must give every image of "
                f"{self._json_file}."
            )

    def _score(self, path: Path) -> Dict[str, Dict[str, float]]:
        evaluations = evaluate_tasks(
            self._json_file,
            path,
            self._scorable_tasks(path),
            fixed=(False, True) if self.fixed else (False,),
            backend=self.backend,
            max_detections=self.max_detections,
            groups=self._groups,
            protocol=self.protocol,
        )
        rows = category_rows(evaluations, self._training_counts())
        write_category_csv(rows, path.with_name(f"{CATEGORY_TABLE}.csv"))
        write_category_json(rows, path.with_name(f"{CATEGORY_TABLE}.json"))
        logger.info("Results on %s in percent (%s):\n%s", self.dataset_name, self.backend, format_metrics(evaluations))
        results: Dict[str, Dict[str, float]] = OrderedDict()
        for (task, fixed), evaluation in evaluations.items():
            named = {metric_name(name, fixed): 100 * value for name, value in evaluation.metrics.items()}
            results.setdefault(task, OrderedDict()).update(named)
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
