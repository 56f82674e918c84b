"""What every evaluator of detections shares: predictions streamed to disk, resumed, merged and then scored."""

import json
import logging
import os
import tempfile
from abc import ABC, abstractmethod
from collections import OrderedDict
from pathlib import Path
from typing import Any, Dict, FrozenSet, List, Optional, Sequence, Set

from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import Instances
from detectron2.utils import comm

from eql_d2.errors import InputError
from eql_d2.evaluation.store import JSON_LIST, PredictionStore
from eql_d2.files import FolderLock

logger = logging.getLogger("detectron2.eql_d2.evaluation")


class StreamingEvaluator(DatasetEvaluator, ABC):
    """Write predictions to disk as they come, then score the results file on the main process.

    Each process appends to a file of its own under ``output_dir/predictions``; nothing is gathered. ``output_dir`` must
    be one folder that all processes see, and is this evaluation's alone from :meth:`reset` to :meth:`evaluate`
    (:class:`eql_d2.files.FolderLock`). After :meth:`evaluate` it holds the results file; ``predictions`` is then gone.

    Args:
        dataset_name: of a registered data set.
        output_dir: where to write; a temporary folder, deleted at the end, if it is ``None``.
        annotations: where the images of the data set are listed, for messages.
        has_annotations: whether there is anything to score against.
        fingerprint: says which model and settings the predictions come from. Only predictions with the same
            fingerprint are used again when an evaluation is resumed.
    """

    #: Name of the results file.
    results_name = ""
    layout = JSON_LIST

    def __init__(
        self,
        dataset_name: str,
        output_dir: Optional[str] = None,
        *,
        annotations: str = "",
        has_annotations: bool = True,
        fingerprint: str = "",
    ):
        self.dataset_name = dataset_name
        self.fingerprint = fingerprint
        self._annotations = annotations
        self._has_annotations = has_annotations
        self._output_dir = output_dir
        self._temporary: Optional[tempfile.TemporaryDirectory] = None
        self._store: Optional[PredictionStore] = None
        self._lock: Optional[FolderLock] = None
        #: Image ids whose predictions an interrupted evaluation left on disk; set by :meth:`reset`.
        self.done: FrozenSet[int] = frozenset()
        self._processed: Set[int] = set()

    @abstractmethod
    def detections_of(self, image: Dict[str, Any], instances: Instances) -> Sequence[Any]:
        """Return the detections of an image as the layout takes them.

        Args:
            image: what the loader gave.
            instances: what the model gave for it.
        """

    @abstractmethod
    def listed_ids(self) -> Set[int]:
        """Return the ids of all images of the data set, as the loader gives them."""

    @abstractmethod
    def score(self, path: Path) -> Dict[str, Dict[str, float]]:
        """Score a results file and write the tables that go with it, on the main process.

        Returns:
            Metrics in percent by kind, NaN where there is no ground truth.
        """

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
        store = self._store = PredictionStore(Path(self._shared_folder()) / "predictions", comm.get_rank(), self.layout)
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
                self._open_store.append(image_id, self.detections_of(image, output["instances"]))
                self._processed.add(image_id)

    def evaluate(self) -> Dict[str, Dict[str, float]]:
        """Score all predictions.

        Returns:
            On the main process, metrics in percent by kind, as ``{"bbox": {"AP": ..., "APr": ..., ...}, "segm": ...}``,
            NaN where a group has no ground truth; empty on other processes and for a set without annotations.

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
            results = self.score(path)
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
        lost, listed = processed - stored, self.listed_ids()
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
                f"{self._annotations}."
            )
