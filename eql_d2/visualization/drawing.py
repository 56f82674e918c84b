"""Drawing objects into an image. Frequency groups differ in colour, line style and letter, so that they are told apart
in black and white and by people who do not see red and green."""

from functools import lru_cache
from pathlib import Path
from typing import List, Sequence, Tuple

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from eql_d2.data.groups import GROUP_COLORS
from eql_d2.visualization.objects import VisualObject

#: Lengths of strokes and gaps of the outline, in line widths; () for a solid line.
DASHES = {"r": (), "c": (5.0, 3.0), "f": (0.1, 2.6), "ignored": (2.5, 2.5)}
#: Line width in thousandths of the canvas's longer side; a rare class stands out.
_WIDTHS = {"r": 6.0, "c": 4.5, "f": 4.5, "ignored": 2.5}
_COLORS = {**GROUP_COLORS, "ignored": "#9a9a9a"}
#: Share of the colour in the area of an object of a rare class.
_RARE_FILL = 0.3
#: What a verdict looks like before the name of a class.
SIGNS = {"hit": "✓ ", "wrong": "✗ ", "unjudged": "? "}
_INK, _PAPER = (20, 20, 20), (255, 255, 255)

Box = Tuple[int, int, int, int]


def draw_panel(
    image: np.ndarray,
    objects: Sequence[VisualObject],
    names: Sequence[str],
    groups: Sequence[str],
    title: str,
    size: int,
) -> np.ndarray:
    """Return what :func:`draw_objects` does, with a title in the upper left corner and a white margin."""
    canvas = draw_objects(image, objects, names, groups, size)
    canvas = _write(canvas, [(title, (0, 0), (255, 255, 255))], _font_size(size))
    return cv2.copyMakeBorder(canvas, 2, 2, 2, 2, cv2.BORDER_CONSTANT, value=(255, 255, 255))


def draw_objects(
    image: np.ndarray,
    objects: Sequence[VisualObject],
    names: Sequence[str],
    groups: Sequence[str],
    size: int = 640,
    ignored: Sequence[Sequence[float]] = (),
) -> np.ndarray:
    """Return a copy of an image, scaled, with the outline and the class name of every object.

    Args:
        image: uint8 BGR ``[H, W, 3]``.
        objects: in pixels of ``image``.
        names: of the K classes.
        groups: letter r, c or f of the K classes.
        size: longer side of the result in pixels.
        ignored: boxes of ignored regions, left, top, right, bottom in pixels of ``image``.

    Returns:
        uint8 BGR; rare classes solid and filled, common dashed, frequent dotted, ignored regions grey and dashed.
    """
    factor = size / max(image.shape[:2])
    width, height = (max(1, round(side * factor)) for side in image.shape[1::-1])
    method = cv2.INTER_CUBIC if factor > 1 else cv2.INTER_AREA
    canvas = cv2.resize(image, (width, height), interpolation=method)
    factors = width / image.shape[1], height / image.shape[0]
    scaled = [found.scaled(*factors) for found in objects]
    outlines = [found.outlines(height, width) for found in scaled]
    for left, top, right, bottom in np.asarray(ignored, float).reshape(-1, 4) * (*factors, *factors):
        _draw_outline(canvas, np.array([[left, top], [right, top], [right, bottom], [left, bottom]]), "ignored")
    for found, lines in zip(scaled, outlines):
        _fill(canvas, lines, groups[found.label])
    for found, lines in zip(scaled, outlines):
        for line in lines:
            _draw_outline(canvas, line, groups[found.label])
    labels, taken = [], []
    font_size = _font_size(size)
    # Large objects first: their labels are the least needed where there is no room.
    for found, lines in zip(scaled, outlines):
        text = label_text(found, names, groups)
        left, top = np.concatenate(lines).min(axis=0) if lines else found.box[:2]
        corner = _free_place(_text_size(text, font_size), (int(left), int(top)), canvas.shape[:2], taken)
        labels.append((text, corner, _bgr(groups[found.label])))
    return _write(canvas, labels, font_size)


def label_text(found: VisualObject, names: Sequence[str], groups: Sequence[str]) -> str:
    """Return what is written beside an object: verdict, class name, letter of the group, score."""
    score = "" if found.score is None else f" {found.score:.2f}"
    crowd = " crowd" if found.crowd else ""
    return f"{SIGNS.get(found.verdict, '')}{names[found.label]} ({groups[found.label]}){crowd}{score}"


def encode_jpeg(picture: np.ndarray, quality: int = 88) -> bytes:
    """Return a uint8 BGR picture as the bytes of a JPEG file."""
    encoded, content = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not encoded:
        raise ValueError(f"a picture of shape {picture.shape} could not be encoded")
    return content.tobytes()


