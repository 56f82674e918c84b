"""Merging data sets: what is written, against loops over the parsed files, and every mistake in a mapping."""

import json
import re

import pytest

from eql_d2.cli import COMMANDS
from eql_d2.commands.merge import main
from eql_d2.data.check import check_dataset
from eql_d2.data.lvis import load_lvis
from eql_d2.data.merge import merge_files
from eql_d2.data.merge_mapping import read_mapping
from eql_d2.errors import InputError
from tests.conftest import ROOT, square, write_image
from tests.data.open_images import write_open_images

LVIS_CLASSES = [(3, "cat", "cat.n.01"), (5, "dog", "dog.n.01"), (8, "sausage", "sausage.n.01"), (9, "emu", "emu.n.01")]
COCO_CLASSES = [(1, "cat"), (2, "hot dog"), (17, "person")]


def one(id_, image_id, category_id, box, mask=True, **more):
    found = {"id": id_, "image_id": image_id, "category_id": category_id, "bbox": box, "area": 7.5, **more}
    return {**found, "segmentation": [square(box[0], box[1], box[2])]} if mask else found


def image(id_, **more):
    return {"id": id_, "height": 64, "width": 64, "file_name": f"{id_:012d}.jpg", **more}


def lvis(**changes):
    sets = {"neg_category_ids": [8, 9], "not_exhaustive_category_ids": [5]}
    return {
        "images": [image(1, **sets), image(2, neg_category_ids=[], not_exhaustive_category_ids=[])],
        "annotations": [one(1, 1, 3, [0, 0, 10, 10]), one(2, 1, 5, [20, 20, 10, 10]), one(3, 2, 3, [5, 5, 20, 20])],
        "categories": [
            {"id": id_, "name": name, "synset": synset, "frequency": "rcff"[n], "image_count": 77}
            for n, (id_, name, synset) in enumerate(LVIS_CLASSES)
        ],
        **changes,
    }


def coco(mask=True):
    boxes = [one(1, 1, 1, [0, 0, 10, 10], mask), one(2, 1, 2, [40, 40, 9, 9], mask), one(3, 2, 2, [30, 30, 9, 9], mask)]
    boxes += [one(4, 7, 1, [1, 1, 5, 5], mask), one(5, 2, 17, [0, 0, 9, 9], mask), one(6, 2, 1, [5, 5, 20, 14], mask)]
    boxes.append(one(7, 2, 1, [50, 50, 9, 9], mask, iscrowd=1))
    return {
        "images": [image(1), image(2), image(7)],
        "annotations": boxes,
        "categories": [{"id": id_, "name": name} for id_, name in COCO_CLASSES],
    }


@pytest.fixture
def folder(tmp_path):
    for name, content in (("lvis.json", lvis()), ("coco.json", coco())):
        (tmp_path / name).write_text(json.dumps(content))
    for name, ids in (("one", (1, 2)), ("two", (1, 2, 7))):
        (tmp_path / name).mkdir()
        for id_ in ids:
            write_image(tmp_path / name / f"{id_:012d}.jpg", seed=id_)
    return tmp_path


def mapping(**changes):
    return {
        "categories": "lvis.json",
        "sources": [
            {"name": "lvis", "json": "lvis.json", "images": "one"},
            {
                "name": "coco",
                "json": "coco.json",
                "images": "two",
                "exhaustive": True,
                "categories": {"hot dog": "sausage.n.01", "person": None},
            },
        ],
        **changes,
    }


def adding(**changes):
    first, second = mapping()["sources"]
    del second["exhaustive"]
    return mapping(sources=[first, {**second, "adds_to": "lvis"}], **changes)


def merged(folder, value):
    (folder / "merge.yaml").write_text(json.dumps(value))
    reports = merge_files(read_mapping(folder / "merge.yaml"), folder / "merged.json", str(folder))
    return json.loads((folder / "merged.json").read_text()), reports


def refused(folder, value, message):
    with pytest.raises(InputError, match=message):
        merged(folder, value)
    assert not (folder / "merged.json").exists()


