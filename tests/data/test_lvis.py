"""Loading and registering LVIS-format data."""

import pickle

import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.lvis import load_lvis_json
from detectron2.structures import BoxMode

from eql_d2.data.lvis import load_lvis, register_lvis
from eql_d2.errors import InputError
from tests.conftest import write_image
from tests.data.conftest import SIZE, annotation


def without_gaps(content):
    """Renumber the categories to 1..4, in the same order, as Detectron2's loader needs."""
    new_id = {1: 1, 4: 2, 7: 3, 9: 4}
    for category in content["categories"]:
        category["id"] = new_id[category["id"]]
    for entry in content["annotations"]:
        entry["category_id"] = new_id[entry["category_id"]]
    for image in content["images"]:
        for field in ("neg_category_ids", "not_exhaustive_category_ids"):
            image[field] = [new_id[category_id] for category_id in image[field]]
    return content


def test_labels_are_contiguous_and_sorted(save, content, coco_root):
    records = load_lvis(save(content), coco_root)
    assert [record["image_id"] for record in records] == [12, 25, 30, 40]
    assert [[entry["category_id"] for entry in record["annotations"]] for record in records] == [
        [1, 1],
        [0],
        [1, 2],
        [],
    ]
    assert [record["image_labels"] for record in records] == [
        {"positive": [1], "negative": [0, 2]},
        {"positive": [0], "negative": []},
        {"positive": [1, 2], "negative": [0, 3]},  # the crowd counts: something of the class is there
        {"positive": [], "negative": [1, 3]},
    ]
    assert [record["not_exhaustive_category_ids"] for record in records] == [[1], [], [], []]
    assert all("neg_category_ids" not in record for record in records)


def test_annotations_keep_their_values(save, content, coco_root):
    record = load_lvis(save(content), coco_root)[0]
    assert record["height"] == record["width"] == SIZE
    first, second = record["annotations"]
    assert first["iscrowd"] == 0 and "iscrowd" not in second
    assert second["bbox"] == [1.5, 2, 3, 4.25] and second["bbox_mode"] is BoxMode.XYWH_ABS
    assert second["segmentation"] == content["annotations"][3]["segmentation"]


def test_equals_detectron2_where_that_can_load(save, content, coco_root):
    path = save(without_gaps(content))
    ours, theirs = load_lvis(path, f"{coco_root}/"), load_lvis_json(path, f"{coco_root}/", None, None)
    assert len(ours) == len(theirs) == 4
    for mine, other in zip(ours, theirs):
        for key in ("file_name", "height", "width", "image_id"):
            assert mine[key] == other[key]
        for my_annotation, other_annotation in zip(mine["annotations"], other["annotations"]):
            my_annotation.pop("iscrowd", None)  # Detectron2 drops it
            assert my_annotation == other_annotation
        assert mine["image_labels"]["negative"] == sorted({id_ - 1 for id_ in other["neg_category_ids"]})


def test_records_behave_like_a_list(save, content, coco_root):
    records = load_lvis(save(content), coco_root)
    assert len(records) == 4 and records[-1]["image_id"] == 40
    assert [record["image_id"] for record in records[1:3]] == [25, 30]
    assert [record["image_id"] for record in reversed(records)] == [40, 30, 25, 12]
    with pytest.raises(IndexError):
        records[4]
    records[0]["annotations"].clear()
    assert len(records[0]["annotations"]) == 2, "a record is made anew each time"
    assert list(pickle.loads(pickle.dumps(records))) == list(records)


@pytest.mark.parametrize(
    "file_name, coco_url, stored",
    [
        ("", "http://images.cocodataset.org/val2017/000000000012.jpg", "val2017/000000000012.jpg"),
        ("", "http://images.cocodataset.org/val2017/000000000012.jpg", "000000000012.jpg"),
        ("COCO_val2014_000000000012.jpg", "", "000000000012.jpg"),
        ("COCO_val2014_000000000012.jpg", "", "COCO_val2014_000000000012.jpg"),
        ("sub/twelve.png", "", "sub/twelve.png"),
        ("twelve.png", "http://elsewhere.org/a/b.jpg", "twelve.png"),
    ],
)
def test_file_naming_rule(save, content, tmp_path, file_name, coco_url, stored):
    content["images"] = [{**content["images"][1], "file_name": file_name, "coco_url": coco_url}]
    root = tmp_path / "pictures"
    (root / stored).parent.mkdir(parents=True)
    write_image(root / stored)
    assert load_lvis(save(content), root)[0]["file_name"] == str(root / stored)


def test_one_rule_holds_for_all_images(save, content, tmp_path):
    # The first image is found by coco_url in COCO's layout: so is the second, although another file would fit too.
    root = tmp_path / "coco"
    (root / "val2017").mkdir(parents=True)
    write_image(root / "val2017" / "000000000012.jpg")
    write_image(root / "000000000025.jpg")
    assert load_lvis(save(content), root)[1]["file_name"] == str(root / "val2017" / "000000000025.jpg")


def test_absent_images_do_not_stop_loading(save, content, tmp_path):
    records = load_lvis(save(content), tmp_path / "nowhere")
    assert records[0]["file_name"].endswith("nowhere/val2017/000000000012.jpg")


