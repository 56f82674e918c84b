"""Index masks painted from the instances of a json in LVIS or COCO format."""

import io
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Tuple

import numpy as np
import pycocotools.mask as mask_util
from PIL import Image

from eql_d2.data.annotations import PathLike
from eql_d2.data.coco import load_coco
from eql_d2.data.index_masks import MaskValues, ignore_label_of
from eql_d2.data.lvis import load_lvis
from eql_d2.data.records import Record, RecordError, RecordList
from eql_d2.data.registration import open_table
from eql_d2.data.segmentation import check_polygon, check_run_lengths
from eql_d2.errors import InputError
from eql_d2.files import write_whole

MASK_FOLDER, CLASSES_FILE = "masks", "classes.txt"
#: The name of the class of the pixels of no instance, the last one.
BACKGROUND = "background"


@dataclass(frozen=True)
class Painting:
    """Masks to be painted.

    Attributes:
        records: with ``annotations``.
        image_root: the folder that the images, and likewise named the masks, lie below.
        folder: of the masks.
        values: of the masks, K classes; or K + 1 with a background.
        background: what a pixel of no instance has: label K, or ``values.ignore_label``.
    """

    records: RecordList
    image_root: str
    folder: str
    values: MaskValues
    background: int

    def write(self, index: int) -> None:
        """Paint the mask of an image and write it, whole.

        Raises:
            InputError: as :func:`paint_mask`, and if it cannot be written.
        """
        record = self.records[index]
        mask = paint_mask(record, self.values.ignore_label, self.background)
        encoded = io.BytesIO()
        Image.fromarray(mask).save(encoded, "PNG")
        name = Path(os.path.relpath(record["file_name"], self.image_root)).with_suffix(".png")
        write_whole(Path(self.folder, name), encoded.getvalue())


def paint_mask(record: Record, ignore_label: int, background: int) -> np.ndarray:
    """Return the label of each pixel: of the smallest instance that it belongs to.

    The larger instance is painted first, so that the smaller one stays on top; of two of equal size the later one is.
    A pixel of a crowd region and of no instance has no label: it is not told what is in it.

    Args:
        record: a dataset dict with masks.
        ignore_label: of pixels without a label, 255 or 65535.
        background: of pixels of no instance or crowd region.

    Returns:
        uint8 or uint16 ``[H, W]``, as ``ignore_label`` needs.

    Raises:
        RecordError: if an instance has no mask, or one that cannot be drawn.
    """
    painted = np.full((record["height"], record["width"]), background, np.uint8 if ignore_label < 256 else np.uint16)
    crowd: List[np.ndarray] = []
    instances: List[Tuple[np.ndarray, int]] = []
    for annotation in record["annotations"]:
        mask = _decode(annotation, record)
        if annotation.get("iscrowd", 0):
            crowd.append(mask)
        else:
            instances.append((mask, annotation["category_id"]))
    for mask in crowd:
        painted[mask] = ignore_label
    for mask, label in sorted(instances, key=lambda pair: -int(pair[0].sum())):
        painted[mask] = label
    return painted


def _decode(annotation: Dict[str, Any], record: Record) -> np.ndarray:
    """Return the pixels of an instance, bool ``[H, W]``."""
    height, width, segmentation = record["height"], record["width"], annotation.get("segmentation")
    try:
        if segmentation is None:
            raise InputError("is missing, and a box is no mask")
        if isinstance(segmentation, dict):
            check_run_lengths(segmentation["size"], segmentation["counts"], height, width)
            run_lengths = segmentation
        else:
            for polygon in segmentation:
                check_polygon(polygon)
            run_lengths = mask_util.merge(mask_util.frPyObjects(segmentation, height, width))
    except InputError as error:
        raise RecordError(f"A segmentation of image {record['image_id']} {error}.") from None
    return mask_util.decode(run_lengths).astype(bool)


def paint_dataset(
    json_file: PathLike,
    image_root: PathLike,
    output_dir: PathLike,
    with_background: bool = False,
    workers: int = 1,
    progress: Callable[[Iterable[None], int], Iterable[None]] = lambda done, total: done,
) -> Tuple[int, List[str]]:
    """Write a mask for each image of a json, ``masks/<name of the image>.png``, and at last ``classes.txt``.

    Masks have 8 bits and 255 for no label, or from 255 classes on 16 bits and 65535.

    Args:
        json_file: in LVIS or COCO format.
        image_root: the folder of the images, none of which is opened.
        output_dir: created if it is absent; masks that are there are replaced.
        with_background: a last class for pixels of no instance. Else they have no label, as in federated data they
            must: what is not annotated was not always looked for.
        workers: processes.
        progress: wraps what is done and the number of images, for a progress bar.

    Returns:
        Number of images, and the names of the classes.

    Raises:
        InputError: if the json cannot be read or has no annotations, an instance has no mask, a background is asked for
            although the annotation is federated, or a file cannot be written.
    """
    header = open_table(json_file).header
    if not header.has_annotations:
        raise InputError(f"{json_file} has no annotations, of which masks could be painted.")
    if with_background and header.has_image_labels:
        raise InputError(
            f"{json_file} is annotated in part (neg_category_ids, not_exhaustive_category_ids): a pixel of no instance "
            f"may show any class that was not looked for, so there is no background; leave --background-class out."
        )
    records = (load_lvis if header.is_lvis else load_coco)(json_file, image_root)
    names = [category.name for category in header.categories] + [BACKGROUND] * with_background
    values = MaskValues(len(names), 0, ignore_label_of(len(names)))
    background = len(names) - 1 if with_background else values.ignore_label
    folder = str(Path(output_dir, MASK_FOLDER))
    painting = Painting(records, os.fspath(image_root), folder, values, background)
    if workers > 1:
        # Handed over once: with every part of the work, the table of annotations would be opened again.
        with ProcessPoolExecutor(workers, initializer=_take, initargs=(painting,)) as pool:
            _exhaust(progress(pool.map(_write, range(len(records)), chunksize=16), len(records)))
    else:
        _exhaust(progress(map(painting.write, range(len(records))), len(records)))
    write_whole(Path(output_dir, CLASSES_FILE), "".join(f"{name}\n" for name in names))
    return len(records), names


_taken: List[Painting] = []


def _take(painting: Painting) -> None:
    """Tell a worker process what it paints."""
    _taken[:] = [painting]


def _write(index: int) -> None:
    _taken[0].write(index)


def _exhaust(done: Iterable[None]) -> None:
    for _ in done:
        pass
