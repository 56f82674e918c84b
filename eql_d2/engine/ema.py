"""An exponential moving average of the weights: evaluated and kept beside the weights that are trained."""

from typing import Any, Callable, Dict, List

import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from eql_d2.errors import InputError

#: What a checkpoint calls the state of the average.
CHECKPOINT_KEY = "ema"
_PREFIX = "module."


class MovingAverage(AveragedModel):
    """torch's ``AveragedModel`` with a decay that starts low, and with batch norm's statistics averaged too.

    After n steps the decay is the smaller of ``decay`` and ``(1 + n) / (10 + n)``: the average forgets the first
    weights early. All other buffers, the sums of the losses among them, are the model's own.

    Args:
        model: to average; it is copied.
        decay: share of the average that is kept in a step.
    """

    def __init__(self, model: nn.Module, decay: float):
        self._average = _ramped(decay)
        super().__init__(model, multi_avg_fn=self._average)
        self.module.eval()

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take in the model's weights of this step."""
        steps = int(self.n_averaged)
        before = [statistic.clone() for statistic in _batch_norm_statistics(self.module)]
        super().update_parameters(model)  # copies all buffers
        if steps and before:
            now = list(_batch_norm_statistics(self.module))
            of_model = [statistic.clone() for statistic in now]
            torch._foreach_copy_(now, before)
            self._average(now, of_model, steps)


class WeightAverage(HookBase):
    """Keeps a :class:`MovingAverage` of the model, on every process alike; it is part of each checkpoint.

    To be registered before the hooks that write checkpoints and evaluate.

    Args:
        cfg: of the training, with ``MODEL.LONG_TAIL.EMA``.
        model: that trains; DistributedDataParallel around it is welcome.

    Raises:
        InputError: for a decay outside of ``[0, 1)``, or with Detectron2's precise batch norm, which is of the model
            that trains alone.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module):
        decay = cfg.MODEL.LONG_TAIL.EMA.DECAY
        if not 0 <= decay < 1:
            raise InputError(f"MODEL.LONG_TAIL.EMA.DECAY is {decay}; it is 0 (off) or between 0 and 1, as in 0.9998.")
        if cfg.TEST.PRECISE_BN.ENABLED:
            raise InputError(
                "TEST.PRECISE_BN.ENABLED is True, which MODEL.LONG_TAIL.EMA knows nothing of; set it to False."
            )
        self._model = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
        self.average = MovingAverage(self._model, decay)

    @property
    def model(self) -> nn.Module:
        """The model with the averaged weights, in evaluation mode."""
        return self.average.module

    def after_step(self) -> None:
        self.average.update_parameters(self._model)


def averaged_weights(checkpoint: Dict[str, Any]) -> Dict[str, Tensor]:
    """Return the weights of a checkpoint that its training was evaluated with: the average, if it has one."""
    average = checkpoint.get(CHECKPOINT_KEY)
    if average is None:
        return checkpoint["model"]
    return {name[len(_PREFIX) :]: value for name, value in average.items() if name.startswith(_PREFIX)}


def _ramped(decay: float) -> Callable[..., None]:
    def average(averaged: List[Tensor], current: List[Tensor], num_averaged: Any) -> None:
        steps = int(num_averaged)
        get_ema_multi_avg_fn(min(decay, (1 + steps) / (10 + steps)))(averaged, current, num_averaged)

    return average


def _batch_norm_statistics(model: nn.Module) -> List[Tensor]:
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    return [statistic for norm in norms for statistic in (norm.running_mean, norm.running_var) if statistic is not None]
