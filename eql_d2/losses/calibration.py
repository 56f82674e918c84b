"""Calibration after training: other scores from the logits of a classifier that stays as it is."""

import io
import os
from abc import ABC, abstractmethod
from pathlib import Path
from types import MappingProxyType
from typing import Any, Mapping, Optional, Sequence, Union

import torch
from torch import Tensor, nn

from eql_d2.data.frequency import CategoryFrequency
from eql_d2.errors import InputError
from eql_d2.files import write_whole
from eql_d2.losses.base import Categories, ClassifierLoss, widen
from eql_d2.losses.registry import NamedRegistry, settings_to_arguments
from eql_d2.losses.state import sum_over_ranks
from eql_d2.weights import read_torch

CALIBRATION_REGISTRY = NamedRegistry("CALIBRATION", "MODEL.LONG_TAIL.CALIBRATION.NAME", "calibration")


class Calibration(nn.Module, ABC):
    """Turns the logits of a trained classifier into scores.

    Args:
        categories: the training set's CategoryFrequency, or the number of classes for calibrations without counts.
    """

    #: Whether it cannot be built from the number of classes alone.
    needs_frequency = False
    #: What the statistics in the file of its argument ``statistics`` are of: "logits" of a trained model over a data
    #: set, "boxes" of a data set, or "" if it needs none. ``eql-d2 calibrate`` writes them.
    statistics_of = ""
    #: Whether it knows the logits of one classifier, so that it means nothing for the mean of several stages' logits.
    is_of_one_stage = False
    #: The arguments that are to be tuned on held-out data, each with the values that ``eql-d2 calibrate --tune`` tries.
    free_constants: Mapping[str, Sequence[float]] = MappingProxyType({})

    def __init__(self, categories: Categories):
        super().__init__()
        self.num_classes = categories.num_classes if isinstance(categories, CategoryFrequency) else int(categories)

    @abstractmethod
    def forward(self, loss: ClassifierLoss, logits: Tensor) -> Tensor:
        """Return the calibrated scores.

        Args:
            loss: the loss that the classifier was trained with.
            logits: ``[R, loss.num_logits]``.

        Returns:
            Float32 (float64 for float64 logits) ``[R, K + 1]``; column K is background.
        """


@CALIBRATION_REGISTRY.register("NORCAL")
class NorCal(Calibration):
    """NorCal (Pan et al., arXiv 2107.02170): scores are divided by a power of the class's image count.

    For scores that sum to one with background: ``(s_j / n_j^gamma) / (sum_k s_k / n_k^gamma + s_background)``;
    background is not divided. For independent scores (sigmoid), each class is normalised with its own complement:
    ``(s_j / n_j^gamma) / (s_j / n_j^gamma + 1 - s_j)``, and background stays.

    Args:
        frequency: counts of the training set; a class without images counts as one image.
        gamma: the power; 0 leaves the scores as they are.

    Raises:
        InputError: if only the number of classes is given.
    """

    needs_frequency = True
    free_constants = MappingProxyType({"gamma": [tenth / 10 for tenth in range(11)]})

    factor: Tensor

    def __init__(self, frequency: Categories, gamma: float = 0.6):
        super().__init__(frequency)
        if not isinstance(frequency, CategoryFrequency):
            raise InputError(f"NorCal needs the images of each class: pass a CategoryFrequency, not {frequency!r}.")
        self.gamma = gamma
        factor = frequency.image_count.double().clamp(min=1) ** -gamma
        self.register_buffer("factor", factor.float(), persistent=False)

    def forward(self, loss: ClassifierLoss, logits: Tensor) -> Tensor:
        scores = loss.scores(logits)
        foreground, background = scores[:, :-1], scores[:, -1:]
        calibrated = foreground * self.factor.to(scores.dtype)
        if not loss.scores_sum_to_one:
            total = calibrated + (1 - foreground)
            return torch.cat([calibrated / total.clamp(min=torch.finfo(total.dtype).tiny), background], dim=1)
        calibrated = torch.cat([calibrated, background], dim=1)
        total = calibrated.sum(1, keepdim=True)
        return calibrated / total.clamp(min=torch.finfo(total.dtype).tiny)


