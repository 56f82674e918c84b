"""Fractal dimensions: how evenly the boxes of each class are spread over the images (FRACAL, arXiv 2410.11774)."""

from typing import Iterable, Mapping

import numpy as np
from detectron2.structures import BoxMode

#: Fewest boxes of a class from which a dimension can be fitted.
LEAST_BOXES = 4


def fractal_dimensions(centers: np.ndarray, labels: np.ndarray, num_classes: int, grid_max: int = 64) -> np.ndarray:
    """Return the box-counting dimension of each class.

    The centres of all images lie in one unit square, which is divided into g x g cells for g = 1, 2, ... as long as
    there are no more cells than boxes of the class. The dimension is the slope of the least-squares line through the
    logarithms of the number of cells that hold a centre and of g. It is 2 for centres all over the square; below 1 it
    counts as 1, and so does that of a class with fewer than 4 boxes.

    Args:
        centers: float ``[n, 2]``, x and y of the centre of each box in units of its image's width and height.
        labels: int ``[n]`` in ``0..K-1``.
        num_classes: K.
        grid_max: largest g.

    Returns:
        float64 ``[K]`` in [1, 2].
    """
    centers, labels = np.asarray(centers, dtype=np.float64), np.asarray(labels, dtype=np.int64)
    counts = np.bincount(labels, minlength=num_classes)
    # Sums over the grids of a class: number, x, y, x x and x y of the points (ln g, ln cells).
    sums = np.zeros((5, num_classes))
    for grid in range(1, grid_max + 1):
        fitted = (counts >= LEAST_BOXES) & (grid**2 <= counts)
        if not fitted.any():
            break
        # A centre at the right or the lower edge belongs to the last cell.
        cells = np.minimum((centers * grid).astype(np.int64), grid - 1)
        occupied = np.unique(labels * grid**2 + cells[:, 1] * grid + cells[:, 0])
        num_cells = np.bincount(occupied // grid**2, minlength=num_classes)
        x, y = np.log(grid), np.log(np.maximum(num_cells, 1))
        sums += fitted * np.stack(np.broadcast_arrays(1.0, x, y, x * x, x * y))
    n, x, y, xx, xy = sums
    spread = n * xx - x * x
    slope = np.divide(n * xy - x * y, spread, out=np.ones(num_classes), where=spread > 0)
    return np.maximum(slope, 1.0)


def fractal_dimensions_of(records: Iterable[Mapping], num_classes: int) -> np.ndarray:
    """Return :func:`fractal_dimensions` of the boxes of Detectron2 data set dicts, crowd regions left out."""
    centers, labels = [], []
    for record in records:
        for annotation in record["annotations"]:
            if annotation.get("iscrowd", 0):
                continue
            x0, y0, x1, y1 = BoxMode.convert(list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYXY_ABS)
            centers.append(((x0 + x1) / 2 / record["width"], (y0 + y1) / 2 / record["height"]))
            labels.append(annotation["category_id"])
    return fractal_dimensions(np.reshape(centers, (-1, 2)), np.array(labels, dtype=np.int64), num_classes)
