"""Test-time augmentation: the detections of one image at several scales, and mirrored, joined into one list.

Detectron2's ``GeneralizedRCNNWithTTA`` does it for R-CNNs alone, and always averages the masks over every view.
"""

import contextlib
from typing import Any, Dict, Iterator, List, NamedTuple

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.layers import batched_nms
from detectron2.modeling import DatasetMapperTTA, GeneralizedRCNN
from detectron2.modeling.meta_arch import RetinaNet
from detectron2.structures import Boxes, Instances
from fvcore.transforms import HFlipTransform, TransformList
from torch import Tensor, nn

from eql_d2.errors import InputError
from eql_d2.modeling.rcnn import postprocess


class View(NamedTuple):
    """An image as the model sees it.

    Attributes:
        image: uint8 or float ``[C, H', W']``.
        transforms: from the output, ``height`` x ``width`` pixels, to it.
    """

    image: Tensor
    transforms: TransformList

    @property
    def is_mirrored(self) -> bool:
        return any(isinstance(transform, HFlipTransform) for transform in self.transforms.transforms)


def views_of(x: Dict[str, Any], mapper: DatasetMapperTTA) -> List[View]:
    """Return the views that a mapper makes of an image."""
    return [View(view["image"], view["transforms"]) for view in mapper(x)]


