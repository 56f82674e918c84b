"""The best weights of a training by any metric, and its end once they get no better."""

import json
import logging
from typing import Dict

from detectron2.config import CfgNode
from detectron2.engine import hooks
from detectron2.utils import comm
from torch import nn

from eql_d2.engine.checkpoint import LongTailCheckpointer
from eql_d2.errors import InputError
from eql_d2.files import write_whole
from eql_d2.run_folder import RunFolder

logger = logging.getLogger("detectron2.eql_d2")


class EarlyStop(BaseException):
    """Ends a training before its last iteration. No ``Exception``: nothing went wrong, and the loop logs those."""


class BestCheckpoint(hooks.BestCheckpointer):
    """Keeps the weights with the best metric in ``model_best.pth``, and ends a training that gets no better.

    Detectron2's hook, with its gaps closed: what the best was is in ``best.json`` (metric, mode, its value at each
    evaluated iteration, the best iteration), so that a resumed run goes on comparing; ``last_checkpoint``, where
    ``--resume`` starts, stays the last; a metric that nobody computes is an error instead of a warning.

    With a patience, the training ends after so many evaluations in a row without a new best, on every process at the
    same iteration: its last weights are written to ``model_final.pth`` and evaluated, as at an ordinary end. A metric
    that is NaN (a group without ground truth) is never the best.

    To be registered on every process, after the hook that evaluates.

    Args:
        cfg: of the training, with ``MODEL.LONG_TAIL.BEST``.
        model: that is evaluated, whose weights are kept.

    Raises:
        InputError: for a mode that there is not, a negative patience, or a training that is not evaluated on its way.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module):
        node = cfg.MODEL.LONG_TAIL.BEST
        if node.MODE not in ("max", "min"):
            raise InputError(f"MODEL.LONG_TAIL.BEST.MODE is {node.MODE!r}; it is 'max' or 'min'.")
        if node.PATIENCE < 0:
            raise InputError(
                f"MODEL.LONG_TAIL.BEST.PATIENCE is {node.PATIENCE}; it is 0 (off) or a number of evaluations."
            )
        if cfg.TEST.EVAL_PERIOD <= 0 or not cfg.DATASETS.TEST:
            raise InputError(
                f"MODEL.LONG_TAIL.BEST.METRIC is {node.METRIC!r}, but the training is not evaluated on its way; set "
                f"TEST.EVAL_PERIOD and DATASETS.TEST."
            )
        self._folder = RunFolder(cfg.OUTPUT_DIR)
        checkpointer = _WeightsAlone(model, cfg.OUTPUT_DIR, save_to_disk=comm.is_main_process())
        prefix = self._folder.best_weights.stem
        super().__init__(cfg.TEST.EVAL_PERIOD, checkpointer, node.METRIC, node.MODE, prefix)
        self._mode, self._patience = node.MODE, node.PATIENCE
        self._values: Dict[int, float] = {}
        self._evaluated = False

    def before_train(self) -> None:
        """Go on from ``best.json`` if the training is resumed; another metric than it is about begins anew."""
        file = self._folder.best_file
        if not comm.is_main_process() or not file.is_file():
            return
        if self.trainer.start_iter == 0:
            file.unlink()
            return
        known = json.loads(file.read_text())
        if (known["metric"], known["mode"]) == (self._val_metric, self._mode):
            self._values = {int(iteration): value for iteration, value in known["values"]}
            self.best_iter = known["best_iteration"]
            self.best_metric = None if self.best_iter is None else self._values[self.best_iter]

    def evaluations_without_gain(self) -> int:
        """Return how many evaluations there were after the best one, on the main process."""
        return sum(self.best_iter is None or iteration > self.best_iter for iteration in self._values)

    def after_step(self) -> None:
        self._evaluated = False
        super().after_step()
        if self._evaluated and self._patience:
            has_ended = comm.all_gather(self.evaluations_without_gain() >= self._patience)
            if has_ended[0]:  # the main process, which alone has the metrics, decides for all
                self._end_training()

    def after_train(self) -> None:
        if self.trainer.iter >= self.trainer.max_iter:  # else it has failed, and was not evaluated
            self._best_checking()

    def _best_checking(self) -> None:
        self._evaluated = True
        if not comm.is_main_process():
            return
        latest = self.trainer.storage.latest()
        if self._val_metric not in latest:
            there = ", ".join(
                sorted(key for key, (_, at) in latest.items() if "/" in key and at == self.trainer.storage.iter)
            )
            raise InputError(
                f"MODEL.LONG_TAIL.BEST.METRIC is {self._val_metric!r}; the evaluation has {there or 'no metric'}."
            )
        super()._best_checking()
        value, iteration = latest[self._val_metric]
        self._values[int(iteration)] = value
        content = {
            "metric": self._val_metric,
            "mode": self._mode,
            "best_iteration": self.best_iter,
            "best": self.best_metric,
            "values": sorted(self._values.items()),
        }
        write_whole(self._folder.best_file, json.dumps(content, indent=2))

    def _end_training(self) -> None:
        trainer = self.trainer
        logger.info(
            "%s has not been better for %d evaluations: the training ends after %d of %d iterations.",
            self._val_metric, self._patience, trainer.iter + 1, trainer.max_iter,
        )  # fmt: skip
        if comm.is_main_process():
            trainer.checkpointer.save(self._folder.weights.stem, iteration=trainer.iter)
        # What hooks compare with at the end: this iteration is the last, and its weights are evaluated.
        trainer.max_iter = trainer.iter
        raise EarlyStop


class _WeightsAlone(LongTailCheckpointer):
    """Saves weights to evaluate or to start from; a training is not resumed from them."""

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        pass
