"""Loading and registering COCO-format data."""

import numpy as np
import pycocotools.mask as mask_util
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.coco import load_coco_json

from eql_d2.data.coco import load_coco, register_coco
from eql_d2.errors import InputError
from tests.data.conftest import SIZE, annotation


@pytest.fixture
def coco_content(content):
    mask = np.zeros((SIZE, SIZE), np.uint8, order="F")
    mask[10:20, 5:30] = 1
    compressed = mask_util.encode(mask)
    for image in content["images"]:
        del image["neg_category_ids"], image["not_exhaustive_category_ids"]
    content["annotations"] += [
        annotation(
            6, 25, 7, iscrowd=1, segmentation={"size": [SIZE, SIZE], "counts": [330, 10, 54, 10, SIZE**2 - 404]}
        ),
        annotation(7, 25, 7, segmentation={"size": [SIZE, SIZE], "counts": compressed["counts"].decode()}),
        annotation(8, 40, 1, segmentation=[[1, 2, 3, 4]]),
        annotation(9, 40, 1, segmentation=[], iscrowd=False),
        annotation(10, 40, 1, keypoints=[4, 5, 2, 7, 8, 0]),
    ]
    return content


def test_equals_detectron2(save, coco_content):
    path = save(coco_content)
    theirs = load_coco_json(path, "images", "coco_reference")
    ours = load_coco(path, "images")
    assert list(ours) == theirs
    assert sum(len(record["annotations"]) for record in ours) == 9, "one of ten has no valid polygon"


def test_metadata_and_groups(save, coco_content):
    # Category 1 in 11 images besides image 25: common. The others: rare.
    for image_id in range(100, 111):
        coco_content["images"].append({**coco_content["images"][0], "id": image_id})
        coco_content["annotations"].append(annotation(image_id, image_id, 1))
    register_coco("small_coco", save(coco_content), "images")
    metadata = MetadataCatalog.get("small_coco")
    assert metadata.evaluator_type == "coco"
    assert metadata.thing_classes == ["cat", "dog", "owl", "emu"]
    assert metadata.frequency_groups == ["c", "r", "r", "r"]
    assert all("image_labels" not in record for record in DatasetCatalog.get("small_coco"))


def test_image_labels_of_lvis_data_are_left_out(save, content):
    record = load_coco(save(content), "images")[0]
    assert "image_labels" not in record and "not_exhaustive_category_ids" not in record


def test_category_id_out_of_range(save, coco_content):
    coco_content["annotations"][0]["category_id"] = 90
    with pytest.raises(InputError, match=r"annotation 1 has category_id 90.*4 ids from 1 to 9"):
        register_coco("small_coco", save(coco_content), "images")
    assert "small_coco" not in DatasetCatalog
