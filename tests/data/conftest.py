"""A small LVIS-format json with everything that is awkward in it, and ways to put it on disk."""

import json
from pathlib import Path

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog

from tests.conftest import square, write_image

SIZE = 64


def annotation(id_, image_id, category_id, **changes):
    """Return a valid annotation; ``changes`` may replace or add fields."""
    polygon = square(8 + id_, 10, 20)
    return {
        "id": id_,
        "image_id": image_id,
        "category_id": category_id,
        "bbox": [8 + id_, 10, 20, 20],
        "area": 400.0,
        "segmentation": [polygon],
        **changes,
    }


def gappy_lvis_json():
    """Four categories with ids 1, 4, 7, 9 (labels 0 to 3), given out of order, and four images, one without instances.

    Image 30 shows 4 and 7 as a crowd only, 12 shows 4 twice, 25 shows 1; nothing shows 9.
    """

    def image(id_, **changes):
        return {
            "id": id_,
            "height": SIZE,
            "width": SIZE,
            "file_name": f"COCO_val2014_{id_:012d}.jpg",
            "coco_url": f"http://images.cocodataset.org/val2017/{id_:012d}.jpg",
            "neg_category_ids": [],
            "not_exhaustive_category_ids": [],
            **changes,
        }

    return {
        "images": [
            image(30, neg_category_ids=[9, 1]),
            image(12, neg_category_ids=[7, 7, 1], not_exhaustive_category_ids=[4]),
            image(25),
            image(40, neg_category_ids=[4, 9]),
        ],
        "categories": [{"id": id_, "name": name} for id_, name in ((9, "emu"), (1, "cat"), (7, "owl"), (4, "dog"))],
        "annotations": [
            annotation(1, 30, 4),
            annotation(2, 30, 7, iscrowd=1),
            annotation(3, 12, 4, iscrowd=0),
            annotation(4, 12, 4, bbox=[1.5, 2, 3, 4.25]),
            annotation(5, 25, 1),
        ],
    }


@pytest.fixture
def content():
    return gappy_lvis_json()


@pytest.fixture
def save(tmp_path):
    """Return a function that writes a json to ``tmp_path / name`` and returns the path as a string."""

    def write(value, name="train.json"):
        path = tmp_path / name
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return str(path)

    return write


@pytest.fixture
def coco_root(tmp_path, content) -> Path:
    """A folder laid out like COCO's, ``val2017/000000000012.jpg`` and so on, with the images of ``content``."""
    root = tmp_path / "coco"
    (root / "val2017").mkdir(parents=True)
    for image in content["images"]:
        write_image(root / "val2017" / f"{image['id']:012d}.jpg", size=SIZE, seed=image["id"])
    return root


@pytest.fixture(autouse=True)
def _clean_catalogs():
    """Forget the data sets that a test registers."""
    names, metadata = set(DatasetCatalog), set(MetadataCatalog)
    yield
    for name in set(DatasetCatalog) - names:
        DatasetCatalog.remove(name)
    for name in set(MetadataCatalog) - metadata:
        MetadataCatalog.remove(name)
