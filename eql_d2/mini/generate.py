"""A generated long-tailed detection data set in LVIS v0.5's format, small enough to train on without a GPU.

Made of ``plan`` (which classes are in which image, and who verified what), ``shapes`` (how they are drawn),
``records`` (LVIS's format) and ``folder``. ``docs/mini_dataset.md`` says what the set takes over from LVIS v0.5.
Needs no Detectron2.
"""

import json
import os
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Union

import numpy as np

from eql_d2.errors import InputError
from eql_d2.mini.folder import STAMP, make_folder
from eql_d2.mini.plan import ImagePlan, balanced_image_counts, plan_images, train_image_counts
from eql_d2.mini.records import annotation_record, category_records, info_record, square_image_record, write_image
from eql_d2.mini.shapes import Appearance, DrawnObject, ObjectRequest, class_appearances, draw_scene

#: Part of the stamp. Raise it with every change that changes the files: sets of other versions are not reused.
VERSION = 2
SPLITS = ("train", "val", "test")
#: Share of the images showing a class in which it is in neither set: not annotated and not verified absent.
UNVERIFIED_SHARE = {"train": 0.2, "val": 0.1, "test": 0.1}
#: Image ids of a split start here, so that they differ between splits whatever the number of images.
FIRST_IMAGE_ID = {"train": 1, "val": 1_000_001, "test": 2_000_001}
MAX_IMAGES = 1_000_000

_OWN_NAMES = {STAMP, *SPLITS, *(f"{split}.json" for split in SPLITS)}


