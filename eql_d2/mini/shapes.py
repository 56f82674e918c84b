"""How the objects of the generated data set look, and how an image of them is drawn."""

import colorsys
import itertools
from dataclasses import dataclass
from functools import lru_cache
from typing import Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import cv2
import numpy as np

from eql_d2.errors import InputError

#: Diameter of an object, as a share of the image's side; drawn uniformly in the logarithm.
SMALLEST_SIZE, LARGEST_SIZE = 0.1, 0.35
#: Smallest diameter in pixels: below it the shapes cannot be told apart.
SMALLEST_PIXELS = 10
#: Share of an object that later objects leave visible.
MIN_VISIBLE_SHARE = 0.6
PLACEMENT_TRIES = 40

#: RGB in [0, 1]; an object's own colour deviates from it by what ``_object_color`` draws.
HUES: Dict[str, Tuple[float, float, float]] = {
    "red": (0.90, 0.12, 0.14),
    "orange": (0.98, 0.52, 0.08),
    "yellow": (0.96, 0.88, 0.15),
    "lime": (0.55, 0.90, 0.15),
    "green": (0.08, 0.52, 0.20),
    "cyan": (0.15, 0.85, 0.88),
    "blue": (0.12, 0.25, 0.88),
    "purple": (0.48, 0.14, 0.70),
    "pink": (0.98, 0.50, 0.78),
    "white": (0.97, 0.97, 0.95),
}
PATTERNS = ("striped", "dotted", "checked", "bordered")
#: Patterns that look the same with the hues swapped: each pair of hues makes one class, not two.
SYMMETRIC_PATTERNS = ("striped", "checked")


def _radial(num_points: int, *radii: float) -> np.ndarray:
    """Points at equal angles whose distances from the centre repeat ``radii``."""
    angles = 2 * np.pi * np.arange(num_points) / num_points
    return np.resize(radii, num_points)[:, None] * np.stack([np.sin(angles), -np.cos(angles)], axis=1)


def _cross(arm: float) -> np.ndarray:
    quarter = np.array([[-arm, -1.0], [arm, -1.0], [arm, -arm]])
    turn = np.array([[0.0, 1.0], [-1.0, 0.0]])
    return np.concatenate([quarter @ np.linalg.matrix_power(turn, k) for k in range(4)])


def _crescent() -> np.ndarray:
    outer = np.linspace(0.25 * np.pi, 1.75 * np.pi, 18)
    inner = np.linspace(1.62 * np.pi, 0.38 * np.pi, 12)
    return np.concatenate(
        [
            np.stack([np.cos(outer), np.sin(outer)], axis=1),
            np.stack([0.35 + 0.72 * np.cos(inner), 0.72 * np.sin(inner)], axis=1),
        ]
    )


def _heart() -> np.ndarray:
    t = 2 * np.pi * np.arange(24) / 24
    return np.stack([16 * np.sin(t) ** 3, 5 * np.cos(2 * t) - 13 * np.cos(t) + 2 * np.cos(3 * t) + np.cos(4 * t)], 1)


#: Outlines by name, the six of the default set first; any scale and centre, simple polygons without holes.
SHAPES: Dict[str, Callable[[], np.ndarray]] = {
    "circle": lambda: _radial(24, 1.0),
    "square": lambda: np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]]),
    "triangle": lambda: _radial(3, 1.0),
    "star": lambda: _radial(10, 1.0, 0.42),
    "cross": lambda: _cross(0.32),
    "crescent": _crescent,
    "heart": _heart,
    "bar": lambda: np.array([[-1.0, -0.28], [1.0, -0.28], [1.0, 0.28], [-1.0, 0.28]]),
    "arrow": lambda: np.array(
        [[0.0, -1.0], [0.8, -0.1], [0.3, -0.1], [0.3, 1.0], [-0.3, 1.0], [-0.3, -0.1], [-0.8, -0.1]]
    ),
    "angle": lambda: np.array([[-0.8, -0.9], [-0.3, -0.9], [-0.3, 0.4], [0.8, 0.4], [0.8, 0.9], [-0.8, 0.9]]),
    "hourglass": lambda: np.array([[-0.8, -1.0], [0.8, -1.0], [0.15, 0.0], [0.8, 1.0], [-0.8, 1.0], [-0.15, 0.0]]),
    "gear": lambda: _radial(32, 1.0, 1.0, 0.62, 0.62),
}
NUM_DEFAULT_SHAPES = 6


