"""Data loaders for training and testing, made of Detectron2's parts."""

import logging
from types import MappingProxyType
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, cast

import numpy as np
import torch
import torch.utils.data as torchdata
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog, build_detection_test_loader
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler
from torch import Tensor

from eql_d2.data.catalog import (
    annotation_labels,
    check_labels,
    check_registered,
    check_same_categories,
    class_head,
    describe_dataset,
)
from eql_d2.data.copy_paste import CopyPasteMapper
from eql_d2.data.feature_cache import FeatureCacheMapper
from eql_d2.data.frequency import CategoryFrequency
from eql_d2.data.ignored import IgnoredBoxes, ignored_boxes
from eql_d2.data.mapper import LongTailDatasetMapper, SegmentationMapper
from eql_d2.data.records import Record, RecordList, images_of_labels
from eql_d2.data.samplers import ClassAwareSampler
from eql_d2.data.semantic import is_segmentation_set, segmentation_records
from eql_d2.data.stream import IndexBatches, TrainLoader, images_per_process, shared_seed
from eql_d2.errors import InputError

logger = logging.getLogger("detectron2.eql_d2.data")

Mapper = Callable[[Record], Dict[str, Any]]


def build_train_loader(cfg: CfgNode, mapper: Optional[Mapper] = None) -> TrainLoader:
    """Return an endless loader of training batches, the same stream for the same non-negative ``cfg.SEED``.

    It can go on where a training was stopped, see :class:`~eql_d2.data.stream.TrainLoader`.

    ``DATALOADER.SAMPLER_TRAIN`` may be TrainingSampler, RepeatFactorTrainingSampler or ClassAwareSampler.

    Args:
        cfg: a config with ``MODEL.LONG_TAIL``.
        mapper: makes an example of a record; by default :class:`~eql_d2.data.mapper.LongTailDatasetMapper`, or
            :class:`~eql_d2.data.mapper.SegmentationMapper` for semantic segmentation.

    Raises:
        InputError: if a data set is unknown, has no annotations or nothing to train on, or the number of its categories
            is not that of the model.
    """
    names = cfg.DATASETS.TRAIN
    if not names:
        raise InputError("DATASETS.TRAIN is empty; name at least one training set.")
    if cfg.MODEL.LOAD_PROPOSALS:
        raise InputError(
            "MODEL.LOAD_PROPOSALS is True, but precomputed proposals cannot be loaded here; set it to False."
        )
    dataset = long_tail_dataset_dicts(names, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS, ignored_boxes(cfg, names))
    check_num_classes(cfg, names)
    _check_unverified(cfg, names, dataset)
    for name in names:
        if MetadataCatalog.get(name).get("has_annotations") is False:
            raise InputError(f"{describe_dataset(name)} has no annotations and cannot be in DATASETS.TRAIN.")
    return build_stream(cfg, dataset, mapper or build_train_mapper(cfg, dataset))


def build_train_mapper(cfg: CfgNode, dataset: Sequence[Record]) -> Mapper:
    """Return the mapper of training images, with copy-paste if ``MODEL.LONG_TAIL.AUGMENT`` says so, or for cached
    features with ``FEATURE_CACHE``.

    Args:
        cfg: a config with ``MODEL.LONG_TAIL``.
        dataset: the records that objects may be pasted from.

    Raises:
        InputError: for settings of ``AUGMENT`` that cannot be used, and for data sets with masks beside others.
    """
    of_masks = list(map(is_segmentation_set, cfg.DATASETS.TRAIN))
    if any(of_masks):
        if not all(of_masks):
            raise InputError(
                f"DATASETS.TRAIN is {cfg.DATASETS.TRAIN}; some are of semantic segmentation, and some not."
            )
        if cfg.MODEL.LONG_TAIL.AUGMENT.COPY_PASTE:
            raise InputError(
                "MODEL.LONG_TAIL.AUGMENT.COPY_PASTE pastes objects, and index masks have none; set it to 0."
            )
        return SegmentationMapper(cfg, True)
    if cfg.MODEL.LONG_TAIL.FEATURE_CACHE:
        return FeatureCacheMapper(cfg)
    mapper = LongTailDatasetMapper(cfg, True)
    node = cfg.MODEL.LONG_TAIL.AUGMENT
    if not node.COPY_PASTE:
        return mapper
    places, labels = _labels_of_all(dataset, with_crowd=False)
    source = node.COPY_PASTE_SOURCE
    return CopyPasteMapper(mapper, dataset, node.COPY_PASTE, source, places, labels, keep_masks=cfg.MODEL.MASK_ON)