class LogitStatistics:
    """Mean and standard deviation of each logit over the regions of a data set, in float64, a batch at a time.

    Args:
        num_logits: width of the classifier.
    """

    #: Over which regions they are to be taken: all that are classified at test time.
    regions = "test"

    def __init__(self, num_logits: int):
        self.count = torch.zeros((), dtype=torch.float64)
        self.mean = torch.zeros(num_logits, dtype=torch.float64)
        self.squares = torch.zeros(num_logits, dtype=torch.float64)

    def update(self, logits: Tensor) -> None:
        """Take in ``logits [R, num_logits]``."""
        if len(logits):
            batch = logits.detach().double()
            mean = batch.mean(0)
            self._merge(float(len(batch)), mean.cpu(), (batch - mean).square().sum(0).cpu())

    def _merge(self, count: Union[float, Tensor], mean: Tensor, squares: Tensor) -> None:
        """Take in another part's count, mean and sum of squared deviations (Chan et al.: no cancellation)."""
        total = self.count + count
        difference = mean - self.mean
        self.squares = self.squares + squares + difference.square() * (self.count * count / total)
        self.mean = self.mean + difference * (count / total)
        self.count = total

    def reduce_over_ranks(self, device: Optional[torch.device] = None) -> None:
        """Replace the statistics by those of all ranks' regions; a collective, on ``device`` (a GPU's for NCCL)."""
        count, weighted = sum_over_ranks(torch.cat([self.count.reshape(1), self.count * self.mean]).to(device)).split(
            [1, len(self.mean)]
        )
        mean = (weighted / count.clamp(min=1)).cpu()
        squares = self.squares + self.count * (self.mean - mean).square()
        self.squares = sum_over_ranks(squares.to(device)).cpu()
        self.mean, self.count = mean, count.reshape(()).cpu()

    @property
    def std(self) -> Tensor:
        """Standard deviation of each logit, ``[num_logits]``; its square is at least 1e-11, as in the authors' code."""
        return (self.squares / self.count.clamp(min=1)).clamp(min=1e-11).sqrt()

    def save(self, path: Union[str, os.PathLike]) -> None:
        """Write count, mean and standard deviation for :class:`LogN`, and which regions they are of."""
        content = {"count": self.count, "mean": self.mean, "std": self.std, "regions": self.regions}
        buffer = io.BytesIO()
        torch.save(content, buffer)
        write_whole(Path(path), buffer.getvalue())


class RunningLogitStatistics(LogitStatistics):
    """Running mean and variance of each logit over the regions that training samples, as LogN's release keeps them.

    Those of a batch norm layer without parameters: they start at mean 0 and variance 1, and each step replaces the
    share ``momentum`` by the mean and the unbiased variance of its regions. Each process keeps its own, and the first
    one's are written. After N steps ``(1 - momentum)^N`` of the start values is left, 29 % in the release's one epoch.

    Args:
        num_logits: width of the classifier.
        momentum: share of each step; 5e-5 in the release's configs.
    """

    regions = "training"

    def __init__(self, num_logits: int, momentum: float = 5e-5):
        super().__init__(num_logits)
        self.momentum = momentum
        self.variance = torch.ones(num_logits, dtype=torch.float64)

    def update(self, logits: Tensor) -> None:
        """Take in one step's ``logits [R, num_logits]``; a single region has no variance and is passed over."""
        if len(logits) > 1:
            batch = logits.detach().double()
            self.count = self.count + len(batch)
            self.mean.lerp_(batch.mean(0).cpu(), self.momentum)
            self.variance.lerp_(batch.var(0).cpu(), self.momentum)

    def reduce_over_ranks(self, device: Optional[torch.device] = None) -> None:
        """Leave them as they are: the release writes the first process's."""

    @property
    def std(self) -> Tensor:
        return self.variance.clamp(min=1e-11).sqrt()


#: The statistics that ``MODEL.LONG_TAIL.CALIBRATION.LOGN.REGIONS`` names.
LOGIT_STATISTICS = {kind.regions: kind for kind in (LogitStatistics, RunningLogitStatistics)}


