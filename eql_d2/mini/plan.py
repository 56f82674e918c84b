"""What the images of the generated data set contain: which classes, how often, and who verified what. No pixels here.

The constants are statistics of LVIS v0.5; ``docs/mini_dataset.md`` says where each comes from.
"""

from dataclasses import dataclass
from typing import Dict, List, Sequence, Tuple

import numpy as np

from eql_d2.errors import InputError

#: Annotated classes of an image, on average: 201,417 image-class pairs in 57,263 training images of LVIS v0.5.
CATEGORIES_PER_IMAGE = 201417 / 57263
#: Classes verified absent from an image, on average, in LVIS v0.5 (613 in 65 images of val) ...
NEGATIVES_PER_IMAGE = 613 / 65
#: ... but no more than this share of all classes, so that with few classes too most of them are unverified.
MAX_NEGATIVE_SHARE = 0.1
#: Share of image-class pairs whose annotation is not exhaustive, LVIS v0.5 (13 of 212 in 65 images of val).
NOT_EXHAUSTIVE_SHARE = 13 / 212
#: Instances of a class in an image are geometric: half of the pairs have a single one, as in LVIS v0.5 (104 of 212).
SINGLE_INSTANCE_SHARE = 0.5
MAX_INSTANCES_PER_CATEGORY = 8
MAX_CATEGORIES_PER_IMAGE = 8
#: No class is in more than this share of the images, so that each has images to be absent from.
MAX_IMAGE_SHARE = 0.5


@dataclass(frozen=True)
class ImagePlan:
    """The content of one image; keys are labels in ``0..K-1``, values numbers of instances.

    Attributes:
        annotated: instances of the classes in the positive set that are annotated, each at least 1.
        left_out: further instances of annotated classes that are not: these are the not-exhaustive classes.
        unverified: instances of classes that are in the picture but in neither set: holes of a federated data set.
        negatives: the classes verified absent, ascending.
    """

    annotated: Dict[int, int]
    left_out: Dict[int, int]
    unverified: Dict[int, int]
    negatives: Tuple[int, ...]


