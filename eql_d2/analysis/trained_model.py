"""Finished trainings with their weights, as the analyses ask for them."""

from functools import cached_property
from pathlib import Path
from typing import Dict, List, Optional, Sequence, Union

import torch
from detectron2.config import CfgNode
from torch import Tensor

from eql_d2.config import choose_device
from eql_d2.data.builtin import register_from_config
from eql_d2.data.catalog import category_frequency, check_registered
from eql_d2.data.categories import CategoryTable
from eql_d2.data.frequency import CategoryFrequency
from eql_d2.engine.ema import averaged_weights
from eql_d2.engine.trained_weights import check_numbers
from eql_d2.errors import InputError
from eql_d2.run_folder import FINAL_WEIGHTS, RunFolder, unique_names
from eql_d2.weights import read_checkpoint

#: Columns of the per-category table, the one that a figure shows first.
AP_COLUMNS = ("segm_AP", "bbox_AP", "oid_AP")


class TrainedModel(RunFolder):
    """A run folder of which one checkpoint is looked at.

    Args:
        folder: an output folder of eql-d2 train.
        name: what tables and legends call the run.
        weights: name of the checkpoint in the folder.
        device: as ``MODEL.DEVICE``; that of the config if not given.
        allow_missing: whether parameters that the checkpoint lacks may stay as they are initialized, with a warning.
    """

    def __init__(
        self,
        folder: Union[str, Path],
        name: str = "",
        weights: str = FINAL_WEIGHTS,
        device: Optional[str] = None,
        allow_missing: bool = False,
    ):
        super().__init__(folder, name)
        self.weights = self.folder / weights
        self.allow_missing = allow_missing
        self._device = device

    @cached_property
    def cfg(self) -> CfgNode:
        """The config of this checkpoint, with the counts that training left in the folder.

        Raises:
            InputError: see :meth:`~eql_d2.run_folder.RunFolder.read_config`.
        """
        cfg = self.read_config()
        if self.frequency_file.is_file():
            cfg.MODEL.LONG_TAIL.FREQUENCY = str(self.frequency_file)
        cfg.MODEL.WEIGHTS = str(self.weights)
        cfg.MODEL.DEVICE = self._device or cfg.MODEL.DEVICE
        choose_device(cfg)
        return cfg

    @cached_property
    def frequency(self) -> CategoryFrequency:
        """Counts of the training set."""
        if not self.cfg.MODEL.LONG_TAIL.FREQUENCY:
            register_from_config(self.cfg)
        return category_frequency(self.cfg.DATASETS.TRAIN, self.cfg.MODEL.LONG_TAIL.FREQUENCY)

    def check_weights(self) -> None:
        """Check that the checkpoint is there.

        Raises:
            InputError: if not, naming those that are.
        """
        if not self.weights.is_file():
            others = sorted(other.name for other in self.folder.glob("*.pth"))
            there = f"there are {', '.join(others)}: name one by --weights" if others else "has the training ended?"
            raise InputError(f"{self.weights}: there is no such file; {there}.")

    @cached_property
    def state(self) -> Dict[str, Tensor]:
        """Parameters and buffers in the checkpoint, on the CPU.

        Raises:
            InputError: if there is no checkpoint, it cannot be read or holds NaN.
        """
        self.check_weights()
        model = averaged_weights(read_checkpoint(self.weights))
        state = {name: torch.as_tensor(value) for name, value in model.items()}
        check_numbers(state.items(), str(self.weights))
        return state

    def dataset(self, name: Optional[str] = None) -> str:
        """Return the data set to run the model over: ``name``, else the first of ``DATASETS.TRAIN``, registered.

        Raises:
            InputError: if it is unknown, or none is named.
        """
        if not (name or self.cfg.DATASETS.TRAIN):
            raise InputError(f"{self.config_file}: DATASETS.TRAIN is empty; name a data set by --dataset.")
        name = name or self.cfg.DATASETS.TRAIN[0]
        register_from_config(self.cfg)
        check_registered(name)
        return name

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


def open_models(
    folders: Sequence[Path],
    names: Optional[Sequence[str]] = None,
    weights: str = FINAL_WEIGHTS,
    device: Optional[str] = None,
    allow_missing: bool = False,
) -> List[TrainedModel]:
    """Open trainings that are to be compared.

    Args:
        folders: one or more output folders.
        names: one for each; see :func:`~eql_d2.run_folder.unique_names`.
        weights: name of the checkpoint in each folder.
        device: as ``MODEL.DEVICE``; that of each config if not given.
        allow_missing: see :class:`TrainedModel`.

    Raises:
        InputError: if there is none, the names do not fit, or they differ in their number of classes.
    """
    if not folders:
        raise InputError("There is no run to analyse; name one or more output folders of eql-d2 train.")
    named = zip(folders, unique_names(folders, names))
    models = [TrainedModel(folder, name, weights, device, allow_missing) for folder, name in named]
    first, *others = [(model.config_file, model.cfg.MODEL.ROI_HEADS.NUM_CLASSES) for model in models]
    for config_file, num_classes in others:
        if num_classes != first[1]:
            raise InputError(
                f"MODEL.ROI_HEADS.NUM_CLASSES is {first[1]} in {first[0]} and {num_classes} in {config_file}; runs on "
                f"one plot must have the same classes."
            )
    return models
