"""The state of every global random generator of a process, as plain values."""

import contextlib
import random
from typing import Any, Dict, Iterator

import numpy as np
import torch


def random_state() -> Dict[str, Any]:
    """Return the state of the generators of Python, numpy and torch, and of this process's CUDA device if it has one.

    Arrays are bytes: plain values to a pickle, and no shared memory where a worker sends them to another process.
    """
    version, numbers, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state()
    state = {
        "python": (version, np.array(numbers, np.uint32).tobytes(), gauss),
        "numpy": (np.asarray(keys, np.uint32).tobytes(), int(position), int(has_gauss), float(cached)),
        "torch": torch.get_rng_state().numpy().tobytes(),
    }
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state().numpy().tobytes()
    return state


def set_random_state(state: Dict[str, Any]) -> None:
    """Go on from what :func:`random_state` returned."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(np.frombuffer(numbers, np.uint32).tolist()), gauss))
    keys, *rest = state["numpy"]
    np.random.set_state(("MT19937", np.frombuffer(keys, np.uint32), *rest))
    torch.set_rng_state(_tensor(state["torch"]))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(_tensor(state["cuda"]))


@contextlib.contextmanager
def same_random_state_afterwards() -> Iterator[None]:
    """Give the generators back as they were: what happens inside draws no number that is missed outside."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)


def _tensor(content: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(content), dtype=torch.uint8)
