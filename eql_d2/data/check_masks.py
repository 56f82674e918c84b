"""Checking a set of semantic segmentation: its classes, masks and image files."""

from typing import Callable, Dict, Iterable, List

import numpy as np
from detectron2.data import MetadataCatalog

from eql_d2.data.annotations import duplicates
from eql_d2.data.check import Report, try_image
from eql_d2.data.frequency import CategoryFrequency
from eql_d2.data.records import RecordError
from eql_d2.data.semantic import segmentation_records

#: The published numbers of images, by the kind and the split in the name of the registered set.
OFFICIAL_COUNTS: Dict[str, int] = {
    "ade20k_150_train": 20210,
    "ade20k_150_val": 2000,
    "ade20k_sem_seg_train": 20210,
    "ade20k_sem_seg_val": 2000,
    "ade20k_full_sem_seg_train": 25574,
    "ade20k_full_sem_seg_val": 2000,
}


def check_masks(
    name: str,
    with_images: bool = True,
    max_examples: int = 5,
    progress: Callable[[Iterable[int]], Iterable[int]] = iter,
) -> Report:
    """Check a registered set of semantic segmentation, reading every mask.

    Args:
        name: of the data set.
        with_images: read every image file as a whole; else only its size.
        max_examples: examples of each kind of finding.
        progress: wraps the rows while their files are read, for a progress bar.

    Raises:
        InputError: if the set cannot be read at all; everything else is in the report.
    """
    report = Report(max_examples)
    masks = segmentation_records(name).table.masks
    class_names = MetadataCatalog.get(name).stuff_classes
    for class_name in duplicates(class_names):
        report.add("class names that occur more than once", class_name, is_error=False)
    expected = OFFICIAL_COUNTS.get(name, len(masks.masks))
    if len(masks.masks) != expected:
        report.add(
            "a count is not the published one (an incomplete download or another file)",
            f"{name} should have {expected} images, found {len(masks.masks)}",
        )
    counts: List[np.ndarray] = []
    for row in progress(range(len(masks.masks))):
        if with_images and try_image(masks.images[row], report) is None:
            continue
        try:
            counts.append(masks.count(row))
        except RecordError as error:
            report.add("masks that cannot be used", str(error))
            continue
        if not counts[-1].shape[1]:
            report.add("images without a labelled pixel (training leaves them out)", masks.masks[row], is_error=False)
    if counts:
        frequency = masks.pack(counts, checksum="").frequency(len(class_names))
        _summarize(name, frequency, class_names, report)
    return report


def _summarize(name: str, frequency: CategoryFrequency, class_names: List[str], report: Report) -> None:
    images, pixels = frequency.image_count.tolist(), frequency.instance_count.tolist()
    sizes = frequency.group_sizes()
    report.summary.append(
        f"{name}: {frequency.num_images} masks of {len(class_names)} classes, {sum(pixels)} labelled pixels; classes "
        f"in {min(images)} to {max(images)} images, of {min(pixels)} to {max(pixels)} pixels; r/c/f: {sizes['r']}, "
        f"{sizes['c']} and {sizes['f']} classes"
    )
    for label, count in enumerate(images):
        if count == 0:
            report.add(
                "classes without a pixel (they cannot be learnt or evaluated)",
                f"class {label}: {class_names[label]}",
                is_error=False,
            )
