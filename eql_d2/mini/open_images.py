"""The generated data set in the format of Open Images: a hierarchy, group-of boxes, verified image-level labels.

The images are those of :mod:`eql_d2.mini.generate`; ``docs/mini_dataset.md`` says what stands in the files.
"""

import csv
import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Sequence, Set, Tuple, Union

import numpy as np

from eql_d2.errors import InputError
from eql_d2.mini.folder import STAMP, make_folder
from eql_d2.mini.generate import FIRST_IMAGE_ID, MiniParameters, draw_image, plan_split
from eql_d2.mini.plan import ImagePlan
from eql_d2.mini.records import write_image
from eql_d2.mini.shapes import Appearance, DrawnObject

#: Part of the stamp, as of the other generated sets.
VERSION = 1
SPLITS = ("train", "val")
#: So many instances of a class in an image, or more, become one group-of box ...
GROUP_OF_INSTANCES = 4
#: ... in this share of the cases.
GROUP_OF_SHARE = 0.5
#: Share of the images of a class in which it is labelled as a class above it, not as itself: the challenge's 57 classes
#: that are no leaves have boxes of their own, of what nobody told apart.
PARENT_SHARE = 0.1
#: Share of the images without any class below a parent, in which the parent is verified to be absent.
ABSENT_PARENT_SHARE = 0.1
ROOT = "/mini/root"
BOX_COLUMNS = ("ImageID", "LabelName", "Confidence", "XMin", "XMax", "YMin", "YMax", "IsGroupOf")
LABEL_COLUMNS = ("ImageID", "LabelName", "Confidence")

_OWN_NAMES = {
    STAMP,
    *SPLITS,
    *(f"{split}-{what}.csv" for split in SPLITS for what in ("boxes", "labels")),
    "classes.csv",
    "hierarchy.json",
}


class Vocabulary(NamedTuple):
    """The classes of a set.

    Attributes:
        labels: of the leaves, in the order of their contiguous labels, then of the parents.
        names: likewise.
        leaves_of: the leaves below each parent, by its label: one for each shape, and one for the first hue, so that
            its classes stand below two.
        parents_of: the labels above each leaf: its shape's, and the first hue's if it has it.
    """

    labels: List[str]
    names: List[str]
    leaves_of: Dict[str, List[str]]
    parents_of: List[List[str]]

    @classmethod
    def of(cls, appearances: Sequence[Appearance]) -> "Vocabulary":
        """Return the vocabulary of classes of these looks."""
        leaves = [f"/mini/{number:04d}" for number in range(len(appearances))]
        shapes = list(dict.fromkeys(one.shape for one in appearances))
        label_of_shape = {shape: f"/mini/shape{number}" for number, shape in enumerate(shapes)}
        hue = appearances[0].hue
        leaves_of = {
            label_of_shape[shape]: [leaf for leaf, one in zip(leaves, appearances) if one.shape == shape]
            for shape in shapes
        }
        leaves_of["/mini/hue0"] = [leaf for leaf, one in zip(leaves, appearances) if one.hue == hue]
        return cls(
            labels=[*leaves, *leaves_of],
            names=[*(one.name for one in appearances), *shapes, hue],
            leaves_of=leaves_of,
            parents_of=[[parent for parent, below in leaves_of.items() if leaf in below] for leaf in leaves],
        )

    def hierarchy(self) -> Dict[str, Any]:
        """Return the nested json."""
        parents = [
            {"LabelName": parent, "Subcategory": [{"LabelName": leaf} for leaf in leaves]}
            for parent, leaves in self.leaves_of.items()
        ]
        return {"LabelName": ROOT, "Subcategory": parents}


