"""Metrics of a training to Weights & Biases or MLflow, by their own packages."""

import importlib
from typing import Any, Callable, Dict, List, Mapping

from detectron2.config import CfgNode
from detectron2.utils.events import EventWriter, get_event_storage

from eql_d2.config import flatten
from eql_d2.errors import InputError


class MetricsWriter(EventWriter):
    """Hands each metric of the storage on once, smoothed as in ``metrics.json``.

    Args:
        log: takes metrics by name and the iteration that they are of; iterations do not fall.
        close: is called at the end of the training.
    """

    def __init__(
        self, log: Callable[[Mapping[str, float], int], None], close: Callable[[], Any], window_size: int = 20
    ):
        self._log, self._close, self._window_size = log, close, window_size
        self._last = -1

    def write(self) -> None:
        by_iteration: Dict[int, Dict[str, float]] = {}
        for name, (value, iteration) in get_event_storage().latest_with_smoothing_hint(self._window_size).items():
            if iteration > self._last:
                by_iteration.setdefault(iteration, {})[name] = float(value)
        for iteration in sorted(by_iteration):
            self._log(by_iteration[iteration], iteration)
            self._last = iteration

    def close(self) -> None:
        self._close()


def external_writers(cfg: CfgNode) -> List[EventWriter]:
    """Return a writer for each name in ``MODEL.LONG_TAIL.WRITERS``; to be called on the main process alone.

    Project, server and keys are those that the packages take from their own environment variables (``WANDB_PROJECT``,
    ``MLFLOW_TRACKING_URI``, ...).

    Raises:
        InputError: for a name that there is not, or whose package is not installed.
    """
    for name in cfg.MODEL.LONG_TAIL.WRITERS:
        if name not in _WRITERS:
            raise InputError(f"MODEL.LONG_TAIL.WRITERS has {name!r}; there are {', '.join(map(repr, _WRITERS))}.")
    return [_WRITERS[name](_import(name), cfg) for name in cfg.MODEL.LONG_TAIL.WRITERS]


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise InputError(f'MODEL.LONG_TAIL.WRITERS has {name!r} ({error}): pip install "eql_d2[{name}]".') from None


def _wandb(wandb: Any, cfg: CfgNode) -> EventWriter:
    run = wandb.init(dir=cfg.OUTPUT_DIR, config=flatten(cfg))
    return MetricsWriter(lambda metrics, iteration: run.log(dict(metrics), step=iteration), run.finish)


def _mlflow(mlflow: Any, cfg: CfgNode) -> EventWriter:
    mlflow.start_run()
    # A server takes no value of more than 500 characters.
    mlflow.log_params({name: str(value)[:500] for name, value in flatten(cfg).items()})
    # A slash is a folder of metrics to MLflow; "@", as in AR@300, it does not take.
    return MetricsWriter(
        lambda metrics, iteration: mlflow.log_metrics(
            {name.replace("@", " at "): value for name, value in metrics.items()}, step=iteration
        ),
        mlflow.end_run,
    )


_WRITERS: Dict[str, Callable[[Any, CfgNode], EventWriter]] = {"wandb": _wandb, "mlflow": _mlflow}
