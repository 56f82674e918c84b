"""Fixtures that several rooms of the tests share: a tiny LVIS-format data set and a tiny model's config."""

import json
import logging
import os
import resource
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from eql_d2.config import get_cfg

ROOT = Path(__file__).resolve().parent.parent
CONFIGS = ROOT / "configs"
NUM_CLASSES = 5
TRAIN_IMAGES = 200

torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _no_user_data_sets():
    """Keep the tests away from data sets that the machine happens to have."""
    os.environ.pop("DETECTRON2_DATASETS", None)


@pytest.fixture(autouse=True)
def _messages_reach_caplog(monkeypatch):
    """A run of an earlier test has kept Detectron2's messages from the root logger, where pytest listens."""
    monkeypatch.setattr(logging.getLogger("detectron2"), "propagate", True)


@contextmanager
def full_disk(size: int):
    """Let no file grow beyond ``size`` bytes, as on a disk that is full; without root and without a mount."""
    earlier = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, earlier[1]))  # Python ignores SIGXFSZ: writing fails with EFBIG
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, earlier)


def write_image(path: Path, size: int = 64, seed: int = 0) -> None:
    """Write a square image of noise."""
    pixels = np.random.default_rng(seed).integers(0, 255, (size, size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def square(x: float, y: float, side: float):
    """Return the polygon of a square, as a flat list."""
    return [x, y, x + side, y, x + side, y + side, x, y + side]


def make_lvis_json(num_images: int = 4, negatives=((4,), (5,), (), (1, 2))) -> dict:
    """Return a parsed LVIS json of ``NUM_CLASSES`` categories: one instance of category ``i % 2 + 1`` in image i.

    The counts in the category records are of a larger training set: categories 1, 2 frequent, 3 common, 4, 5 rare.
    """
    counts = [150, 120, 50, 5, 1]
    images = [
        {
            "id": i + 1,
            "file_name": f"{i + 1:012d}.png",
            "height": 64,
            "width": 64,
            "neg_category_ids": list(negatives[i % len(negatives)]),
            "not_exhaustive_category_ids": [],
        }
        for i in range(num_images)
    ]
    annotations = [
        {
            "id": i + 1,
            "image_id": i + 1,
            "category_id": i % 2 + 1,
            "bbox": [10, 12, 30, 30],
            "area": 900.0,
            "segmentation": [square(10, 12, 30)],
        }
        for i in range(num_images)
    ]
    categories = [
        {
            "id": i + 1,
            "name": f"class_{i}",
            "synset": f"class.n.{i}",
            "def": "",
            "synonyms": [f"class_{i}"],
            "image_count": counts[i],
            "instance_count": counts[i],
            "frequency": "ffcrr"[i],
        }
        for i in range(NUM_CLASSES)
    ]
    return {"info": {}, "licenses": [], "images": images, "annotations": annotations, "categories": categories}


@pytest.fixture
def lvis_folder(tmp_path) -> Path:
    """A folder with ``train.json`` (see :func:`make_lvis_json`), ``images/`` and ``frequency.json``."""
    content = make_lvis_json()
    (tmp_path / "images").mkdir()
    for i, image in enumerate(content["images"]):
        write_image(tmp_path / "images" / image["file_name"], seed=i)
    (tmp_path / "train.json").write_text(json.dumps(content))
    counts = [category["image_count"] for category in content["categories"]]
    frequency = {
        "image_count": counts,
        "instance_count": counts,
        "num_images": TRAIN_IMAGES,
        "groups": [category["frequency"] for category in content["categories"]],
    }
    (tmp_path / "frequency.json").write_text(json.dumps(frequency))
    return tmp_path


ARCHITECTURES = ("Mask-R-CNN-FPN", "Mask-R-CNN-C4", "Cascade-Mask-R-CNN-FPN")


def tiny_config(folder: Path, architecture: str = "Mask-R-CNN-FPN", loss: str = "EQL", *opts):
    """Return the config of a model that trains in a second: ResNet-18, few channels, 64-pixel images."""
    cfg = get_cfg()
    cfg.merge_from_file(str(CONFIGS / f"Base-{architecture}.yaml"))
    settings = (
        ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.LONG_TAIL.LOSS", loss, "SEED", 1]
        + ["MODEL.LONG_TAIL.FREQUENCY", str(folder / "frequency.json")]
        + ["MODEL.LONG_TAIL.EQL.LAMBDA", 0.3]  # common and rare of the 200 training images
        + ["MODEL.RESNETS.DEPTH", 18, "MODEL.RESNETS.RES2_OUT_CHANNELS", 64, "MODEL.RESNETS.NORM", "BN"]
        + ["MODEL.RESNETS.STEM_OUT_CHANNELS", 64, "MODEL.BACKBONE.FREEZE_AT", 0]
        + ["MODEL.FPN.OUT_CHANNELS", 16, "MODEL.ROI_BOX_HEAD.FC_DIM", 32, "MODEL.ROI_HEADS.NUM_CLASSES", NUM_CLASSES]
        + ["MODEL.ROI_MASK_HEAD.CONV_DIM", 16, "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", 32]
        + ["MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0, "TEST.DETECTIONS_PER_IMAGE", 20]
        + ["INPUT.MIN_SIZE_TRAIN", (64,), "INPUT.MAX_SIZE_TRAIN", 64, "INPUT.MIN_SIZE_TEST", 64]
        + ["INPUT.MAX_SIZE_TEST", 64, "SOLVER.IMS_PER_BATCH", 2, "SOLVER.BASE_LR", 0.01, "SOLVER.MAX_ITER", 4]
        + ["SOLVER.STEPS", (), "DATALOADER.NUM_WORKERS", 0, "OUTPUT_DIR", str(folder / "output")]
        + ["MODEL.LONG_TAIL.DATASETS", [[f"{folder.name}_train", str(folder / "train.json"), str(folder / "images")]]]
        + ["DATASETS.TRAIN", (f"{folder.name}_train",), "DATASETS.TEST", (f"{folder.name}_train",)]
    )
    cfg.merge_from_list([*settings, *opts])
    if "FPN" in architecture:
        cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[8], [16], [32], [64], [128]]
    return cfg


@pytest.fixture(scope="module")
def without_initial_values():
    """Leave parameters uninitialised: filling a deep network with random numbers takes most of a build's time."""
    patch = pytest.MonkeyPatch()
    for name in ("kaiming_uniform_", "kaiming_normal_", "normal_", "uniform_"):
        patch.setattr(torch.nn.init, name, lambda tensor, *args, **kwargs: tensor)
    yield
    patch.undo()
