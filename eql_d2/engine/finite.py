"""Training steps that leave no trace where a loss or a gradient is not finite."""

import logging
from typing import Any, Dict, List, Mapping, Optional
from unittest.mock import patch

import torch
from detectron2.engine import AMPTrainer, SimpleTrainer
from detectron2.modeling.proposal_generator import rpn
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor

logger = logging.getLogger("detectron2.eql_d2")


class FiniteTrainer(SimpleTrainer):
    """``SimpleTrainer`` that skips a step if the loss of any rank, or the gradient of any parameter, is not finite.

    Weights, optimizer, and every floating-point buffer (the sums of a loss, statistics of batch norm) are then as they
    were before the step; the schedule goes on. The step is logged with the names of its images and counted in the
    scalar ``skipped_steps``; after ``patience`` of them in a row the training stops.

    All ranks skip the same steps without a message of their own: a loss that is not finite makes its gradient NaN, and
    DistributedDataParallel adds up the gradients. The host waits for the device where it asks whether the gradient is
    finite, just before Detectron2 waits there to read the losses.

    Args:
        args, kwargs: of ``SimpleTrainer``.
        patience: skipped steps in a row after which the training stops.
    """

    def __init__(self, *args: Any, patience: int, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.patience = patience
        #: Skipped steps, in all and up to now in a row.
        self.skipped = self.in_a_row = 0
        self._is_finite = True
        # Of this step: its images, and the losses of each call of the model (one, but for accumulated gradients).
        self._batch: List[Dict[str, Any]] = []
        self._losses: List[Dict[str, Tensor]] = []
        self._buffers: List[Tensor] = []
        self._before: List[Tensor] = []

    def run_step(self) -> None:
        """Same as ``SimpleTrainer.run_step``.

        Raises:
            FloatingPointError: if this is the last of ``patience`` steps in a row that were skipped.
        """
        self._batch, self._losses = [], []
        # For this step alone: a copy of the model, as that of its moving average, is none of this trainer's.
        hooks = [self.model.register_forward_pre_hook(self._remember), self.model.register_forward_hook(self._mark)]
        try:
            # Detectron2 raises on the rank whose proposals are not finite, while the others wait for its gradient.
            with patch.object(rpn, "find_top_rpn_proposals", _top_finite_proposals):
                super().run_step()
        finally:
            for hook in hooks:
                hook.remove()
        if self.in_a_row >= self.patience:
            raise FloatingPointError(
                f"{self.in_a_row} steps in a row up to iteration {self.iter} had a loss or a gradient that is not "
                f"finite: the training has diverged. Its last checkpoint is sound: --resume goes on from it, with a "
                f"lower SOLVER.BASE_LR or SOLVER.CLIP_GRADIENTS.ENABLED True."
            )

    def after_backward(self) -> None:
        super().after_backward()
        trained = (p for group in self.optimizer.param_groups for p in group["params"])
        gradients = [p.grad for p in trained if p.grad is not None]
        self._is_finite = _are_finite(gradients)
        if self._is_finite:
            self.in_a_row = 0
            return
        self.skipped += 1
        self.in_a_row += 1
        _copy(self._buffers, self._before)
        self._log()
        self._leave_out()

    def _leave_out(self) -> None:
        """See to it that the optimizer, which is called next, changes nothing: it passes over what has no gradient."""
        self.optimizer.zero_grad(set_to_none=True)

    def _write_metrics(self, loss_dict: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> None:
        if self._is_finite:
            super()._write_metrics(loss_dict, *args, **kwargs)
        else:
            get_event_storage().put_scalar("skipped_steps", self.skipped, smoothing_hint=False)

    def _remember(self, model: torch.nn.Module, args: Any) -> None:
        is_first = not self._batch
        self._batch = [*self._batch, *args[0]]
        if not is_first:
            return
        # A module in evaluation mode, as a frozen one is, leaves its buffers as they are.
        training = (module for module in model.modules() if module.training)
        buffers = (buffer for module in training for buffer in module.buffers(recurse=False))
        self._buffers = [buffer for buffer in buffers if buffer.is_floating_point()]
        if [b.shape for b in self._before] != [b.shape for b in self._buffers]:
            self._before = [torch.empty_like(buffer) for buffer in self._buffers]
        _copy(self._before, self._buffers)

    def _mark(self, model: torch.nn.Module, args: Any, losses: Any) -> Optional[Dict[str, Tensor]]:
        """Multiply one loss by 1, or by NaN if any of them is not finite."""
        if not model.training:
            return None
        self._losses.append({name: value.detach() for name, value in losses.items()})
        total = torch.stack([value.float() for value in self._losses[-1].values()]).sum()
        first = next(iter(losses))
        return {**losses, first: losses[first] * (total * 0 + 1)}

    def _log(self) -> None:
        losses = {name: sum(float(part[name]) for part in self._losses) for name in self._losses[0]}
        names = [str(image.get("file_name", image.get("image_id"))) for image in self._batch]
        is_finite = all(map(_is_finite_number, losses.values()))
        ranks = comm.gather((is_finite, names, losses))
        if not comm.is_main_process():
            return
        # The ranks that are to blame, or all if their losses are finite and only the gradient is not.
        ranks = [rank for rank in ranks if not rank[0]] or ranks
        logger.warning(
            "Iteration %d: the %s is not finite; the step is skipped (%d in a row, %d in all). Images: %s. Losses: %s",
            self.iter,
            "gradient" if ranks[0][0] else "loss",
            self.in_a_row,
            self.skipped,
            ", ".join(name for _, names, _ in ranks for name in names),
            ranks[0][2],
        )

    def state_dict(self) -> Dict[str, Any]:
        return {**super().state_dict(), "skipped": self.skipped, "in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: Dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.skipped, self.in_a_row = state_dict.get("skipped", 0), state_dict.get("in_a_row", 0)


class FiniteAMPTrainer(FiniteTrainer, AMPTrainer):
    """:class:`FiniteTrainer` with Detectron2's mixed precision on CUDA.

    A scaled gradient that overflows is a step that is skipped, too. ``GradScaler`` sees it itself, skips the optimizer
    and lowers its factor, which it could not without the gradient.
    """

    def _leave_out(self) -> None:
        pass


class CPUAutocastTrainer(FiniteTrainer):
    """:class:`FiniteTrainer` under bfloat16 autocast, for ``SOLVER.AMP.ENABLED`` on a CPU.

    Detectron2's ``AMPTrainer`` refuses CPUs. bfloat16 has the range of float32, so no gradient scaler is needed.
    """

    def run_step(self) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            super().run_step()


def check_finite(values: Any, name: str = "") -> None:
    """Check the tensors in nested dicts, lists and tuples.

    Raises:
        FloatingPointError: naming the first tensor that holds a NaN or an infinity.
    """
    if isinstance(values, Tensor):
        if values.is_floating_point() and not torch.isfinite(values).all():
            raise FloatingPointError(f"{name} holds NaN or infinity: the training has diverged, and it is not saved.")
    elif isinstance(values, (Mapping, list, tuple)):
        for key, value in values.items() if isinstance(values, Mapping) else enumerate(values):
            check_finite(value, f"{name}.{key}" if name else str(key))


@torch.no_grad()
def _copy(targets: List[Tensor], sources: List[Tensor]) -> None:
    if targets:
        torch._foreach_copy_(targets, sources)


def _are_finite(gradients: List[Tensor]) -> bool:
    """Return whether all numbers are finite; one pass over them, and a second where the first cannot tell."""
    if not gradients or bool(torch.stack(torch._foreach_norm(gradients)).isfinite().all()):
        return True
    # Squares overflow, or there is a number that is not finite.
    return all(bool(gradient.isfinite().all()) for gradient in gradients)


def _top_finite_proposals(*args: Any) -> Any:
    """Call Detectron2's ``find_top_rpn_proposals`` as at test time, where it drops what is not finite."""
    return _FIND_TOP_PROPOSALS(*args[:-1], False)


_FIND_TOP_PROPOSALS = rpn.find_top_rpn_proposals


def _is_finite_number(value: float) -> bool:
    return abs(value) < float("inf")
