"""From a dataset dict to what the model takes, with the image-level labels."""

import copy
from typing import Any, Dict, Optional

import numpy as np
import torch
from detectron2.config import configurable
from detectron2.data import DatasetMapper
from detectron2.data.detection_utils import SizeMismatchError, check_image_size, read_image
from detectron2.data.transforms import AugInput
from detectron2.structures import Boxes

from eql_d2.data.catalog import describe_dataset
from eql_d2.data.copy_paste import jitter_settings
from eql_d2.data.ignored import own_ignored_boxes
from eql_d2.data.image_files import load_image, read_upright_size
from eql_d2.data.index_masks import read_mask, transform_mask
from eql_d2.data.records import RecordError
from eql_d2.data.segmentation import check_polygon, check_run_lengths
from eql_d2.errors import InputError


class LongTailDatasetMapper(DatasetMapper):
    """Detectron2's mapper, with the image-level labels of the record added to each training example.

    The example then has ``image_labels``: ``positive`` and ``negative``, int64 ``[any length]`` each, sorted labels
    ``0..K-1``. They are the record's own, which come from all annotations of the image (see
    :func:`eql_d2.data.lvis.load_lvis`): cropping away an object does not make its class less verified. Data sets
    without image-level labels give examples without ``image_labels``.

    With ignored regions (``MODEL.LONG_TAIL.IGNORED``) an example has ``ignored_boxes`` too, float32 ``[M, 4]``: left,
    top, right, bottom in pixels of the transformed image, what is cropped away left out.

    An image whose record has ``has_masks`` False gives instances without ``gt_masks``, where masks are trained too.

    Args:
        args, kwargs: as for Detectron2's mapper: ``(cfg, is_train)`` or its explicit arguments.
        listed_in: the data set that names the images, for messages.
        ignore_crowd: whether crowd regions and group-of boxes join the ``ignored_boxes`` of the record.
    """

    @configurable
    def __init__(self, *args: Any, listed_in: str = "the data set", ignore_crowd: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.listed_in, self.ignore_crowd = listed_in, ignore_crowd

    @classmethod
    def from_config(cls, cfg, is_train: bool = True) -> Dict[str, Any]:
        names = cfg.DATASETS.TRAIN if is_train else cfg.DATASETS.TEST
        listed_in = ", ".join(describe_dataset(name) for name in names)
        ret = {**super().from_config(cfg, is_train), "listed_in": listed_in or "the data set"}
        if not is_train:
            return ret
        return {**ret, **jitter_settings(cfg), "ignore_crowd": cfg.MODEL.LONG_TAIL.IGNORED.CROWD}

    def __call__(self, dataset_dict: Dict[str, Any]) -> Dict[str, Any]:
        """Read and transform one image.

        Args:
            dataset_dict: a dataset dict; not modified.

        Raises:
            InputError: if the image is missing, cannot be decoded, is of another size than the json says, or an
                instance has no mask where masks are trained, or one that cannot be drawn.
        """
        record = copy.copy(dataset_dict)
        image_labels = record.pop("image_labels", None)
        if self.is_train and self.use_instance_mask and record.get("has_masks", True):
            self._check_masks(record)
        try:
            read_upright_size(record["file_name"])  # before Detectron2 opens whatever it is
            example = self._map(record)
        except SizeMismatchError as error:
            raise self._error(record, f"is of another size than its json says ({error})") from None
        except FileNotFoundError:
            raise self._error(record, "is not there") from None
        except Exception:  # a broken image may raise anything, and so may what is done to a sound one
            reason = _unreadable(record["file_name"])
            if reason is None:
                raise
            raise self._error(record, f"cannot be read as an image ({reason})") from None
        return with_image_labels(example, image_labels if self.is_train else None)

    def _map(self, record: Dict[str, Any]) -> Dict[str, Any]:
        return super().__call__(record)

    def _transform_annotations(self, dataset_dict: Dict[str, Any], transforms: Any, image_shape: Any) -> None:
        """Same as Detectron2's; an image with a run-length mask gets bit masks, whatever ``INPUT.MASK_FORMAT`` is.

        Run lengths have no polygons, and the mask head takes each image's masks in the form that it has them.
        """
        if self.ignore_crowd or "ignored_boxes" in dataset_dict:
            dataset_dict["ignored_boxes"] = self._ignored_boxes(dataset_dict, transforms, image_shape)
        mapper = self
        if self.use_instance_mask and any(
            isinstance(annotation.get("segmentation"), dict) and not annotation.get("iscrowd", 0)
            for annotation in dataset_dict["annotations"]
        ):
            mapper = copy.copy(self)
            mapper.instance_mask_format = "bitmask"
        without_masks = not dataset_dict.get("has_masks", True)
        if without_masks:
            for annotation in dataset_dict["annotations"]:
                annotation.pop("segmentation", None)
        if without_masks or all(annotation.get("iscrowd", 0) for annotation in dataset_dict["annotations"]):
            mapper = copy.copy(mapper)
            mapper.recompute_boxes = False  # Detectron2 would ask masks for them that are not there
        super(LongTailDatasetMapper, mapper)._transform_annotations(dataset_dict, transforms, image_shape)

    def _ignored_boxes(self, record: Dict[str, Any], transforms: Any, image_shape: Any) -> torch.Tensor:
        own = own_ignored_boxes(record["annotations"] if self.ignore_crowd else ())
        boxes = np.concatenate([record.get("ignored_boxes", own[:0]), own])
        transformed = Boxes(torch.as_tensor(transforms.apply_box(boxes).reshape(-1, 4), dtype=torch.float32))
        transformed.clip(image_shape)
        return transformed.tensor[transformed.nonempty()]

    def _check_masks(self, record: Dict[str, Any]) -> None:
        for number, annotation in enumerate(record.get("annotations", ())):
            if annotation.get("iscrowd", 0):  # not trained on
                continue
            if "segmentation" not in annotation:
                raise RecordError(
                    f"{self.listed_in}: an instance of image {record.get('image_id')} has no segmentation; "
                    f"set MODEL.MASK_ON False to train on boxes alone."
                )
            try:
                _check_mask(annotation["segmentation"], record)
            except InputError as error:
                raise RecordError(
                    f"{self.listed_in}: the segmentation of instance {number} of image {record.get('image_id')} "
                    f"{error}; eql-d2 check-dataset lists all such."
                ) from None

    def _error(self, record: Dict[str, Any], what: str) -> RecordError:
        return RecordError(
            f"{record['file_name']}, listed in {self.listed_in}, {what}; eql-d2 check-dataset lists all such images."
        )


class SegmentationMapper(LongTailDatasetMapper):
    """Reads and transforms an image with its index mask, of 8 or 16 bits: an example for semantic segmentation.

    It has ``image``, uint8 ``[C, H, W]``, and in training ``sem_seg``, int64 ``[H, W]``: labels ``0..K-1``, and the
    data set's ``ignore_label`` where there is none. Takes records of
    :class:`~eql_d2.data.semantic.SegmentationRecords`; arguments as for :class:`LongTailDatasetMapper`.

    Raises:
        InputError: as :class:`LongTailDatasetMapper` and :func:`~eql_d2.data.index_masks.read_mask`.
    """

    def _map(self, record: Dict[str, Any]) -> Dict[str, Any]:
        image = read_image(record["file_name"], format=self.image_format)
        check_image_size(record, image)
        mask_file, values = record.pop("sem_seg_file_name"), record.pop("mask_values")
        labels = read_mask(mask_file, values, image.shape[1::-1]) if self.is_train else None
        seen = AugInput(image)
        transforms = self.augmentations(seen)
        record["image"] = torch.as_tensor(np.ascontiguousarray(seen.image.transpose(2, 0, 1)))
        if labels is not None:
            record["sem_seg"] = torch.from_numpy(transform_mask(labels, transforms, values))
        return record


def with_image_labels(example: Dict[str, Any], image_labels: Optional[Dict[str, Any]]) -> Dict[str, Any]:
    """Add a record's ``image_labels``, if it has any, to an example, in place; return it."""
    if image_labels is not None:
        example["image_labels"] = {
            key: torch.as_tensor(image_labels[key], dtype=torch.int64) for key in ("positive", "negative")
        }
    return example


def _unreadable(path: str) -> Optional[str]:
    """Return why an image file cannot be read, ``None`` if it can."""
    try:
        load_image(path)
    except OSError as error:
        return str(error)
    return None


def _check_mask(mask: Any, record: Dict[str, Any]) -> None:
    if isinstance(mask, dict):
        height, width = mask["size"]
        check_run_lengths(mask["size"], mask["counts"], record.get("height", height), record.get("width", width))
    else:
        for polygon in mask:
            check_polygon(polygon)
