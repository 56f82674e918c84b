"""Detectron2's post-processing of box predictions, at a cost that does not explode with the number of classes.

With 1230 classes and a score threshold near zero, Detectron2 runs non-maximum suppression (NMS) over a million boxes of
an image and then keeps the best 300. The functions here return the same boxes, scores, classes and indices after NMS
over a few of the best.

Why that is exact. NMS visits the boxes of a class in the order of falling score, equal scores in the order of their
position (row by row of the ``[R, K]`` scores), and drops a box that overlaps a *kept, earlier* one of its class.
Whether a box is kept so depends on earlier boxes alone: NMS over the first m boxes of that order keeps exactly those of
the first m that NMS over all boxes keeps. If at least ``topk`` of the m survive, the first ``topk`` of them are the
first ``topk`` of all. If fewer survive, m is quadrupled, at most until m is the number of boxes above the threshold.

Why it is equal to the last bit. The overlaps must be computed from the same numbers. ``torchvision.ops.batched_nms``
shifts the boxes of each class to a place of their own if it is given few boxes, which rounds their corners by an amount
that depends on the largest coordinate of all of them, and otherwise treats one class after the other, unshifted. Up to
that limit all boxes are handed to it here as well; above it, the candidates are treated class by class.

Where two scores are equal. The order above is Detectron2's own up to that limit. Above it Detectron2 sorts the
survivors with ``torch.sort``, which promises no order of equal values (and gives none from about 20 values on, on a CPU
with AVX2); equal scores may then come out in another order than Detectron2's, and a tie across the topk-th place may
be cut elsewhere. Here the earlier position wins. Where NMS had to see every box, the same ``torch.sort`` is called, and
even equal scores come out as they do there.
"""

import math
from typing import List, Tuple

import torch
from detectron2.layers import batched_nms
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torchvision.ops import nms

#: Candidates of the first round per detection wanted, and the growth from round to round.
CANDIDATES_PER_DETECTION = 4
#: Candidates per detection wanted in a trace, which has one round.
TRACED_CANDIDATES_PER_DETECTION = 16
#: Up to this many boxes torchvision's batched_nms shifts the boxes of each class; above, every release of torchvision
#: takes them class by class. On a GPU the older releases stop shifting at 5,000 already, which only costs time.
MAX_SHIFTED_BOXES_CPU = 1_000
MAX_SHIFTED_BOXES_GPU = 25_000
#: Neighbouring classes of a region whose largest score stands for them while the candidates are sought.
MAX_BLOCK_WIDTH = 64


