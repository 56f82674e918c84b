"""Region features on disk: what a frozen detector makes of each training image, flipped and not."""

import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Dict, Optional

import numpy as np
import safetensors.torch
from detectron2.data.transforms import HFlipTransform, ResizeTransform, TransformList, VFlipTransform
from torch import Tensor

from eql_d2.data.mapper import LongTailDatasetMapper, with_image_labels
from eql_d2.errors import InputError
from eql_d2.files import write_whole

#: Bytes of a number.
_SIZE = 4


@dataclass
class RegionFeatures:
    """All regions of an image that a training step samples from.

    Attributes:
        boxes: float32 ``[N, 4]``, the proposals and, where they are sampled too, the objects.
        features: float32 ``[N, C]``, what the classifier sees of each.
        gt_boxes: float32 ``[G, 4]``, the objects.
        gt_classes: int64 ``[G]``, their labels.
        num_anchors: int64 ``[2]``, positive and negative anchors, of which the RPN draws a sample.
    """

    boxes: Tensor
    features: Tensor
    gt_boxes: Tensor
    gt_classes: Tensor
    num_anchors: Tensor


class FeatureCache:
    """A folder with one file for each image and flip, for each frozen model in a folder of its own.

    A file is there whole or not at all, and read by mapping it into memory: only the rows that are sampled are read.
    Several processes may share the folder; what two of them compute is equal.

    Args:
        folder: ``MODEL.LONG_TAIL.FEATURE_CACHE``.
    """

    def __init__(self, folder: str):
        self._folder = Path(folder)
        self.place: Optional[Path] = None

    def open(self, digest: str) -> Path:
        """Use the features of one frozen model alone; return their folder.

        Args:
            digest: of all that they depend on beside image and flip.
        """
        self.place = self._folder / digest
        return self.place

    def file_of(self, record: Dict[str, Any], flipped: bool) -> Path:
        """Return where the features of an image are, or will be.

        Args:
            record: a dataset dict; other annotations of the same image have a file of their own.
            flipped: whether the image is flipped.
        """
        if self.place is None:
            raise RuntimeError("open() comes before file_of().")
        objects = [
            (*map(float, each["bbox"]), each["category_id"], each.get("iscrowd")) for each in record["annotations"]
        ]
        name = repr((record["file_name"], record["image_id"], objects, record.get("ignored_boxes")))
        digest = hashlib.blake2b(name.encode(), digest_size=12).hexdigest()
        return self.place / digest[:2] / f"{digest}{'_flipped' * flipped}.safetensors"

    @staticmethod
    def largest_file(num_regions: int, num_features: int) -> int:
        """Return about how many bytes a file takes, whose image has ``num_regions`` regions."""
        return num_regions * (num_features + 4) * _SIZE

    def num_bytes(self) -> int:
        """Return how many bytes the files take that are there."""
        return 0 if self.place is None else sum(file.stat().st_size for file in self.place.glob("*/*.safetensors"))


def write_features(path: Path, regions: RegionFeatures) -> None:
    """Write a file, whole or not at all.

    Raises:
        InputError: if it cannot be written.
    """
    write_whole(path, safetensors.torch.save(asdict(regions)))


def read_features(path: Path) -> RegionFeatures:
    """Map a file into memory.

    Raises:
        InputError: if it is damaged.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as content:
            return RegionFeatures(**{name: content.get_tensor(name) for name in RegionFeatures.__annotations__})
    except Exception as error:  # safetensors has no names for them
        raise InputError(f"{path} cannot be read ({error}); delete it, and it is computed again.") from None


class FeatureCacheMapper(LongTailDatasetMapper):
    """The mapper where features are cached: it loads the images alone whose features are not there yet.

    An example has ``feature_file``, the path of its features, and ``image_size``, its height and width as transformed.
    Where the features are there it has neither ``image`` nor ``instances``; the objects are in the file. Whichever it
    is, the same random numbers are drawn.

    Attributes:
        cache: to be opened before the first image is mapped.
    """

    cache: FeatureCache

    def __init__(self, cfg, is_train: bool = True):
        super().__init__(cfg, is_train)
        self.cache = FeatureCache(cfg.MODEL.LONG_TAIL.FEATURE_CACHE)

    def __call__(self, dataset_dict: Dict[str, Any]) -> Dict[str, Any]:
        """Same as ``LongTailDatasetMapper``'s, with the features' file."""
        state = np.random.get_state()
        transforms, shape = self._draw(dataset_dict)
        is_flipped = any(isinstance(transform, (HFlipTransform, VFlipTransform)) for transform in transforms.transforms)
        path = self.cache.file_of(dataset_dict, is_flipped)
        if path.is_file():
            example = {key: value for key, value in dataset_dict.items() if key != "annotations"}
            if self.ignore_crowd or "ignored_boxes" in dataset_dict:
                example["ignored_boxes"] = self._ignored_boxes(dataset_dict, transforms, shape)
            example = with_image_labels(example, dataset_dict.get("image_labels"))
        else:
            np.random.set_state(state)
            example = super().__call__(dataset_dict)
        return {**example, "feature_file": str(path), "image_size": shape}

    def _draw(self, record: Dict[str, Any]):
        """Return the transforms of an image and its size (height, width) after them, without the image."""
        shape, transforms = (record["height"], record["width"]), []
        for augmentation in self.augmentations.augs:
            transform = augmentation.get_transform(np.broadcast_to(np.uint8(0), (*shape, 3)))
            if isinstance(transform, ResizeTransform):
                shape = (transform.new_h, transform.new_w)
            transforms.append(transform)
        return TransformList(transforms), shape
