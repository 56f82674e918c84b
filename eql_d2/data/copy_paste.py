"""Large-scale jitter, and simple copy-paste of objects between images (Ghiasi et al., arXiv 2012.07177)."""

from typing import Any, Callable, Dict, List, Sequence

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from detectron2.structures import BitMasks, Instances
from torch import Tensor

from eql_d2.data.records import Record
from eql_d2.data.samplers import images_of_class
from eql_d2.errors import InputError

SOURCES = ("uniform", "rare")


def jitter_settings(cfg: CfgNode) -> Dict[str, Any]:
    """Return the arguments of Detectron2's mapper that ``MODEL.LONG_TAIL.AUGMENT`` changes; none if all of it is off.

    Raises:
        InputError: for copy-paste without large-scale jitter, which makes all images of one size, or with keypoints.
    """
    node = cfg.MODEL.LONG_TAIL.AUGMENT
    if not node.SCALE_JITTER and node.COPY_PASTE:
        raise InputError(
            "MODEL.LONG_TAIL.AUGMENT.COPY_PASTE needs images of one size; set AUGMENT.SCALE_JITTER, (0.1, 2.0) or "
            "(0.8, 1.25) in the paper."
        )
    if not node.SCALE_JITTER:
        return {}
    settings = {"augmentations": jitter_augmentations(cfg), "recompute_boxes": cfg.MODEL.MASK_ON}
    if node.COPY_PASTE:
        if cfg.MODEL.KEYPOINT_ON:
            raise InputError("MODEL.LONG_TAIL.AUGMENT.COPY_PASTE knows nothing of keypoints; set it to 0.")
        settings.update(use_instance_mask=True, recompute_boxes=True, instance_mask_format="bitmask")
    return settings


def jitter_augmentations(cfg: CfgNode) -> List[T.Augmentation]:
    """Return large-scale jitter: a random size, a crop or padding to a square of ``AUGMENT.SIZE``, and the flip.

    The image is resized to fit into the square times a factor, uniform between the two of ``AUGMENT.SCALE_JITTER``, by
    Detectron2's ``ResizeScale``; ``FixedSizeCrop`` pads with grey (128).

    Raises:
        InputError: for factors or a size that make no image, or with ``INPUT.CROP.ENABLED``.
    """
    node = cfg.MODEL.LONG_TAIL.AUGMENT
    factors = tuple(node.SCALE_JITTER)
    if len(factors) != 2 or not 0 < factors[0] <= factors[1]:
        raise InputError(
            f"MODEL.LONG_TAIL.AUGMENT.SCALE_JITTER is {factors}; it is () or two factors above 0, the smaller first, "
            f"as in (0.1, 2.0)."
        )
    if node.SIZE < 1:
        raise InputError(f"MODEL.LONG_TAIL.AUGMENT.SIZE is {node.SIZE}; it is the side of a square in pixels.")
    if cfg.INPUT.CROP.ENABLED:
        raise InputError("MODEL.LONG_TAIL.AUGMENT.SCALE_JITTER crops too; set INPUT.CROP.ENABLED False.")
    square = (node.SIZE, node.SIZE)
    flip = cfg.INPUT.RANDOM_FLIP
    flips = [T.RandomFlip(horizontal=flip == "horizontal", vertical=flip == "vertical")] if flip != "none" else []
    return [T.ResizeScale(*factors, *square), T.FixedSizeCrop(square), *flips]