class TestTimeAugmentation(nn.Module):
    """A detector that looks at an image at each of ``TEST.AUG.MIN_SIZES``, with ``TEST.AUG.FLIP`` mirrored too.

    Boxes: each view is detected as usual, with its own scores, calibration, threshold, NMS and cap; the detections of
    all views, in the pixels of the output, go through NMS class by class once more, and the best
    ``TEST.DETECTIONS_PER_IMAGE`` are kept. Masks: the mask head looks at the joined boxes in every view, and the
    probabilities are averaged; with ``MODEL.LONG_TAIL.TTA.MASKS`` false it looks at them in the plain view alone,
    ``INPUT.MIN_SIZE_TEST``. A view is a batch of its own, so that what is beside it has no influence.

    Args:
        cfg: of the model.
        model: an R-CNN, with or without masks, or a RetinaNet; in evaluation mode where it is called.

    Raises:
        InputError: for a model of another kind, for keypoints, or without a scale.
    """

    #: pytest takes the name for that of tests.
    __test__ = False

    def __init__(self, cfg: CfgNode, model: nn.Module):
        super().__init__()
        if isinstance(model, nn.parallel.DistributedDataParallel):
            model = model.module
        check_augmentable(cfg, model)
        self.model = model
        self.views = DatasetMapperTTA(cfg)
        self.plain_view = DatasetMapperTTA([cfg.INPUT.MIN_SIZE_TEST], cfg.INPUT.MAX_SIZE_TEST, False)
        self.averages_masks = cfg.MODEL.LONG_TAIL.TTA.MASKS
        self.has_masks = isinstance(model, GeneralizedRCNN) and cfg.MODEL.MASK_ON
        node = cfg.MODEL.ROI_HEADS if isinstance(model, GeneralizedRCNN) else cfg.MODEL.RETINANET
        self.nms_thresh = node.NMS_THRESH_TEST
        self.max_detections = cfg.TEST.DETECTIONS_PER_IMAGE

    def forward(self, batched_inputs: List[Dict[str, Any]]) -> List[Dict[str, Instances]]:
        """Return the detections of each image.

        Args:
            batched_inputs: dicts with ``image``, a uint8 tensor ``[C, H, W]``, best as it is in its file, and the
                ``height`` and ``width`` in pixels that the detections are wanted in, those of the image if not given.

        Returns:
            For each image ``{"instances": Instances}`` with ``pred_boxes``, ``scores``, ``pred_classes`` and, of a
            model with masks, ``pred_masks`` as of :class:`~eql_d2.modeling.rcnn.LongTailRCNN`; best first.
        """
        return [{"instances": self._detect(x)} for x in batched_inputs]

    @torch.no_grad()
    def _detect(self, x: Dict[str, Any]) -> Instances:
        height, width = x.get("height", x["image"].shape[1]), x.get("width", x["image"].shape[2])
        plain = {"image": x["image"], "height": height, "width": width}
        views = views_of(plain, self.views)
        detections = self._merge([self._boxes_in(view) for view in views], (height, width))
        if self.has_masks:
            views = views if self.averages_masks else views_of(plain, self.plain_view)
            # One view in memory at a time.
            detections.pred_masks = sum(self._masks_in(view, detections) for view in views) / len(views)
        return postprocess(detections, x)

    def _boxes_in(self, view: View) -> Instances:
        """Detect in a view; the boxes are in the pixels of the output."""
        with self._without_masks():
            (found,) = self.model([{"image": view.image}])
        found = found["instances"]
        boxes = view.transforms.inverse().apply_box(found.pred_boxes.tensor.cpu().numpy())
        found.pred_boxes = Boxes(torch.as_tensor(np.asarray(boxes), dtype=torch.float32, device=found.scores.device))
        return found

    def _merge(self, of_views: List[Instances], size) -> Instances:
        """Apply NMS to the detections of all views together, class by class, and keep the best."""
        boxes = Boxes.cat([found.pred_boxes for found in of_views])
        boxes.clip(size)
        scores = torch.cat([found.scores for found in of_views])
        classes = torch.cat([found.pred_classes for found in of_views])
        keep = batched_nms(boxes.tensor, scores, classes, self.nms_thresh)
        if self.max_detections >= 0:
            keep = keep[: self.max_detections]
        return Instances(size, pred_boxes=boxes[keep], scores=scores[keep], pred_classes=classes[keep])

    def _masks_in(self, view: View, detections: Instances) -> Tensor:
        """Return the mask probabilities ``[N, 1, M, M]`` of the detections' boxes as the view shows them."""
        boxes = view.transforms.apply_box(detections.pred_boxes.tensor.cpu().numpy())
        boxes = Boxes(torch.as_tensor(np.asarray(boxes), dtype=torch.float32))
        given = Instances(tuple(view.image.shape[1:]), pred_boxes=boxes)
        given.scores, given.pred_classes = detections.scores, detections.pred_classes
        (found,) = self.model.inference([{"image": view.image}], [given], do_postprocess=False)
        return found.pred_masks.flip(dims=[3]) if view.is_mirrored else found.pred_masks

    @contextlib.contextmanager
    def _without_masks(self) -> Iterator[None]:
        if not self.has_masks:
            yield
            return
        self.model.roi_heads.mask_on = False
        try:
            yield
        finally:
            self.model.roi_heads.mask_on = True


def check_augmentable(cfg: CfgNode, model: nn.Module) -> None:
    """See that a model can be tested with augmentation.

    Raises:
        InputError: if it is no R-CNN and no RetinaNet, predicts keypoints, is given its proposals, or has no scale.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    if not isinstance(model, (GeneralizedRCNN, RetinaNet)):
        raise InputError(
            f"TEST.AUG.ENABLED is True, but MODEL.META_ARCHITECTURE {name} is neither an R-CNN nor a RetinaNet; "
            f"test-time augmentation is for these, set it to False."
        )
    for key, value in (("KEYPOINT_ON", cfg.MODEL.KEYPOINT_ON), ("LOAD_PROPOSALS", cfg.MODEL.LOAD_PROPOSALS)):
        if value:
            raise InputError(f"TEST.AUG.ENABLED and MODEL.{key} are True; test-time augmentation has no {key}.")
    if not len(cfg.TEST.AUG.MIN_SIZES):
        raise InputError("TEST.AUG.MIN_SIZES is empty; name the lengths of the shorter side, as in (600, 800, 1000).")
