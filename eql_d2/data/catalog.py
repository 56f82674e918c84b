"""What is known of registered data sets: how often each category occurs, and where its annotations are."""

import difflib
import logging
from typing import Sequence, Tuple

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from eql_d2.data.annotations import PathLike
from eql_d2.data.builtin import register_builtin
from eql_d2.data.frequency import CategoryFrequency
from eql_d2.data.records import Record, RecordList, images_of_labels
from eql_d2.data.registration import open_table
from eql_d2.data.semantic import is_segmentation_set, segmentation_records
from eql_d2.errors import InputError

logger = logging.getLogger("detectron2.eql_d2.data")


def category_frequency(dataset_names: Sequence[str], frequency_file: PathLike = "") -> CategoryFrequency:
    """Return how often each category occurs in a training set.

    The counts come from ``frequency_file`` if given; else of each data set, and summed, from ``category_frequency`` in
    its metadata, from its json, or from its records if it has neither. Of a set of semantic segmentation, the instances
    are pixels: they are counted in its index masks, once.

    Args:
        dataset_names: registered data sets with equal categories, ``DATASETS.TRAIN``.
        frequency_file: ``MODEL.LONG_TAIL.FREQUENCY``: a training json in LVIS or COCO format, or what
            :meth:`~eql_d2.data.frequency.CategoryFrequency.save` wrote.

    Raises:
        InputError: if a data set is unknown, its json is missing or has no annotations, or the categories differ.
    """
    if frequency_file:
        frequency = CategoryFrequency.from_json(frequency_file)
        source = str(frequency_file)
    elif dataset_names:
        frequency = _sum_frequencies(dataset_names)
        source = ", ".join(dataset_names)
    else:
        raise InputError(
            "DATASETS.TRAIN is empty; name a training set, or give its counts by MODEL.LONG_TAIL.FREQUENCY."
        )
    _warn_of_empty_categories(frequency, source)
    return frequency


def check_registered(name: str) -> None:
    """Raise an :class:`~eql_d2.errors.InputError` unless ``name`` is a registered data set; LVIS's become one now."""
    register_builtin([name])
    if name not in DatasetCatalog:
        similar = difflib.get_close_matches(name, DatasetCatalog.keys(), n=3)
        hint = f" (did you mean {' or '.join(similar)}?)" if similar else ""
        raise InputError(
            f"No data set is registered as {name!r}{hint}; "
            f"your own need an entry [name, json, image folder] in MODEL.LONG_TAIL.DATASETS."
        )


def check_same_categories(names: Sequence[str]) -> None:
    """Check that data sets that are used together have the same categories in the same order.

    Raises:
        InputError: naming the first two that differ.
    """
    first, *others = names
    expected = MetadataCatalog.get(first).get("thing_classes")
    for other in others:
        found = MetadataCatalog.get(other).get("thing_classes")
        if found != expected:
            raise InputError(
                f"{first} has {len(expected or ())} categories and {other} has {len(found or ())}, or they have other "
                f"names; data sets that are trained on together must have the same categories in the same order. "
                f"eql-d2 merge writes one file of data sets with others."
            )


def describe_dataset(name: str) -> str:
    """Return the name of a data set with its json or the folder of its masks, for messages."""
    metadata = MetadataCatalog.get(name)
    place = metadata.get("json_file") or metadata.get("sem_seg_root")
    return f"{name} ({place})" if place else name


def class_head(name: str) -> str:
    """Return the node of ``MODEL`` whose ``NUM_CLASSES`` is the number of a data set's classes."""
    return "SEM_SEG_HEAD" if is_segmentation_set(name) else "ROI_HEADS"