def test_metadata(save, content, coco_root):
    path = save(content)
    register_lvis("gappy", path, coco_root)
    metadata = MetadataCatalog.get("gappy")
    assert metadata.thing_classes == ["cat", "dog", "owl", "emu"]
    assert metadata.thing_dataset_id_to_contiguous_id == {1: 0, 4: 1, 7: 2, 9: 3}
    assert metadata.frequency_groups == ["r"] * 4
    assert (metadata.json_file, metadata.image_root) == (path, str(coco_root))
    assert metadata.evaluator_type == "lvis" and metadata.has_annotations is True
    assert len(DatasetCatalog.get("gappy")) == 4


def test_given_letters_win_over_counts(save, content, coco_root):
    for category, letter in zip(content["categories"], "rfcf"):  # ids 9, 1, 7, 4
        category["frequency"] = letter
    register_lvis("gappy", save(content), coco_root)
    assert MetadataCatalog.get("gappy").frequency_groups == ["f", "f", "c", "r"]


def test_registering_twice(save, content, coco_root):
    path = save(content)
    register_lvis("gappy", path, coco_root)
    register_lvis("gappy", path, coco_root)
    with pytest.raises(InputError, match="'gappy' is already registered for another data set"):
        register_lvis("gappy", save(content, "other.json"), coco_root)
    assert MetadataCatalog.get("gappy").json_file == path


def test_name_that_something_else_registered(save, content, coco_root):
    DatasetCatalog.register("taken", list)
    with pytest.raises(InputError, match="'taken' is already registered"):
        register_lvis("taken", save(content), coco_root)


def test_changed_json_is_read_again(save, content, coco_root):
    register_lvis("gappy", save(content), coco_root)
    content["categories"][0]["name"] = "ostrich"
    content["annotations"].pop()
    save(content)
    assert [len(record["annotations"]) for record in DatasetCatalog.get("gappy")] == [2, 0, 2, 0]
    assert MetadataCatalog.get("gappy").thing_classes[-1] == "ostrich"


def test_test_set_without_annotations(save, content, coco_root):
    del content["annotations"]
    for image in content["images"]:
        del image["neg_category_ids"], image["not_exhaustive_category_ids"]
    register_lvis("test_set", save(content), coco_root)
    record = DatasetCatalog.get("test_set")[0]
    assert set(record) == {"file_name", "height", "width", "image_id"}
    assert MetadataCatalog.get("test_set").has_annotations is False


def test_json_without_image_labels(save, content, coco_root):
    for image in content["images"]:
        del image["neg_category_ids"], image["not_exhaustive_category_ids"]
    assert "image_labels" not in load_lvis(save(content), coco_root)[0]


def test_broken_polygons_and_orphans_are_left_out_with_a_warning(save, content, coco_root, caplog):
    content["annotations"] += [
        annotation(6, 25, 9, segmentation=[[1, 2, 3, 4]]),
        annotation(7, 25, 7, segmentation=[[1, 2, 3, 4], [1, 2, 9, 2, 9, 9]]),
        annotation(8, 999, 7),
    ]
    record = load_lvis(save(content), coco_root)[1]
    assert [entry["category_id"] for entry in record["annotations"]] == [0, 2]
    assert record["annotations"][1]["segmentation"] == [[1, 2, 9, 2, 9, 9]]
    assert record["image_labels"]["positive"] == [0, 2, 3], "the class of the broken instance is in the image"
    assert "1 instances have no polygon of at least 3 points" in caplog.text
    assert "1 annotations are of images that are not in 'images'" in caplog.text


BAD_CHANGES = {
    "category_id 5": lambda content: content["annotations"][2].update(category_id=5),
    "image 12 has 3 in neg_category_ids": lambda content: content["images"][1].update(neg_category_ids=[3]),
    "has 0 in not_exhaustive": lambda content: content["images"][0].update(not_exhaustive_category_ids=[0]),
    "annotation id 3 occurs more than once": lambda content: content["annotations"][3].update(id=3),
    "image id 30 occurs more than once": lambda content: content["images"][1].update(id=30),
    "category id 9 occurs more than once": lambda content: content["categories"][1].update(id=9),
    "missing required field `height`": lambda content: content["images"][0].pop("height"),
    "missing required field `categories`": lambda content: content.pop("categories"),
    "Expected `array` of length 4": lambda content: content["annotations"][0].update(bbox=[1, 2, 3]),
    "neither a list of polygons nor a run-length mask": lambda content: content["annotations"][0].update(
        segmentation="none"
    ),
    "'ignore' 1": lambda content: content["annotations"][0].update(ignore=1),
    "lists no image": lambda content: content.update(images=[]),
    "lists no category": lambda content: content.update(categories=[]),
}


@pytest.mark.parametrize("message", BAD_CHANGES)
def test_bad_content(save, content, message):
    BAD_CHANGES[message](content)
    path = save(content)
    with pytest.raises(InputError) as raised:
        load_lvis(path, "images")
    assert message in str(raised.value) and path in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("text", ["{", '{"images": [{"id": 1', "\x00"])
def test_truncated_json(save, text):
    with pytest.raises(InputError, match=r"train.json is not valid json .*is the download complete"):
        load_lvis(save(text), "images")


def test_missing_and_unreadable_json(tmp_path):
    with pytest.raises(InputError, match=r"absent.json: there is no such file"):
        load_lvis(tmp_path / "absent.json", "images")
    with pytest.raises(InputError, match="cannot be read"):
        load_lvis(tmp_path, "images")
