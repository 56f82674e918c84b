"""A long-tailed detection set of photographs: those of a classification set, cut out and laid four to an image.

The photographs stay where they are and under their own licences: this writes a data set from a file that the user has.
``docs/mini_dataset.md`` says what the set is like.
"""

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, List, Sequence, Tuple, Union

import cv2
import numpy as np

from eql_d2.data.classification import ImageSet, load_cifar
from eql_d2.errors import InputError
from eql_d2.mini.folder import STAMP, make_folder
from eql_d2.mini.generate import FIRST_IMAGE_ID, whole_number
from eql_d2.mini.records import annotation_record, category_records, info_record, square_image_record, write_image
from eql_d2.mini.shapes import SHAPES, pixel_coverage, textured_ground

#: Part of the stamp, as of the generated set.
VERSION = 1
SPLITS = ("train", "test")
OBJECTS_PER_IMAGE = 4
#: Classes verified absent from an image, drawn at random.
NEGATIVES_PER_IMAGE = 8
#: A class in more training images is frequent; LVIS's 100 would leave few classes for that group.
COMMON_MAX_IMAGES = 60
#: Side of an object as a share of the image's, before it is stretched: 36 to 71 of 160 pixels.
SMALLEST_SIDE, LARGEST_SIDE = 36 / 160, 71 / 160
#: Outlines ``[P, 2]`` that a photograph is cut to: they leave its middle whole, and are less than their box.
CUTS = (
    SHAPES["circle"](),
    SHAPES["heart"](),
    np.array([[1.0, 0.0], [3.0, 0.0], [4.0, 1.0], [4.0, 3.0], [3.0, 4.0], [1.0, 4.0], [0.0, 3.0], [0.0, 1.0]]),
)
PLACEMENT_TRIES = 50

_OWN_NAMES = {STAMP, *SPLITS, *(f"{split}.json" for split in SPLITS)}


@dataclass(frozen=True)
class PhotographParameters:
    """What the files depend on besides the photographs. Raises :class:`InputError` for a value out of range.

    Attributes:
        num_test: test images.
        image_size: side of the square images in pixels.
        seed: of all random choices.
    """

    num_test: int = 1000
    image_size: int = 160
    seed: int = 0

    def __post_init__(self):
        for field, low, high in (("num_test", 1, None), ("image_size", 64, 4096), ("seed", 0, None)):
            object.__setattr__(self, field, whole_number(field, getattr(self, field), low, high))

    def rng(self, *key: int) -> np.random.Generator:
        """Return a generator of its own for each key."""
        return np.random.default_rng([self.seed, *key])


def generate_photograph_dataset(
    output_dir: Union[str, os.PathLike],
    objects: Union[str, os.PathLike],
    num_test: int = 1000,
    image_size: int = 160,
    seed: int = 0,
    overwrite: bool = False,
) -> Path:
    """Write the data set, or do nothing if it is there already.

    Writes ``train.json`` and ``test.json`` in LVIS v0.5's format, both with annotations, the images ``train/*.jpg`` and
    ``test/*.jpg``, and ``mini.json``, which holds the parameters and a digest of the photographs. Every training
    photograph is in one training image, but for up to three of the most frequent class that fill none; of the test
    photographs there are as many of every class. Folder and determinism are those of
    :func:`~eql_d2.mini.generate.generate_mini_dataset`.

    Args:
        output_dir: created if it is absent.
        objects: what :func:`~eql_d2.data.classification.load_cifar` reads: an ``.npz`` or a CIFAR archive.
        num_test: test images.
        image_size: side of the square images in pixels.
        seed: of all random choices.
        overwrite: replace a set made with other parameters.

    Returns:
        ``output_dir``.

    Raises:
        InputError: if the photographs cannot be read or are too few, a parameter is out of range, or the folder cannot
            be written or holds something else.
    """
    parameters = PhotographParameters(num_test, image_size, seed)
    photographs = {split: load_cifar(objects, split) for split in SPLITS}
    chosen = {split: _choose(photographs[split], split, parameters, objects) for split in SPLITS}
    stamp = {"photographs": VERSION, "objects": _digest(photographs), **asdict(parameters)}

    def write(folder: Path) -> Dict[str, Any]:
        _write_dataset(folder, photographs, chosen, parameters)
        return {}

    return make_folder(output_dir, stamp, _OWN_NAMES, write, overwrite)


def draw_photographs(
    images: Sequence[np.ndarray], image_size: int, rng: np.random.Generator
) -> Tuple[np.ndarray, List[np.ndarray]]:
    """Draw photographs, cut to a shape each, on a textured ground; their boxes do not overlap.

    Args:
        images: uint8 RGB ``[h, w, 3]`` each; four of them at most, which always find room.
        image_size: S, side of the result in pixels.
        rng: consumed.

    Returns:
        The image, uint8 BGR ``[S, S, 3]``, and the outline of each object, float64 ``[P, 2]``, x and y in pixels,
        inside the image and rounded to 1/100 pixel.
    """
    canvas = textured_ground(image_size, rng)
    outlines = [_random_outline(image_size, rng) for _ in images]
    sizes = [np.ceil(outline.max(axis=0)).astype(int) for outline in outlines]
    corners = _place(sizes, image_size, rng)
    for image, outline, (width, height), (x, y) in zip(images, outlines, sizes, corners):
        fill = cv2.resize(image, (int(width), int(height)), interpolation=cv2.INTER_CUBIC) / 255.0
        window = canvas[y : y + height, x : x + width]
        window += pixel_coverage(outline)[:, :, None] * (fill - window)
    pixels = np.rint(canvas.clip(0, 1) * 255).astype(np.uint8)
    placed = [np.round(outline + corner, 2) for outline, corner in zip(outlines, corners)]
    return np.ascontiguousarray(pixels[:, :, ::-1]), placed


