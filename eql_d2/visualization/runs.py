"""What a training leaves in its output folder: config, metrics over time, results, AP of each category."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

from detectron2.config import CfgNode

from eql_d2 import run_folder
from eql_d2.errors import InputError

#: Metrics in percent by name, ``None`` where a group has no ground truth.
Metrics = Dict[str, Optional[float]]
_TTA = "_TTA"


@dataclass(frozen=True)
class Run:
    """The output folder of one training.

    Attributes:
        name: for titles.
        folder: the ``OUTPUT_DIR``.
        cfg: what ``config.yaml`` says, over today's defaults.
        history: the lines of ``metrics.json``, by ascending iteration, one for each: losses, learning rate and, where
            the run was evaluated, ``segm/AP`` and its like. Empty if there is no such file.
        results: by data set and kind ("bbox", "segm", "bbox_TTA", ...). Empty before the first evaluation.
        experiment: what ``results.json`` says of the loss, the seed and the versions.
    """

    name: str
    folder: Path
    cfg: CfgNode
    history: List[Dict[str, float]]
    results: Dict[str, Dict[str, Metrics]]
    experiment: Dict[str, Any]

    @classmethod
    def read(cls, folder: Path, name: str) -> "Run":
        """Read a folder.

        Raises:
            InputError: if it is no output folder of a training, or a file in it is damaged.
        """
        cfg = run_folder.run_config(folder)
        content = run_folder.read_json(folder / "results.json") or {}
        results = _by_dataset(content.get("results", {}), cfg.DATASETS.TEST)
        return cls(name, folder, cfg, _read_history(folder / "metrics.json"), results, content.get("experiment", {}))

    def category_ap(self, dataset: str) -> List[Dict[str, Any]]:
        """Return a row for each category of a data set: id, name, group, counts, ``bbox_AP`` and its like in percent.

        Empty if the run was not evaluated on it.
        """
        return run_folder.category_ap(self.folder, dataset)

    def metric_keys(self) -> List[str]:
        """Return the names in :attr:`history`, sorted."""
        return sorted(set().union(*self.history))

    def series(self, key: str) -> List[Any]:
        """Return (iteration, value) for each line of the history that has ``key``."""
        return [(int(line["iteration"]), line[key]) for line in self.history if line.get(key) is not None]


def read_runs(folders: Sequence[Path], names: Optional[Sequence[str]] = None) -> List[Run]:
    """Read the folders of runs; see :class:`Run` and :func:`~eql_d2.run_folder.unique_names`."""
    named = zip(folders, run_folder.unique_names(list(folders), names))
    return [Run.read(Path(folder), name) for folder, name in named]


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


def _read_history(path: Path) -> List[Dict[str, float]]:
    """Return one line for each iteration. A resumed run has some twice: the later one counts."""
    if not path.is_file():
        return []
    lines = [line for line in path.read_text().splitlines() if line.strip()]
    by_iteration: Dict[int, Dict[str, float]] = {}
    for number, line in enumerate(lines, 1):
        try:
            content = json.loads(line)
            by_iteration.setdefault(int(content["iteration"]), {}).update(content)
        except (ValueError, KeyError, TypeError) as error:
            if number < len(lines):  # the last one may have been cut off by an interruption
                message = f"{path}, line {number}: {error!r}; each line is a json object that has an iteration."
                raise InputError(message) from None
    return [by_iteration[iteration] for iteration in sorted(by_iteration)]
