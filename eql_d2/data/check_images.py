"""Checking an image classification set: its classes, labels and image files."""

from collections import Counter
from typing import Callable, Iterable, List, Sequence

from detectron2.data import DatasetCatalog, MetadataCatalog

from eql_d2.data.annotations import duplicates
from eql_d2.data.check import Report, try_image
from eql_d2.data.classification import Record, record_label
from eql_d2.data.frequency import CategoryFrequency


def check_image_set(
    name: str,
    with_images: bool = True,
    max_examples: int = 5,
    progress: Callable[[Iterable[Record]], Iterable[Record]] = iter,
) -> Report:
    """Check a registered classification set.

    Args:
        name: of the data set.
        with_images: read every image file.
        max_examples: examples of each kind of finding.
        progress: wraps the records while their files are read, for a progress bar.

    Raises:
        InputError: if the set cannot be read at all; everything else is in the report.
    """
    report = Report(max_examples)
    records = DatasetCatalog.get(name)
    class_names = MetadataCatalog.get(name).thing_classes
    _summarize(name, records, class_names, report)
    for repeated in duplicates(record["image_id"] for record in records):
        report.add("image ids that occur more than once", f"image id {repeated}")
    for class_name in duplicates(class_names):
        report.add("class names that occur more than once", class_name, is_error=False)
    for file_name in duplicates(record["file_name"] for record in records if "file_name" in record):
        report.add("image files that are listed more than once", file_name, is_error=False)
    if with_images:
        _check_files(records, report, progress)
    return report


def _summarize(name: str, records: Sequence[Record], class_names: List[str], report: Report) -> None:
    counts = Counter(map(record_label, records))
    per_class = [counts[label] for label in range(len(class_names))]
    sizes = CategoryFrequency.from_counts(per_class, num_images=len(records)).group_sizes()
    report.summary.append(
        f"{name}: {len(records)} images, {len(class_names)} classes of {min(per_class)} to {max(per_class)} images; "
        f"r/c/f: {sizes['r']}, {sizes['c']} and {sizes['f']} classes"
    )
    for label, count in enumerate(per_class):
        if count == 0:
            report.add(
                "classes without an image (they cannot be learnt or evaluated)",
                f"class {label}: {class_names[label]}",
                is_error=False,
            )


def _check_files(
    records: Sequence[Record], report: Report, progress: Callable[[Iterable[Record]], Iterable[Record]]
) -> None:
    for record in progress([record for record in records if "file_name" in record]):
        try_image(record["file_name"], report)
