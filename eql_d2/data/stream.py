"""The endless stream of training batches, which can be entered at any place.

What a batch holds follows from the sampler's seed and the batch's number alone; how its images are augmented, from the
state of the random generators of the process that loads them, which comes along with each batch.
"""

import itertools
from functools import partial
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import torch
from detectron2.data import MapDataset
from detectron2.data.common import DatasetFromList
from detectron2.utils import comm
from detectron2.utils.env import seed_all_rng
from torch.utils.data import DataLoader, Sampler, get_worker_info

from eql_d2.data.random_state import random_state, set_random_state
from eql_d2.data.records import Record
from eql_d2.errors import InputError

Batch = List[Dict[str, Any]]


def shared_seed(seed: int) -> int:
    """Return the seed of a stream: that of the config, or if it is negative a random one that all ranks agree on."""
    return comm.shared_random_seed() if seed < 0 else seed


def images_per_process(images_per_batch: int) -> int:
    """Return ``SOLVER.IMS_PER_BATCH`` by the number of processes.

    Raises:
        InputError: if the processes cannot share a batch evenly.
    """
    world_size = comm.get_world_size()
    if images_per_batch < 1 or images_per_batch % world_size:
        raise InputError(f"SOLVER.IMS_PER_BATCH is {images_per_batch}; it must be a multiple of {world_size}.")
    return images_per_batch // world_size


class IndexBatches(Sampler):
    """Endless batches of indices, from the batch with the number ``first`` on.

    Args:
        sampler: gives endless indices, the same each time it is iterated, of this rank alone.
        batch_size: indices in a batch.
        records: if given, an image that is wider than high and one that is not never share a batch, which saves
            padding (Detectron2's aspect ratio grouping); images whose record has no size count as not wider.
    """

    def __init__(self, sampler: Sampler, batch_size: int, records: Optional[Sequence[Record]] = None):
        self.sampler, self.batch_size = sampler, batch_size
        self.first = 0
        self._records = records
        # 1 for an image that is wider than high, -1 before it was looked at.
        self._is_wide = np.full(0 if records is None else len(records), -1, np.int8)

    def __iter__(self) -> Iterator[List[int]]:
        return itertools.islice(self._from_the_start(), self.first, None)

    def _from_the_start(self) -> Iterator[List[int]]:
        waiting: Dict[int, List[int]] = {0: [], 1: []}
        for index in self.sampler:
            group = self._group(index)
            waiting[group].append(index)
            if len(waiting[group]) == self.batch_size:
                yield waiting[group]
                waiting[group] = []

    def _group(self, index: int) -> int:
        if self._records is None:
            return 0
        if self._is_wide[index] < 0:
            record = self._records[index]
            self._is_wide[index] = record.get("width", 0) > record.get("height", 0)
        return int(self._is_wide[index])


class TrainLoader:
    """Endless training batches: Detectron2's loader, with a position.

    Args:
        records: dataset dicts.
        mapper: makes an example of a record.
        batches: which records, batch by batch.
        num_workers: processes that load them; 0 for this process.
        seed: of the workers' random generators, each with its own.
    """

    def __init__(self, records: Sequence[Record], mapper: Any, batches: IndexBatches, num_workers: int, seed: int):
        if isinstance(records, list):
            records = DatasetFromList(records, copy=False)
        self.mapper, self.dataset = mapper, MapDataset(records, mapper)
        self.batches, self.num_workers, self.seed = batches, num_workers, seed
        # Of the worker that loads the batches i, i + num_workers, ...: its random state after the last that was used.
        self._workers: List[Optional[Dict[str, Any]]] = [None] * num_workers
        # Number of the batch at which these workers began.
        self._begun = 0

    def __iter__(self) -> Iterator[Batch]:
        first = self.batches.first
        loader = DataLoader(
            self.dataset,
            batch_sampler=self.batches,
            num_workers=self.num_workers,
            collate_fn=_with_random_state,
            worker_init_fn=partial(_start_worker, first, self._begun, list(self._workers)),
            generator=torch.Generator().manual_seed(self.seed + comm.get_rank()),
        )
        for number, (batch, state) in enumerate(loader, first):
            if state is not None:
                self._workers[number % self.num_workers] = state
            yield batch

    def seek(self, number: int) -> None:
        """Let the next iterator start at the batch with this number."""
        self.batches.first = number

    def state_dict(self) -> Dict[str, Any]:
        """Return all that the batches to come follow from, but for their position and this process's random state."""
        return {"seed": self.seed, "workers": list(self._workers), "begun": self._begun}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`; another number of workers begins with random states of its own.

        To be called after :meth:`seek`.
        """
        self.seed = self.batches.sampler._seed = state["seed"]  # type: ignore[attr-defined]
        if len(state["workers"]) == self.num_workers:
            self._workers, self._begun = list(state["workers"]), state["begun"]
        else:
            self._begun = self.batches.first


def _with_random_state(batch: Batch) -> Tuple[Batch, Optional[Dict[str, Any]]]:
    """Return a batch, and in a worker the state of its random generators."""
    return batch, None if get_worker_info() is None else random_state()


def _start_worker(first: int, begun: int, states: List[Optional[Dict[str, Any]]], worker: int) -> None:
    """Give a worker the random state of the one whose batches it loads, or as Detectron2 does a seed of its own.

    Args:
        first: number of the first batch.
        begun: number of the batch at which the workers of this training began, 0 if there never were others.
        states: of the workers, by the number of their first batch in a stream that begins at 0.
        worker: the number of this worker, which loads the batch ``first + worker``.
    """
    place = (first + worker) % len(states)
    seed_all_rng((torch.initial_seed() - worker + place + 1000 * begun) % 2**31 + place)
    state = states[place]
    if state is not None:
        set_random_state(state)
