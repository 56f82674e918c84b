"""Finished runs: what a training left in its output folder."""

import pickle
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import torch
from detectron2.config import CfgNode
from torch import Tensor

from eql_d2 import run_folder
from eql_d2.data.builtin import register_from_config
from eql_d2.data.catalog import category_frequency, check_registered
from eql_d2.data.categories import CategoryRow, CategoryTable
from eql_d2.data.frequency import CategoryFrequency
from eql_d2.errors import InputError

#: Columns of the per-category table, the one that a figure shows first.
AP_COLUMNS = ("segm_AP", "bbox_AP")


@dataclass(eq=False)
class Run:
    """An output folder of tools/train_net.py.

    Attributes:
        folder: it.
        name: what tables and legends call the run.
        cfg: its config.yaml; the counts come from its category_frequency.json where it has one.
        weights: name of the checkpoint in the folder.
    """

    folder: Path
    name: str
    cfg: CfgNode = field(repr=False)
    weights: str = "model_final.pth"

    @classmethod
    def open(cls, folder: Path, name: str, weights: str = "model_final.pth", device: Optional[str] = None) -> "Run":
        """Read a run's config.

        Raises:
            InputError: if the folder or its config.yaml is missing or cannot be used.
        """
        from eql_d2.config import choose_device

        folder = Path(folder)
        cfg = run_folder.run_config(folder)
        counts = folder / "category_frequency.json"
        if counts.is_file():
            cfg.MODEL.LONG_TAIL.FREQUENCY = str(counts)
        cfg.MODEL.WEIGHTS = str(folder / weights)
        if device:
            cfg.MODEL.DEVICE = device
        choose_device(cfg)
        return cls(folder, name, cfg, weights)

    @cached_property
    def frequency(self) -> CategoryFrequency:
        """Counts of the training set."""
        if not self.cfg.MODEL.LONG_TAIL.FREQUENCY:
            register_from_config(self.cfg)
        return category_frequency(self.cfg.DATASETS.TRAIN, self.cfg.MODEL.LONG_TAIL.FREQUENCY)

    @cached_property
    def checkpoint(self) -> Path:
        """Path of the weights.

        Raises:
            InputError: if they are missing.
        """
        path = self.folder / self.weights
        if not path.is_file():
            others = sorted(other.name for other in self.folder.glob("*.pth"))
            there = f"there are {', '.join(others)}: name one by --weights" if others else "has the training ended?"
            raise InputError(f"{path}: there is no such file; {there}.")
        return path

    @cached_property
    def state(self) -> Dict[str, Tensor]:
        """Parameters and buffers in the checkpoint, on the CPU.

        Raises:
            InputError: if there is no checkpoint or it cannot be read.
        """
        try:
            content = torch.load(self.checkpoint, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
            raise InputError(f"{self.checkpoint} is no checkpoint ({str(error).splitlines()[0]}).") from None
        return content.get("model", content)

    def dataset(self, name: Optional[str] = None) -> str:
        """Return the data set to run the model over: ``name``, else the first of ``DATASETS.TRAIN``, registered.

        Raises:
            InputError: if it is unknown, or none is named.
        """
        if not (name or self.cfg.DATASETS.TRAIN):
            raise InputError(f"{self.folder / 'config.yaml'}: DATASETS.TRAIN is empty; name a data set by --dataset.")
        name = name or self.cfg.DATASETS.TRAIN[0]
        register_from_config(self.cfg)
        check_registered(name)
        return name

    def evaluations(self) -> List[str]:
        """Return the data sets that the run left per-category AP of."""
        return sorted(path.parent.name for path in (self.folder / "inference").glob(f"*/{run_folder.AP_FILE}"))

    def evaluated_dataset(self, name: Optional[str] = None) -> str:
        """Return the data set whose AP to show: ``name`` if it was evaluated, else the one that was.

        Raises:
            InputError: if none was.
        """
        done = self.evaluations()
        if not done:
            raise InputError(
                f"{self.folder / 'inference'} has no {run_folder.AP_FILE} of a data set; evaluate the run: "
                f"tools/train_net.py --eval-only --config-file {self.folder / 'config.yaml'} "
                f"MODEL.WEIGHTS {self.folder / self.weights}"
            )
        first = [test for test in self.cfg.DATASETS.TEST if test in done]
        return name if name in done else (first or done)[0]

    def category_ap(self, dataset: str) -> List[CategoryRow]:
        """Return the rows that evaluation wrote, by label.

        Raises:
            InputError: if there are none for this data set.
        """
        rows = run_folder.category_ap(self.folder, dataset)
        if not rows:
            path, done = self.folder / "inference" / dataset / run_folder.AP_FILE, ", ".join(self.evaluations())
            raise InputError(f"{path}: there is no such file; {self.name} was evaluated on {done or 'none'}.")
        return rows

    def categories(self) -> CategoryTable:
        """Return names and counts; the names are the labels' numbers where neither evaluation nor data set has them."""
        for dataset in self.evaluations():
            rows = self.category_ap(dataset)
            if len(rows) == self.frequency.num_classes:
                return CategoryTable([row["name"] for row in rows], self.frequency)
        try:
            names = [self.dataset()]
        except InputError:
            names = []
        return CategoryTable.of_dataset(self.frequency, names)


def open_runs(
    folders: Sequence[Path],
    names: Optional[Sequence[str]] = None,
    weights: str = "model_final.pth",
    device: Optional[str] = None,
) -> List[Run]:
    """Open runs that are to be compared.

    Args:
        folders: one or more output folders.
        names: one for each; see :func:`~eql_d2.run_folder.unique_names`.
        weights: name of the checkpoint in each folder.
        device: as ``MODEL.DEVICE``; that of each config if not given.

    Raises:
        InputError: if there is no run, the names do not fit, or the runs differ in their number of classes.
    """
    folders = [Path(folder) for folder in folders]
    if not folders:
        raise InputError("There is no run to analyse; name one or more output folders of tools/train_net.py.")
    named = zip(folders, run_folder.unique_names(folders, names))
    runs = [Run.open(folder, name, weights, device) for folder, name in named]
    _check_comparable(runs)
    return runs


def _check_comparable(runs: Sequence[Run]) -> None:
    def num_classes(run: Run) -> Any:
        return run.cfg.MODEL.ROI_HEADS.NUM_CLASSES

    for run in runs:
        if num_classes(run) != num_classes(runs[0]):
            raise InputError(
                f"MODEL.ROI_HEADS.NUM_CLASSES is {num_classes(runs[0])} in {runs[0].folder / 'config.yaml'} and "
                f"{num_classes(run)} in {run.folder / 'config.yaml'}; runs on one plot must have the same classes."
            )
