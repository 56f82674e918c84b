"""Category frequencies of registered data sets."""

import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog

from eql_d2.data.catalog import category_frequency, frequency_of_records
from eql_d2.data.coco import register_coco
from eql_d2.data.frequency import CategoryFrequency
from eql_d2.data.lvis import register_lvis
from eql_d2.errors import InputError


def counts(frequency):
    return frequency.image_count.tolist(), frequency.instance_count.tolist(), frequency.num_images


@pytest.fixture
def gappy(save, content, coco_root):
    register_lvis("gappy", save(content), coco_root)
    return "gappy"


def test_counts_of_the_training_json(gappy, content, caplog):
    frequency = category_frequency([gappy])
    assert counts(frequency) == ([1, 2, 0, 0], [1, 3, 0, 0], 4), "the crowd is not counted, the empty image is"
    assert counts(frequency) == counts(CategoryFrequency.from_annotations(content))
    assert "2 of 4 categories are in no image" in caplog.text and "[2, 3]" in caplog.text


def test_file_overrides_the_data_set(gappy, tmp_path):
    saved = CategoryFrequency.from_counts([5, 6, 7, 8], num_images=100)
    saved.save(tmp_path / "frequency.json")
    assert counts(category_frequency([gappy], tmp_path / "frequency.json")) == counts(saved)
    assert counts(category_frequency([], tmp_path / "frequency.json")) == counts(saved)


def test_metadata_overrides_the_json(gappy):
    known = CategoryFrequency.from_counts([5, 6, 7, 8], num_images=100)
    MetadataCatalog.get(gappy).category_frequency = known
    assert category_frequency([gappy]) is known


def test_sum_over_training_sets(gappy, save, content, coco_root):
    content["images"] = content["images"][:2]
    register_lvis("half", save(content, "half.json"), coco_root)
    assert counts(category_frequency([gappy, "half"])) == ([1, 4, 0, 0], [1, 6, 0, 0], 6)


def test_letters_of_a_sum(save, content, coco_root):
    for category in content["categories"]:
        category["frequency"] = "c"
    register_lvis("one", save(content, "one.json"), coco_root)
    register_lvis("two", save(content, "two.json"), coco_root)
    assert category_frequency(["one", "two"]).groups == ("c",) * 4, "given letters are kept"


def test_letters_of_a_sum_without_given_letters(save, content, coco_root):
    content["images"] = [{**content["images"][2], "id": i} for i in range(6)]
    content["annotations"] = [{**content["annotations"][4], "id": i, "image_id": i} for i in range(6)]
    register_coco("one", save(content, "one.json"), coco_root)
    register_coco("two", save(content, "two.json"), coco_root)
    assert category_frequency(["one"]).groups[0] == "r"
    assert category_frequency(["one", "two"]).groups[0] == "c", "12 images"


def test_categories_that_differ(gappy, save, content, coco_root):
    content["categories"][0]["name"] = "ostrich"
    register_lvis("ostriches", save(content, "a.json"), coco_root)
    content["categories"].append({"id": 100, "name": "rhea"})
    register_lvis("rheas", save(content, "b.json"), coco_root)
    with pytest.raises(InputError, match="same categories in the same order"):
        category_frequency([gappy, "ostriches"])
    with pytest.raises(InputError, match="gappy has 4 categories and rheas has 5"):
        category_frequency([gappy, "rheas"])


def test_data_set_of_a_python_function():
    records = [
        {"annotations": [{"category_id": 0}, {"category_id": 0}, {"category_id": 1, "iscrowd": 1}]},
        {"annotations": [{"category_id": 2}]},
        {"annotations": []},
    ]
    DatasetCatalog.register("in_memory", lambda: records)
    with pytest.raises(InputError, match="has no thing_classes"):
        frequency_of_records("in_memory")
    MetadataCatalog.get("in_memory").thing_classes = ["a", "b", "c"]
    assert counts(category_frequency(["in_memory"])) == ([1, 0, 1], [2, 0, 1], 3)
    records[0]["annotations"].append({"category_id": 3})
    with pytest.raises(InputError, match=r"in_memory has an annotation with category_id 3.*labels 0 to 2"):
        category_frequency(["in_memory"])


def test_what_cannot_be_counted(save, content, coco_root):
    with pytest.raises(InputError, match=r"DATASETS\.TRAIN is empty"):
        category_frequency([])
    with pytest.raises(InputError, match=r"No data set is registered as 'lvis_v1_trian' \(did you mean lvis_v1_train"):
        category_frequency(["lvis_v1_trian"])
    with pytest.raises(InputError, match=r"lvis_v1_train.json: there is no such file.*MODEL.LONG_TAIL.FREQUENCY"):
        category_frequency(["lvis_v1_train"])
    del content["annotations"]
    register_lvis("test_set", save(content), coco_root)
    with pytest.raises(InputError, match=r"test_set .*train.json\) has no annotations to count"):
        category_frequency(["test_set"])


def test_counts_are_int64_tensors(gappy):
    frequency = category_frequency([gappy])
    assert frequency.image_count.dtype == frequency.instance_count.dtype == torch.int64


def test_counts_of_a_json_that_only_has_letters_in_part(save, content, coco_root):
    content["categories"][1]["frequency"] = "f"
    register_lvis("partly", save(content), coco_root)
    assert category_frequency(["partly"]).groups == ("r",) * 4
