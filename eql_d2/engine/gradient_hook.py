"""Gradient statistics of each category, accumulated while a model trains."""

from typing import Any, Dict, List, Optional

from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn

from eql_d2.data.catalog import category_frequency
from eql_d2.data.categories import CategoryTable
from eql_d2.errors import InputError
from eql_d2.evaluation.report import write_category_csv
from eql_d2.modeling.classifier_layer import classifier_layers
from eql_d2.modeling.regions import Watcher, region_rows
from eql_d2.run_folder import RunFolder


class GradientHook(HookBase):
    """Accumulates gradient norms, probabilities and gradient ratios of each category during training.

    Every ``MODEL.LONG_TAIL.ANALYSIS.PERIOD``-th iteration the regions of all ranks are added to the sums; in between
    nothing is computed. At each checkpoint and at the end the main process writes ``training_gradients.csv`` to
    ``OUTPUT_DIR``, one row for each stage and category (columns in :func:`~eql_d2.modeling.regions.region_rows`). The
    sums are part of the checkpoint, so a resumed run goes on with them. To be registered before the checkpointer.

    Args:
        cfg: of the training.
        model: that trains, with box predictors of this package; DistributedDataParallel around it is welcome.

    Raises:
        InputError: if the period is negative or the model has no such predictor.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module):
        self.period = cfg.MODEL.LONG_TAIL.ANALYSIS.PERIOD
        if self.period < 1:
            raise InputError(f"MODEL.LONG_TAIL.ANALYSIS.PERIOD is {self.period}; it is 0 (off) or a number of steps.")
        predictors = [predictor for _, predictor in classifier_layers(model)]
        if not predictors:
            raise InputError(
                "MODEL.LONG_TAIL.ANALYSIS.PERIOD is set, but the model has no box predictor of this package; set "
                "MODEL.ROI_HEADS.NAME to one of its ROI heads."
            )
        self._cfg = cfg
        self._watcher = Watcher(predictors, is_active=lambda: self.trainer.iter % self.period == 0)
        self._handles: List[Any] = []
        self._categories: Optional[CategoryTable] = None

    @property
    def statistics(self):
        """The sums so far, one :class:`~eql_d2.modeling.regions.RegionStatistics` for each stage."""
        return self._watcher.statistics

    def before_train(self) -> None:
        self._handles = self._watcher.attach()

    def after_step(self) -> None:
        iteration = self.trainer.iter + 1
        if iteration % self._cfg.SOLVER.CHECKPOINT_PERIOD == 0 or iteration == self.trainer.max_iter:
            self.write()

    def after_train(self) -> None:
        for handle in self._handles:
            handle.remove()

    def write(self) -> None:
        """Write the table; the main process only, a no-op elsewhere."""
        if not comm.is_main_process():
            return
        if self._categories is None:
            names = self._cfg.DATASETS.TRAIN
            frequency = category_frequency(names, self._cfg.MODEL.LONG_TAIL.FREQUENCY)
            self._categories = CategoryTable.of_dataset(frequency, names)
        rows = region_rows(self.statistics, self._categories)
        write_category_csv(rows, RunFolder(self._cfg.OUTPUT_DIR).gradients_file)

    def state_dict(self) -> Dict[str, Any]:
        """Return the sums of each stage; they are those of all ranks, the same on each."""
        return {f"stage{i}": statistics.state_dict() for i, statistics in enumerate(self.statistics)}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        for i, statistics in enumerate(self.statistics):
            statistics.load_state_dict(state[f"stage{i}"])
