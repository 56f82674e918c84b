"""The generated set as two data sets, each of which labels half of the classes, and merged to one.

The images are those of the training split. Each is in one of the two sets, which annotates all objects of its own half
of the classes, also those that the set in LVIS format leaves out, and no object of the other half. ``full.json`` has
all objects of all classes in the same images: what the two would be if nobody had saved the work.
"""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, List, Sequence, Set, Tuple, Union

import numpy as np

from eql_d2.errors import InputError
from eql_d2.mini.folder import STAMP, make_folder
from eql_d2.mini.generate import FIRST_IMAGE_ID, MiniParameters, draw_image, plan_split
from eql_d2.mini.plan import ImagePlan
from eql_d2.mini.records import annotation_record, category_records, info_record, square_image_record, write_image

VERSION = 1
#: The two data sets.
HALVES = ("a", "b")
_SPLIT = "train"
_OWN_NAMES = {STAMP, _SPLIT, "merge.yaml", "merged.json", "full.json", *(f"{half}.json" for half in HALVES)}
_MERGE = """# eql-d2 merge merge.yaml --output merged.json --root .
categories: full.json
unmapped: drop
sources:
  - {name: a, json: a.json, images: train, exhaustive: true}
  - {name: b, json: b.json, images: train, exhaustive: true}
"""


def generate_partly_labelled_dataset(
    output_dir: Union[str, os.PathLike], overwrite: bool = False, **parameters: Any
) -> Path:
    """Write the two half-labelled sets, the merged one and the fully labelled one, or do nothing if they are there.

    Writes ``a.json`` and ``b.json`` in COCO format, ``merged.json`` (which ``eql-d2 merge`` makes of them by
    ``merge.yaml``), ``full.json``, and the images ``train/*.jpg``, the same as those of
    :func:`~eql_d2.mini.generate.generate_mini_dataset` with these parameters. The classes of even rank, by the number
    of training images, are labelled in ``a``, the others in ``b``. Each class is labelled in an image, as far as the
    rarest ones, which may be in one image together, allow.

    Args:
        output_dir: created if it is absent.
        overwrite: replace a set made with other parameters.
        **parameters: fields of :class:`~eql_d2.mini.generate.MiniParameters` without those of val and test.

    Returns:
        ``output_dir``.

    Raises:
        InputError: as :func:`~eql_d2.mini.generate.generate_mini_dataset`.
    """
    for name in ("num_val", "num_test"):
        if name in parameters:
            raise InputError(f"{name} is of no use with half-labelled sets, which are to train on; leave it out.")
    made = MiniParameters(**parameters, num_val=1, num_test=1)
    stamp = {"version": VERSION, "format": "partly", **asdict(made)}
    del stamp["num_val"], stamp["num_test"]
    return make_folder(output_dir, stamp, _OWN_NAMES, lambda folder: _write(folder, made), overwrite)


def halves_of_classes(plans: Sequence[ImagePlan], num_classes: int) -> List[Set[int]]:
    """Return the labels of each of :data:`HALVES`: every other class by the number of images it is annotated in."""
    counts = np.bincount([label for plan in plans for label in plan.annotated], minlength=num_classes)
    order = np.argsort(-counts, kind="stable").tolist()
    return [set(order[half :: len(HALVES)]) for half in range(len(HALVES))]


def halves_of_images(plans: Sequence[ImagePlan], halves: Sequence[Set[int]]) -> List[int]:
    """Return the half that each image is in: half of them each, and, if possible, one that shows it for each class."""
    images: Dict[int, List[int]] = {}
    for index, plan in enumerate(plans):
        for label in plan.annotated:
            images.setdefault(label, []).append(index)
    chosen: Dict[int, int] = {}
    for label in sorted(images, key=lambda label: (len(images[label]), label)):
        half = next(half for half, labels in enumerate(halves) if label in labels)
        if half not in {chosen.get(index) for index in images[label]}:
            free = [index for index in images[label] if index not in chosen]
            if free:
                chosen[free[0]] = half
    for index in range(len(plans)):
        if index not in chosen:
            sizes = [sum(half == found for found in chosen.values()) for half in range(len(HALVES))]
            chosen[index] = int(np.argmin(sizes))
    return [chosen[index] for index in range(len(plans))]


def _write(folder: Path, parameters: MiniParameters) -> Dict[str, Any]:
    """Write all files but the stamp into an empty folder."""
    from eql_d2.data.merge import merge_files  # needs Detectron2, which the other formats do not
    from eql_d2.data.merge_mapping import read_mapping

    (folder / _SPLIT).mkdir()
    plans, size = plan_split(parameters, _SPLIT), parameters.image_size
    images: List[Dict[str, Any]] = []
    objects: List[Tuple[Dict[str, Any], bool]] = []
    for index, plan in enumerate(plans):
        image_id = FIRST_IMAGE_ID[_SPLIT] + index
        pixels, drawn = draw_image(parameters, _SPLIT, index, plan)
        images.append(square_image_record(image_id, size, (), ()))
        write_image(folder / _SPLIT / images[-1]["file_name"], pixels)
        for shape in drawn:
            record = annotation_record(len(objects) + 1, image_id, shape.request.label, shape.polygon, size)
            objects.append((record, shape.request.annotated))
    names = [appearance.name for appearance in parameters.appearances()]
    # The letters are those of the set in LVIS format: of the objects that it annotates.
    categories = category_records(names, "a figure that looks like a {}", [one for one, known in objects if known])
    halves = halves_of_classes(plans, parameters.num_classes)
    of_image = halves_of_images(plans, halves)
    for image in images:
        del image["neg_category_ids"], image["not_exhaustive_category_ids"]
    annotations = [one for one, _ in objects]
    for half, name in enumerate(HALVES):
        kept = [image for image, other in zip(images, of_image) if other == half]
        ids = {image["id"] for image in kept}
        labelled = [one for one in annotations if one["image_id"] in ids and one["category_id"] - 1 in halves[half]]
        _write_json(folder / f"{name}.json", kept, labelled, [c for c in categories if c["id"] - 1 in halves[half]])
    everything = {"name": "full", "exhaustive_category_ids": [category["id"] for category in categories]}
    sourced = [{**image, "source": "full"} for image in images]
    _write_json(folder / "full.json", sourced, annotations, categories, sources=[everything])
    (folder / "merge.yaml").write_text(_MERGE)
    merge_files(read_mapping(folder / "merge.yaml"), folder / "merged.json", str(folder))
    return {"images": {name: of_image.count(half) for half, name in enumerate(HALVES)}}


def _write_json(path: Path, images: Any, annotations: Any, categories: Any, **more: Any) -> None:
    info = info_record("Generated long-tailed data set, half of its classes labelled", VERSION)
    content = {"info": info, "licenses": [], **more, "images": images, "annotations": annotations}
    path.write_text(json.dumps({**content, "categories": categories}))