@dataclass(frozen=True)
class Appearance:
    """What makes a class: a shape in a hue, for later classes with a pattern in a second hue."""

    shape: str
    hue: str
    pattern: Optional[str] = None
    second_hue: Optional[str] = None

    @property
    def name(self) -> str:
        """Such as "red star" or "striped red and blue star"."""
        if self.pattern is None:
            return f"{self.hue} {self.shape}"
        return f"{self.pattern} {self.hue} and {self.second_hue} {self.shape}"


@lru_cache(maxsize=1)
def class_appearances(num_classes: int, first_class: int = 0) -> Tuple[Appearance, ...]:
    """Return ``num_classes`` distinct appearances: six shapes, then all, then patterns of a second hue.

    More classes begin with the same ones; a later ``first_class`` leaves out as many, for a set whose classes another
    set does not have.

    Raises:
        InputError: if there are not so many appearances.
    """
    if num_classes + first_class > MAX_CLASSES:
        before = f" after the first {first_class}" if first_class else ""
        raise InputError(
            f"num_classes is {num_classes}; at most {MAX_CLASSES - first_class} classes can be told apart{before}."
        )
    return tuple(itertools.islice(_appearances(), first_class, first_class + num_classes))


def _appearances() -> Iterator[Appearance]:
    shapes, hues = list(SHAPES), list(HUES)
    for some_shapes in (shapes[:NUM_DEFAULT_SHAPES], shapes[NUM_DEFAULT_SHAPES:]):
        yield from (Appearance(shape, hue) for hue in hues for shape in some_shapes)
    # The second hue is a few steps along the list, so that the first patterned classes have clear contrasts.
    for step in (5, 3, 7, 4, 6, 2, 8, 1, 9):
        for pattern, (i, hue), shape in itertools.product(PATTERNS, enumerate(hues), shapes):
            second = (i + step) % len(hues)
            if i < second or pattern not in SYMMETRIC_PATTERNS:
                yield Appearance(shape, hue, pattern, hues[second])


#: Every shape in every hue, plain or with a pattern in one of the other hues.
MAX_CLASSES = sum(1 for _ in _appearances())


@dataclass(frozen=True)
class ObjectRequest:
    """An object to draw; one that is not ``required`` is dropped where the image has no room for it."""

    label: int
    annotated: bool
    required: bool


@dataclass(frozen=True)
class DrawnObject:
    """An object in the image: its request and its full outline, float64 ``[P, 2]``, x and y in pixels."""

    request: ObjectRequest
    polygon: np.ndarray


def draw_scene(
    requests: Sequence[ObjectRequest], appearances: Sequence[Appearance], image_size: int, rng: np.random.Generator
) -> Tuple[np.ndarray, List[DrawnObject]]:
    """Draw one image.

    Args:
        requests: the objects; required ones are placed first.
        appearances: by label.
        image_size: S, side in pixels.
        rng: consumed; the image depends on nothing else.

    Returns:
        The image, uint8 ``[S, S, 3]`` in OpenCV's order BGR, and the objects in it, from the back to the front. The
        outlines lie inside the image and are rounded to 1/100 pixel.
    """
    canvas = textured_ground(image_size, rng)
    placement = _Placement(image_size)
    drawn = []
    for request in sorted(requests, key=lambda request: not request.required):
        outline = _random_outline(appearances[request.label].shape, image_size, rng)
        corner = placement.find(pixel_coverage(outline) >= 0.5, request.required, rng)
        if corner is None:
            continue
        _paint_object(canvas, outline, corner, appearances[request.label], rng)
        drawn.append(DrawnObject(request, np.round(outline + corner, 2)))
    _paint_lines(canvas, rng.integers(0, 3), rng)
    canvas += rng.normal(0, 0.025, canvas.shape)
    image = np.rint(canvas.clip(0, 1) * 255).astype(np.uint8)
    return np.ascontiguousarray(image[:, :, ::-1]), drawn


