"""A generated long-tailed detection data set in LVIS v0.5's format, small enough to train on without a GPU.

Made of ``mini_plan`` (which classes are in which image, and who verified what) and ``mini_shapes`` (how they are
drawn). ``docs/mini_dataset.md`` says what the set takes over from LVIS v0.5. Needs no Detectron2.
"""

import json
import os
import secrets
import shutil
from collections import Counter
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Dict, List, Sequence, Set, Tuple, Union

import cv2
import numpy as np
from pycocotools import mask as mask_utils

from eql_d2.data.groups import GROUPS, frequency_group
from eql_d2.errors import InputError
from eql_d2.mini.plan import ImagePlan, balanced_image_counts, plan_images, train_image_counts
from eql_d2.mini.shapes import Appearance, DrawnObject, ObjectRequest, class_appearances, draw_scene

#: Part of the stamp. Raise it with every change that changes the files: sets of other versions are not reused.
VERSION = 2
STAMP = "mini.json"
SPLITS = ("train", "val", "test")
#: Share of the images showing a class in which it is in neither set: not annotated and not verified absent.
UNVERIFIED_SHARE = {"train": 0.2, "val": 0.1, "test": 0.1}
#: Image ids of a split start here, so that they differ between splits whatever the number of images.
FIRST_IMAGE_ID = {"train": 1, "val": 1_000_001, "test": 2_000_001}
MAX_IMAGES = 1_000_000
JPEG_QUALITY = 92

_OWN_NAMES = {STAMP, *SPLITS, *(f"{split}.json" for split in SPLITS)}


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
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
                raise InputError(f"{field.name} is {value!r}; it must be a whole number.")
            if value < low or (high is not None and value > high):
                upper = "" if high is None else f" and at most {high}"
                raise InputError(f"{field.name} is {value}; it must be at least {low}{upper}.")
            object.__setattr__(self, field.name, int(value))
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
    target = Path(output_dir).resolve()
    # A sibling, so that the rename stays on one file system.
    temporary = target.with_name(f".{target.name}.tmp-{secrets.token_hex(4)}")
    try:
        if not _is_made(target, parameters, overwrite):
            temporary.mkdir(parents=True)
            _write_dataset(temporary, parameters)
            _move_into_place(temporary, target, parameters, overwrite)
    except OSError as error:
        raise InputError(f"{output_dir} cannot be written ({error}); name a folder that can be created.") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Path(output_dir)


def lvis_statistics(content: Dict[str, Any]) -> Dict[str, float]:
    """Return the figures by which a data set in LVIS format is long-tailed and federated.

    Args:
        content: a parsed json with images, annotations and categories, the latter with frequency letters.

    Returns:
        Number of images, annotations, categories, and of categories r, c, f; per image the mean number of annotated
        classes, instances, verified absent and not exhaustively annotated classes; the fewest and most images that
        a category is annotated in.
    """
    images, annotations, categories = content["images"], content["annotations"], content["categories"]
    pairs = Counter(category_id for _, category_id in _image_category_pairs(annotations))
    per_category = [pairs[category["id"]] for category in categories]
    letters = Counter(category["frequency"] for category in categories)
    return {
        "images": len(images),
        "annotations": len(annotations),
        "categories": len(categories),
        **{group: letters[group] for group in GROUPS},
        "fewest images of a category": min(per_category),
        "most images of a category": max(per_category),
        "categories per image": sum(per_category) / len(images),
        "instances per image": len(annotations) / len(images),
        "negative categories per image": sum(len(image["neg_category_ids"]) for image in images) / len(images),
        "not exhaustive categories per image": sum(len(image["not_exhaustive_category_ids"]) for image in images)
        / len(images),
    }


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


def _is_made(output_dir: Path, parameters: MiniParameters, overwrite: bool) -> bool:
    """Return whether the set is there already; raise if something else is that must not be replaced."""
    if output_dir.exists() and not output_dir.is_dir():
        raise InputError(f"{output_dir} is a file; name a folder for the generated data set.")
    names = {path.name for path in output_dir.iterdir()} if output_dir.exists() else set()
    if not names:
        return False
    if STAMP not in names or names - _OWN_NAMES:
        other = sorted(names - _OWN_NAMES or names)[0]
        raise InputError(f"{output_dir} holds {other!r}, which is no part of a generated data set; name a new folder.")
    stamp = _read_stamp(output_dir)
    differing = [key for key, value in _stamp(parameters).items() if stamp.get(key) != value]
    if not differing and names == _OWN_NAMES:
        return True
    if not overwrite:
        reason = (
            f"made with {differing[0]} {stamp.get(differing[0])!r}, not {_stamp(parameters)[differing[0]]!r}"
            if differing
            else f"that lacks {sorted(_OWN_NAMES - names)[0]}"
        )
        raise InputError(f"{output_dir} holds a generated data set {reason}; overwrite it or name another folder.")
    return False


def _read_stamp(output_dir: Path) -> Dict[str, Any]:
    path = output_dir / STAMP
    try:
        stamp = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); delete {output_dir} and generate it again.") from None
    return stamp if isinstance(stamp, dict) else {}


