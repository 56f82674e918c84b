"""Fractal dimensions of boxes."""

import math

import numpy as np
import pytest
from detectron2.structures import BoxMode

from eql_d2.data.fractal import fractal_dimensions, fractal_dimensions_of
from tests.losses.helpers import golden


def slow_dimension(points):
    """Cells as sets, the line by numpy."""
    grids = [g for g in range(1, 65) if g * g <= len(points)]
    if len(points) < 4:
        return 1.0
    cells = [len({(int(u * g), int(v * g)) for u, v in points}) for g in grids]
    return max(1.0, np.polyfit(np.log(grids), np.log(cells), 1)[0])


def test_golden():
    arrays = golden("fractal_dimension")
    centers = np.stack([arrays["center_x"], arrays["center_y"]], axis=1)
    actual = fractal_dimensions(centers, arrays["gt_classes"], int(arrays["num_classes"]), int(arrays["grid_max"]))
    np.testing.assert_allclose(actual, arrays["fractal_dimension"], rtol=0, atol=1e-7)


def test_equals_the_slow_formula():
    random = np.random.RandomState(0)
    sizes = [0, 3, 4, 50, 700]
    parts = [random.rand(size, 2) ** (i + 1) for i, size in enumerate(sizes)]
    labels = np.repeat(np.arange(len(sizes)), sizes)
    order = random.permutation(len(labels))
    actual = fractal_dimensions(np.concatenate(parts)[order], labels[order], len(sizes))
    np.testing.assert_allclose(actual, [slow_dimension(part) for part in parts], atol=1e-9)


def test_spread_lines_and_points():
    grid = (np.stack(np.meshgrid(np.arange(64), np.arange(64)), -1).reshape(-1, 2) + 0.5) / 64
    line = np.stack([grid[:, 0], np.full(len(grid), 0.3)], 1)
    point = np.full((50, 2), 0.5)
    labels = np.repeat([0, 1, 2], [len(grid), len(line), 50])
    everywhere, along, at_one_place = fractal_dimensions(np.concatenate([grid, line, point]), labels, 3)
    assert everywhere == pytest.approx(2) and along == pytest.approx(1, abs=0.01) and at_one_place == 1


def test_of_records():
    """Boxes of both modes, by the size of their own image; crowds and the last edge."""

    def box(label, bbox, mode=BoxMode.XYWH_ABS, **more):
        return {"category_id": label, "bbox": bbox, "bbox_mode": mode, **more}

    corners = [box(0, [x, y, 2, 2]) for x in (1, 7) for y in (1, 7)]
    record = {"width": 10, "height": 10, "annotations": [*corners, box(1, [1, 1, 2, 2], iscrowd=1)]}
    wide = {
        "width": 20,
        "height": 10,
        "annotations": [box(1, [x, 0, x + 2, 2], BoxMode.XYXY_ABS) for x in (1, 3, 5, 13)],
    }
    edge = {"width": 4, "height": 4, "annotations": [box(2, [4, 4, 0, 0])] * 4}
    actual = fractal_dimensions_of([record, wide, edge], 4)
    # Four boxes make grids of 1 and 2 cells a side: the dimension is log2 of the cells of the latter that are taken.
    np.testing.assert_allclose(actual, [math.log2(4), math.log2(2), 1, 1])
