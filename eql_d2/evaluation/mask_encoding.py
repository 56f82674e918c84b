"""From masks within boxes to run lengths in the image, without an array as large as the image.

A mask head predicts M x M probabilities in each box. Detectron2 enlarges them to the box by bilinear interpolation,
cuts at one half and writes the result into such an array (``paste_masks_in_image``), which pycocotools then reads
column by column. Along one column of pixels the interpolation is a broken line with a corner at each of the M rows of
the mask, so that bits change only where the line crosses one half: the run lengths follow from the crossings.
"""

from typing import Any, Dict, Iterator, List, Tuple

import numpy as np
import pycocotools.mask as mask_util
import torch
import torch.nn.functional as F
from detectron2.layers.mask_ops import paste_masks_in_image
from torch import Tensor

from eql_d2.data.segmentation import compress

THRESHOLD = 0.5
#: Columns of pixels that are worked on at once; their broken lines fit into a processor's cache.
_COLUMNS = 1 << 13
#: Pixels that are sampled at once, each from a copy of its mask.
_SAMPLES = 1 << 10
#: Boxes of fewer pixels a side are left to Detectron2, whose division by the side may overflow.
_MIN_SIDE = 2.0**-10


def encode_mask(mask: np.ndarray) -> Dict[str, Any]:
    """Return a bool mask ``[H, W]`` as run lengths with ``counts`` as text, as json needs it."""
    encoded = mask_util.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode()}


def encode_box_masks(masks: Tensor, boxes: Tensor, height: int, width: int) -> List[Dict[str, Any]]:
    """Return masks that were predicted within their boxes as run lengths in the image, as json needs them.

    The same text, character by character, as :func:`encode_mask` of what Detectron2's ``paste_masks_in_image`` makes
    of them on the CPU. Time and memory grow with the sides of the boxes, not with the image.

    Args:
        masks: probabilities, ``[R, M, M]``, on any device; those of half precision are widened first.
        boxes: ``[R, 4]``, x0, y0, x1, y1 in pixels of the image; they may reach beyond it.
        height, width: of the image, in pixels.

    Returns:
        For each mask ``size`` (height, width) and ``counts``.
    """
    masks, boxes = (values.detach().to("cpu", torch.float32).contiguous() for values in (masks, boxes))
    lowest, highest = masks.flatten(1).aminmax(dim=1) if masks.numel() else (masks.new_zeros(len(masks)),) * 2
    sides = boxes[:, 2:] - boxes[:, :2]
    # What is no probability (NaN is none) or no box has no bounds to reckon with.
    regular = (lowest >= 0) & (highest <= 1) & boxes.isfinite().all(dim=1) & (sides >= _MIN_SIDE).all(dim=1)
    texts: Dict[int, str] = {}
    for rows in _chunks(regular.nonzero().flatten(), sides[:, 0].clamp(max=width)):
        texts.update(zip(rows.tolist(), _encode(masks[rows], boxes[rows], height, width)))
    for row in (~regular).nonzero().flatten().tolist():
        pasted = paste_masks_in_image(masks[row, None], boxes[row, None], (height, width), THRESHOLD)
        texts[row] = encode_mask(pasted[0].numpy())["counts"]
    return [{"size": [height, width], "counts": texts[row]} for row in range(len(masks))]


def _chunks(rows: Tensor, widths: Tensor) -> Iterator[Tensor]:
    """Split the numbers of masks so that those of a part have some thousand columns."""
    if len(rows):
        parts = (widths[rows].double().cumsum(0) / _COLUMNS).long()
        yield from rows.split(parts.unique_consecutive(return_counts=True)[1].tolist())


def _encode(masks: Tensor, boxes: Tensor, height: int, width: int) -> List[str]:
    owner, position = _changes(masks, boxes, height, width)
    ends = np.cumsum(np.bincount(owner, minlength=len(masks)) + 1)
    starts = np.concatenate([[0], ends[:-1]])
    edges = np.full(ends[-1], height * width)
    edges[np.arange(len(position)) + owner] = position
    before = np.concatenate([[0], edges[:-1]])
    before[starts] = 0
    return compress(edges - before, ends)


