"""What the tests of the losses share: data, steps, golden vectors, and comparison with the slow formulas."""

import copy
from pathlib import Path
from typing import Dict, Optional, Tuple

import numpy as np
import torch
from torch import Tensor

from eql_d2.data.frequency import CategoryFrequency
from eql_d2.losses import CLASSIFIER_LOSS_REGISTRY, ClassifierLoss
from tests.losses.slow import SLOW_LOSSES

GOLDEN = Path(__file__).resolve().parent.parent / "golden"
LOSS_NAMES = sorted(name for name, _ in CLASSIFIER_LOSS_REGISTRY)
NUM_CLASSES = 9


def long_tailed_frequency(num_classes: int = NUM_CLASSES, num_images: int = 60_000) -> CategoryFrequency:
    """Counts that fall from many to one; all three LVIS groups and all groups of BAGS from 9 classes on."""
    images = np.geomspace(20_000, 1, num_classes).astype(int) if num_classes > 1 else np.array([50])
    return CategoryFrequency.from_counts(images.tolist(), (2 * images).tolist(), num_images=num_images)


def random_labels(num_regions: int, num_classes: int, seed: int = 0, background: float = 0.5) -> Tensor:
    """Labels in ``0..K``, about ``background`` of them K."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, num_classes, (num_regions,), generator=generator)
    return torch.where(torch.rand(num_regions, generator=generator) < background, num_classes, labels)


def random_logits(num_regions: int, num_logits: int, seed: int = 0, dtype=torch.float64) -> Tensor:
    """Standard normal logits times two."""
    generator = torch.Generator().manual_seed(1000 + seed)
    return 2 * torch.randn(num_regions, num_logits, generator=generator, dtype=dtype)


def make_loss(name: str, num_classes: int = NUM_CLASSES, **settings) -> ClassifierLoss:
    """The loss ``name`` with long-tailed counts, in training mode."""
    return CLASSIFIER_LOSS_REGISTRY.get(name)(long_tailed_frequency(num_classes), **settings)


def step(
    loss: ClassifierLoss, logits: Tensor, gt_classes: Tensor, verified: Optional[Tensor] = None
) -> Tuple[Tensor, Tensor]:
    """One forward and backward; returns the loss and its gradient at the logits."""
    logits = logits.clone().requires_grad_()
    value = loss(logits, gt_classes, verified)
    value.backward()
    return value.detach(), logits.grad


def assert_equals_slow(loss: ClassifierLoss, num_steps: int = 3, num_regions: int = 11, verified: bool = False) -> None:
    """Compare loss, gradient and state with the slow formula over some steps, in float64, to 1e-9."""
    slow_loss = SLOW_LOSSES[loss.name]
    state: Dict[str, list] = {}
    for i in range(num_steps):
        logits = random_logits(num_regions, loss.num_logits, seed=i)
        has_background = getattr(loss, "background", True)
        labels = random_labels(num_regions, loss.num_classes, seed=i, background=0.5 if has_background else 0)
        sets = random_logits(num_regions, loss.num_classes, seed=50 + i) > 1 if verified else None
        before = copy.deepcopy(loss)
        value, gradient = step(loss, logits, labels, sets)
        leaf = logits.clone().requires_grad_()
        expected = slow_loss(before, state, leaf, labels.tolist(), sets)
        (expected_gradient,) = torch.autograd.grad(expected, leaf)
        torch.testing.assert_close(value, expected.detach(), rtol=1e-6, atol=1e-9)
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-6, atol=1e-9)
        if "update" in state:
            state["update"](expected_gradient.tolist(), labels.tolist())
            for key in ("pos_grad", "neg_grad"):
                expected_sum = torch.tensor(state[key], dtype=torch.float64)
                torch.testing.assert_close(getattr(loss, key), expected_sum, rtol=1e-9, atol=1e-12)


def golden(name: str) -> Dict[str, np.ndarray]:
    """The arrays of ``tests/golden/<name>.npz``."""
    with np.load(GOLDEN / f"{name}.npz") as content:
        return {key: content[key] for key in content.files}


def golden_frequency(arrays: Dict[str, np.ndarray], groups=None) -> CategoryFrequency:
    """The counts of a golden file."""
    return CategoryFrequency.from_counts(
        arrays["image_count"], arrays["instance_count"], num_images=int(arrays["num_images"]), groups=groups
    )


def assert_golden(actual: Tensor, expected: np.ndarray) -> None:
    """Equal to 1e-5 of the value, and of the largest value where single ones nearly cancel."""
    expected = torch.from_numpy(np.asarray(expected)).double()
    atol = 1e-6 * float(expected.abs().max())
    torch.testing.assert_close(actual.detach().double(), expected, rtol=1e-5, atol=atol)
