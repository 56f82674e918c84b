"""Keeping what lies in ignored boxes out of the background that anchors and proposals are sampled from."""

from typing import Dict, List, Optional, Tuple

import torch
from detectron2.modeling.proposal_generator import PROPOSAL_GENERATOR_REGISTRY, RPN
from detectron2.structures import Boxes, Instances, pairwise_ioa
from torch import Tensor

from eql_d2.errors import InputError
from eql_d2.modeling.frozen import is_frozen


class IgnoredRegions:
    """The ignored boxes of a batch, and what counts as lying in them.

    Args:
        boxes: of each image.
        threshold: a box lies in the ignored regions if one of them covers at least this share of its area (IoA).
    """

    def __init__(self, boxes: List[Boxes], threshold: float):
        self.boxes, self.threshold = boxes, threshold

    @classmethod
    def of_batch(cls, inputs: List[Dict], threshold: float, device: torch.device) -> Optional["IgnoredRegions"]:
        """Take the field ``ignored_boxes`` (float32 ``[M, 4]`` XYXY) of a batch; ``None`` if no image has a box."""
        found = [x.get("ignored_boxes") for x in inputs]
        if not any(boxes is not None and len(boxes) for boxes in found):
            return None
        return cls([Boxes(torch.zeros(0, 4) if boxes is None else boxes).to(device) for boxes in found], threshold)

    def cover(self, image: int, boxes: Boxes) -> Tensor:
        """Return bool ``[R]``: whether each of R boxes of an image lies in the ignored regions."""
        ignored = self.boxes[image]
        if not len(ignored):
            return torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
        return pairwise_ioa(ignored, boxes).amax(dim=0) >= self.threshold


def ignored_threshold(cfg) -> float:
    """Return ``MODEL.LONG_TAIL.IGNORED.THRESHOLD``.

    Raises:
        InputError: if it is no share of an area.
    """
    threshold = cfg.MODEL.LONG_TAIL.IGNORED.THRESHOLD
    if not 0 < threshold <= 1:
        raise InputError(
            f"MODEL.LONG_TAIL.IGNORED.THRESHOLD is {threshold}; it is the share of an anchor's or a proposal's area "
            f"that an ignored box covers, above 0 and at most 1."
        )
    return threshold


@PROPOSAL_GENERATOR_REGISTRY.register()
class LongTailRPN(RPN):
    """``RPN`` that samples no background anchor which lies in an ignored region, and has no losses where it is frozen.

    :class:`~eql_d2.modeling.rcnn.LongTailRCNN` builds it where the config names ``RPN``; else it is the same. A frozen
    one samples its anchors as ever, so that the random numbers after them, those of the ROI heads, stay what they are.

    Attributes:
        ignored: of the batch; set by the meta architecture for one forward pass.
        anchor_counts: a list takes, for each image, int64 ``[2]``: the positive and negative anchors to sample from.
    """

    ignored: Optional[IgnoredRegions] = None
    anchor_counts: Optional[List[Tensor]] = None
    _images = 0

    @torch.no_grad()
    def label_and_sample_anchors(
        self, anchors: List[Boxes], gt_instances: List[Instances]
    ) -> Tuple[List[Tensor], List[Tensor]]:
        """Same as ``RPN.label_and_sample_anchors``."""
        self._joined, self._images = Boxes.cat(anchors), 0
        return super().label_and_sample_anchors(anchors, gt_instances)

    def _subsample_labels(self, label: Tensor) -> Tensor:
        # The inherited method asks once for each image, in order, and tells the labels alone.
        if self.ignored is not None:
            label = torch.where(self.ignored.cover(self._images, self._joined) & (label == 0), -1, label)
        self._images += 1
        if self.anchor_counts is not None:
            self.anchor_counts.append(torch.stack([(label == 1).sum(), (label == 0).sum()]))
        return super()._subsample_labels(label)

    def losses(self, *args, **kwargs) -> Dict[str, Tensor]:
        """Same as ``RPN.losses``; none where no parameter is trained."""
        return {} if is_frozen(self) else super().losses(*args, **kwargs)
