"""What a checkpoint holds beside weights and optimizer, so that a training goes on as if it had never been stopped."""

import logging
from typing import Any, Dict, List, Tuple

from detectron2.engine import HookBase
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng

from eql_d2.data.random_state import random_state, set_random_state

logger = logging.getLogger("detectron2.eql_d2")

#: Iterations over which Detectron2's writers take the median of a metric.
_WINDOW = 20
#: Metrics that are times, and of a run alone.
TIMES = ("time", "data_time", "rank_data_time", "eta_seconds")


class Continuation(HookBase):
    """Keeps the position in the stream of images, the random states of processes and workers, and the last metrics.

    A training that was stopped and resumed, on as many processes with as many workers, is to the bit the one that was
    not: weights, optimizer, what the losses have summed up, the images of each batch and how they are augmented, the
    metrics that are written. On another number of processes the stream of images goes on where it was, divided among
    them anew, and random numbers are others; the log says so.

    To be registered on every process, before the hook that writes checkpoints.
    """

    def __init__(self):
        self._loaded: Dict[str, Any] = {}
        self._first = 0  # number of the first batch of this run
        self._processes: List[Dict[str, Any]] = []
        self._iteration = -1  # that self._processes are of

    def before_train(self) -> None:
        start = self.trainer.start_iter
        self._first = start
        if start:
            self._go_on()

    def after_step(self) -> None:
        if self.trainer.is_saved():
            self._processes = comm.gather(self._of_this_process())
            self._iteration = self.trainer.iter

    def state_dict(self) -> Dict[str, Any]:
        """Return what the checkpoint of this iteration holds; on the main process, which writes it."""
        if comm.get_world_size() == 1:
            self._processes, self._iteration = [self._of_this_process()], self.trainer.iter
        steps = self.trainer.iter + 1 - self.trainer.start_iter
        return {
            "images": (self._first + steps) * self._images_per_batch,
            "images_per_batch": self._images_per_batch,
            "processes": self._processes if self._iteration == self.trainer.iter else [],
            "metrics": self._metrics(),
        }

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Remember what a checkpoint holds, until the training begins."""
        self._loaded = state

    @property
    def _loader(self) -> Any:
        return self.trainer._trainer.data_loader

    @property
    def _images_per_batch(self) -> int:
        return self.trainer.cfg.SOLVER.IMS_PER_BATCH

    def _of_this_process(self) -> Dict[str, Any]:
        loader = self._loader
        return {
            "random": random_state(),
            "loader": loader.state_dict() if hasattr(loader, "state_dict") else {},
        }

    def _go_on(self) -> None:
        state, self._loaded = self._loaded, {}
        processes = state.get("processes", [])
        self._first = state.get("images", self._first * self._images_per_batch) // self._images_per_batch
        if hasattr(self._loader, "seek"):
            self._loader.seek(self._first)
        if len(processes) == comm.get_world_size():
            own = processes[comm.get_rank()]
            if own["loader"] and hasattr(self._loader, "load_state_dict"):
                self._loader.load_state_dict(own["loader"])
            set_random_state(own["random"])
        else:
            self._begin_anew(processes)
        if state and state["images_per_batch"] != self._images_per_batch:
            logger.warning(
                "The checkpoint is of batches of %d images, this run has %d: it goes on at the image that comes next.",
                state["images_per_batch"],
                self._images_per_batch,
            )
        for name, (is_smoothed, values) in state.get("metrics", {}).items():
            for value, iteration in values:
                self.trainer.storage.put_scalar(name, value, smoothing_hint=is_smoothed, cur_iter=iteration)

    def _begin_anew(self, processes: List[Dict[str, Any]]) -> None:
        """Draw other random numbers than from the start on: the checkpoint has none for this process."""
        if processes and processes[0]["loader"] and hasattr(self._loader, "load_state_dict"):
            self._loader.load_state_dict({**processes[0]["loader"], "workers": []})
        seed = max(self.trainer.cfg.SEED, 0) + comm.get_rank() + 1000 * self._first
        seed_all_rng(seed % 2**31)
        logger.warning(
            "The checkpoint holds the random state of %d processes, this run has %d: the images go on where they were, "
            "divided among the processes anew; how they are augmented and regions are drawn is no longer what it would "
            "have been.",
            len(processes),
            comm.get_world_size(),
        )

    def _metrics(self) -> Dict[str, Tuple[bool, List[List[float]]]]:
        """Return the last values of each metric that the writers smooth, and this iteration's of the others.

        By name: whether it is smoothed; value and iteration. None before the training has begun.
        """
        storage = getattr(self.trainer, "storage", None)
        kept: Dict[str, Tuple[bool, List[List[float]]]] = {}
        if storage is None:
            return kept
        for name, history in storage.histories().items():
            is_smoothed = storage.smoothing_hints()[name]
            values = [list(pair) for pair in history.values()[-_WINDOW if is_smoothed else -1 :]]
            if name not in TIMES and (is_smoothed or values[-1][1] == self.trainer.iter):
                kept[name] = (is_smoothed, values)
        return kept