def build_stream(cfg: CfgNode, dataset: Sequence[Record], mapper: Mapper) -> TrainLoader:
    """Return the loader of training batches with the config's sampler, batch size and workers.

    Raises:
        InputError: if there is no such sampler, or the processes cannot share a batch evenly.
    """
    seed = shared_seed(cfg.SEED)
    batches = IndexBatches(
        build_train_sampler(cfg, dataset, seed),
        images_per_process(cfg.SOLVER.IMS_PER_BATCH),
        dataset if cfg.DATALOADER.ASPECT_RATIO_GROUPING else None,
    )
    return TrainLoader(dataset, mapper, batches, cfg.DATALOADER.NUM_WORKERS, seed)


def build_test_loader(cfg: CfgNode, dataset_name: str, mapper: Optional[Mapper] = None) -> torchdata.DataLoader:
    """Return a loader of the images of one data set, in its order, one image a batch, split among the ranks.

    Args:
        cfg: a config with ``MODEL.LONG_TAIL``.
        dataset_name: a registered data set, with or without annotations.
        mapper: makes an example of a record; by default as :func:`build_train_loader`.

    Raises:
        InputError: if the data set is unknown or the number of its categories is not that of the model.
    """
    dataset = long_tail_dataset_dicts([dataset_name], filter_empty=False)
    check_num_classes(cfg, [dataset_name])
    mapper_type = SegmentationMapper if is_segmentation_set(dataset_name) else LongTailDatasetMapper
    return build_detection_test_loader(
        dataset,
        mapper=mapper or mapper_type(cfg, False, listed_in=describe_dataset(dataset_name)),
        batch_size=1,
        num_workers=cfg.DATALOADER.NUM_WORKERS,
    )


def long_tail_dataset_dicts(
    names: Sequence[str], filter_empty: bool = True, ignored: Mapping[str, IgnoredBoxes] = MappingProxyType({})
) -> Sequence[Record]:
    """Load data sets and see to it that the records of LVIS data carry ``image_labels``.

    Args:
        names: registered data sets with equal categories; LVIS sets that Detectron2's own loader reads are welcome.
        filter_empty: leave out images without an instance (crowd regions are none), and with them their negative sets.
            Data sets without annotations are not filtered.
        ignored: by name of the data set, the boxes that its records carry as ``ignored_boxes``.

    Returns:
        A read-only list of dataset dicts.

    Raises:
        InputError: if a data set is unknown, empty, or has a label beyond its categories.
    """
    parts = [_load(name) for name in names]
    check_same_categories(names)
    if filter_empty:
        parts = [_without_empty(records, name) for records, name in zip(parts, names)]
    parts = [ignored[name].attach(records, name) if name in ignored else records for records, name in zip(parts, names)]
    for records, name in zip(parts, names):
        if not len(records):
            raise InputError(
                f"{describe_dataset(name)} has no image with an instance; with "
                f"DATALOADER.FILTER_EMPTY_ANNOTATIONS False its other images are used."
            )
    # To torch's types a data set is no sequence.
    return parts[0] if len(parts) == 1 else cast(Sequence[Record], ConcatenatedRecords(cast(Any, parts)))