def _stamp(parameters: MiniParameters) -> Dict[str, int]:
    return {"version": VERSION, **asdict(parameters)}


def _write_dataset(folder: Path, parameters: MiniParameters) -> None:
    """Write all files into an empty folder, the stamp last."""
    appearances = parameters.appearances()
    images, annotations, unannotated = {}, {}, {}
    for split in SPLITS:
        images[split], annotations[split], unannotated[split] = _write_images(folder / split, parameters, split)
    categories = _category_records(appearances, annotations["train"])
    for split in SPLITS:
        content = {"info": _info(), "licenses": [], "images": images[split]}
        if split == "test":
            # As in LVIS's image_info_test: neither annotations nor what is known of the images.
            for image in content["images"]:
                del image["neg_category_ids"], image["not_exhaustive_category_ids"]
        else:
            content["annotations"] = annotations[split]
        content["categories"] = categories
        (folder / f"{split}.json").write_text(json.dumps(content))
    (folder / STAMP).write_text(json.dumps({**_stamp(parameters), "unannotated_objects": unannotated}, indent=1))


def _write_images(
    folder: Path, parameters: MiniParameters, split: str
) -> Tuple[List[Dict[str, Any]], List[Dict[str, Any]], int]:
    """Draw a split and return its image records, its annotation records and the number of unannotated objects."""
    folder.mkdir()
    images, annotations, num_unannotated = [], [], 0
    for index, plan in enumerate(plan_split(parameters, split)):
        image_id = FIRST_IMAGE_ID[split] + index
        pixels, drawn = draw_image(parameters, split, index, plan)
        record = _image_record(image_id, parameters.image_size, plan)
        ok, encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        if not ok:
            raise OSError(f"OpenCV cannot encode {record['file_name']}")
        # imwrite returns false on a full disk; this raises.
        (folder / record["file_name"]).write_bytes(encoded.tobytes())
        images.append(record)
        visible = [shape for shape in drawn if shape.request.annotated]
        num_unannotated += len(drawn) - len(visible)
        for shape in visible:
            annotations.append(_annotation_record(len(annotations) + 1, image_id, shape, parameters.image_size))
    return images, annotations, num_unannotated


def _info() -> Dict[str, Any]:
    return {
        "description": "Generated long-tailed data set in LVIS format",
        "url": "",
        "version": str(VERSION),
        "year": 2026,
        "contributor": "eql_d2",
        "date_created": "",
    }


def _image_record(image_id: int, image_size: int, plan: ImagePlan) -> Dict[str, Any]:
    return {
        "id": image_id,
        "file_name": f"{image_id:012d}.jpg",
        "height": image_size,
        "width": image_size,
        "neg_category_ids": [label + 1 for label in plan.negatives],
        "not_exhaustive_category_ids": sorted(label + 1 for label in plan.left_out),
    }


def _annotation_record(annotation_id: int, image_id: int, shape: DrawnObject, image_size: int) -> Dict[str, Any]:
    """Return the record of an object; its area is that of pycocotools' mask, its box the extent of its polygon."""
    polygon = shape.polygon.reshape(-1).tolist()
    (left, top), (right, bottom) = shape.polygon.min(axis=0).tolist(), shape.polygon.max(axis=0).tolist()
    rle = mask_utils.merge(mask_utils.frPyObjects([polygon], image_size, image_size))
    return {
        "id": annotation_id,
        "image_id": image_id,
        "category_id": shape.request.label + 1,
        "segmentation": [polygon],
        "area": float(mask_utils.area(rle)),
        "bbox": [left, top, round(right - left, 2), round(bottom - top, 2)],
    }


def _category_records(
    appearances: Sequence[Appearance], train_annotations: Sequence[Dict[str, Any]]
) -> List[Dict[str, Any]]:
    """Return the category records, the same for all splits, with the counts of the training set."""
    instance_count = Counter(annotation["category_id"] for annotation in train_annotations)
    image_count = Counter(category_id for _, category_id in _image_category_pairs(train_annotations))
    return [
        {
            "id": category_id,
            "name": appearance.name,
            "synset": f"{appearance.name.replace(' ', '_')}.n.01",
            "def": f"a figure that looks like a {appearance.name}",
            "synonyms": [appearance.name],
            "frequency": frequency_group(image_count[category_id]),
            "image_count": image_count[category_id],
            "instance_count": instance_count[category_id],
        }
        for category_id, appearance in enumerate(appearances, start=1)
    ]


def _image_category_pairs(annotations: Sequence[Dict[str, Any]]) -> Set[Tuple[int, int]]:
    return {(annotation["image_id"], annotation["category_id"]) for annotation in annotations}


def _move_into_place(temporary: Path, target: Path, parameters: MiniParameters, overwrite: bool) -> None:
    """Rename the finished folder to its final name, where there is nothing, an empty folder, or a set to replace."""
    # Another process may have made the same set meanwhile.
    if _is_made(target, parameters, overwrite):
        return
    replaced = temporary.with_name(f"{temporary.name}-old")
    if target.exists():
        target.rename(replaced)
    try:
        temporary.rename(target)
    except OSError:
        if replaced.exists():
            replaced.rename(target)
        raise
    shutil.rmtree(replaced, ignore_errors=True)
