"""A merged set in training: what is verified, images without masks, warnings; and the generated half-labelled pair."""

import json
import logging

import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage

import eql_d2.modeling  # noqa: F401
from eql_d2.data.build import build_train_loader
from eql_d2.data.lvis import load_lvis, register_lvis
from eql_d2.errors import InputError
from eql_d2.mini import generate_mini_dataset, generate_partly_labelled_dataset
from eql_d2.mini.partly import HALVES, halves_of_classes, halves_of_images
from eql_d2.mini.plan import ImagePlan
from eql_d2.modeling.rcnn import verified_classes
from tests.conftest import ARCHITECTURES, NUM_CLASSES, make_lvis_json, tiny_config

SOURCES = [
    {"name": "lvis", "exhaustive_category_ids": []},
    {"name": "coco", "exhaustive_category_ids": [1, 3], "has_masks": False},
]


@pytest.fixture
def merged_folder(lvis_folder):
    """Of four images two are of a source without masks that knows the categories 1 and 3 everywhere."""
    content = make_lvis_json()
    content["sources"] = SOURCES
    for image in content["images"]:
        image["source"] = "coco" if image["id"] > 2 else "lvis"
    for annotation in content["annotations"]:
        if annotation["image_id"] > 2:
            del annotation["segmentation"]
    (lvis_folder / "train.json").write_text(json.dumps(content))
    return lvis_folder


def config(folder, name, *opts, loss="EQL", architecture="Mask-R-CNN-FPN"):
    register_lvis(name, folder / "train.json", folder / "images")
    cfg = tiny_config(folder, architecture, loss, *opts)
    cfg.DATASETS.TRAIN, cfg.MODEL.MASK_ON, cfg.SOLVER.IMS_PER_BATCH = (name,), True, 4
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = False
    return cfg


def test_what_is_verified_follows_from_the_source(merged_folder):
    cfg = config(merged_folder, "merged_a")
    batch = next(iter(build_train_loader(cfg)))
    verified = verified_classes(batch, NUM_CLASSES)
    content = json.loads((merged_folder / "train.json").read_text())
    for example, row in zip(batch, verified.tolist()):
        image = next(image for image in content["images"] if image["id"] == example["image_id"])
        shown = [a["category_id"] for a in content["annotations"] if a["image_id"] == image["id"]]
        exhaustive = next(s for s in SOURCES if s["name"] == image["source"])["exhaustive_category_ids"]
        ids = {*shown, *image["neg_category_ids"], *exhaustive}
        assert row == [label + 1 in ids for label in range(NUM_CLASSES)]


@pytest.mark.parametrize("agnostic", [True, False])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_images_without_masks_train_beside_others(merged_folder, architecture, agnostic):
    opts = ("MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK", agnostic)
    cfg = config(merged_folder, f"merged_{architecture}_{agnostic}", *opts, architecture=architecture)
    batch = sorted(next(iter(build_train_loader(cfg))), key=lambda example: example["image_id"])
    assert [example["instances"].has("gt_masks") for example in batch] == [True, True, False, False]
    model = build_model(cfg).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()

    def losses(examples):
        torch.manual_seed(0)
        with EventStorage():
            return model(examples)

    mixed, without = losses(batch), losses(batch[2:])
    assert all(torch.isfinite(value) for value in mixed.values())
    assert mixed["loss_mask"] > 0 and without["loss_mask"] == 0
    sum(without.values()).backward()
    assert without["loss_cls_stage0" if "Cascade" in architecture else "loss_cls"] > 0
    # Their regions give no mask loss: that of the batch is the loss of the images with masks.
    seen = []
    model.roi_heads.mask_head.register_forward_pre_hook(lambda module, args: seen.append(args))
    again = losses(batch)
    x, regions = seen[0]
    count = sum(len(one) for one in regions[:2])
    with EventStorage():
        expected = model.roi_heads.mask_head(x[:count], regions[:2])["loss_mask"]
    torch.testing.assert_close(again["loss_mask"], expected)


def test_copy_paste_leaves_images_without_masks_alone(merged_folder):
    opts = ("MODEL.LONG_TAIL.AUGMENT.COPY_PASTE", 1.0, "MODEL.LONG_TAIL.AUGMENT.SCALE_JITTER", (0.8, 1.2), "SEED", 0)
    cfg = config(merged_folder, "merged_paste", *opts, "MODEL.LONG_TAIL.AUGMENT.SIZE", 64)
    batches = iter(build_train_loader(cfg))
    examples = [example for _ in range(16) for example in next(batches)]
    counts = {example["image_id"]: [] for example in examples}
    for example in examples:
        counts[example["image_id"]].append(len(example["instances"]))
    assert set(counts[3] + counts[4]) <= {0, 1} and max(counts[1] + counts[2]) > 1


