"""What is drawn and matched: an object of the ground truth or a detection, wherever it comes from."""

from dataclasses import dataclass
from typing import Any, Dict, List, Optional, Sequence, Tuple

import cv2
import numpy as np
import pycocotools.mask as mask_util
from detectron2.structures import BitMasks, BoxMode, Instances, PolygonMasks

from eql_d2.evaluation.mask_encoding import encode_mask


@dataclass
class VisualObject:
    """An annotated object or a detection.

    Attributes:
        label: contiguous, ``0..K-1``.
        box: left, top, right, bottom in pixels of the image.
        polygons: float64 ``[P, 2]`` each, x and y in pixels; ``None`` if the object has none.
        rle: run lengths as pycocotools takes them; ``None`` if the object has none.
        score: of a detection; ``None`` for ground truth.
        crowd: a crowd region of COCO, which stands for many objects.
        verdict: of a detection, a key of :data:`eql_d2.visualization.matching.VERDICTS`, "" for none.
    """

    label: int
    box: Tuple[float, float, float, float]
    polygons: Optional[List[np.ndarray]] = None
    rle: Optional[Dict[str, Any]] = None
    score: Optional[float] = None
    crowd: bool = False
    verdict: str = ""

    @property
    def has_mask(self) -> bool:
        """Whether there is more than a box."""
        return self.polygons is not None or self.rle is not None

    def run_lengths(self, height: int, width: int) -> Dict[str, Any]:
        """Return the mask in an image of ``height`` x ``width`` as run lengths with ``counts`` as bytes."""
        if self.rle is not None:
            return self.rle
        flat = [polygon.ravel().tolist() for polygon in self.polygons]
        return mask_util.merge(mask_util.frPyObjects(flat, height, width))

    def outlines(self, height: int, width: int) -> List[np.ndarray]:
        """Return closed outlines on a canvas of ``height`` x ``width`` that shows the image of :attr:`rle`'s size.

        The canvas may be larger or smaller than the image; polygons and boxes must have been scaled to it (see
        :meth:`scaled`).

        Returns:
            float64 ``[P, 2]`` each, x and y on the canvas.
        """
        if self.polygons is not None:
            return self.polygons
        if self.rle is None:
            left, top, right, bottom = self.box
            return [np.array([[left, top], [right, top], [right, bottom], [left, bottom]])]
        mask = mask_util.decode(self.rle).astype(np.float32)
        # Enlarged smoothly and cut at one half: the steps of the pixels do not show.
        mask = (cv2.resize(mask, (width, height), interpolation=cv2.INTER_LINEAR) > 0.5).astype(np.uint8)
        found, _ = cv2.findContours(mask, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
        return [contour.reshape(-1, 2).astype(float) for contour in found]

    def scaled(self, factor_x: float, factor_y: float) -> "VisualObject":
        """Return the object with polygons and box multiplied; run lengths keep their size."""
        factors = np.array([factor_x, factor_y])
        polygons = None if self.polygons is None else [polygon * factors for polygon in self.polygons]
        box = tuple((np.array(self.box).reshape(2, 2) * factors).ravel().tolist())
        return VisualObject(self.label, box, polygons, self.rle, self.score, self.crowd, self.verdict)


def object_of_record(record: Dict[str, Any]) -> VisualObject:
    """Return the object of an annotation of a dataset dict, or of a detection in that form.

    Args:
        record: ``category_id`` (contiguous) and a ``segmentation`` (polygons or run lengths), a bool ``mask [H, W]`` or
            a ``bbox`` (``bbox_mode`` XYXY_ABS if it has none); ``iscrowd`` and ``score`` where there are any.
    """
    polygons, rle = None, None
    if record.get("mask") is not None:
        rle = encode_mask(np.asarray(record["mask"], dtype=bool))
    elif isinstance(record.get("segmentation"), dict):
        rle = record["segmentation"]
    elif record.get("segmentation"):
        polygons = [np.asarray(polygon, dtype=float).reshape(-1, 2) for polygon in record["segmentation"]]
    if record.get("bbox") is not None:
        box = BoxMode.convert(list(record["bbox"]), record.get("bbox_mode", BoxMode.XYXY_ABS), BoxMode.XYXY_ABS)
    else:
        box = _enclosing_box(polygons, rle)
    crowd = bool(record.get("iscrowd", 0))
    return VisualObject(int(record["category_id"]), tuple(map(float, box)), polygons, rle, record.get("score"), crowd)


def _enclosing_box(polygons: Optional[Sequence[np.ndarray]], rle: Optional[Dict[str, Any]]) -> Tuple[float, ...]:
    if polygons is not None:
        points = np.concatenate(polygons)
        return (*points.min(axis=0), *points.max(axis=0))
    left, top, width, height = mask_util.toBbox(rle)
    return left, top, left + width, top + height


def objects_of_instances(instances: Instances) -> List[VisualObject]:
    """Return the objects of training targets: ``gt_classes``, ``gt_boxes`` and, if there, ``gt_masks``."""
    masks: Any = instances.gt_masks if instances.has("gt_masks") else [None] * len(instances)
    objects = []
    for i, (label, box) in enumerate(zip(instances.gt_classes.tolist(), instances.gt_boxes.tensor.tolist())):
        polygons, rle = None, None
        if isinstance(masks, PolygonMasks):
            polygons = [np.asarray(polygon, dtype=float).reshape(-1, 2) for polygon in masks.polygons[i]]
        elif isinstance(masks, BitMasks):
            rle = encode_mask(masks.tensor[i].cpu().numpy())
        objects.append(VisualObject(label, tuple(box), polygons, rle))
    return objects