def _bgr(group: str) -> Tuple[int, int, int]:
    red, green, blue = (int(_COLORS[group][i : i + 2], 16) for i in (1, 3, 5))
    return blue, green, red


def _is_light(color: Tuple[int, int, int]) -> bool:
    """Whether dark ink is read better on a colour (BGR) than light ink."""
    blue, green, red = color
    return 0.299 * red + 0.587 * green + 0.114 * blue > 110


def _fill(canvas: np.ndarray, lines: Sequence[np.ndarray], group: str) -> None:
    """Tint the area of an object of a rare class, in place."""
    if group != "r" or not lines:
        return
    mask = np.zeros(canvas.shape[:2], np.uint8)
    cv2.fillPoly(mask, [line.round().astype(np.int32) for line in lines], 1)
    inside = mask.astype(bool)
    canvas[inside] = (canvas[inside] * (1 - _RARE_FILL) + np.array(_bgr(group)) * _RARE_FILL).astype(np.uint8)


def _draw_outline(canvas: np.ndarray, line: np.ndarray, group: str) -> None:
    """Draw a closed outline in the style of a group, in place, with an edge that shows on ground of its colour."""
    width = max(2, round(_WIDTHS[group] * max(canvas.shape[:2]) / 1000))
    pieces = _dashes(line, [length * width for length in DASHES[group]])
    edge = _INK if _is_light(_bgr(group)) else _PAPER
    for color, thickness in ((edge, width + 2), (_bgr(group), width)):
        for piece in pieces:
            points = (piece * 16).round().astype(np.int32).reshape(-1, 1, 2)
            cv2.polylines(canvas, [points], not DASHES[group], color, thickness, cv2.LINE_AA, shift=4)


def _dashes(line: np.ndarray, pattern: Sequence[float]) -> List[np.ndarray]:
    """Cut a closed outline ``[P, 2]`` into strokes of ``pattern[0]`` pixels with gaps of ``pattern[1]``."""
    if not pattern:
        return [line]
    closed = np.concatenate([line, line[:1]])
    ends = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(closed, axis=0), axis=1))])
    starts = np.arange(0, max(ends[-1], 1e-6), sum(pattern))
    strokes = []
    for start in starts:
        stop = min(start + pattern[0], ends[-1])
        at = np.concatenate([[start], ends[(ends > start) & (ends < stop)], [stop]])
        strokes.append(np.stack([np.interp(at, ends, closed[:, i]) for i in (0, 1)], axis=1))
    return strokes


def _font_size(size: int) -> int:
    return max(11, round(size / 40))


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont:
    # OpenCV's own fonts have no letters beyond ASCII; matplotlib brings one that has.
    from matplotlib import get_data_path

    return ImageFont.truetype(str(Path(get_data_path(), "fonts/ttf/DejaVuSans.ttf")), size)


def _text_size(text: str, font_size: int) -> Tuple[int, int]:
    """Return width and height of a label with its margin, in pixels."""
    return int(_font(font_size).getlength(text)) + 6, font_size + 5


def _free_place(size: Tuple[int, int], corner: Tuple[int, int], canvas: Tuple[int, ...], taken: List[Box]):
    """Return the upper left corner for a label near ``corner`` that covers no other, and add its box to ``taken``."""
    width, height = size
    left = int(np.clip(corner[0], 0, max(0, canvas[1] - width)))
    best = None
    for step in (-1, 0, 1, -2, 2, 3, -3, 4):
        top = int(np.clip(corner[1] + step * height, 0, max(0, canvas[0] - height)))
        box = (left, top, left + width, top + height)
        overlap = sum(_overlap(box, other) for other in taken)
        if best is None or overlap < best[0]:
            best = overlap, box
        if not overlap:
            break
    taken.append(best[1])
    return best[1][:2]


def _overlap(one: Box, other: Box) -> int:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    return max(0, width) * max(0, height)


def _write(canvas: np.ndarray, labels: Sequence[Tuple[str, Tuple[int, int], Tuple[int, int, int]]], font_size: int):
    """Return the canvas with labels, each on a ground of its colour, in black or white, whichever is read better."""
    picture = Image.fromarray(np.ascontiguousarray(canvas[:, :, ::-1]))
    pen = ImageDraw.Draw(picture)
    for text, (left, top), ground in labels:
        width, height = _text_size(text, font_size)
        ink = _INK if _is_light(ground) else _PAPER
        pen.rectangle([left, top, left + width - 1, top + height - 1], fill=ground[::-1], outline=_INK)
        pen.text((left + 3, top + height / 2), text, fill=ink, font=_font(font_size), anchor="lm")
    return np.ascontiguousarray(np.asarray(picture)[:, :, ::-1])
