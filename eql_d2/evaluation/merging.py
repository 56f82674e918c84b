"""How the boxes that several detectors found of one class in one image become one list."""

import warnings
from typing import Callable, NamedTuple

import numpy as np
import torch
from torchvision.ops import box_iou
from torchvision.ops import nms as torchvision_nms

from eql_d2.errors import InputError


class Merged(NamedTuple):
    """The boxes that are left, best first.

    Attributes:
        source: int64 ``[M]``, which of the given boxes each is; -1 for one that was fused of several.
        boxes: float64 ``[M, 4]``: left, top, right, bottom in pixels.
        scores: float64 ``[M]``.
    """

    source: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray


#: Of float64 boxes ``[N, 4]`` (left, top, right, bottom), float64 scores ``[N]``, the number of the detector that each
#: is of, int64 ``[N]``, and the weights of all detectors that know the class, float64, by number.
Rule = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], Merged]


def nms(iou: float = 0.5) -> Rule:
    """Return non-maximum suppression: a box that overlaps a better one by more than ``iou`` is dropped."""

    def merge(boxes: np.ndarray, scores: np.ndarray, of: np.ndarray, weights: np.ndarray) -> Merged:
        scores = scores * weights[of]
        kept = torchvision_nms(torch.from_numpy(boxes), torch.from_numpy(scores), iou).numpy()
        return Merged(kept, boxes[kept], scores[kept])

    return merge


def soft_nms(kind: str = "gaussian", iou: float = 0.5, sigma: float = 0.5) -> Rule:
    """Return soft NMS (Bodla et al., arXiv 1704.04503): a box that overlaps a better one keeps a part of its score.

    Args:
        kind: "linear", ``score * (1 - overlap)`` where the overlap is above ``iou`` (equation 3), or "gaussian",
            ``score * exp(-overlap ** 2 / sigma)`` (the equation after it).
        iou: of "linear".
        sigma: of "gaussian", above 0.
    """

    def merge(boxes: np.ndarray, scores: np.ndarray, of: np.ndarray, weights: np.ndarray) -> Merged:
        corners = torch.from_numpy(boxes)
        overlaps = np.nan_to_num(box_iou(corners, corners).numpy())
        linear = np.where(overlaps > iou, 1 - overlaps, 1.0)
        factors = linear if kind == "linear" else np.exp(-(overlaps**2) / sigma)
        scores, waiting, order = scores * weights[of], np.ones(len(scores), bool), []
        for _ in range(len(scores)):
            best = int(np.where(waiting, scores, -np.inf).argmax())
            order.append(best)
            waiting[best] = False
            scores[waiting] *= factors[best, waiting]
        return Merged(np.array(order, np.int64), boxes[order], scores[order])

    return merge


def weighted_boxes_fusion(iou: float = 0.55) -> Rule:
    """Return weighted boxes fusion (Solovyev et al., arXiv 1910.13302), by its authors' ``ensemble-boxes``.

    Boxes that overlap by more than ``iou`` become their mean, weighted by their scores; its score is theirs, weighted
    and averaged over the detectors that know the class, found it or not. Boxes without area are left out.

    Raises:
        InputError: if the library is missing.
    """
    try:
        # It imports numba for its other functions.
        from ensemble_boxes import weighted_boxes_fusion as fuse
    except ImportError:
        raise InputError('--method wbf needs the package ensemble-boxes: pip install "eql_d2[ensemble]".') from None

    def merge(boxes: np.ndarray, scores: np.ndarray, of: np.ndarray, weights: np.ndarray) -> Merged:
        has_area = (boxes[:, 2:] > boxes[:, :2]).all(1)
        boxes, scores, of = boxes[has_area], scores[has_area], of[has_area]
        if not len(boxes):
            return Merged(np.zeros(0, np.int64), boxes, scores)
        # It takes shares of the image's sides. Any frame will do: neither overlaps nor means depend on it.
        low = boxes[:, :2].min(0)
        extent = np.tile(boxes[:, 2:].max(0) - low, 2)
        shares = np.clip((boxes - np.tile(low, 2)) / extent, 0, 1)
        parts = [of == number for number in range(len(weights))]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of boxes that the division has made too small to have an area
            fused, fused_scores, _ = fuse(
                [shares[part] for part in parts],
                [scores[part] for part in parts],
                [np.zeros(part.sum()) for part in parts],
                list(weights),
                iou,
            )
        return Merged(np.full(len(fused), -1), fused * extent + np.tile(low, 2), fused_scores)

    return merge