def fast_rcnn_inference(
    boxes: List[Tensor],
    scores: List[Tensor],
    image_shapes: List[Tuple[int, int]],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> Tuple[List[Instances], List[Tensor]]:
    """Call :func:`fast_rcnn_inference_single_image` for every image.

    A replacement of the function of the same name in ``detectron2.modeling.roi_heads.fast_rcnn``.

    Args:
        boxes: one tensor per image, float ``[R_i, 4]`` (class-agnostic) or ``[R_i, K * 4]``.
        scores: one tensor per image, float32 ``[R_i, K + 1]``; the last column is background.
        image_shapes: (height, width) of each image.
        score_thresh: only detections with a higher score are returned.
        nms_thresh: overlap (IoU) above which the lower-scored box of a class is dropped.
        topk_per_image: number of detections to return for an image; all if negative.

    Returns:
        The detections of each image, and the row of ``boxes`` and ``scores`` that each of them comes from.
    """
    results = [
        fast_rcnn_inference_single_image(
            boxes_per_image, scores_per_image, image_shape, score_thresh, nms_thresh, topk_per_image
        )
        for boxes_per_image, scores_per_image, image_shape in zip(boxes, scores, image_shapes)
    ]
    return [instances for instances, _ in results], [rows for _, rows in results]


def fast_rcnn_inference_single_image(
    boxes: Tensor,
    scores: Tensor,
    image_shape: Tuple[int, int],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> Tuple[Instances, Tensor]:
    """Threshold the scores of one image, apply NMS to each class, and keep the best detections.

    Args:
        boxes: float ``[R, 4]`` or ``[R, K * 4]``.
        scores: float32 ``[R, K + 1]``.
        image_shape: (height, width), to which the boxes are clipped.
        score_thresh: as in :func:`fast_rcnn_inference`, and so on.
        nms_thresh: the same.
        topk_per_image: the same.

    Returns:
        The detections, best first, with ``pred_boxes``, ``scores`` and ``pred_classes``; and int64 ``[N]``, the row
        that each comes from. As in Detectron2, rows with a NaN or an infinity are left out first and do not count.
    """
    if torch.jit.is_tracing():
        return traced_inference(boxes, scores, image_shape, score_thresh, nms_thresh, topk_per_image)
    boxes, scores = drop_non_finite_rows(boxes, scores)
    search = CandidateSearch(boxes, scores, image_shape, score_thresh)
    if search.num_boxes <= (MAX_SHIFTED_BOXES_CPU if scores.device.type == "cpu" else MAX_SHIFTED_BOXES_GPU):
        candidates = search.best(search.num_boxes)
        keep = batched_nms(candidates.boxes, candidates.scores, candidates.classes, nms_thresh)
    else:
        candidates, keep = nms_over_best(search, nms_thresh, topk_per_image)
    if topk_per_image >= 0:
        keep = keep[:topk_per_image]
    result = Instances(image_shape)
    result.pred_boxes = Boxes(candidates.boxes[keep])
    result.scores = candidates.scores[keep]
    result.pred_classes = candidates.classes[keep]
    return result, candidates.rows[keep]


def traced_inference(
    boxes: Tensor,
    scores: Tensor,
    image_shape: Tuple[int, int],
    score_thresh: float,
    nms_thresh: float,
    topk_per_image: int,
) -> Tuple[Instances, Tensor]:
    """Do the same within a trace, which cannot hold rounds whose number depends on the scores: in one round.

    The ``topk`` best boxes after NMS over the ``TRACED_CANDIDATES_PER_DETECTION * topk`` best are those of all boxes
    if as many survive, or no more are above the threshold. Values that are not finite are not looked for.

    Arguments and result: :func:`fast_rcnn_inference_single_image`.
    """
    above = (scores[:, :-1] > score_thresh).nonzero()
    values = scores[above[:, 0], above[:, 1]]
    order = values.argsort(descending=True)
    if topk_per_image >= 0:
        order = order[: TRACED_CANDIDATES_PER_DETECTION * max(topk_per_image, 1)]
    rows, classes = above[order, 0], above[order, 1]
    clipped = Boxes(boxes[rows] if boxes.shape[1] == 4 else boxes.view(boxes.shape[0], -1, 4)[rows, classes])
    clipped.clip(image_shape)
    extent = torch.stack([torch.as_tensor(side_of_image) for side_of_image in image_shape]).max() + 1
    keep = traced_nms(clipped.tensor, values[order], classes, int(scores.shape[1]), extent, nms_thresh)
    if topk_per_image >= 0:
        keep = keep[:topk_per_image]
    result = Instances(image_shape)
    result.pred_boxes = Boxes(clipped.tensor[keep])
    result.scores = values[order][keep]
    result.pred_classes = classes[keep]
    return result, rows[keep]


def traced_nms(
    boxes: Tensor, scores: Tensor, classes: Tensor, num_classes: int, extent: Tensor, nms_thresh: float
) -> Tensor:
    """Apply NMS to each class within a trace.

    Classes are kept apart by shifting each to a place of its own in a square of places, whose side is the root of their
    number: the corners are rounded a little less coarsely than in ``torchvision.ops.batched_nms``, which puts them in a
    row.

    Args:
        boxes: ``[m, 4]``.
        scores: ``[m]``.
        classes: int64 ``[m]``, less than ``num_classes``.
        num_classes: number of places.
        extent: scalar, more than what lies between the leftmost and the rightmost corner, and the uppermost and the
            lowermost.
        nms_thresh: as in :func:`fast_rcnn_inference_single_image`.

    Returns:
        int64 indices of the boxes that survive, best first.
    """
    side = math.ceil(math.sqrt(num_classes))
    place = torch.stack([classes % side, torch.div(classes, side, rounding_mode="floor")], dim=1)
    return nms(boxes + (place * extent.to(boxes.device)).repeat(1, 2), scores, nms_thresh)


class Candidates:
    """Boxes of single classes, in the order of their position in the ``[R, K]`` scores.

    Attributes:
        boxes: float32 ``[m, 4]``, clipped to the image.
        scores: ``[m]``.
        classes: int64 ``[m]`` in ``0..K-1``.
        rows: int64 ``[m]``, the region that each belongs to.
    """

    def __init__(self, boxes: Tensor, scores: Tensor, positions: Tensor, image_shape: Tuple[int, int]):
        num_columns = scores.shape[1]
        self.rows = torch.div(positions, num_columns, rounding_mode="floor")
        self.classes = positions - self.rows * num_columns
        self.scores = scores.view(-1)[positions]
        boxes_per_row = boxes.shape[1] // 4
        if boxes_per_row > 1:
            clipped = Boxes(boxes.view(len(boxes), boxes_per_row, 4)[self.rows, self.classes])
        else:
            clipped = Boxes(boxes[self.rows])
        clipped.clip(image_shape)
        self.boxes = clipped.tensor


class CandidateSearch:
    """Finds the best-scored boxes of an image without sorting all of them.

    Positions count through the ``[R, K + 1]`` scores with the background in, which orders the foreground as positions
    in ``[R, K]`` do, and spares a copy without the last column.
    """

    def __init__(self, boxes: Tensor, scores: Tensor, image_shape: Tuple[int, int], score_thresh: float):
        self.boxes = boxes.contiguous()
        self.scores = scores.contiguous()
        self.image_shape = image_shape
        self.score_thresh = score_thresh
        self.above_threshold = foreground(self.scores > score_thresh)
        #: Number of boxes above the threshold.
        self.num_boxes = int(self.above_threshold.count_nonzero())

    def best(self, count: int) -> Candidates:
        """Return the ``count`` boxes of highest score, the earlier position first among equals; all if ``count`` is
        ``num_boxes``."""
        if count == self.num_boxes:
            positions = flat_nonzero(self.above_threshold)
        else:
            positions = flat_nonzero(self._at_least(lower_bound_of_kth(self.scores[:, :-1], count)))
            order = self.scores.view(-1)[positions].argsort(descending=True, stable=True)
            positions = positions[order[:count]].sort()[0]
        return Candidates(self.boxes, self.scores, positions, self.image_shape)

    def _at_least(self, bound: Tensor) -> Tensor:
        """Bool ``[R, K + 1]``: boxes above the threshold with a score of at least ``bound``."""
        # Compared by torch, so that the threshold is rounded to the dtype of the scores as it was above.
        return foreground(self.scores >= bound) if bool(bound > self.score_thresh) else self.above_threshold


def drop_non_finite_rows(boxes: Tensor, scores: Tensor) -> Tuple[Tensor, Tensor]:
    """Leave out the rows of ``[R, *]`` boxes and ``[R, K + 1]`` scores with a NaN or an infinity in either."""
    # Any such value makes the sum one too; a sum that overflows only leads to the slower test.
    if bool(torch.isfinite(boxes.sum()) & torch.isfinite(scores.sum())):
        return boxes, scores
    is_valid = torch.isfinite(boxes).all(dim=1) & torch.isfinite(scores).all(dim=1)
    return boxes[is_valid], scores[is_valid]


def foreground(mask: Tensor) -> Tensor:
    """Set the last column of a bool ``[R, K + 1]`` mask to false, in place."""
    mask[:, -1] = False
    return mask


def flat_nonzero(mask: Tensor) -> Tensor:
    """Return the positions of the true entries of a contiguous mask, int64 ``[m]``, ascending."""
    return mask.view(-1).nonzero().view(-1)


def lower_bound_of_kth(scores: Tensor, count: int) -> Tensor:
    """Return a value that at least ``count`` of the ``[R, K]`` scores reach, and not many more.

    It is the count-th largest of the maxima of blocks of neighbouring classes: as many blocks, and so as many scores,
    reach it. ``count`` must be at most R * K.
    """
    num_rows, num_classes = scores.shape
    blocks_needed = -(-count // num_rows)
    width = min(MAX_BLOCK_WIDTH, num_classes // blocks_needed)
    num_blocks = num_classes // width
    maxima = scores[:, : num_blocks * width].unflatten(1, (num_blocks, width)).amax(dim=2)
    return maxima.view(-1).topk(count, sorted=False)[0].min()


def nms_over_best(search: CandidateSearch, nms_thresh: float, topk: int) -> Tuple[Candidates, Tensor]:
    """Apply NMS to growing numbers of the best boxes until ``topk`` (all if negative) survive.

    Returns:
        The boxes of the last round, and int64 indices of the survivors among them, best first: at least ``topk``, or
        as many as there are.
    """
    count = search.num_boxes if topk < 0 else min(CANDIDATES_PER_DETECTION * max(topk, 1), search.num_boxes)
    while True:
        candidates = search.best(count)
        keep = class_wise_nms(candidates, nms_thresh)
        is_complete = count == search.num_boxes
        if is_complete or len(keep) >= topk:
            # The order of equal scores: see the top of this file.
            order = candidates.scores[keep].sort(descending=True, stable=not is_complete)[1]
            return candidates, keep[order]
        count = min(CANDIDATES_PER_DETECTION * count, search.num_boxes)


def class_wise_nms(candidates: Candidates, nms_thresh: float) -> Tensor:
    """Apply NMS to each class alone, on unshifted boxes; return the indices of the survivors, int64, ascending."""
    by_class = candidates.classes.argsort(stable=True)
    sizes = torch.unique_consecutive(candidates.classes[by_class], return_counts=True)[1].tolist()
    boxes, scores = candidates.boxes[by_class], candidates.scores[by_class]
    survives = torch.zeros_like(scores, dtype=torch.bool)
    start = 0
    for size in sizes:
        if size == 1:
            survives[start] = True
        else:
            end = start + size
            survives[start + nms(boxes[start:end], scores[start:end], nms_thresh)] = True
        start += size
    return by_class[survives].sort()[0]