class CopyPasteMapper:
    """Pastes objects of another image into each training example, by their masks.

    The other image is read, jittered and flipped like the first; of its objects each is pasted with a probability of
    one half. Masks of objects underneath lose what is covered, boxes become those of the masks, and an object that is
    covered whole is dropped. Pasted classes join the image-level labels: they are verified now. Random numbers are
    NumPy's global ones, which Detectron2's workers seed.

    Args:
        mapper: of single images, to examples of one size with ``BitMasks``.
        dataset: the records that objects are taken from.
        probability: of an image being pasted into.
        source: "uniform" over the images, or "rare": a class is drawn, all with the same chance, and an image of it,
            of which the objects of that class are pasted, all of them.
        places: the place in ``dataset`` of the image of each instance, int ``[A]``, for "rare".
        labels: its label, int ``[A]``.
        keep_masks: whether the examples keep their masks.

    Raises:
        InputError: for a probability or source that there is not.
    """

    def __init__(
        self,
        mapper: Callable[[Record], Dict[str, Any]],
        dataset: Sequence[Record],
        probability: float,
        source: str,
        places: np.ndarray,
        labels: np.ndarray,
        keep_masks: bool,
    ):
        if not 0 <= probability <= 1:
            raise InputError(f"MODEL.LONG_TAIL.AUGMENT.COPY_PASTE is {probability}; it is a probability, 0 is off.")
        if source not in SOURCES:
            raise InputError(
                f"MODEL.LONG_TAIL.AUGMENT.COPY_PASTE_SOURCE is {source!r}; there are "
                f"{' and '.join(map(repr, SOURCES))}."
            )
        self._mapper, self._dataset, self._probability, self._keep_masks = mapper, dataset, probability, keep_masks
        self._classes: List[Tensor] = []
        if source == "rare":
            self._labels = np.unique(labels)  # in the order of the lists of images
            self._classes = images_of_class(places, labels)

    def __call__(self, record: Record) -> Dict[str, Any]:
        """Return the example of a record, as the mapper makes it, with objects pasted in."""
        example = self._mapper(record)
        instances = example["instances"]
        if not instances.has("gt_masks"):
            if len(instances):  # of a source without masks: nothing can be pasted over its objects
                return example
            instances.gt_masks = BitMasks(torch.zeros(0, *instances.image_size, dtype=torch.bool))
        if np.random.rand() < self._probability:
            self._paste_into(example)
        if not self._keep_masks:
            example["instances"].remove("gt_masks")
        return example

    def _paste_into(self, example: Dict[str, Any]) -> None:
        if self._classes:
            drawn = np.random.randint(len(self._classes))
            images = self._classes[drawn]
            other = self._mapper(self._dataset[int(images[np.random.randint(len(images))])])
            chosen = other["instances"].gt_classes == int(self._labels[drawn])
        else:
            other = self._mapper(self._dataset[np.random.randint(len(self._dataset))])
            chosen = torch.from_numpy(np.random.rand(len(other["instances"])) < 0.5)
        if chosen.any() and other["instances"].has("gt_masks"):
            paste(example, other["image"], other["instances"][chosen])


def paste(example: Dict[str, Any], image: Tensor, objects: Instances) -> None:
    """Paste objects into an example, in place.

    Args:
        example: ``image`` uint8 ``[3, H, W]``; ``instances`` with ``gt_boxes``, ``gt_classes`` and ``BitMasks``; maybe
            ``image_labels``.
        image: that the objects are in, of the same size.
        objects: at least one, with the same fields.
    """
    covered = objects.gt_masks.tensor.any(dim=0)
    example["image"] = torch.where(covered, image, example["image"])
    below: Instances = example["instances"]
    masks = below.gt_masks.tensor & ~covered
    is_changed = (masks != below.gt_masks.tensor).flatten(1).any(dim=1)
    below.gt_masks = BitMasks(masks)
    # A box that was not the mask's own stays while nothing of its object is covered.
    boxes = below.gt_boxes.clone()
    boxes.tensor[is_changed] = below.gt_masks[is_changed].get_bounding_boxes().tensor
    below.gt_boxes = boxes
    example["instances"] = Instances.cat([below[masks.flatten(1).any(dim=1)], objects])
    if "image_labels" in example:
        labels = example["image_labels"]
        pasted = objects.gt_classes.unique()
        positive = torch.cat([labels["positive"], pasted]).unique()
        example["image_labels"] = {
            "positive": positive,
            "negative": labels["negative"][~torch.isin(labels["negative"], positive)],
        }