def _changes(masks: Tensor, boxes: Tensor, height: int, width: int) -> Tuple[np.ndarray, np.ndarray]:
    """Return where bits differ from the one before, column by column, the one before the first being 0.

    Returns:
        The number of the mask and the position, column times height plus row, of each such pixel, in order.
    """
    size = masks.shape[-1]
    # Detectron2 reckons in float32: the place of a pixel in the mask is off by 6.5 M 2^-24 at most in x as in y, and
    # the interpolation by a few 2^-24 more. Probabilities change by 1 at most from one place to the next.
    tolerance = (size + 2) * 2.0**-20
    x0, y0, x1, y1 = boxes.double().numpy().T
    # As Detectron2, one pixel around the box, but not beyond the image.
    left, top = (np.clip(np.floor(low) - 1, 0, None).astype(np.int64) for low in (x0, y0))
    right, bottom = (np.clip(np.ceil(high) + 1, 0, side).astype(np.int64) for high, side in ((x1, width), (y1, height)))

    owner, column, profile = _profiles(masks, x0, x1, left, np.where(bottom > top, right, left))
    low, high = profile <= THRESHOLD - tolerance, profile >= THRESHOLD + tolerance
    crossed = np.flatnonzero(~((low[:, :-1] & low[:, 1:]) | (high[:, :-1] & high[:, 1:])))
    line, piece = np.divmod(crossed, size + 1)
    owner, column = owner[line], column[line]
    from_, to = (profile.ravel()[crossed + line + end].astype(np.float64) for end in (0, 1))

    # Where on its piece, from 0 to 1, the broken line is too near one half to tell.
    with np.errstate(divide="ignore", invalid="ignore"):
        near = [(THRESHOLD + sign * tolerance - from_) / (to - from_) for sign in (-1, 1)]
    is_level = to == from_
    scale, shift = (y1 - y0) / size, y0 - THRESHOLD
    first, beyond = (
        (piece + np.clip(np.where(is_level, level, order(*near)), 0, 1) - 0.5) * scale[owner] + shift[owner]
        for level, order in ((0, np.minimum), (1, np.maximum))
    )
    rows = (np.clip(row, top[owner], bottom[owner]) for row in (np.ceil(first), np.floor(beyond) + 1))
    start = owner * (height * width + 1) + column * height
    first, beyond = (start + row.astype(np.int64) for row in rows)
    beyond = np.maximum.accumulate(beyond) if len(beyond) else beyond
    first[1:] = np.maximum(first[1:], beyond[:-1])

    # Each piece says what the pixels are that are too near to tell, and then what comes behind them.
    count = beyond - first + 1
    of = np.repeat(np.arange(len(count)), count)
    position = np.arange(len(of)) - np.repeat(np.cumsum(count) - count - first, count)
    bit = to[of] >= THRESHOLD
    unsure = np.flatnonzero(position < beyond[of])
    of = of[unsure]
    bit[unsure] = _sample(masks, boxes, owner[of], column[of], position[unsure] - start[of])
    last = np.append(position[1:] != position[:-1], True)[: len(position)]  # at one pixel, the last piece is right
    position, bit = position[last], bit[last]
    position = position[bit != np.concatenate([[False], bit])[:-1]]
    owner, position = np.divmod(position, height * width + 1)
    inside = position < height * width
    return owner[inside], position[inside]


def _profiles(
    masks: Tensor, x0: np.ndarray, x1: np.ndarray, left: np.ndarray, right: np.ndarray
) -> Tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Interpolate along x: what each column of pixels has at the rows of its mask.

    Returns:
        The number of the mask and the column of each, and the probabilities float32 ``[columns, M + 2]``, with a zero
        at both ends, since what is not of the mask counts as 0.
    """
    size = masks.shape[-1]
    nodes = np.pad(masks.numpy().transpose(0, 2, 1), ((0, 0), (1, 1), (1, 1))).reshape(-1, size + 2)
    count = np.maximum(right - left, 0)
    owner = np.repeat(np.arange(len(masks)), count)
    column = np.arange(len(owner)) - np.repeat(np.cumsum(count) - count - left, count)
    place = (column + 0.5 - x0[owner]) * (size / (x1 - x0))[owner] + 0.5
    inside = (place > 0) & (place < size + 1)
    owner, column, place = owner[inside], column[inside], place[inside]
    cell = place.astype(np.int64)
    before, profile = (nodes.take(owner * (size + 2) + cell + step, axis=0) for step in (0, 1))
    profile -= before
    profile *= (place - cell).astype(np.float32)[:, None]
    profile += before
    return owner, column, profile


def _sample(masks: Tensor, boxes: Tensor, owner: np.ndarray, column: np.ndarray, row: np.ndarray) -> np.ndarray:
    """Return the bits of single pixels by the very operations of Detectron2's ``paste_masks_in_image``."""
    bits = np.empty(len(owner), dtype=bool)
    for begin in range(0, len(owner), _SAMPLES):
        part = slice(begin, begin + _SAMPLES)
        of = torch.from_numpy(owner[part])
        pixels = torch.from_numpy(np.stack([column[part], row[part]], axis=1)).float() + 0.5
        low, high = boxes[of].split(2, dim=1)
        grid = (pixels - low) / (high - low) * 2 - 1
        sampled = F.grid_sample(masks[of, None], grid[:, None, None], align_corners=False)
        bits[part] = (sampled.flatten() >= THRESHOLD).numpy()
    return bits