def generate_open_images_dataset(
    output_dir: Union[str, os.PathLike], overwrite: bool = False, **parameters: Any
) -> Path:
    """Write the generated data set in the format of Open Images, or do nothing if it is there already.

    Writes ``train-boxes.csv``, ``train-labels.csv``, the same of ``val``, ``classes.csv``, ``hierarchy.json``, the
    images ``train/<ImageID>.jpg`` and ``val/<ImageID>.jpg`` and ``mini.json``, which holds the parameters. The images
    are those of the set in LVIS format with the same parameters.

    Args:
        output_dir: created if it is absent.
        overwrite: replace a set made with other parameters.
        **parameters: fields of :class:`~eql_d2.mini.generate.MiniParameters` without ``num_test``. K leaves; there are
            as many further classes as they have shapes, and one for a hue.

    Returns:
        ``output_dir``.

    Raises:
        InputError: as :func:`~eql_d2.mini.generate.generate_mini_dataset`.
    """
    if "num_test" in parameters:
        raise InputError(
            "num_test is of no use in the format of Open Images, which has no list of images; leave it out."
        )
    made = MiniParameters(**parameters, num_test=1)
    stamp = {"version": VERSION, "format": "openimages", **asdict(made)}
    del stamp["num_test"]
    return make_folder(output_dir, stamp, _OWN_NAMES, lambda folder: _write_dataset(folder, made), overwrite)


def _write_dataset(folder: Path, parameters: MiniParameters) -> Dict[str, Any]:
    vocabulary = Vocabulary.of(parameters.appearances())
    _write_csv(folder / "classes.csv", zip(vocabulary.labels, vocabulary.names))
    (folder / "hierarchy.json").write_text(json.dumps(vocabulary.hierarchy(), indent=1))
    for split in SPLITS:
        (folder / split).mkdir()
        boxes: List[Tuple] = [BOX_COLUMNS]
        labels: List[Tuple] = [LABEL_COLUMNS]
        seen: Set[int] = set()
        for index, plan in enumerate(plan_split(parameters, split)):
            image_id = f"{FIRST_IMAGE_ID[split] + index:016x}"
            pixels, drawn = draw_image(parameters, split, index, plan)
            write_image(folder / split / f"{image_id}.jpg", pixels)
            # The third part of the key: the drawing has the generator of the first two.
            rng = parameters.rng(SPLITS.index(split), index, 1)
            names = {label: vocabulary.labels[label] for label in plan.annotated}
            for label in plan.annotated:
                if label in seen and rng.random() < PARENT_SHARE:  # each class is labelled as itself at least once
                    names[label] = str(rng.choice(vocabulary.parents_of[label]))
            seen |= set(plan.annotated)
            boxes += [(image_id, *row) for row in _box_rows(plan, drawn, names, parameters.image_size, rng)]
            labels += [(image_id, *row) for row in _label_rows(plan, names, vocabulary, rng)]
        _write_csv(folder / f"{split}-boxes.csv", boxes)
        _write_csv(folder / f"{split}-labels.csv", labels)
    return {}


def _box_rows(
    plan: ImagePlan, drawn: Sequence[DrawnObject], names: Dict[int, str], image_size: int, rng: np.random.Generator
) -> List[Tuple]:
    """Return the rows of an image's boxes, without the ImageID: all objects of the classes that are verified there."""
    rows = []
    for label in plan.annotated:
        outlines = [one.polygon for one in drawn if one.request.label == label]
        is_group = len(outlines) >= GROUP_OF_INSTANCES and rng.random() < GROUP_OF_SHARE
        for outline in [np.concatenate(outlines)] if is_group else outlines:
            shares = np.clip(outline / image_size, 0, 1)
            (left, top), (right, bottom) = shares.min(axis=0), shares.max(axis=0)
            corners = (f"{value:.6f}" for value in (left, right, top, bottom))
            rows.append((names[label], 1, *corners, int(is_group)))
    return rows


def _label_rows(
    plan: ImagePlan, names: Dict[int, str], vocabulary: Vocabulary, rng: np.random.Generator
) -> List[Tuple[str, int]]:
    """Return the rows of an image's verified labels, without the ImageID."""
    shown = {vocabulary.labels[label] for objects in (plan.annotated, plan.unverified) for label in objects}
    absent = [vocabulary.labels[label] for label in plan.negatives]
    for parent, leaves in vocabulary.leaves_of.items():
        if not shown & set(leaves) and rng.random() < ABSENT_PARENT_SHARE:
            absent.append(parent)
    present = dict.fromkeys(names[label] for label in plan.annotated)
    return [*((label, 1) for label in present), *((label, 0) for label in absent)]


def _write_csv(path: Path, rows: Any) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