def whole_number(name: str, value: Any, low: int, high: Optional[int]) -> int:
    """Return a parameter as an int.

    Raises:
        InputError: naming it, if it is none or not in ``low..high``; ``None`` for no upper bound.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
        raise InputError(f"{name} is {value!r}; it must be a whole number.")
    if value < low or (high is not None and value > high):
        upper = "" if high is None else f" and at most {high}"
        raise InputError(f"{name} is {value}; it must be at least {low}{upper}.")
    return int(value)


@dataclass(frozen=True)
class MiniParameters:
    """Everything that the files depend on. Raises :class:`InputError` for a value out of range.

    Attributes:
        num_classes: K.
        num_train, num_val, num_test: images of each split.
        image_size: side of the square images in pixels.
        seed: of all random choices.
        first_class: appearances to leave out at the beginning; 60 gives a set with no class of the default one.
        balanced_train: every class is in about as many training images, as in val: a set to pre-train on.
    """

    num_classes: int = 60
    num_train: int = 1500
    num_val: int = 400
    num_test: int = 50
    image_size: int = 128
    seed: int = 0
    first_class: int = 0
    balanced_train: bool = False

    def __post_init__(self):
        bounds = {"num_classes": (1, None), "image_size": (32, 4096), "seed": (0, None), "first_class": (0, None)}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "balanced_train":
                object.__setattr__(self, field.name, bool(value))
                continue
            low, high = bounds.get(field.name, (1, MAX_IMAGES))
            object.__setattr__(self, field.name, whole_number(field.name, value, low, high))
        self.appearances()
        train_image_counts(self.num_classes, self.num_train)

    def num_images(self, split: str) -> int:
        """Number of images of ``train``, ``val`` or ``test``."""
        return getattr(self, f"num_{split}")

    def appearances(self) -> Tuple[Appearance, ...]:
        """Return how each class looks."""
        return class_appearances(self.num_classes, self.first_class)

    def rng(self, *key: int) -> np.random.Generator:
        """Return a generator of its own for each key."""
        return np.random.default_rng([self.seed, *key])


def generate_mini_dataset(
    output_dir: Union[str, os.PathLike],
    num_classes: int = 60,
    num_train: int = 1500,
    num_val: int = 400,
    image_size: int = 128,
    seed: int = 0,
    num_test: int = 50,
    overwrite: bool = False,
    first_class: int = 0,
    balanced_train: bool = False,
) -> Path:
    """Write the data set, or do nothing if it is there already.

    Writes ``train.json`` and ``val.json`` in LVIS v0.5's format, ``test.json`` without annotations, the images
    ``train/*.jpg``, ``val/*.jpg`` and ``test/*.jpg`` (``file_name`` is relative to the split's folder), and
    ``mini.json``, which holds the parameters and the number of objects that were drawn but not annotated. All of them
    appear at once: a run that is cut short leaves nothing under ``output_dir``.

    The same parameters give the same files, byte for byte, with the same versions of NumPy and OpenCV.

    Args:
        output_dir: created if it is absent.
        num_classes: K; category ids are ``1..K``.
        num_train: training images, long-tailed; each class is annotated in at least one.
        num_val: validation images; each class is annotated in about the same number of them.
        image_size: side of the square images in pixels.
        seed: of all random choices.
        num_test: images without annotations.
        overwrite: replace a set made with other parameters.
        first_class: appearances to leave out at the beginning; 60 gives a set with no class of the default one.
        balanced_train: every class is annotated in about the same number of training images too.

    Returns:
        ``output_dir``.

    Raises:
        InputError: if a parameter is out of range, if ``output_dir`` holds a set of other parameters and ``overwrite``
            is not given, if it holds anything else, or if it cannot be written.
    """
    parameters = MiniParameters(
        num_classes, num_train, num_val, num_test, image_size, seed, first_class, balanced_train
    )
    stamp = {"version": VERSION, **asdict(parameters)}
    return make_folder(output_dir, stamp, _OWN_NAMES, lambda folder: _write_dataset(folder, parameters), overwrite)


def plan_split(parameters: MiniParameters, split: str) -> List[ImagePlan]:
    """Return the content of every image of a split; also what the json does not tell, the unannotated objects."""
    rng = parameters.rng(SPLITS.index(split))
    num_images = parameters.num_images(split)
    if split == "train" and not parameters.balanced_train:
        # Which class is rare is a matter of chance, not of its shape or hue.
        image_counts = rng.permutation(train_image_counts(parameters.num_classes, num_images))
    else:
        image_counts = balanced_image_counts(parameters.num_classes, num_images, rng)
    return plan_images(image_counts, num_images, UNVERIFIED_SHARE[split], rng)


def draw_image(
    parameters: MiniParameters, split: str, index: int, plan: ImagePlan
) -> Tuple[np.ndarray, List[DrawnObject]]:
    """Draw image ``index`` of a split from its plan; every image has a random generator of its own.

    Returns:
        The image, uint8 ``[S, S, 3]`` in OpenCV's order BGR, and all objects in it, annotated or not.
    """
    requests = [
        # The first of each kind must not be dropped: the image's sets say that it is there.
        ObjectRequest(label, annotated, required=i == 0)
        for objects, annotated in ((plan.annotated, True), (plan.left_out, False), (plan.unverified, False))
        for label, count in objects.items()
        for i in range(count)
    ]
    rng = parameters.rng(SPLITS.index(split), index)
    return draw_scene(requests, parameters.appearances(), parameters.image_size, rng)


def _write_dataset(folder: Path, parameters: MiniParameters) -> Dict[str, Dict[str, int]]:
    """Write all files but the stamp into an empty folder, and return what the stamp says of them."""
    images, annotations, unannotated = {}, {}, {}
    for split in SPLITS:
        images[split], annotations[split], unannotated[split] = _write_images(folder / split, parameters, split)
    names = [appearance.name for appearance in parameters.appearances()]
    categories = category_records(names, "a figure that looks like a {}", annotations["train"])
    for split in SPLITS:
        info = info_record("Generated long-tailed data set in LVIS format", VERSION)
        content = {"info": info, "licenses": [], "images": images[split]}
        if split == "test":
            # As in LVIS's image_info_test: neither annotations nor what is known of the images.
            for image in content["images"]:
                del image["neg_category_ids"], image["not_exhaustive_category_ids"]
        else:
            content["annotations"] = annotations[split]
        content["categories"] = categories
        (folder / f"{split}.json").write_text(json.dumps(content))
    return {"unannotated_objects": unannotated}


def _write_images(
    folder: Path, parameters: MiniParameters, split: str
) -> Tuple[List[Dict[str, Any]], List[Dict[str, Any]], int]:
    """Draw a split and return its image records, its annotation records and the number of unannotated objects."""
    folder.mkdir()
    size = parameters.image_size
    images, annotations, num_unannotated = [], [], 0
    for index, plan in enumerate(plan_split(parameters, split)):
        image_id = FIRST_IMAGE_ID[split] + index
        pixels, drawn = draw_image(parameters, split, index, plan)
        images.append(square_image_record(image_id, size, plan.negatives, list(plan.left_out)))
        write_image(folder / images[-1]["file_name"], pixels)
        visible = [shape for shape in drawn if shape.request.annotated]
        num_unannotated += len(drawn) - len(visible)
        for shape in visible:
            label = shape.request.label
            annotations.append(annotation_record(len(annotations) + 1, image_id, label, shape.polygon, size))
    return images, annotations, num_unannotated
