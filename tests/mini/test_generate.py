"""The generated data set: its format, its statistics, its image-level sets, and what happens around the files."""

import json
from collections import Counter

import cv2
import numpy as np
import pytest
from lvis import LVIS
from pycocotools import mask as mask_utils

from eql_d2.data.frequency import CategoryFrequency
from eql_d2.data.groups import frequency_group
from eql_d2.errors import InputError
from eql_d2.mini import generate as mini
from eql_d2.mini.generate import MiniParameters, draw_image, generate_mini_dataset, plan_split
from eql_d2.mini.plan import CATEGORIES_PER_IMAGE, balanced_image_counts, train_image_counts
from eql_d2.mini.records import lvis_statistics
from eql_d2.mini.shapes import MAX_CLASSES, class_appearances

SMALL = {"num_classes": 12, "num_train": 80, "num_val": 30, "image_size": 64, "num_test": 5, "seed": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return generate_mini_dataset(tmp_path_factory.mktemp("data") / "mini", **SMALL)


@pytest.fixture(scope="module")
def content(folder):
    return {split: json.loads((folder / f"{split}.json").read_text()) for split in mini.SPLITS}


def annotated_classes(content):
    """Category ids by image id."""
    classes = {image["id"]: set() for image in content["images"]}
    for annotation in content["annotations"]:
        classes[annotation["image_id"]].add(annotation["category_id"])
    return classes


# ---- the files


@pytest.mark.parametrize("split", ["train", "val"])
def test_lvis_api_reads_the_json_and_every_mask(folder, split):
    dataset = LVIS(str(folder / f"{split}.json"))
    assert len(dataset.get_img_ids()) == SMALL[f"num_{split}"]
    assert dataset.get_cat_ids() == list(range(1, 13))
    masks = [dataset.ann_to_mask(annotation) for annotation in dataset.load_anns()]
    assert len(masks) == len(dataset.dataset["annotations"])
    assert all(mask.any() for mask in masks)


@pytest.mark.parametrize("split", ["train", "val"])
def test_records_have_the_fields_of_lvis(content, split):
    assert set(content[split]) == {"info", "licenses", "images", "annotations", "categories"}
    assert {frozenset(record) for record in content[split]["annotations"]} == {
        frozenset(["id", "image_id", "category_id", "segmentation", "area", "bbox"])
    }
    fields = ["id", "name", "synset", "def", "synonyms", "frequency", "image_count", "instance_count"]
    assert {frozenset(record) for record in content[split]["categories"]} == {frozenset(fields)}
    ids = [annotation["id"] for annotation in content[split]["annotations"]]
    assert ids == list(range(1, len(ids) + 1))


def test_image_ids_differ_between_splits(content):
    ids = [image["id"] for split in mini.SPLITS for image in content[split]["images"]]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("split", mini.SPLITS)
def test_images_are_where_the_json_says(folder, content, split):
    names = [image["file_name"] for image in content[split]["images"]]
    assert sorted(names) == sorted(path.name for path in (folder / split).iterdir())
    for image in content[split]["images"]:
        assert cv2.imread(str(folder / split / image["file_name"])).shape == (image["height"], image["width"], 3)


def test_test_split_tells_nothing_of_its_images(content):
    assert "annotations" not in content["test"]
    assert {frozenset(image) for image in content["test"]["images"]} == {
        frozenset(["id", "file_name", "height", "width"])
    }
    assert content["test"]["categories"] == content["train"]["categories"]


def test_category_counts_are_those_of_the_training_set(content):
    counted = CategoryFrequency.from_annotations(content["train"])
    assert content["val"]["categories"] == content["train"]["categories"]
    for category, images, instances in zip(
        content["val"]["categories"], counted.image_count.tolist(), counted.instance_count.tolist()
    ):
        assert (category["image_count"], category["instance_count"]) == (images, instances)
        assert category["frequency"] == frequency_group(images)
        assert images >= 1


# ---- polygons


@pytest.mark.parametrize("split", ["train", "val"])
def test_polygons_boxes_and_areas_fit_each_other(content, split):
    size = SMALL["image_size"]
    for annotation in content[split]["annotations"]:
        (polygon,) = annotation["segmentation"]
        points = np.array(polygon).reshape(-1, 2)
        assert len(points) >= 3
        assert points.min() >= 0 and points.max() <= size
        left, top, width, height = annotation["bbox"]
        np.testing.assert_allclose([left, top], points.min(axis=0))
        np.testing.assert_allclose([left + width, top + height], points.max(axis=0), atol=1e-9)
        rle = mask_utils.frPyObjects([polygon], size, size)[0]
        assert annotation["area"] == mask_utils.area(rle) > 0
        # pycocotools' box is that of whole pixels; it lacks the end of a sharp tip.
        x, y, w, h = mask_utils.toBbox(rle)
        outer = np.array([x - left, y - top, left + width - x - w, top + height - y - h])
        assert (outer >= -1).all() and (outer <= 3).all()


def test_the_annotated_object_is_what_is_drawn_there(folder, content):
    """The colours inside the outlines of a class agree with its name, those of the rest of the image rarely do."""
    orange = {category["id"] for category in content["val"]["categories"] if category["name"].startswith("orange")}
    inside, outside = [], []
    images = {image["id"]: image["file_name"] for image in content["val"]["images"]}
    for annotation in content["val"]["annotations"]:
        if annotation["category_id"] in orange:
            pixels = cv2.imread(str(folder / "val" / images[annotation["image_id"]])).astype(int)
            rle = mask_utils.frPyObjects(annotation["segmentation"], *pixels.shape[:2])[0]
            mask = mask_utils.decode(rle) > 0
            # Orange: much more red than blue. OpenCV's order is BGR.
            inside.append(np.median((pixels[:, :, 2] - pixels[:, :, 0])[mask]))
            outside.append(np.median((pixels[:, :, 2] - pixels[:, :, 0])[~mask]))
    assert len(inside) > 20
    assert np.mean(np.array(inside) > 80) > 0.85
    assert np.mean(np.array(outside) > 80) < 0.4


def test_objects_stay_visible_under_those_drawn_later():
    parameters = MiniParameters(**SMALL)
    for index, plan in enumerate(plan_split(parameters, "train")[:20]):
        _, drawn = draw_image(parameters, "train", index, plan)
        masks = [
            mask_utils.decode(mask_utils.frPyObjects([shape.polygon.reshape(-1).tolist()], 64, 64)[0]) > 0
            for shape in drawn
        ]
        for i, mask in enumerate(masks):
            covered = np.any([mask & later for later in masks[i + 1 :]], axis=0)
            # The bound is 0.6; two rasterisations of a small outline differ along its edge.
            assert 1 - covered.sum() / mask.sum() > 0.4


# ---- the image-level sets


@pytest.mark.parametrize("split", ["train", "val"])
def test_image_level_sets_are_consistent(content, split):
    classes = annotated_classes(content[split])
    for image in content[split]["images"]:
        negatives = image["neg_category_ids"]
        assert len(negatives) == len(set(negatives))
        assert set(negatives) <= set(range(1, 13))
        assert not set(negatives) & classes[image["id"]]
        assert set(image["not_exhaustive_category_ids"]) <= classes[image["id"]]


@pytest.mark.parametrize("split", ["train", "val"])
def test_only_what_the_plan_verifies_is_annotated(content, split):
    """The picture holds classes that are in neither set, and instances that not-exhaustive classes leave out."""
    parameters = MiniParameters(**SMALL)
    by_image = {image["id"]: Counter() for image in content[split]["images"]}
    for annotation in content[split]["annotations"]:
        by_image[annotation["image_id"]][annotation["category_id"] - 1] += 1
    holes = left_out = 0
    for index, (image, plan) in enumerate(zip(content[split]["images"], plan_split(parameters, split))):
        annotated = by_image[image["id"]]
        assert set(annotated) == set(plan.annotated)
        assert set(image["not_exhaustive_category_ids"]) == {label + 1 for label in plan.left_out}
        _, drawn = draw_image(parameters, split, index, plan)
        hidden = Counter(shape.request.label for shape in drawn if not shape.request.annotated)
        assert set(hidden) == set(plan.unverified) | set(plan.left_out)
        assert annotated == Counter(shape.request.label for shape in drawn if shape.request.annotated)
        assert not set(plan.unverified) & (set(plan.annotated) | set(plan.negatives))
        holes += len(plan.unverified)
        left_out += len(plan.left_out)
    assert holes > 0 and left_out > 0


def test_holes_are_as_frequent_as_stated():
    parameters = MiniParameters()
    for split, share in mini.UNVERIFIED_SHARE.items():
        plans = plan_split(parameters, split)
        holes = sum(len(plan.unverified) for plan in plans)
        shown = holes + sum(len(plan.annotated) for plan in plans)
        assert holes / shown == pytest.approx(share, abs=0.03)


def test_stamp_counts_the_unannotated_objects(folder, content):
    parameters = MiniParameters(**SMALL)
    drawn = sum(
        len(draw_image(parameters, "val", index, plan)[1]) for index, plan in enumerate(plan_split(parameters, "val"))
    )
    hidden = json.loads((folder / "mini.json").read_text())["unannotated_objects"]["val"]
    assert hidden == drawn - len(content["val"]["annotations"]) > 0


# ---- statistics


def test_default_shares_are_those_of_lvis():
    """r/c/f within two classes of 454/461/315 of 1230, though only the classes per image are fitted."""
    counts = train_image_counts(60, 1500)
    groups = Counter(frequency_group(count) for count in counts.tolist())
    for group, share in (("r", 454 / 1230), ("c", 461 / 1230), ("f", 315 / 1230)):
        assert abs(groups[group] - 60 * share) <= 2
    assert counts.sum() / 1500 == pytest.approx(CATEGORIES_PER_IMAGE, abs=0.01)


def test_the_rule_extrapolates_to_lvis():
    """With LVIS v0.5's numbers of images and classes its most frequent class comes out: 1145 images."""
    assert train_image_counts(1230, 57263)[0] == pytest.approx(1145, rel=0.02)


@pytest.mark.parametrize("num_classes, num_images", [(1, 1), (1, 50), (7, 100), (60, 1500), (200, 25), (1230, 500)])
def test_every_class_has_an_image_and_counts_fall(num_classes, num_images):
    counts = train_image_counts(num_classes, num_images)
    assert len(counts) == num_classes
    assert counts.min() >= 1 and counts.max() <= max(num_images / 2, 1)
    assert (np.diff(counts) <= 0).all()


def test_val_is_balanced():
    counts = balanced_image_counts(60, 400, np.random.default_rng(0))
    assert counts.min() >= 6
    assert counts.max() - counts.min() <= 1
    planned = Counter(label for plan in plan_split(MiniParameters(), "val") for label in plan.annotated)
    assert set(planned.values()) <= {counts.min(), counts.max()} and len(planned) == 60


def test_rarity_is_not_tied_to_shape_or_hue():
    """Across seeds a class is rare sometimes and frequent sometimes."""
    ranks = []
    for seed in range(5):
        plans = plan_split(MiniParameters(seed=seed), "train")
        counts = Counter(label for plan in plans for label in plan.annotated)
        ranks.append([counts[label] for label in range(60)])
        assert sorted(ranks[-1], reverse=True) == train_image_counts(60, 1500).tolist()
    correlation = np.corrcoef(np.log(ranks))[np.triu_indices(5, 1)]
    assert np.abs(correlation).max() < 0.5


def test_lvis_statistics_of_a_known_content():
    content = {
        "images": [
            {"id": 1, "neg_category_ids": [2, 3], "not_exhaustive_category_ids": [1]},
            {"id": 2, "neg_category_ids": [3], "not_exhaustive_category_ids": []},
        ],
        "annotations": [{"image_id": 1, "category_id": 1}] * 3 + [{"image_id": 2, "category_id": c} for c in (1, 2)],
        "categories": [{"id": 1, "frequency": "c"}, {"id": 2, "frequency": "r"}, {"id": 3, "frequency": "r"}],
    }
    statistics = lvis_statistics(content)
    assert (statistics["r"], statistics["c"], statistics["f"]) == (2, 1, 0)
    assert (statistics["fewest images of a category"], statistics["most images of a category"]) == (0, 2)
    assert statistics["categories per image"] == 1.5
    assert statistics["instances per image"] == 2.5
    assert statistics["negative categories per image"] == 1.5
    assert statistics["not exhaustive categories per image"] == 0.5


# ---- any number of classes and images


def test_appearances_are_distinct_and_begin_alike():
    everything = class_appearances(MAX_CLASSES)
    assert len({appearance.name for appearance in everything}) == len(set(everything)) == MAX_CLASSES
    assert everything[:60] == class_appearances(60)
    assert Counter(a.shape for a in everything[:60]) == dict.fromkeys({a.shape for a in everything[:60]}, 10)
    assert len({a.shape for a in everything[:60]}) == 6 and len({a.hue for a in everything[:60]}) == 10
    # Stripes of red and cyan are stripes of cyan and red.
    striped = {(a.shape, frozenset((a.hue, a.second_hue))) for a in everything if a.pattern == "striped"}
    assert len(striped) == sum(a.pattern == "striped" for a in everything)


@pytest.mark.parametrize("num_classes, num_train, num_val", [(1, 3, 2), (7, 10, 4), (200, 30, 5)])
def test_other_sizes(tmp_path, num_classes, num_train, num_val):
    folder = generate_mini_dataset(tmp_path / "mini", num_classes, num_train, num_val, image_size=96, num_test=1)
    train = LVIS(str(folder / "train.json"))
    assert len(train.get_cat_ids()) == num_classes
    assert {annotation["category_id"] for annotation in train.load_anns()} == set(range(1, num_classes + 1))
    assert len(LVIS(str(folder / "val.json")).get_img_ids()) == num_val


def test_an_image_depends_on_nothing_but_its_plan_and_its_number():
    few, many = MiniParameters(num_train=20), MiniParameters(num_train=200)
    plan = plan_split(few, "train")[7]
    np.testing.assert_array_equal(draw_image(few, "train", 7, plan)[0], draw_image(many, "train", 7, plan)[0])
    assert (draw_image(few, "train", 7, plan)[0] != draw_image(few, "train", 8, plan)[0]).any()


# ---- a set to pre-train on


def test_a_set_to_pretrain_on_has_other_classes_and_balanced_counts(tmp_path):
    folder = generate_mini_dataset(tmp_path / "mini", 12, 80, 30, 64, num_test=1, first_class=12, balanced_train=True)
    train = json.loads((folder / "train.json").read_text())
    names = [category["name"] for category in train["categories"]]
    assert names == [appearance.name for appearance in class_appearances(24)[12:]]
    assert not set(names) & {appearance.name for appearance in class_appearances(12)}
    counts = [category["image_count"] for category in train["categories"]]
    assert max(counts) - min(counts) <= 1 and sum(counts) == round(CATEGORIES_PER_IMAGE * 80)
    # Another set than the default one of this place.
    with pytest.raises(InputError, match="made with first_class 12, not 0"):
        generate_mini_dataset(folder, 12, 80, 30, 64, num_test=1, balanced_train=True)


def test_there_are_not_more_classes_after_some_are_left_out():
    with pytest.raises(InputError, match=f"at most {MAX_CLASSES - 60} classes .* after the first 60"):
        MiniParameters(num_classes=MAX_CLASSES, first_class=60, num_train=100000)
