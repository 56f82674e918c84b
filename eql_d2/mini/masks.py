"""The generated data set as index masks, for semantic segmentation.

The images are those of :mod:`eql_d2.mini.generate`; ``docs/mini_dataset.md`` says what stands in the masks.
"""

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, Iterable, Union

import numpy as np

from eql_d2.errors import InputError
from eql_d2.mini.folder import STAMP, make_folder
from eql_d2.mini.generate import FIRST_IMAGE_ID, MiniParameters, draw_image, plan_split
from eql_d2.mini.records import write_image
from eql_d2.mini.shapes import DrawnObject, pixel_coverage

#: Part of the stamp, as of the other generated sets.
VERSION = 1
SPLITS = ("train", "val")
#: The last class: the pixels of no object. All objects are known to who draws them, so that it is known, too.
BACKGROUND = "background"
CLASSES_FILE = "classes.txt"
#: Classes that fit a mask of 8 bits, the background among them; 255 is left for no label, as everywhere.
MAX_CLASSES = 254

_OWN_NAMES = {STAMP, CLASSES_FILE, *SPLITS, *(f"{split}_masks" for split in SPLITS)}


def generate_mask_dataset(output_dir: Union[str, os.PathLike], overwrite: bool = False, **parameters: Any) -> Path:
    """Write the generated data set as index masks, or do nothing if it is there already.

    Writes the images ``train/*.jpg`` and ``val/*.jpg``, which are those of the set in LVIS format with the same
    parameters, the masks ``train_masks/*.png`` and ``val_masks/*.png`` of 8 bits, ``classes.txt`` with the K + 1 names,
    and ``mini.json``, which holds the parameters. Every object is painted, also those that LVIS's format leaves out;
    label K is the background.

    Args:
        output_dir: created if it is absent.
        overwrite: replace a set made with other parameters.
        **parameters: fields of :class:`~eql_d2.mini.generate.MiniParameters` without ``num_test``.

    Returns:
        ``output_dir``.

    Raises:
        InputError: as :func:`~eql_d2.mini.generate.generate_mini_dataset`, and for more than 253 classes.
    """
    if "num_test" in parameters:
        raise InputError("num_test is of no use for index masks: images without any are a folder; leave it out.")
    made = MiniParameters(**parameters, num_test=1)
    if made.num_classes + 1 > MAX_CLASSES:
        raise InputError(f"num_classes is {made.num_classes}; with the background, {MAX_CLASSES} fit masks of 8 bits.")
    stamp = {"version": VERSION, "format": "masks", **asdict(made)}
    del stamp["num_test"]
    return make_folder(output_dir, stamp, _OWN_NAMES, lambda folder: _write_dataset(folder, made), overwrite)


def paint(objects: Iterable[DrawnObject], image_size: int, background: int) -> np.ndarray:
    """Return the label of each pixel, uint8 ``[S, S]``: the last object whose drawing covers half of it or more.

    Args:
        objects: from the back to the front.
        image_size: S.
        background: the label of all other pixels.
    """
    mask = np.full((image_size, image_size), background, np.uint8)
    for one in objects:
        covered = pixel_coverage(one.polygon) >= 0.5
        mask[: covered.shape[0], : covered.shape[1]][covered] = one.request.label
    return mask


def _write_dataset(folder: Path, parameters: MiniParameters) -> Dict[str, Any]:
    names = [*(appearance.name for appearance in parameters.appearances()), BACKGROUND]
    (folder / CLASSES_FILE).write_text("".join(f"{name}\n" for name in names))
    for split in SPLITS:
        (folder / split).mkdir()
        (folder / f"{split}_masks").mkdir()
        for index, plan in enumerate(plan_split(parameters, split)):
            name = f"{FIRST_IMAGE_ID[split] + index:012d}"
            pixels, drawn = draw_image(parameters, split, index, plan)
            write_image(folder / split / f"{name}.jpg", pixels)
            mask = paint(drawn, parameters.image_size, parameters.num_classes)
            write_image(folder / f"{split}_masks" / f"{name}.png", mask)
    return {}