def _sum_frequencies(names: Sequence[str]) -> CategoryFrequency:
    frequencies = [_dataset_frequency(name) for name in names]
    check_same_categories(names)
    first = frequencies[0]
    if len(frequencies) == 1:
        return first
    for name, frequency in zip(names, frequencies):
        if frequency.num_classes != first.num_classes:
            raise InputError(
                f"{names[0]} has {first.num_classes} categories and {name} has {frequency.num_classes}; data sets that "
                f"are trained on together must have the same categories."
            )
    # Letters that all data sets agree on were given with the vocabulary; others were derived from the parts' counts.
    given = all(frequency.groups == first.groups for frequency in frequencies) and _has_letters(names)
    return CategoryFrequency.from_counts(
        torch.stack([frequency.image_count for frequency in frequencies]).sum(dim=0),
        torch.stack([frequency.instance_count for frequency in frequencies]).sum(dim=0),
        num_images=sum(frequency.num_images for frequency in frequencies),
        groups=first.groups if given else None,
    )


def _has_letters(names: Sequence[str]) -> bool:
    """Whether the json of every data set says which group a category is in."""
    json_files = [MetadataCatalog.get(name).get("json_file") for name in names]
    return all(json_file and open_table(json_file).header.counts.groups_are_given for json_file in json_files)


def _dataset_frequency(name: str) -> CategoryFrequency:
    check_registered(name)
    metadata = MetadataCatalog.get(name)
    known = metadata.get("category_frequency")
    if known is not None:
        return known
    if is_segmentation_set(name):
        return segmentation_records(name).frequency
    json_file = metadata.get("json_file")
    if not json_file:
        return frequency_of_records(name)
    try:
        table = open_table(json_file)
    except InputError as error:
        raise InputError(
            f"The category counts of {name} are needed: {str(error).rstrip('.')}; without it, set "
            f"MODEL.LONG_TAIL.FREQUENCY to the category_frequency.json that training wrote."
        ) from None
    if not table.header.has_annotations:
        raise InputError(
            f"{describe_dataset(name)} has no annotations to count; name a training set in DATASETS.TRAIN."
        )
    return table.frequency


def frequency_of_records(name: str) -> CategoryFrequency:
    """Count the categories of a data set that was registered by a Python function, crowd regions left out."""
    records = DatasetCatalog.get(name)
    num_classes = len(MetadataCatalog.get(name).get("thing_classes") or ())
    if not num_classes:
        raise InputError(f"The metadata of {name} has no thing_classes; set it to the names of the categories.")
    images, labels = annotation_labels(records, with_crowd=False)
    check_labels(labels, num_classes, name)
    instance_count = np.bincount(labels, minlength=num_classes)
    image_count = images_of_labels(images, labels, num_classes)
    return CategoryFrequency.from_counts(
        image_count.tolist(),
        instance_count.tolist(),
        num_images=len(records),
        groups=MetadataCatalog.get(name).get("frequency_groups"),
    )


def annotation_labels(records: Sequence[Record], with_crowd: bool = True) -> Tuple[np.ndarray, np.ndarray]:
    """Return the place in ``records`` of the image of each annotation, ascending, and its contiguous label.

    Returns:
        Two integer arrays ``[A]``; images without an annotation have no entry.
    """
    if isinstance(records, RecordList):
        return records.labels(with_crowd)
    pairs = [
        (image, annotation["category_id"])
        for image, record in enumerate(records)
        for annotation in record.get("annotations", ())
        if with_crowd or not annotation.get("iscrowd", 0)
    ]
    array = np.array(pairs, dtype=np.int64).reshape(-1, 2)
    return array[:, 0], array[:, 1]


def check_labels(classes: np.ndarray, num_classes: int, dataset: str) -> None:
    """Check that contiguous labels are below the number of classes.

    Raises:
        InputError: naming the first label that is not.
    """
    outside = classes[(classes < 0) | (classes >= num_classes)]
    if len(outside):
        raise InputError(
            f"{dataset} has an annotation with category_id {outside[0]}; "
            f"its {num_classes} categories have the labels 0 to {num_classes - 1}."
        )


def _warn_of_empty_categories(frequency: CategoryFrequency, source: str) -> None:
    empty = frequency.categories_without_images()
    if empty:
        logger.warning(
            f"{source}: {len(empty)} of {frequency.num_classes} categories are in no image and cannot be learnt; "
            f"their labels start with {empty[:8]}."
        )