class _Placement:
    """Finds room for objects such that those drawn earlier stay visible."""

    def __init__(self, image_size: int):
        self.owner = np.full((image_size, image_size), -1, dtype=np.int64)
        self.area: List[int] = []
        self.visible: List[int] = []

    def find(self, mask: np.ndarray, required: bool, rng: np.random.Generator) -> Optional[np.ndarray]:
        """Return the left top corner ``(x, y)`` for a mask, or ``None`` if it is not required and does not fit."""
        height, width = mask.shape
        best, best_share = None, -1.0
        for _ in range(PLACEMENT_TRIES):
            corner = rng.integers(0, np.array(self.owner.shape) - (width, height) + 1)
            share = self._visible_share(self._window(corner, mask)[mask])
            if share > best_share:
                best, best_share = corner, share
            if share >= MIN_VISIBLE_SHARE:
                break
        if best_share < MIN_VISIBLE_SHARE and not required:
            return None
        self._occupy(self._window(best, mask), mask)
        return best

    def _window(self, corner: np.ndarray, mask: np.ndarray) -> np.ndarray:
        x, y = corner
        return self.owner[y : y + mask.shape[0], x : x + mask.shape[1]]

    def _visible_share(self, covered: np.ndarray) -> float:
        """Smallest share that would be left visible of any object whose pixels are covered."""
        lost = np.bincount(covered + 1, minlength=len(self.area) + 1)[1:]
        hit = np.flatnonzero(lost)
        return min(((self.visible[i] - lost[i]) / self.area[i] for i in hit), default=1.0)

    def _occupy(self, window: np.ndarray, mask: np.ndarray) -> None:
        lost = np.bincount(window[mask] + 1, minlength=len(self.area) + 1)[1:]
        self.visible = [visible - int(pixels) for visible, pixels in zip(self.visible, lost)]
        window[mask] = len(self.area)
        self.area.append(int(mask.sum()))
        self.visible.append(int(mask.sum()))


def _random_outline(shape: str, image_size: int, rng: np.random.Generator) -> np.ndarray:
    """Return a shape ``[P, 2]`` of random size, aspect and rotation, with its left top corner in pixel (0, 0)."""
    low = max(SMALLEST_SIZE * image_size, SMALLEST_PIXELS)
    diameter = np.exp(rng.uniform(np.log(low), np.log(max(LARGEST_SIZE * image_size, low))))
    stretch = np.exp(rng.uniform(-0.15, 0.15))
    angle = rng.uniform(0, 2 * np.pi)
    rotation = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    points = (SHAPES[shape]() * [stretch, 1 / stretch]) @ rotation
    points *= diameter / np.ptp(points, axis=0).max()
    return points - points.min(axis=0) + rng.uniform(0, 0.99, 2)


def pixel_coverage(outline: np.ndarray) -> np.ndarray:
    """Return the share of each pixel that the outline covers, float64 ``[h, w]`` from pixel (0, 0) on."""
    width, height = np.ceil(outline.max(axis=0)).astype(int)
    coverage = np.zeros((height, width), dtype=np.uint8)
    # OpenCV has pixel centres at whole numbers, COCO's polygons have pixel edges there.
    cv2.fillPoly(coverage, [np.rint((outline - 0.5) * 16).astype(np.int32)], 255, cv2.LINE_AA, shift=4)
    return coverage / 255.0


