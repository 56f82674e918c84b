"""The output folder of a training: each file in it, what is written there and read, whether the training has ended."""

import json
import math
import os
import platform
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence, Tuple, Union

import detectron2
import torch
from detectron2.config import CfgNode
from detectron2.evaluation.testing import flatten_results_dict
from torch import nn

import eql_d2
from eql_d2.config import load_config
from eql_d2.data.frequency import CategoryFrequency
from eql_d2.errors import InputError
from eql_d2.evaluation.evaluator import COCOEvaluator, LVISEvaluator
from eql_d2.evaluation.report import CATEGORY_TABLE
from eql_d2.files import write_whole
from eql_d2.losses import ClassifierLoss

#: Metrics in percent by name, ``None`` where a group has no ground truth.
Metrics = Dict[str, Optional[float]]
FINAL_WEIGHTS = "model_final.pth"
#: Files of detections that an evaluation writes, each in the format of its data set.
DETECTIONS = (LVISEvaluator.results_name, COCOEvaluator.results_name)
_TTA = "_TTA"


class RunFolder:
    """The output folder (``OUTPUT_DIR``) of one training. Nothing is read before it is asked for.

    Args:
        folder: it need not be there yet.
        name: for titles, legends and messages; by default the folder's own.

    Attributes:
        config_file: the whole config, with what it left to the data filled in.
        history_file: metrics over time, one json object a line, by Detectron2.
        weights: the last checkpoint; there are others, ``model_0004999.pth``, on the way.
        best_weights: those of the best metric, by the hook of :mod:`eql_d2.engine.best_checkpoint`.
        best_file: that metric at each evaluation, and the best iteration.
        results_file: every metric of the evaluations, and what makes them repeatable.
        frequency_file: the counts of the training set that the loss used.
        gradients_file: sums of the :class:`~eql_d2.engine.gradient_hook.GradientHook`.
        statistics_files: what calibrations need, by what it is measured of, where they are not told another place.
        tuned_file: the best of the constants that eql-d2 calibrate --tune has tried, as a config.
        tuning_file: the metrics of each of them.
        tuning_folder: predictions while they are tried, to go on with after an interruption.
        thresholds_file: operating thresholds of the classes, by eql-d2 thresholds.
        console_file: what the processes said that another one started.
    """

    def __init__(self, folder: Union[str, Path], name: str = ""):
        self.folder = Path(folder)
        self.name = name or self.folder.name
        self.config_file = self.folder / "config.yaml"
        self.history_file = self.folder / "metrics.json"
        self.weights = self.folder / FINAL_WEIGHTS
        self.best_weights = self.folder / "model_best.pth"
        self.best_file = self.folder / "best.json"
        self.results_file = self.folder / "results.json"
        self.frequency_file = self.folder / "category_frequency.json"
        self.gradients_file = self.folder / "training_gradients.csv"
        self.statistics_files = {
            "logits": self.folder / "logit_statistics.pth",
            "boxes": self.folder / "fractal_dimensions.pth",
        }
        self.tuned_file = self.folder / "tuned.yaml"
        self.tuning_file = self.folder / "tuning.csv"
        self.tuning_folder = self.folder / "tuning"
        self.thresholds_file = self.folder / "thresholds.json"
        self.console_file = self.folder / "console.txt"

    def inference_folder(self, dataset: str, augmented: bool = False) -> Path:
        """Return where the evaluation on a data set writes, or that with test-time augmentation."""
        return self.folder / ("inference" + _TTA * augmented) / dataset

    def category_file(self, dataset: str) -> Path:
        """Return the table of AP by category on a data set."""
        return self.inference_folder(dataset) / f"{CATEGORY_TABLE}.json"

    def has_finished(self) -> bool:
        """Return whether the training has written its last weights and evaluated them.

        Metrics that are older than the weights are of an evaluation in the course of the training. A training that
        diverged writes neither last weights nor metrics of them.
        """
        weights, results = self.weights, self.results_file
        return weights.is_file() and results.is_file() and results.stat().st_mtime_ns >= weights.stat().st_mtime_ns

    def read_config(self) -> CfgNode:
        """Return what the config says, over today's defaults.

        Raises:
            InputError: if the folder or the file is missing, or a key in it cannot be used.
        """
        for place, kind, is_there in ((self.folder, "folder", Path.is_dir), (self.config_file, "file", Path.is_file)):
            if not is_there(place):
                raise InputError(f"{place}: there is no such {kind}; a run is an output folder of eql-d2 train.")
        return load_config(str(self.config_file))

    def write_config(self, cfg: CfgNode) -> None:
        """Write the whole config of the run."""
        write_whole(self.config_file, cfg.dump())

    @cached_property
    def cfg(self) -> CfgNode:
        """See :meth:`read_config`."""
        return self.read_config()

    @cached_property
    def history(self) -> List[Dict[str, float]]:
        """The lines of ``metrics.json``, by ascending iteration, one for each: losses, learning rate and, where the run
        was evaluated, ``segm/AP`` and its like. Empty if there is no such file.

        A resumed run has some iterations twice: the later line counts.

        Raises:
            InputError: if a line is damaged, but for the last one, which an interruption may have cut off.
        """
        lines = self._history_lines()
        by_iteration: Dict[int, Dict[str, float]] = {}
        for number, line in enumerate(lines, 1):
            try:
                content = json.loads(line)
                by_iteration.setdefault(int(content["iteration"]), {}).update(content)
            except (ValueError, KeyError, TypeError) as error:
                if number < len(lines):
                    raise InputError(
                        f"{self.history_file}, line {number}: {error!r}; each line is a json object that has an "
                        f"iteration."
                    ) from None
        return [by_iteration[iteration] for iteration in sorted(by_iteration)]

    def mend_history(self) -> None:
        """Drop the end of ``metrics.json`` after its last whole line, which a process left that was killed.

        In place: the file may be open already, to be added to.
        """
        if self.history_file.is_file():
            content = self.history_file.read_bytes()
            os.truncate(self.history_file, content.rfind(b"\n") + 1)

    def has_evaluated(self, iteration: int) -> bool:
        """Return whether ``metrics.json`` has the metrics of an evaluation after this iteration."""
        metrics = flatten_results_dict(self.read_results().get("results", {}))
        return any(line["iteration"] == iteration and not metrics.keys().isdisjoint(line) for line in self.history)

    def metric_keys(self) -> List[str]:
        """Return the names in :attr:`history`, sorted."""
        return sorted(set().union(*self.history))

    def series(self, key: str) -> List[Tuple[int, float]]:
        """Return (iteration, value) for each line of the history that has ``key``."""
        return [(int(line["iteration"]), line[key]) for line in self.history if line.get(key) is not None]

    def last_metrics(self) -> Optional[Dict[str, float]]:
        """Return the last line of ``metrics.json`` that training wrote, read anew; ``None`` before the first."""
        for line in reversed(self._history_lines()):
            if "total_loss" in line:
                with suppress(ValueError):  # it is being written
                    return json.loads(line)
        return None

    def _history_lines(self) -> List[str]:
        if not self.history_file.is_file():
            return []
        return [line for line in self.history_file.read_text().splitlines() if line.strip()]

    def read_results(self) -> Dict[str, Any]:
        """Return what ``results.json`` holds, as :meth:`write_results` wrote it: ``experiment`` and ``results``.

        Empty before the first evaluation.

        Raises:
            InputError: if the file is damaged.
        """
        return _read_json(self.results_file) or {}

    @cached_property
    def results(self) -> Dict[str, Dict[str, Metrics]]:
        """Metrics by data set and kind ("bbox", "segm", "bbox_TTA", ...). Empty before the first evaluation."""
        return _by_dataset(self.read_results().get("results", {}), self.cfg.DATASETS.TEST)

    @cached_property
    def experiment(self) -> Dict[str, Any]:
        """What ``results.json`` says of the loss, the seed and the versions; see :func:`describe_experiment`."""
        return self.read_results().get("experiment", {})

    def write_results(self, experiment: Dict[str, Any], results: Dict[str, Any]) -> None:
        """Merge metrics into ``results.json``.

        Args:
            experiment: what :func:`describe_experiment` returns; takes the place of what was there.
            results: nested metrics; NaN, of a group without ground truth, is written as ``null``.
        """
        content = self.read_results()
        content["experiment"] = experiment
        content.setdefault("results", {}).update(_without_nan(results))
        write_whole(self.results_file, json.dumps(content, indent=2, allow_nan=False))

    def write_frequency(self, frequency: CategoryFrequency) -> None:
        """Write the counts of the training set."""
        frequency.save(self.frequency_file)

    def category_ap(self, dataset: str) -> List[Dict[str, Any]]:
        """Return the rows that evaluation wrote, by label: id, name, group, counts, ``bbox_AP`` ... in percent.

        Empty if the run was not evaluated on that data set.

        Raises:
            InputError: if the file is damaged.
        """
        path = self.category_file(dataset)
        try:
            return sorted(_read_json(path) or [], key=lambda row: row["id"])
        except (KeyError, TypeError) as error:
            raise InputError(f"{path} is no table of evaluation ({error!r}).") from None

    def evaluations(self) -> List[str]:
        """Return the data sets that the run left per-category AP of."""
        return sorted(path.parent.name for path in self.folder.glob(f"inference/*/{CATEGORY_TABLE}.json"))

    def evaluated_dataset(self, name: Optional[str] = None) -> str:
        """Return the data set whose AP to show: ``name`` if it was evaluated, else the one that was.

        Raises:
            InputError: if none was.
        """
        done = self.evaluations()
        if not done:
            raise InputError(
                f"{self.folder / 'inference'} has no {CATEGORY_TABLE}.json of a data set; evaluate the run: "
                f"eql-d2 train --eval-only --config-file {self.config_file} MODEL.WEIGHTS {self.weights}"
            )
        first = [test for test in self.cfg.DATASETS.TEST if test in done]
        return name if name in done else (first or done)[0]

    def detections_file(self, dataset: str) -> Path:
        """Return the file of the detections on a data set.

        Raises:
            InputError: if there is none, naming the data sets that the run was evaluated on.
        """
        for name in DETECTIONS:
            if (self.inference_folder(dataset) / name).is_file():
                return self.inference_folder(dataset) / name
        there = sorted({path.parent.name for name in DETECTIONS for path in self.folder.glob(f"inference/*/{name}")})
        hint = f"it has results on {', '.join(there)}: choose one with --dataset" if there else "evaluate the run first"
        raise InputError(f"{self.folder} has no {DETECTIONS[0]} in inference/{dataset}; {hint}.")

    def last_words(self) -> str:
        """Return the line of the console that says what went wrong: the last error that a tool names, else the last.

        Of several commands, each begun by a line ``$ COMMAND``, only what the last one said.
        """
        text = self.console_file.read_text(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        commands = [place for place, line in enumerate(lines) if line.startswith("$ ")]
        lines = lines[commands[-1] + 1 :] if commands else lines
        errors = [line for line in lines if line.startswith("error: ")]
        return (errors or lines or ["it said nothing"])[-1]


def open_run_folders(folders: Sequence[Path], names: Optional[Sequence[str]] = None) -> List[RunFolder]:
    """Return the folders of trainings with config, history and results read; see :func:`unique_names`.

    Raises:
        InputError: if one is no output folder of a training, or a file in it is damaged.
    """
    runs = [RunFolder(folder, name) for folder, name in zip(folders, unique_names(folders, names))]
    for run in runs:
        _ = run.cfg, run.history, run.results
    return runs


def find_detections(source: Path, dataset: str) -> Path:
    """Return the file of detections that a path names: the file itself, or that of a run's folder.

    Raises:
        InputError: if there is none.
    """
    if source.is_file():
        return source
    if not source.is_dir():
        raise InputError(f"{source}: there is no such results file or run folder.")
    return RunFolder(source).detections_file(dataset)


def unique_names(sources: Sequence[Path], names: Optional[Sequence[str]] = None) -> List[str]:
    """Return a name for each run or results file: those given, else as much of the end of its path as tells them apart.

    Raises:
        InputError: if names are given, but not one for each, or one twice.
    """
    if names:
        if len(names) != len(sources):
            raise InputError(f"--names has {len(names)} names for {len(sources)} runs; give one for each.")
        if len(set(names)) < len(names):
            raise InputError(f"--names {' '.join(names)}: the names must differ.")
        return list(names)
    parts = [Path(source).resolve().parts for source in sources]
    for depth in range(1, max(map(len, parts)) + 1):
        found = ["/".join(part[-depth:]) for part in parts]
        if len(set(found)) == len(found):
            return found
    raise InputError(f"{sources[0]} is given twice; a comparison needs different runs.")


def describe_experiment(cfg: CfgNode, model: nn.Module) -> Dict[str, Any]:
    """Return what makes a number repeatable: the loss of each classifier with its settings, versions, seed."""
    losses = [module.describe() for module in model.modules() if isinstance(module, ClassifierLoss)]
    node = cfg.MODEL.LONG_TAIL
    described = {
        "classifier_losses": losses,
        "seed": cfg.SEED,
        "max_iter": cfg.SOLVER.MAX_ITER,
        "images_per_batch": cfg.SOLVER.IMS_PER_BATCH,
        "weights": cfg.MODEL.WEIGHTS,
        "trainable": node.TRAINABLE,
        "init_classifier": node.INIT_CLASSIFIER,
        "tau": node.TAU_NORM.TAU,
        "calibration": {"name": node.CALIBRATION.NAME, **node.CALIBRATION.get(node.CALIBRATION.NAME, {})},
        "detections_per_image": cfg.TEST.DETECTIONS_PER_IMAGE,
        "versions": {
            "eql_d2": eql_d2.__version__,
            "detectron2": detectron2.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    if torch.cuda.is_available():
        described["peak_gpu_memory_mib"] = torch.cuda.max_memory_allocated() / 2**20
    return described


def _read_json(path: Path) -> Any:
    """Return the content of a file that a run wrote, ``None`` if it is not there.

    Raises:
        InputError: if it is damaged.
    """
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f"{path} is not valid json ({error}); evaluate the run again.") from None


def _by_dataset(results: Dict[str, Any], datasets: Sequence[str]) -> Dict[str, Dict[str, Metrics]]:
    """Sort the metrics by data set: they are nested by its name only where there are several."""
    sorted_: Dict[str, Dict[str, Metrics]] = {}
    for key, value in results.items():
        if any(isinstance(inner, dict) for inner in value.values()):
            suffix = _TTA if key.endswith(_TTA) and key not in datasets else ""
            name = key[: len(key) - len(suffix)]
            sorted_.setdefault(name, {}).update({kind + suffix: metrics for kind, metrics in value.items()})
        elif value:
            sorted_.setdefault(next(iter(datasets), "the test set"), {})[key] = value
    return sorted_


def _without_nan(results: Any) -> Any:
    """Return nested metrics with ``None`` for NaN, a group without ground truth: NaN is no json."""
    if isinstance(results, dict):
        return {key: _without_nan(value) for key, value in results.items()}
    return None if isinstance(results, float) and math.isnan(results) else results