class ConcatenatedRecords(torchdata.ConcatDataset):
    """Several lists of records as one."""

    @property
    def parts(self) -> List[Sequence[Record]]:
        """The lists, in order."""
        return cast(List[Sequence[Record]], self.datasets)


def build_train_sampler(cfg: CfgNode, dataset: Sequence[Record], seed: Optional[int] = None) -> torchdata.Sampler:
    """Return the sampler that ``DATALOADER.SAMPLER_TRAIN`` names.

    Args:
        cfg: of the training.
        dataset: to sample from.
        seed: ``cfg.SEED`` by default.

    Raises:
        InputError: if there is no sampler of that name.
    """
    name = cfg.DATALOADER.SAMPLER_TRAIN
    seed = shared_seed(cfg.SEED) if seed is None else seed
    if name == "TrainingSampler":
        return TrainingSampler(len(dataset), seed=seed)
    if name == "RepeatFactorTrainingSampler":
        return RepeatFactorTrainingSampler(rounded(repeat_factors(cfg, dataset), cfg), seed=seed)
    if name == "ClassAwareSampler":
        return ClassAwareSampler(*_labels_of_all(dataset, with_crowd=False), seed=seed)
    raise InputError(
        f"DATALOADER.SAMPLER_TRAIN is {name!r}; there are TrainingSampler, RepeatFactorTrainingSampler "
        f"and ClassAwareSampler."
    )


def repeat_factors(cfg: CfgNode, dataset: Sequence[Record]) -> Tensor:
    """Return how often each image is repeated, float32 ``[N]``: the largest ``max(1, (t / f)^p)`` of its classes.

    With the defaults this is LVIS's rule (arXiv 1908.03195, B.2) as Detectron2 has it: f is a class's share of the N
    images given, t ``DATALOADER.REPEAT_THRESHOLD``, p a half. With ``REPEAT_FREQUENCY`` "geometric" f is the geometric
    mean of that share and the class's share of all instances (IRFS, arXiv 2305.08069). An image without annotations is
    taken once.

    Raises:
        InputError: if ``REPEAT_FREQUENCY`` is neither "images" nor "geometric", or ``REPEAT_EXPONENT`` below 0.
    """
    node = cfg.MODEL.LONG_TAIL
    if node.REPEAT_FREQUENCY not in ("images", "geometric"):
        raise InputError(
            f"MODEL.LONG_TAIL.REPEAT_FREQUENCY is {node.REPEAT_FREQUENCY!r}; there are 'images' and 'geometric'."
        )
    if node.REPEAT_EXPONENT < 0:
        raise InputError(f"MODEL.LONG_TAIL.REPEAT_EXPONENT is {node.REPEAT_EXPONENT}; it must be at least 0.")
    images, labels, counts = _labels_and_counts(dataset)
    frequency = counts / max(len(dataset), 1)
    if node.REPEAT_FREQUENCY == "geometric":
        frequency = np.sqrt(frequency * np.bincount(labels, minlength=len(counts)) / max(len(labels), 1))
    exponent = node.REPEAT_EXPONENT or (0.5 if cfg.DATALOADER.REPEAT_SQRT else 1.0)
    factors = np.ones(len(dataset))
    np.maximum.at(factors, images, (_threshold(cfg, counts, len(dataset)) / frequency[labels]) ** exponent)
    return torch.from_numpy(factors).float()


def repeat_threshold(cfg: CfgNode, dataset: Sequence[Record]) -> float:
    """Return ``DATALOADER.REPEAT_THRESHOLD``, or the one that ``MODEL.LONG_TAIL.REPEAT_TAIL_RATIO`` chooses.

    Raises:
        InputError: for a tail ratio that no threshold gives, or one beside ``REPEAT_FREQUENCY`` "geometric", whose
            frequencies are none of image counts.
    """
    if cfg.MODEL.LONG_TAIL.REPEAT_FREQUENCY == "geometric":
        if cfg.MODEL.LONG_TAIL.REPEAT_TAIL_RATIO:
            raise InputError(
                "MODEL.LONG_TAIL.REPEAT_TAIL_RATIO chooses a threshold of image frequencies, and REPEAT_FREQUENCY is "
                "'geometric'; set DATALOADER.REPEAT_THRESHOLD and REPEAT_TAIL_RATIO 0."
            )
        return cfg.DATALOADER.REPEAT_THRESHOLD
    return _threshold(cfg, _labels_and_counts(dataset)[2], len(dataset))


