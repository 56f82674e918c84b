"""A data set as YOLO has it."""

import pytest

from tests.conftest import write_image


@pytest.fixture
def yolo(tmp_path):
    """Two images to train on, one of them without a label file, and one to validate on, as ultralytics has them."""
    for name in ("train/a.png", "train/b.jpg", "val/c.png"):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "labels" / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(tmp_path / "images" / name)
    (tmp_path / "labels/train/a.txt").write_text("1 0.5 0.25 0.5 0.25\n0 0.95 0.5 0.2 0.5\n")
    (tmp_path / "labels/val/c.txt").write_text("0 0.5 0.5 1 1\n")
    (tmp_path / "data.yaml").write_text(
        "path: /on/another/machine\ntrain: images/train\nval: [images/val]\nnames: {0: cat, 1: Traffic light}\n"
    )
    return tmp_path
