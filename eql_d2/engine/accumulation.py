"""Gradient accumulation: the batch of an iteration goes through the model in parts."""

from contextlib import contextmanager, nullcontext
from typing import Any, Dict, Iterator, List

import torch
from detectron2.engine import SimpleTrainer
from torch import Tensor, nn

from eql_d2.errors import InputError


def check_parts(parts: int, images_per_batch: int, world_size: int) -> None:
    """Check ``SOLVER.IMS_PER_BATCH`` against ``MODEL.LONG_TAIL.ACCUMULATE.PARTS``.

    Raises:
        InputError: for less than one part, or a batch that cannot be divided evenly: the parts' means are averaged.
    """
    if parts < 1:
        raise InputError(f"MODEL.LONG_TAIL.ACCUMULATE.PARTS is {parts}; it must be at least 1.")
    if images_per_batch % (parts * world_size):
        raise InputError(
            f"MODEL.LONG_TAIL.ACCUMULATE.PARTS is {parts} with SOLVER.IMS_PER_BATCH {images_per_batch} on {world_size} "
            f"processes; the batch must be a multiple of {parts * world_size} for equal parts."
        )


@contextmanager
def accumulating(trainer: SimpleTrainer, parts: int) -> Iterator[None]:
    """Let each ``run_step`` of a trainer inside the block take its batch in ``parts`` equal parts.

    The optimizer's step, learning rate, samplers and iterations are those of the whole batch. The losses of a part
    count ``1 / parts``, and their gradients are added up: what a loss takes as a mean over images, or over a fixed
    number of regions of each, is what it is for the whole batch; see docs/training.md for what is not.

    Works with every ``run_step`` that calls ``trainer.model`` once and the losses' ``backward()`` afterwards:
    Detectron2's ``SimpleTrainer`` and ``AMPTrainer`` (each part's gradient is scaled alike), and those of this package.
    With DistributedDataParallel the gradients are exchanged once, with those of the last part.

    Args:
        trainer: that runs the steps, on this process.
        parts: 1 changes nothing.
    """
    if parts == 1:
        yield
        return
    model, zero_grad_first = trainer.model, trainer.zero_grad_before_forward
    trainer.model, trainer.zero_grad_before_forward = _InParts(trainer, parts), True
    try:
        yield
    finally:
        trainer.model, trainer.zero_grad_before_forward = model, zero_grad_first


class _InParts:
    """In the place of a trainer's model: takes a batch, goes forward and back with all parts of it but the last.

    The last part's losses are returned, for the trainer to go back from, with the values of the whole batch.
    """

    def __init__(self, trainer: SimpleTrainer, parts: int):
        self._model: nn.Module = trainer.model
        scaler = getattr(trainer, "grad_scaler", None)
        self._scale = scaler.scale if scaler is not None else lambda loss: loss
        self._parts = parts

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def __call__(self, batch: List[Dict[str, Any]]) -> Dict[str, Tensor]:
        size = len(batch) // self._parts
        before: Dict[str, Tensor] = {}
        for first in range(0, size * (self._parts - 1), size):
            with self._without_exchange():
                losses = self._losses(batch[first : first + size])
                # Outside of autocast, which is for the way forward, as the trainer's own backward() is.
                with torch.autocast(next(iter(losses.values())).device.type, enabled=False):
                    self._scale(sum(losses.values())).backward()
            before = {name: before.get(name, 0) + loss.detach() for name, loss in losses.items()}
        last = self._losses(batch[size * (self._parts - 1) :])
        return {name: loss + before[name] for name, loss in last.items()}

    def _losses(self, part: List[Dict[str, Any]]) -> Dict[str, Tensor]:
        return {name: loss / self._parts for name, loss in self._model(part).items()}

    def _without_exchange(self) -> Any:
        model = self._model
        return model.no_sync() if isinstance(model, nn.parallel.DistributedDataParallel) else nullcontext()