def _labels_and_counts(dataset: Sequence[Record]) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return image and label of each annotation, and the images of each label up to the highest that occurs.

    Classes without an image are of no consequence to repeat factors: there may be more than there are labels.
    """
    images, labels = _labels_of_all(dataset, with_crowd=True)
    return images, labels, images_of_labels(images, labels, int(labels.max(initial=0)) + 1)


def _threshold(cfg: CfgNode, counts: np.ndarray, num_images: int) -> float:
    frequency = CategoryFrequency.from_counts(counts.tolist(), num_images=max(num_images, 1))
    ratio = cfg.MODEL.LONG_TAIL.REPEAT_TAIL_RATIO
    return frequency.tail_threshold(cfg.DATALOADER.REPEAT_THRESHOLD, ratio, "DATALOADER.REPEAT_THRESHOLD")


def rounded(factors: Tensor, cfg: CfgNode) -> Tensor:
    """Return the repeat factors ``[N]`` as ``MODEL.LONG_TAIL.REPEAT_ROUNDING`` says.

    Raises:
        InputError: if it says none of "stochastic" (the sampler rounds them), "ceil" and "append".
    """
    rounding = cfg.MODEL.LONG_TAIL.REPEAT_ROUNDING
    if rounding == "stochastic":
        return factors
    if rounding == "ceil":
        return factors.ceil()
    if rounding == "append":
        return 1 + factors.ceil() * (factors > 1)
    raise InputError(f"MODEL.LONG_TAIL.REPEAT_ROUNDING is {rounding!r}; there are 'stochastic', 'ceil' and 'append'.")


def epoch_length(cfg: CfgNode, dataset: Sequence[Record]) -> float:
    """Return the images of one epoch: those of the data set, or the sum of their repeat factors (its expectation).

    Class-aware sampling has no epochs; it counts as many images as the data set has.
    """
    if cfg.DATALOADER.SAMPLER_TRAIN != "RepeatFactorTrainingSampler":
        return float(len(dataset))
    return float(rounded(repeat_factors(cfg, dataset), cfg).double().sum())


def check_num_classes(cfg: CfgNode, names: Sequence[str]) -> None:
    """Check that the model has as many classes as the data sets, and of index masks the same label for none.

    Raises:
        InputError: naming both numbers.
    """
    for name in names:
        head = class_head(name)
        expected = cfg.MODEL[head].NUM_CLASSES
        found = len(MetadataCatalog.get(name).get("thing_classes") or ())
        if found and found != expected:
            hint = " (LVIS v0.5 has 1230 categories, v1 has 1203)" if {found, expected} == {1230, 1203} else ""
            raise InputError(
                f"MODEL.{head}.NUM_CLASSES is {expected}, but {describe_dataset(name)} has {found} "
                f"categories{hint}; set MODEL.{head}.NUM_CLASSES {found} or choose another data set."
            )
        ignored = MetadataCatalog.get(name).get("ignore_label")
        if is_segmentation_set(name) and ignored != cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE:
            raise InputError(
                f"MODEL.SEM_SEG_HEAD.IGNORE_VALUE is {cfg.MODEL.SEM_SEG_HEAD.IGNORE_VALUE}, but pixels of "
                f"{describe_dataset(name)} without a label have {ignored}; set it to that."
            )


def _check_unverified(cfg: CfgNode, names: Sequence[str], dataset: Sequence[Record]) -> None:
    """Warn where what a source did not label is taken for background; see that there is something to exempt by."""
    exempt = cfg.MODEL.LONG_TAIL.UNVERIFIED == "exempt"
    for name, records in zip(names, dataset.parts if isinstance(dataset, ConcatenatedRecords) else [dataset]):
        if exempt and "image_labels" not in records[0]:
            raise InputError(
                f"MODEL.LONG_TAIL.UNVERIFIED is 'exempt', but no image of {describe_dataset(name)} says which classes "
                f"it verifies; set it to 'loss', or let eql-d2 merge write the set with an exhaustive source."
            )
        if not exempt and MetadataCatalog.get(name).get("partly_labelled"):
            logger.warning(
                f"{name} has sources that did not label all classes, and MODEL.LONG_TAIL.UNVERIFIED is 'loss': to "
                f"{cfg.MODEL.LONG_TAIL.LOSS} what a source did not label is whatever it makes of unverified classes, "
                f"for most losses background. 'exempt' spares them."
            )


def _load(name: str) -> Sequence[Record]:
    """Return the records of one data set with labels in range, and with image-level labels if it is LVIS."""
    check_registered(name)
    if is_segmentation_set(name):
        return segmentation_records(name)
    records = DatasetCatalog.get(name)
    if isinstance(records, RecordList):
        return records
    metadata = MetadataCatalog.get(name)
    num_classes = len(metadata.get("thing_classes") or ())
    if num_classes:
        check_labels(annotation_labels(records)[1], num_classes, describe_dataset(name))
    id_to_label = metadata.get("thing_dataset_id_to_contiguous_id")
    if id_to_label is None:
        id_to_label = {label + 1: label for label in range(num_classes)}  # Detectron2's LVIS loader subtracts one
    return [_with_image_labels(record, id_to_label, name) for record in records]


def _with_image_labels(record: Record, id_to_label: Dict[int, int], name: str) -> Record:
    """Turn the id lists that Detectron2's LVIS loader leaves as they are in the json into labels."""
    if "neg_category_ids" not in record or "image_labels" in record:
        return record
    record = dict(record)
    negative = record.pop("neg_category_ids")
    not_exhaustive = record.get("not_exhaustive_category_ids", [])
    for category_id in (*negative, *not_exhaustive):
        if category_id not in id_to_label:
            raise InputError(
                f"{describe_dataset(name)}: image {record.get('image_id')} names the category id {category_id} in its "
                f"image-level labels, and the data set has no such category."
            )
    record["not_exhaustive_category_ids"] = sorted({id_to_label[category_id] for category_id in not_exhaustive})
    if "annotations" in record:
        record["image_labels"] = {
            "positive": sorted({annotation["category_id"] for annotation in record["annotations"]}),
            "negative": sorted({id_to_label[category_id] for category_id in negative}),
        }
    return record


def _without_empty(records: Sequence[Record], name: str) -> Sequence[Record]:
    """Leave out the images that have no instance but crowd regions, unless the data set has no annotations at all."""
    if MetadataCatalog.get(name).get("has_annotations") is False or not len(records):
        return records
    if not isinstance(records, RecordList) and "annotations" not in records[0]:
        return records
    kept = np.unique(annotation_labels(records, with_crowd=False)[0])
    if len(kept) < len(records):
        logger.info(f"{name}: {len(records) - len(kept)} of {len(records)} images have no instance and are left out.")
    return records.select(kept) if isinstance(records, RecordList) else [records[index] for index in kept.tolist()]


def _labels_of_all(dataset: Sequence[Record], with_crowd: bool) -> Tuple[np.ndarray, np.ndarray]:
    """Return the image and the label of each annotation; see :func:`~eql_d2.data.catalog.annotation_labels`."""
    parts = dataset.parts if isinstance(dataset, ConcatenatedRecords) else [dataset]
    before = np.cumsum([0, *map(len, parts)])
    images, labels = zip(*(annotation_labels(part, with_crowd) for part in parts))
    return np.concatenate([image + first for image, first in zip(images, before)]), np.concatenate(labels)
