"""Small folders of images and index masks."""

from pathlib import Path
from typing import Sequence

import numpy as np
from PIL import Image

NAMES = ("sky", "tree", "car")
#: Masks of three classes, with 255 for no label; by name.
MASKS = {
    "a": [[0, 0, 0, 0], [0, 1, 1, 255]],
    "b": [[255, 255, 255], [255, 255, 255]],
    "deep/c": [[2, 0], [0, 0], [0, 0]],
}


def write_mask(path: Path, mask: Sequence, dtype=np.uint8) -> None:
    """Write a mask of 8 or 16 bits, in the format of the name's suffix."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array(mask, dtype)).save(path)


def write_image(path: Path, height: int, width: int) -> None:
    """Write a grey image."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (90, 90, 90)).save(path)


def write_masks(folder: Path, masks=None, dtype=np.uint8, suffix: str = ".png") -> Path:
    """Write ``images``, ``masks`` and ``classes.txt`` into a folder and return it."""
    for name, mask in (MASKS if masks is None else masks).items():
        write_mask(folder / "masks" / f"{name}{suffix}", mask, dtype)
        write_image(folder / "images" / f"{name}.jpg", *np.shape(mask))
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in NAMES))
    return folder