def _random_outline(image_size: int, rng: np.random.Generator) -> np.ndarray:
    """Return a cut ``[P, 2]`` of random size and proportions, upright, with its left top corner in pixel (0, 0)."""
    points = CUTS[rng.integers(len(CUTS))]
    side = image_size * rng.uniform(SMALLEST_SIDE, LARGEST_SIDE)
    # Neither side is longer than drawn, so that four objects have room.
    shorter = rng.uniform(0.8, 1.0)
    extent = side * np.array([1.0, shorter] if rng.random() < 0.5 else [shorter, 1.0])
    points = (points - points.min(axis=0)) / np.ptp(points, axis=0)
    return points * extent + rng.uniform(0, 0.99, 2)


def _place(sizes: Sequence[np.ndarray], image_size: int, rng: np.random.Generator) -> List[np.ndarray]:
    """Return the left top corners ``(x, y)`` of boxes (width, height) that do not overlap, in their order."""
    while True:
        boxes: Dict[int, Tuple[np.ndarray, np.ndarray]] = {}
        # The largest first: a small one finds room later too.
        for i in sorted(range(len(sizes)), key=lambda i: -int(sizes[i].prod())):
            for _ in range(PLACEMENT_TRIES):
                corner = rng.integers(0, image_size - sizes[i] + 1)
                if all((corner >= end).any() or (corner + sizes[i] <= start).any() for start, end in boxes.values()):
                    boxes[i] = (corner, corner + sizes[i])
                    break
        if len(boxes) == len(sizes):
            return [boxes[i][0] for i in range(len(sizes))]


def _choose(
    photographs: ImageSet, split: str, parameters: PhotographParameters, objects: Union[str, os.PathLike]
) -> np.ndarray:
    """Return the photographs of each image of a split, int64 ``[images, 4]``.

    Raises:
        InputError: if there are too few.
    """
    rng = parameters.rng(SPLITS.index(split))
    labels = _labels(photographs)
    by_class = [rng.permutation(np.flatnonzero(labels == j)) for j in range(len(photographs.class_names))]
    counts = np.array([len(found) for found in by_class])
    wanted = counts.copy()
    if split == "train":
        wanted[counts.argmax()] -= counts.sum() % OBJECTS_PER_IMAGE
    else:
        total = OBJECTS_PER_IMAGE * parameters.num_test
        wanted = np.full(len(counts), total // len(counts))
        wanted[rng.permutation(len(counts))[: total % len(counts)]] += 1
    for name, count, at_least in zip(photographs.class_names, counts, np.maximum(wanted, 1)):
        if count < at_least:
            needed = f"{parameters.num_test} test images need" if split == "test" else "each class needs"
            raise InputError(f"{objects} has {count} photographs of {name!r} in {split}; {needed} {at_least}.")
    indices = np.concatenate([found[:count] for found, count in zip(by_class, wanted)])
    return rng.permutation(indices).reshape(-1, OBJECTS_PER_IMAGE)


def _labels(photographs: ImageSet) -> np.ndarray:
    return np.array([record["annotations"][0]["category_id"] for record in photographs.records])


def _digest(photographs: Dict[str, ImageSet]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for split in SPLITS:
        digest.update(repr(photographs[split].class_names).encode())
        for record in photographs[split].records:
            digest.update(record["annotations"][0]["category_id"].to_bytes(4, "little"))
            digest.update(record["image"].tobytes())
    return digest.hexdigest()


def _write_dataset(
    folder: Path, photographs: Dict[str, ImageSet], chosen: Dict[str, np.ndarray], parameters: PhotographParameters
) -> None:
    """Write all files but the stamp into an empty folder."""
    names = photographs["train"].class_names
    written = {split: _write_images(folder / split, photographs[split], chosen[split], parameters) for split in SPLITS}
    definition = "a photograph of the class {}"
    categories = category_records(names, definition, written["train"][1], COMMON_MAX_IMAGES)
    for split, (images, annotations) in written.items():
        info = info_record("Long-tailed data set of photographs in LVIS format", VERSION)
        content = {"info": info, "licenses": [], "images": images, "annotations": annotations, "categories": categories}
        (folder / f"{split}.json").write_text(json.dumps(content))


def _write_images(
    folder: Path, photographs: ImageSet, chosen: np.ndarray, parameters: PhotographParameters
) -> Tuple[List[Dict[str, Any]], List[Dict[str, Any]]]:
    """Draw a split; return its image records and its annotation records."""
    folder.mkdir()
    split, size = SPLITS.index(folder.name), parameters.image_size
    labels = _labels(photographs)
    images, annotations = [], []
    for index, members in enumerate(chosen):
        rng = parameters.rng(split, index)
        image_id = FIRST_IMAGE_ID[folder.name] + index
        pixels, outlines = draw_photographs([photographs.records[i]["image"] for i in members], size, rng)
        absent = np.setdiff1d(np.arange(len(photographs.class_names)), labels[members])
        negatives = np.sort(rng.choice(absent, min(NEGATIVES_PER_IMAGE, len(absent)), replace=False)).tolist()
        images.append(square_image_record(image_id, size, negatives, []))
        write_image(folder / images[-1]["file_name"], pixels)
        for label, outline in zip(labels[members].tolist(), outlines):
            annotations.append(annotation_record(len(annotations) + 1, image_id, label, outline, size))
    return images, annotations
