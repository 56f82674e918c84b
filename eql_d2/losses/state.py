"""What losses keep from step to step: sums over training, sums over ranks, and reproducible randomness."""

import hashlib
from contextlib import contextmanager
from typing import Dict, Iterator, List, Optional

import torch
from torch import Tensor
from torch import distributed as dist

from eql_d2.losses.base import Categories, ClassifierLoss


def world_size() -> int:
    """Number of training processes; 1 without a process group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_rank() -> int:
    """Index of this training process; 0 without a process group."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return ``values`` summed over all ranks, the same bits on each of them; unchanged without a process group.

    A collective: every rank must call it at the same point, also one that has no region.
    """
    if world_size() == 1:
        return values
    values = values.clone()
    dist.all_reduce(values)
    return values


class StatefulLoss(ClassifierLoss):
    """A loss with sums over the whole training in buffers, which are saved in the checkpoint and equal on all ranks.

    The sums are float64. A float32 sum stops taking in small steps when it is 2^24 times as large; over 100,000 steps
    that is an error of up to half a percent, always in the same direction, for some kilobytes saved.
    """

    #: What the parts of a step have to add, and their normalizers; ``None`` outside of :meth:`in_parts`.
    _of_parts: Optional[List[Dict[str, Tensor]]] = None

    @contextmanager
    def in_parts(self, gt_classes: Tensor) -> Iterator[None]:
        with super().in_parts(gt_classes):
            parts: List[Dict[str, Tensor]] = []
            self._of_parts = parts
            try:
                yield
            finally:
                self._of_parts = None
            if parts:
                self.accumulate(**{name: torch.stack([part[name] for part in parts]).sum(0) for name in parts[0]})

    def register_sum(self, name: str, size: int) -> None:
        """Add the buffer ``name``, float64 ``[size]`` of zeros."""
        self.register_buffer(name, torch.zeros(size, dtype=torch.float64))

    @torch.no_grad()
    def accumulate(self, normalizer: Optional[Tensor] = None, **step: Tensor) -> None:
        """Add this step's sums over all ranks to the buffers of the same names; a no-op outside of training.

        A collective: every rank calls it in every training step. If a sum is not finite on any rank, the step is left
        out on all of them.

        Args:
            normalizer: scalar, divides the sums after it was summed over the ranks itself; values below 1 count as 1.
            **step: ``[size]`` for each buffer.
        """
        if not self.training:
            return
        if self._of_parts is not None:
            self._of_parts.append(step if normalizer is None else {"normalizer": normalizer, **step})
            return
        parts = [values.reshape(-1).double() for values in step.values()]
        if normalizer is not None:
            parts.append(normalizer.reshape(1).double())
        sums = sum_over_ranks(torch.cat(parts))
        sums = torch.where(torch.isfinite(sums).all(), sums, 0.0)
        divisor = 1.0 if normalizer is None else sums[-1].clamp(min=1)
        offset = 0
        for name, values in step.items():
            getattr(self, name).add_(sums[offset : offset + values.numel()] / divisor)
            offset += values.numel()


def accumulated_ratio(positive: Tensor, negative: Tensor, initial: float) -> Tensor:
    """Return g_j = positive / (negative + 1e-10), ``[K]``, and ``initial`` for all classes before the first step.

    The 1e-10 is the authors'. A class that had no positive region yet has a ratio of zero after the first step.

    Args:
        positive: ``[K]``, accumulated absolute gradient of the positive regions of each class.
        negative: ``[K]``, of the negative regions.
        initial: ratio before anything was accumulated.
    """
    ratio = positive / (negative + 1e-10)
    started = (positive.sum() + negative.sum()) > 0
    return torch.where(started, ratio, torch.full_like(ratio, initial))


def mean_count_over_ranks(count: Tensor, training: bool) -> Tensor:
    """Return the mean of ``count`` over the ranks, at least ``1 / number of ranks``: a normaliser that is never zero.

    Dividing by it makes the average of the ranks' losses the loss of the joined batch. Outside of training, where a
    rank may run alone, the count stays this rank's own.

    Args:
        count: scalar.
        training: whether all ranks take part; then it is a collective.
    """
    if not training:
        return count.clamp(min=1)
    return sum_over_ranks(count).clamp(min=1) / world_size()


class RandomLoss(ClassifierLoss):
    """A loss that draws random numbers, none of them from a global generator.

    The numbers of a step follow from the seed, the rank and the number of training steps so far. The latter is in the
    checkpoint, so a resumed run continues bit for bit on every rank although only one rank writes the checkpoint.

    Args:
        categories: as for :class:`~eql_d2.losses.base.ClassifierLoss`.
        seed: first of the numbers that the random draws follow from.
    """

    random_step: Tensor

    regions_are_independent = False  # most draw from the regions of a step

    def __init__(self, categories: Categories, seed: int):
        super().__init__(categories)
        self.seed = seed
        self.register_buffer("random_step", torch.zeros((), dtype=torch.int64))
        # The buffer may be on a device; reading it there at each step would make the host wait.
        self._step = 0

    def next_generator(self, device: torch.device) -> torch.Generator:
        """Return the generator of this step and, in training, move on to the next step."""
        generator = torch.Generator(device=device)
        # Generators take few bits of a seed and start alike from neighbouring ones, hence the hash.
        key = f"{self.seed}/{process_rank()}/{self._step}".encode()
        generator.manual_seed(int.from_bytes(hashlib.blake2b(key, digest_size=4).digest(), "big"))
        if self.training:
            self._step += 1
            self.random_step.fill_(self._step)
        return generator

    def _load_from_state_dict(self, *args, **kwargs) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._step = int(self.random_step)


def random_rank(candidates: Tensor, generator: torch.Generator) -> Tensor:
    """Put the candidates of each row in random order.

    Args:
        candidates: bool ``[..., R]``.
        generator: of the same device.

    Returns:
        int64 ``[..., R]``: 0 for the first candidate of the row, 1 for the second, ...; the others come after them. So
        ``rank < n`` picks n candidates without replacement, whether n is known to the host or not.
    """
    keys = torch.rand(candidates.shape, generator=generator, device=candidates.device, dtype=torch.float64)
    order = (keys + (~candidates)).argsort(dim=-1)
    positions = torch.arange(candidates.shape[-1], device=candidates.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, positions)