def test_two_sets_with_images_of_their_own(folder):
    content, reports = merged(folder, mapping())
    assert content["sources"] == [
        {"name": "lvis", "exhaustive_category_ids": [], "has_masks": True},
        {"name": "coco", "exhaustive_category_ids": [3, 8], "has_masks": True},
    ]
    # Ids stay where they are free; the others come after all ids.
    ids = [(x["id"], x["file_name"], x["source"]) for x in content["images"]]
    assert ids == [
        (1, "one/000000000001.jpg", "lvis"),
        (2, "one/000000000002.jpg", "lvis"),
        (8, "two/000000000001.jpg", "coco"),
        (9, "two/000000000002.jpg", "coco"),
        (7, "two/000000000007.jpg", "coco"),
    ]
    new, targets = {1: 8, 2: 9, 7: 7}, {1: 3, 2: 8}
    expected = [(x["image_id"], x["category_id"], x["bbox"]) for x in lvis()["annotations"]]
    expected += [
        (new[x["image_id"]], targets[x["category_id"]], x["bbox"])
        for x in coco()["annotations"]
        if x["category_id"] in targets
    ]
    assert [(x["image_id"], x["category_id"], x["bbox"]) for x in content["annotations"]] == expected
    assert {x["area"] for x in content["annotations"]} == {7.5}
    assert [x["id"] for x in content["annotations"]] == list(range(1, len(expected) + 1))
    assert content["images"][0]["neg_category_ids"] == [8, 9]
    assert content["images"][0]["not_exhaustive_category_ids"] == [5]
    assert content["images"][2]["neg_category_ids"] == []
    for category in content["categories"]:
        instances = [x for x in content["annotations"] if x["category_id"] == category["id"] and not x.get("iscrowd")]
        assert category["instance_count"] == len(instances)
        assert category["image_count"] == len({x["image_id"] for x in instances})
    assert [(c["id"], c["name"], c["frequency"]) for c in content["categories"]] == [
        (id_, name, "rcff"[n]) for n, (id_, name, _) in enumerate(LVIS_CLASSES)
    ]
    assert [str(report) for report in reports] == [
        "lvis: 2 images, 3 annotations, 4 classes",
        "coco: 3 images, 6 annotations, 2 classes; not taken: 1 of categories left out",
    ]


def test_records_know_what_their_source_verified(folder):
    merged(folder, mapping())
    records = {record["image_id"]: record for record in load_lvis(folder / "merged.json", folder)}
    labels = {id_: record["image_labels"] for id_, record in records.items()}
    assert labels[1] == {"positive": [0, 1], "negative": [2, 3]}
    assert labels[2] == {"positive": [0], "negative": []}
    assert labels[7] == {"positive": [0], "negative": [2]}
    assert labels[9] == {"positive": [0, 2], "negative": []}
    assert all("has_masks" not in record for record in records.values())
    assert not check_dataset(folder / "merged.json", folder).has_errors


def test_boxes_added_to_the_images_of_another_set_by_detic_s_rules(folder):
    content, reports = merged(folder, adding())
    added = [(x["image_id"], x["category_id"], x["bbox"]) for x in content["annotations"][3:]]
    # 1: the cat is there already. 2: image 1 has no sausage. 4: no such image. 5: left out. 6: its IoU is just 0.7.
    assert added == [(2, 8, [30, 30, 9, 9]), (2, 3, [50, 50, 9, 9])]
    assert len(content["images"]) == 2 and [source["name"] for source in content["sources"]] == ["lvis"]
    report = reports[1]
    assert (report.doubled, report.verified_absent, report.elsewhere, report.left_out) == (2, 1, 1, 1)


def test_detic_s_rules_can_be_turned_off(folder):
    content, reports = merged(folder, adding(duplicate_iou=0, drop_verified_absent=False))
    assert reports[1].annotations == 5
    assert content["images"][0]["neg_category_ids"] == [9]  # a sausage was added
    content, reports = merged(folder, adding(duplicate_iou=0.71))
    assert reports[1].doubled == 1


def test_images_without_masks_say_so(folder):
    (folder / "coco.json").write_text(json.dumps(coco(mask=False)))
    content, _ = merged(folder, mapping())
    assert [source["has_masks"] for source in content["sources"]] == [True, False]
    records = load_lvis(folder / "merged.json", folder)
    assert [record["image_id"] for record in records if record.get("has_masks") is False] == [7, 8, 9]


def test_without_target_categories_they_are_those_of_the_sources(folder):
    sources = mapping()["sources"]
    sources[1]["categories"] = {17: "human"}
    content, _ = merged(folder, {"sources": sources})
    assert [c["name"] for c in content["categories"]] == ["cat", "dog", "sausage", "emu", "hot dog", "human"]
    assert [c["id"] for c in content["categories"]] == [1, 2, 3, 4, 5, 6]
    assert not any("frequency" in c for c in content["categories"])
    assert content["sources"][1]["exhaustive_category_ids"] == [1, 5, 6]