def test_what_is_not_labelled_is_never_silent(merged_folder, caplog):
    cfg = config(merged_folder, "merged_w", loss="SOFTMAX")
    with caplog.at_level(logging.WARNING):
        build_train_loader(cfg)
    assert "sources that did not label all classes" in caplog.text and "SOFTMAX" in caplog.text
    caplog.clear()
    cfg.MODEL.LONG_TAIL.UNVERIFIED = "exempt"
    with caplog.at_level(logging.WARNING):
        build_train_loader(cfg)
    assert "sources that did not label" not in caplog.text
    with pytest.raises(InputError, match="UNVERIFIED is 'exempt', but LOSS SOFTMAX"):
        build_model(cfg)


def test_exempting_needs_to_know_what_is_verified(lvis_folder):
    content = make_lvis_json()
    for image in content["images"]:
        del image["neg_category_ids"], image["not_exhaustive_category_ids"]
    (lvis_folder / "train.json").write_text(json.dumps(content))
    cfg = config(lvis_folder, "without_sets", "MODEL.LONG_TAIL.UNVERIFIED", "exempt")
    with pytest.raises(InputError, match="says which classes it verifies"):
        build_train_loader(cfg)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return generate_partly_labelled_dataset(
        tmp_path_factory.mktemp("mini") / "pair", num_classes=8, num_train=24, image_size=64
    )


def read(folder, name):
    return json.loads((folder / f"{name}.json").read_text())


def test_each_half_labels_its_classes_and_no_other(pair):
    full, merged = read(pair, "full"), read(pair, "merged")
    halves = [read(pair, name) for name in HALVES]
    ids = [{category["id"] for category in half["categories"]} for half in halves]
    assert ids[0] | ids[1] == set(range(1, 9)) and not ids[0] & ids[1]
    images = [{image["id"] for image in half["images"]} for half in halves]
    assert len(images[0]) == len(images[1]) == 12 and not images[0] & images[1]

    def objects(content):
        return sorted((a["image_id"], a["category_id"], a["bbox"]) for a in content["annotations"])

    expected = []
    for a in objects(full):
        half = 0 if a[0] in images[0] else 1
        if a[1] in ids[half]:
            expected.append(a)
    assert sorted(objects(halves[0]) + objects(halves[1])) == expected == objects(merged)
    assert len(expected) < len(objects(full))
    assert [source["exhaustive_category_ids"] for source in merged["sources"]] == [sorted(x) for x in ids]
    for image in merged["images"]:
        assert image["id"] in images[HALVES.index(image["source"])]
    assert all((pair / image["file_name"]).is_file() for image in merged["images"])
    assert [c["frequency"] for c in merged["categories"]] == [c["frequency"] for c in full["categories"]]


def test_the_pictures_are_those_of_the_set_in_lvis_format(pair, tmp_path):
    mini = generate_mini_dataset(tmp_path / "mini", num_classes=8, num_train=24, num_val=1, num_test=1, image_size=64)
    for path in sorted((mini / "train").iterdir()):
        assert path.read_bytes() == (pair / "train" / path.name).read_bytes()
    annotated = {(a["image_id"], a["category_id"], *a["bbox"]) for a in read(mini, "train")["annotations"]}
    everything = {(a["image_id"], a["category_id"], *a["bbox"]) for a in read(pair, "full")["annotations"]}
    assert annotated < everything
    letters = [
        [c["frequency"] for c in read(folder, name)["categories"]] for folder, name in ((mini, "train"), (pair, "full"))
    ]
    assert letters[0] == letters[1]


def test_every_class_of_a_pair_is_labelled_somewhere():
    random = np.random.default_rng(0)
    plans = [ImagePlan({int(label): 1 for label in random.choice(20, 3, replace=False)}, {}, {}, ()) for _ in range(40)]
    halves = halves_of_classes(plans, 20)
    of_image = halves_of_images(plans, halves)
    assert of_image.count(0) == of_image.count(1) == 20
    for half, labels in enumerate(halves):
        assert len(labels) == 10
        for label in labels:
            assert any(label in plan.annotated for plan, found in zip(plans, of_image) if found == half)


def test_the_merged_pair_verifies_half_of_the_classes(pair):
    for record in load_lvis(pair / "merged.json", pair):
        labels = record["image_labels"]
        assert len(labels["positive"]) + len(labels["negative"]) == 4
    full = load_lvis(pair / "full.json", pair / "train")
    assert all(len(r["image_labels"]["positive"]) + len(r["image_labels"]["negative"]) == 8 for r in full)


def test_parameters_that_a_pair_has_no_use_for(tmp_path):
    with pytest.raises(InputError, match="num_val is of no use"):
        generate_partly_labelled_dataset(tmp_path / "x", num_val=3)
