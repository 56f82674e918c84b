"""Loaders of image classification: batches of small images in memory, or files by torchvision's transforms."""

import hashlib
import itertools
import warnings
from typing import Any, Dict, Iterator, List, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.utils import comm
from torch.utils.data import Sampler
from torchvision import transforms

from eql_d2.data.augmentation import BatchAugmentation, policy_names
from eql_d2.data.build import build_stream, build_train_sampler, check_num_classes, long_tail_dataset_dicts
from eql_d2.data.catalog import describe_dataset
from eql_d2.data.classification import Record, record_label
from eql_d2.data.image_files import load_image
from eql_d2.data.records import RecordError
from eql_d2.data.stream import images_per_process, shared_seed
from eql_d2.errors import InputError


def build_image_train_loader(cfg: CfgNode) -> Any:
    """Return an endless loader of training batches, lists of dicts with ``image``, ``image_id`` and ``gt_class``.

    Images in memory are augmented batch by batch in this process; files are read by ``DATALOADER.NUM_WORKERS``.

    Raises:
        InputError: if a data set is unknown or empty, has other classes than the model, or a setting is of no use.
    """
    if not cfg.DATASETS.TRAIN:
        raise InputError("DATASETS.TRAIN is empty; name at least one training set.")
    records = long_tail_dataset_dicts(cfg.DATASETS.TRAIN, filter_empty=False)
    check_num_classes(cfg, cfg.DATASETS.TRAIN)
    if _in_memory(records):
        node = cfg.MODEL.LONG_TAIL.CLASSIFICATION
        augmentation = BatchAugmentation(node.PADDING, _flips(cfg), node.AUTO_AUGMENT, node.CUTOUT)
        seed = shared_seed(cfg.SEED)
        sampler = build_train_sampler(cfg, records, seed)
        return MemoryTrainLoader(records, sampler, augmentation, cfg.SOLVER.IMS_PER_BATCH, seed)
    return build_stream(cfg, records, ImageMapper(cfg, is_train=True, listed_in=", ".join(cfg.DATASETS.TRAIN)))