@CALIBRATION_REGISTRY.register("LOGN")
class LogN(Calibration):
    """Logit normalisation (Zhao et al., arXiv 2203.17020): ``z_j <- (z_j - mean_j + min_k mean_k) / std_j``.

    Mean and standard deviation of each foreground logit are taken over the regions of a data set, and the least mean of
    the foreground classes is added to all of them. Background and any further columns stay. The loss turns the
    normalised logits into scores.

    Args:
        categories: number of classes K, or a CategoryFrequency (its counts are not used).
        statistics: file written by :meth:`LogitStatistics.save`; or use :meth:`set_statistics`.
        regions: "test" or "training": which statistics the file must hold, :class:`LogitStatistics` or
            :class:`RunningLogitStatistics`.
        momentum: of the running statistics, when they are collected.

    Raises:
        InputError: if the file is missing, belongs to another number of classes or holds the other statistics.
    """

    mean: Tensor
    std: Tensor
    num_observed: Tensor

    statistics_of = "logits"
    is_of_one_stage = True

    def __init__(self, categories: Categories, statistics: str = "", regions: str = "test", momentum: float = 5e-5):
        super().__init__(categories)
        if regions not in LOGIT_STATISTICS:
            raise InputError(
                f"MODEL.LONG_TAIL.CALIBRATION.LOGN.REGIONS is {regions!r}; there are "
                f"{', '.join(map(repr, LOGIT_STATISTICS))}."
            )
        self.statistics, self.regions, self.momentum = statistics, regions, momentum
        self.register_buffer("mean", torch.zeros(self.num_classes))
        self.register_buffer("std", torch.ones(self.num_classes))
        self.register_buffer("num_observed", torch.zeros((), dtype=torch.float64))
        if statistics:
            self._load(statistics)

    def _load(self, path: str) -> None:
        content = read_torch(path)
        try:
            found = content.get("regions", LogitStatistics.regions)
            if found != self.regions:
                raise InputError(
                    f"{path} holds the statistics of {found} regions; set "
                    f"MODEL.LONG_TAIL.CALIBRATION.LOGN.REGIONS {found}, or collect those of {self.regions} regions."
                )
            self._set(content["count"], content["mean"], content["std"])
        except InputError:
            raise
        except Exception as error:
            raise InputError(f"{path} holds no statistics of logits ({error}).") from None

    def set_statistics(self, statistics: LogitStatistics) -> None:
        """Use what was accumulated."""
        self._set(statistics.count, statistics.mean, statistics.std)

    def _set(self, count: Tensor, mean: Tensor, std: Tensor) -> None:
        if len(mean) < self.num_classes:
            raise InputError(f"The statistics are of {len(mean)} logits, but there are {self.num_classes} classes.")
        self.mean.copy_(mean[: self.num_classes])
        self.std.copy_(std[: self.num_classes])
        self.num_observed.copy_(count)

    def forward(self, loss: ClassifierLoss, logits: Tensor) -> Tensor:
        logits = widen(logits)
        mean, std = self.mean.to(logits.dtype), self.std.to(logits.dtype)
        foreground = (logits[:, : self.num_classes] - mean + mean.min()) / std
        return loss.scores(torch.cat([foreground, logits[:, self.num_classes :]], dim=1))


def build_calibration(name: str, categories: Categories, settings: Mapping[str, Any]) -> Optional[Calibration]:
    """Build the calibration ``name``, ``None`` for an empty name.

    Args:
        name: a name in :data:`CALIBRATION_REGISTRY` or ``""``.
        categories: a CategoryFrequency, or the number of classes for what needs no counts.
        settings: config keys of the calibration's node, or argument names, with their values.

    Raises:
        InputError: for an unknown name or setting, and without the statistics that it needs.
    """
    if not name:
        return None
    arguments = settings_to_arguments(name, settings, CALIBRATION_REGISTRY)
    kind = CALIBRATION_REGISTRY.get(name)
    if kind.statistics_of and not arguments.get("statistics"):
        raise InputError(
            f"MODEL.LONG_TAIL.CALIBRATION.{name}.STATISTICS is empty; {name} needs statistics of a data set's "
            f"{kind.statistics_of}, which eql-d2 calibrate writes."
        )
    return kind(categories, **arguments)