def train_image_counts(num_classes: int, num_images: int) -> np.ndarray:
    """Return the training images of the class of each rank, most frequent first.

    The counts fall exponentially with the rank, as LVIS's do, down to 1 image for the rarest class. What is left to
    choose, the count of the most frequent class, is such that an image has LVIS's 3.52 annotated classes on average;
    with very few classes it is half of the images.

    Args:
        num_classes: K, at least 1.
        num_images: training images, at least 1.

    Returns:
        int64 ``[K]``, not ascending, each in ``1..num_images``.

    Raises:
        InputError: if there are too few images for each class to be in one.
    """
    needed = -(-num_classes // MAX_CATEGORIES_PER_IMAGE)
    if num_images < needed:
        raise InputError(
            f"num_train is {num_images}; {num_classes} classes of at least one image each, "
            f"{MAX_CATEGORIES_PER_IMAGE} to an image at most, need at least {needed}."
        )
    exponents = np.linspace(1, 0, num_classes) if num_classes > 1 else np.ones(1)
    low, high = 1.0, max(num_images * MAX_IMAGE_SHARE, 1.0)
    # The sum grows with the largest count: halve the interval until it cannot change a rounded count any more.
    for _ in range(60):
        largest = (low + high) / 2
        if (largest**exponents).sum() > CATEGORIES_PER_IMAGE * num_images:
            high = largest
        else:
            low = largest
    return np.maximum(np.rint(low**exponents), 1).astype(np.int64)


def balanced_image_counts(num_classes: int, num_images: int, rng: np.random.Generator) -> np.ndarray:
    """Return counts that differ by 1 at most, with LVIS's classes per image on average where K allows it.

    Returns:
        int64 ``[K]``; 0 for some classes where there are fewer image-class pairs than classes.
    """
    most = max(int(num_images * MAX_IMAGE_SHARE), 1)
    total = min(round(CATEGORIES_PER_IMAGE * num_images), most * num_classes)
    counts = np.full(num_classes, total // num_classes, dtype=np.int64)
    counts[rng.permutation(num_classes)[: total % num_classes]] += 1
    return counts


def plan_images(
    image_counts: Sequence[int], num_images: int, unverified_share: float, rng: np.random.Generator
) -> List[ImagePlan]:
    """Decide on the content of every image of a split.

    Args:
        image_counts: ``[K]``, images in which each class is annotated; met exactly.
        num_images: images of the split.
        unverified_share: of the images that show a class, the share in which nobody looked for it: it is neither
            annotated nor verified absent.
        rng: consumed.

    Returns:
        One plan per image.
    """
    image_counts = np.asarray(image_counts)
    num_classes = len(image_counts)
    positives = _assign_positives(image_counts, num_images, rng)
    unverified = _assign_unverified(positives, unverified_share, rng)
    mean_negatives = min(NEGATIVES_PER_IMAGE, MAX_NEGATIVE_SHARE * num_classes)
    return [
        _plan_image(np.flatnonzero(positives[i]), np.flatnonzero(unverified[i]), num_classes, mean_negatives, rng)
        for i in range(num_images)
    ]


def _assign_positives(image_counts: np.ndarray, num_images: int, rng: np.random.Generator) -> np.ndarray:
    """Return bool ``[num_images, K]``: the images that each class is annotated in, drawn at random."""
    positives = np.zeros((num_images, len(image_counts)), dtype=bool)
    load = np.zeros(num_images, dtype=np.int64)
    for label in np.argsort(-image_counts, kind="stable"):
        # Random images, those that already hold the most classes allowed last.
        order = np.lexsort((rng.random(num_images), load >= MAX_CATEGORIES_PER_IMAGE))
        chosen = order[: image_counts[label]]
        positives[chosen, label] = True
        load[chosen] += 1
    return positives


def _assign_unverified(positives: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Return bool ``[num_images, K]``: images that show the class although it is in none of their sets."""
    num_images, num_classes = positives.shape
    unverified = np.zeros_like(positives)
    for label in range(num_classes):
        absent = np.flatnonzero(~positives[:, label])
        expected = (num_images - len(absent)) * share / (1 - share)
        # Round up or down at random, so that rare classes have holes too, at the same rate.
        count = min(int(expected + rng.random()), len(absent))
        unverified[rng.choice(absent, size=count, replace=False), label] = True
    return unverified


def _plan_image(
    positives: np.ndarray, unverified: np.ndarray, num_classes: int, mean_negatives: float, rng: np.random.Generator
) -> ImagePlan:
    annotated, left_out = {}, {}
    for label in positives.tolist():
        annotated[label] = _num_instances(rng)
        # Only a pair of two instances or more can be not exhaustive and still be annotated.
        not_exhaustive = rng.random() < NOT_EXHAUSTIVE_SHARE / (1 - SINGLE_INSTANCE_SHARE)
        if annotated[label] > 1 and not_exhaustive:
            left_out[label] = int(rng.integers(1, annotated[label]))
            annotated[label] -= left_out[label]
    present = np.concatenate([positives, unverified])
    absent = np.setdiff1d(np.arange(num_classes), present)
    num_negatives = min(rng.binomial(num_classes, mean_negatives / num_classes), len(absent))
    negatives = np.sort(rng.choice(absent, size=num_negatives, replace=False)) if num_negatives else []
    return ImagePlan(
        annotated=annotated,
        left_out=left_out,
        unverified={label: _num_instances(rng) for label in unverified.tolist()},
        negatives=tuple(int(label) for label in negatives),
    )


def _num_instances(rng: np.random.Generator) -> int:
    return min(int(rng.geometric(SINGLE_INSTANCE_SHARE)), MAX_INSTANCES_PER_CATEGORY)