def _paint_object(
    canvas: np.ndarray, outline: np.ndarray, corner: np.ndarray, appearance: Appearance, rng: np.random.Generator
) -> None:
    coverage = pixel_coverage(outline)
    height, width = coverage.shape
    fill = np.broadcast_to(_object_color(appearance.hue, rng), (height, width, 3)).copy()
    if appearance.pattern is not None:
        fill[_pattern(appearance.pattern, outline, rng)] = _object_color(appearance.second_hue, rng)
    direction = rng.normal(size=2)
    ys, xs = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    shading = 1 + 0.15 * (direction[0] * xs + direction[1] * ys).clip(-1, 1)
    fill = fill * shading[:, :, None] + rng.normal(0, 0.03, (height, width, 1))
    x, y = corner
    window = canvas[y : y + height, x : x + width]
    window += coverage[:, :, None] * (fill - window)


def _object_color(hue: str, rng: np.random.Generator) -> np.ndarray:
    """Return a variation of a hue, RGB ``[3]``."""
    h, s, v = colorsys.rgb_to_hsv(*HUES[hue])
    return np.array(
        colorsys.hsv_to_rgb((h + rng.uniform(-0.012, 0.012)) % 1, s * rng.uniform(0.85, 1), v * rng.uniform(0.85, 1))
    )


def _pattern(pattern: str, outline: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the pixels of the second hue, bool ``[h, w]`` over the outline's pixels."""
    width, height = np.ceil(outline.max(axis=0)).astype(int)
    if pattern == "bordered":
        centre = outline.mean(axis=0)
        inner = np.zeros((height, width), dtype=np.uint8)
        cv2.fillPoly(inner, [np.rint((centre + 0.62 * (outline - centre) - 0.5) * 16).astype(np.int32)], 255, shift=4)
        return inner == 0
    angle = rng.uniform(0, np.pi)
    # Four to five periods across the object, but stripes of no less than two pixels.
    period = max(np.ptp(outline, axis=0).max() / 4.5, 4)
    ys, xs = np.mgrid[0:height, 0:width] / period
    u = np.cos(angle) * xs + np.sin(angle) * ys + rng.random()
    v = np.cos(angle) * ys - np.sin(angle) * xs + rng.random()
    if pattern == "striped":
        return u % 1 < 0.5
    if pattern == "checked":
        return (u % 1 < 0.5) ^ (v % 1 < 0.5)
    return (u % 1 - 0.5) ** 2 + (v % 1 - 0.5) ** 2 < 0.12


def textured_ground(image_size: int, rng: np.random.Generator) -> np.ndarray:
    """Return a canvas of soft dull clouds with grey lumps and thin lines, float64 RGB ``[S, S, 3]``."""
    tint = rng.uniform(0.25, 0.6) + rng.normal(0, 0.04, 3)
    clouds = rng.normal(0, 0.07, (6, 6, 1)) + rng.normal(0, 0.025, (6, 6, 3))
    canvas = tint + cv2.resize(clouds, (image_size, image_size), interpolation=cv2.INTER_CUBIC)
    for _ in range(rng.integers(2, 6)):
        _paint_lump(canvas, rng)
    _paint_lines(canvas, rng.integers(2, 7), rng)
    return canvas


def _paint_lump(canvas: np.ndarray, rng: np.random.Generator) -> None:
    """Paint a grey polygon of no class, some of it outside the image perhaps."""
    size = len(canvas)
    num_points = rng.integers(4, 9)
    angles = np.sort(rng.uniform(0, 2 * np.pi, num_points))
    radii = size * rng.uniform(0.04, 0.16) * rng.uniform(0.5, 1, num_points)
    points = rng.uniform(0, size, 2) + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    color = rng.uniform(0.1, 0.75) + rng.normal(0, 0.03, 3)
    cv2.fillPoly(canvas, [np.rint(points).astype(np.int32)], color.tolist())


def _paint_lines(canvas: np.ndarray, count: int, rng: np.random.Generator) -> None:
    size = len(canvas)
    for _ in range(count):
        start, end = np.rint(rng.uniform(0, size, (2, 2))).astype(int).tolist()
        thickness = max(1, round(size / 128 * rng.uniform(0.6, 2)))
        cv2.line(canvas, start, end, rng.uniform(0.1, 0.9, 3).tolist(), thickness)