def build_image_test_loader(cfg: CfgNode, dataset_name: str) -> Any:
    """Return a loader of one data set in its order, batches of ``SOLVER.IMS_PER_BATCH``, split among the ranks.

    Raises:
        InputError: as :func:`build_image_train_loader`.
    """
    records = long_tail_dataset_dicts([dataset_name], filter_empty=False)
    check_num_classes(cfg, [dataset_name])
    in_memory = _in_memory(records)
    return build_detection_test_loader(
        records,
        mapper=_as_example if in_memory else ImageMapper(cfg, is_train=False, listed_in=describe_dataset(dataset_name)),
        batch_size=max(cfg.SOLVER.IMS_PER_BATCH // comm.get_world_size(), 1),
        num_workers=0 if in_memory else cfg.DATALOADER.NUM_WORKERS,
    )


class MemoryTrainLoader:
    """Endless batches of images in memory; what a batch holds follows from the seed and its number alone.

    So a training that is resumed goes on with the batches that it would have had, see :meth:`seek`.

    Args:
        records: with ``image``, all of one size.
        sampler: gives endless indices, of this rank alone.
        augmentation: of a batch.
        total_batch_size: images of all ranks.
        seed: of the augmentation.

    Raises:
        InputError: if the images differ in size, or the ranks cannot share a batch evenly.
    """

    def __init__(
        self,
        records: Sequence[Record],
        sampler: Sampler,
        augmentation: BatchAugmentation,
        total_batch_size: int,
        seed: int,
    ):
        shapes = {record["image"].shape for record in records}
        if len(shapes) > 1:
            raise InputError(f"Images in memory must be of one size; there are {sorted(shapes)[:3]}.")
        self.batch_size = images_per_process(total_batch_size)
        self.images = torch.from_numpy(np.stack([record["image"] for record in records])).permute(0, 3, 1, 2)
        self.image_ids = [record["image_id"] for record in records]
        self.labels = [record_label(record) for record in records]
        self.sampler, self.augmentation = sampler, augmentation
        self.seed = seed
        self.first = 0

    def seek(self, iteration: int) -> None:
        """Let the next iterator start at the batch of this iteration."""
        self.first = iteration

    def state_dict(self) -> Dict[str, Any]:
        """Return all that the batches to come follow from, but for their position."""
        return {"seed": self.seed}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        """Go on from :meth:`state_dict`."""
        self.seed = self.sampler._seed = state["seed"]  # type: ignore[attr-defined]

    def __iter__(self) -> Iterator[List[Dict[str, Any]]]:
        indices = itertools.islice(iter(self.sampler), self.first * self.batch_size, None)
        for iteration in itertools.count(self.first):
            batch = list(itertools.islice(indices, self.batch_size))
            images = self.augmentation(self.images[batch], self._generator(iteration))
            yield [
                {"image": image, "image_id": self.image_ids[index], "gt_class": self.labels[index]}
                for image, index in zip(images, batch)
            ]

    def _generator(self, iteration: int) -> torch.Generator:
        key = f"{self.seed}/{comm.get_rank()}/{iteration}".encode()
        generator = torch.Generator()
        return generator.manual_seed(int.from_bytes(hashlib.blake2b(key, digest_size=4).digest(), "big"))


class ImageMapper:
    """Reads one image file and transforms it: RandomResizedCrop, flip, AutoAugment, jitter; Resize and crop at test.

    Args:
        cfg: with ``MODEL.LONG_TAIL.CLASSIFICATION``.
        is_train: whether to augment.
        listed_in: the data set that names the images, for messages.

    Raises:
        InputError: for settings that images in files have no use for, or a size below 1.
    """

    def __init__(self, cfg: CfgNode, is_train: bool, listed_in: str):
        self.listed_in = listed_in
        self.transform = _train_transform(cfg) if is_train else _test_transform(cfg)

    def __call__(self, record: Record) -> Dict[str, Any]:
        """Return ``image`` uint8 ``[3, SIZE, SIZE]`` in RGB, ``image_id`` and ``gt_class``.

        Raises:
            InputError: if the image is missing or cannot be decoded.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of Pillow, for the EXIF data of a few ImageNet files
                loaded = load_image(record["file_name"])
        except FileNotFoundError:
            raise self._error(record, "is not there") from None
        except OSError as error:
            raise self._error(record, f"cannot be read as an image ({error})") from None
        image = self.transform(loaded.convert("RGB"))
        return {"image": image, "image_id": record["image_id"], "gt_class": record_label(record)}

    def _error(self, record: Record, what: str) -> RecordError:
        return RecordError(
            f"{record['file_name']}, listed in {self.listed_in}, {what}; eql-d2 check-dataset lists all such images."
        )


def _train_transform(cfg: CfgNode) -> transforms.Compose:
    node = cfg.MODEL.LONG_TAIL.CLASSIFICATION
    _check_size("SIZE", node.SIZE)
    if node.CUTOUT:
        raise InputError("MODEL.LONG_TAIL.CLASSIFICATION.CUTOUT is for images in memory; set it to 0.")
    steps: List[Any] = [transforms.RandomResizedCrop(node.SIZE)]
    if _flips(cfg):
        steps.append(transforms.RandomHorizontalFlip())
    if node.AUTO_AUGMENT:
        if node.AUTO_AUGMENT not in policy_names():
            BatchAugmentation(policy=node.AUTO_AUGMENT)  # raises, with the names that there are
        steps.append(transforms.AutoAugment(transforms.AutoAugmentPolicy(node.AUTO_AUGMENT)))
    if node.COLOR_JITTER:
        steps.append(transforms.ColorJitter(*[node.COLOR_JITTER] * 3))
    return transforms.Compose([*steps, transforms.PILToTensor()])


def _test_transform(cfg: CfgNode) -> transforms.Compose:
    node = cfg.MODEL.LONG_TAIL.CLASSIFICATION
    _check_size("SIZE", node.SIZE)
    _check_size("RESIZE_TEST", node.RESIZE_TEST)
    steps = [transforms.Resize(node.RESIZE_TEST), transforms.CenterCrop(node.SIZE), transforms.PILToTensor()]
    return transforms.Compose(steps)


def _check_size(key: str, size: int) -> None:
    if size < 1:
        raise InputError(f"MODEL.LONG_TAIL.CLASSIFICATION.{key} is {size}; it is a number of pixels.")


def _flips(cfg: CfgNode) -> bool:
    if cfg.INPUT.RANDOM_FLIP not in ("none", "horizontal"):
        raise InputError(f"INPUT.RANDOM_FLIP is {cfg.INPUT.RANDOM_FLIP!r}; classification has none and horizontal.")
    return cfg.INPUT.RANDOM_FLIP == "horizontal"


def _in_memory(records: Sequence[Record]) -> bool:
    return "image" in records[0]


def _as_example(record: Record) -> Dict[str, Any]:
    image = torch.from_numpy(np.ascontiguousarray(np.asarray(record["image"]).transpose(2, 0, 1)))
    return {"image": image, "image_id": record["image_id"], "gt_class": record_label(record)}
