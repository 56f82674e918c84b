"""Which anchor belongs to which object."""

from typing import List, Tuple

import torch
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor

#: How far inside of a box, in pixels, an anchor's centre must lie (mmdetection, United-Perception).
INSIDE_MARGIN = 0.01


@torch.no_grad()
def atss(anchors: List[Boxes], gt_boxes: Boxes, topk: int) -> Tuple[Tensor, Tensor]:
    """Assign anchors to objects by adaptive training sample selection (ATSS, arXiv 1912.02424, algorithm 1).

    Candidates of an object are, on each level, the ``topk`` anchors with the nearest centres. Those are assigned whose
    IoU reaches mean plus standard deviation of the IoU of all its candidates, if their centre lies in the object's box.
    An anchor that two objects could have goes to the one with the larger IoU.

    Args:
        anchors: of each level.
        gt_boxes: M objects of one image.
        topk: candidates of an object on each level: 9 for each anchor of a place.

    Returns:
        int64 ``[R]``, the object of each anchor of all levels, and bool ``[R]``, whether it has one; where it has none
        the first is 0.
    """
    centers = torch.cat([level.get_centers() for level in anchors])
    num_anchors, num_objects = len(centers), len(gt_boxes)
    if num_objects == 0:
        return centers.new_zeros(num_anchors, dtype=torch.int64), centers.new_zeros(num_anchors, dtype=torch.bool)
    iou = pairwise_iou(gt_boxes, Boxes.cat(anchors))
    distance = torch.cdist(gt_boxes.get_centers(), centers)
    candidates, start = [], 0
    for level in anchors:
        end = start + len(level)
        nearest = distance[:, start:end].topk(min(topk, len(level)), dim=1, largest=False)[1]
        candidates.append(nearest + start)
        start = end
    candidates = torch.cat(candidates, dim=1)
    overlaps = iou.gather(1, candidates)
    threshold = overlaps.mean(1, keepdim=True) + overlaps.std(1, keepdim=True, unbiased=overlaps.shape[1] > 1)
    corners = gt_boxes.tensor.unsqueeze(1)
    inside = torch.cat([centers[candidates] - corners[..., :2], corners[..., 2:] - centers[candidates]], dim=2)
    chosen = (overlaps >= threshold) & (inside.amin(2) > INSIDE_MARGIN)
    # IoU of the anchors with the objects that chose them, -1 elsewhere.
    of_objects = torch.full_like(iou, -1.0)
    of_objects.scatter_(1, candidates, torch.where(chosen, overlaps, -1.0))
    best, index = of_objects.max(0)
    assigned = best >= 0
    return torch.where(assigned, index, 0), assigned