def test_synset_and_id_match(folder):
    sources = mapping()["sources"]
    other = coco()
    other["categories"] = [
        {"id": 1, "name": "x", "synset": "cat.n.01"},
        {"id": 2, "name": "y", "synset": "sausage.n.01"},
        {"id": 17, "name": "z", "synset": "emu.n.01"},
    ]
    (folder / "coco.json").write_text(json.dumps(other))
    sources[1].update(match="synset", categories={}, exhaustive=["x"])
    content, _ = merged(folder, mapping(sources=sources))
    assert content["sources"][1]["exhaustive_category_ids"] == [3]
    assert {x["category_id"] for x in content["annotations"][3:]} == {3, 8, 9}
    sources[1].update(match="id")
    (folder / "merged.json").unlink()
    refused(folder, mapping(sources=sources), "coco: 3 categories have no target .'x', 'y', 'z'.")


def test_two_classes_of_a_source_as_one_are_absent_if_both_are(folder):
    content = lvis()
    content["images"][1]["neg_category_ids"] = [9]
    (folder / "lvis.json").write_text(json.dumps(content))
    (folder / "targets.json").write_text(
        json.dumps({"categories": [{"id": 1, "name": "meat"}, {"id": 2, "name": "animal"}]})
    )
    source = {"name": "lvis", "json": "lvis.json", "images": "one"}
    classes = {"sausage": "meat", "emu": "meat", "cat": "animal", "dog": "animal"}
    content, _ = merged(folder, {"categories": "targets.json", "sources": [{**source, "categories": classes}]})
    assert [x["neg_category_ids"] for x in content["images"]] == [[1], []]


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        ({"hot dogs": "sausage"}, "coco has no 'hot dogs' .did you mean 'hot dog'.*categories have no target"),
        (
            {"hot dog": "sausages", "person": None},
            "coco maps to 'sausages', which .* does not have .did you mean 'sausage'",
        ),
        ({}, "coco: 2 categories have no target .'hot dog', 'person'.; name one in categories"),
    ],
)
def test_categories_that_do_not_fit(folder, classes, message):
    value = mapping()
    value["sources"][1]["categories"] = classes
    refused(folder, value, message)


def test_all_mistakes_are_named_at_once_and_unmapped_ones_can_be_dropped(folder):
    value = mapping()
    value["sources"][0]["categories"] = {"emu": "ostrich"}
    value["sources"][1]["categories"] = {}
    refused(folder, value, "lvis maps to 'ostrich'.*coco: 2 categories have no target")
    value["sources"][0]["categories"] = {}
    _, reports = merged(folder, {**value, "unmapped": "drop"})
    assert reports[1].left_out == 3 and reports[1].classes == 1


def test_two_that_match_one_target_by_accident(folder):
    other = coco()
    other["categories"][2]["name"] = "cat"
    (folder / "coco.json").write_text(json.dumps(other))
    value = mapping()
    value["sources"][1]["categories"] = {"hot dog": "sausage"}
    refused(folder, value, "'cat', 'cat' all match one target")


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([{"id": 1, "name": "a"}, {"id": 1, "name": "b"}], "category id 1 occurs more than once"),
        ([{"id": "1", "name": "a"}], "has no categories with id and name"),
        ([{"id": 1}], "has no categories with id and name"),
        (7, "has no categories with id and name"),
    ],
)
def test_target_categories_that_cannot_be_used(folder, categories, message):
    (folder / "targets.json").write_text(json.dumps({"categories": categories}))
    refused(folder, mapping(categories="targets.json"), message)


def test_a_target_name_that_stands_for_two(folder):
    content = lvis()
    content["categories"][3]["name"] = "cat"
    (folder / "targets.json").write_text(json.dumps(content))
    refused(folder, mapping(categories="targets.json"), "coco: 'cat' is that of 2 targets, .3, 9.")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adds_to": "voc", "exhaustive": None}, "adds_to 'voc', which is no source before it .'lvis'."),
        ({"adds_to": "lvis"}, "exhaustive is of no use"),
        ({"name": "lvis"}, "two sources are called 'lvis'"),
        ({"exhaustive": None}, "has no negative sets, so the mapping must say"),
        ({"exhaustive": ["cow"]}, "exhaustive has 'cow', which coco.json does not have"),
        ({"match": "colour"}, "no mapping of data sets to merge: Invalid enum value 'colour'"),
        ({"colour": 1}, "unknown field `colour`"),
        ({"json": "none.json"}, "none.json: there is no such file"),
        ({"json": "merge.yaml"}, "is not in LVIS or COCO format"),
    ],
)
def test_sources_that_cannot_be_used(folder, changes, message):
    value = mapping()
    value["sources"][1] = {key: v for key, v in {**value["sources"][1], **changes}.items() if v is not None}
    refused(folder, value, message)


def test_other_mistakes(folder):
    refused(folder, mapping(duplicate_iou=7), "duplicate_iou is 7")
    refused(folder, {"sources": []}, "names no source")
    (folder / "merge.yaml").write_text("sources:\n- {name: a, json: b, categories: {x: y, x: z}}")
    with pytest.raises(InputError, match="'x' occurs twice in one mapping, in line 2"):
        read_mapping(folder / "merge.yaml")
    with pytest.raises(InputError, match="cannot be read as YAML"):
        read_mapping(folder / "none.yaml")
    value = adding()
    value["sources"][1]["images_by"] = "file_name"
    other = coco()
    for found in other["images"]:
        found["file_name"] = f"x{found['file_name']}"
    (folder / "coco.json").write_text(json.dumps(other))
    refused(folder, value, "has none of the images of 'lvis'; they are matched by their file_name")


def test_open_images_files_as_a_source(folder):
    write_open_images(folder / "oi")
    files = {"boxes": "oi/boxes.csv", "classes": "oi/classes.csv", "image_labels": "oi/labels.csv"}
    entry = {"name": "oi", "images": "oi/images", "open_images": {**files, "hierarchy": "oi/hierarchy.json"}}
    classes = {"Animal": None, "2": "cat", "Dog": "dog", "Owl, great": "emu", "5": None}
    value = mapping(sources=[mapping()["sources"][0], {**entry, "categories": classes}])
    content, _ = merged(folder, value)
    assert content["sources"][1] == {"name": "oi", "exhaustive_category_ids": [], "has_masks": False}
    # a0 shows a group of cats; b1 a dog and a cat, and no owl; c2 no animal, and so neither cat nor dog.
    images = [(x["id"], x["file_name"], x["height"], x["width"], x["neg_category_ids"]) for x in content["images"][2:]]
    assert images == [
        (4, "oi/images/a0.jpg", 20, 40, []),
        (5, "oi/images/b1.jpg", 40, 20, [9]),
        (3, "oi/images/c2.jpg", 30, 30, [3, 5]),
    ]
    boxes = [(x["image_id"], x["category_id"], x["bbox"], x.get("iscrowd")) for x in content["annotations"][3:]]
    assert boxes == [(4, 3, [0, 0, 40, 20], 1), (5, 5, [2, 8, 8, 16], None), (5, 3, [5, 0, 15, 40], None)]
    assert content["annotations"][3]["area"] == 800
    value["sources"][1]["json"] = "coco.json"
    (folder / "merged.json").unlink()
    refused(folder, value, "must have json or open_images, and not both")
    content, _ = merged(folder, {"sources": [{**entry, "categories": {"5": "tree"}}]})
    assert [c["name"] for c in content["categories"]] == ["Animal", "Cat", "Dog", "Owl, great", "tree"]


def test_an_image_outside_of_the_root(folder):
    value = mapping()
    value["sources"][1]["images"] = str(folder.parent / "elsewhere")
    refused(folder, value, "is not below")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["sources"].append(dict(c["sources"][0])), "'sources' has 'lvis' as a name 2 times"),
        (lambda c: c["sources"][0].update(exhaustive_category_ids=[4]), "has 4 in exhaustive_category_ids"),
        (lambda c: c["images"][0].update(source="voc"), "image 1 has source 'voc'; 'sources' has 'lvis', 'coco'"),
    ],
)
def test_a_merged_file_that_was_changed(folder, change, message):
    content, _ = merged(folder, mapping())
    change(content)
    (folder / "merged.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=message):
        load_lvis(folder / "merged.json", folder)
    assert check_dataset(folder / "merged.json", folder).has_errors


def test_source_in_a_file_of_other_programs_means_nothing(folder):
    content = lvis()
    content["images"][0]["source"] = {"site": "flickr"}
    (folder / "lvis.json").write_text(json.dumps(content))
    assert "source" not in load_lvis(folder / "lvis.json", folder / "one")[0]


def test_the_command(folder, capsys):
    (folder / "merge.yaml").write_text(json.dumps(mapping()))
    main([str(folder / "merge.yaml"), "--output", str(folder / "out.json"), "--root", str(folder)])
    assert "lvis: 2 images, 3 annotations" in capsys.readouterr().out
    assert (folder / "out.json").is_file() and "merge" in COMMANDS
    with pytest.raises(InputError, match="was merged itself"):
        merged(folder, {"sources": [{"name": "a", "json": "out.json"}]})


def test_the_page_s_mapping_can_be_read(tmp_path):
    page = (ROOT / "docs" / "merged_data.md").read_text()
    (block,) = [found for found in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL) if "sources:" in found]
    (tmp_path / "merge.yaml").write_text(block)
    value = read_mapping(tmp_path / "merge.yaml")
    assert [source.name for source in value.sources] == ["lvis", "openimages", "objects365", "coco"]
    assert value.sources[1].categories["Human body"] is None and value.sources[3].adds_to == "lvis"
