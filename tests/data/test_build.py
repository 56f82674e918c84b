"""Data loaders: what they load, in which order, and what they refuse."""

from itertools import islice

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets.lvis import load_lvis_json, register_lvis_instances
from detectron2.data.samplers import RepeatFactorTrainingSampler

from eql_d2.config import get_cfg
from eql_d2.data.build import (
    build_test_loader,
    build_train_loader,
    build_train_sampler,
    check_num_classes,
    long_tail_dataset_dicts,
    repeat_factors,
)
from eql_d2.data.lvis import register_lvis
from eql_d2.data.records import RecordList
from eql_d2.errors import InputError
from tests.data.test_lvis import without_gaps


@pytest.fixture
def cfg(save, content, coco_root):
    register_lvis("gappy", save(content), coco_root)
    cfg = get_cfg()
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ("gappy",)
    cfg.MODEL.MASK_ON = True
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 4
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (64,), 64
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SEED = 7
    return cfg


def first_ids(loader, num_batches):
    return [[example["image_id"] for example in batch] for batch in islice(loader, num_batches)]


def test_empty_images_are_filtered_or_kept(cfg):
    assert [record["image_id"] for record in long_tail_dataset_dicts(["gappy"])] == [12, 25, 30]
    assert [record["image_id"] for record in long_tail_dataset_dicts(["gappy"], filter_empty=False)] == [12, 25, 30, 40]


def test_image_with_only_a_crowd_is_empty(cfg, save, content, coco_root):
    content["annotations"][0]["iscrowd"] = 1
    register_lvis("crowd", save(content, "crowd.json"), coco_root)
    assert [record["image_id"] for record in long_tail_dataset_dicts(["crowd"])] == [12, 25]


def test_several_data_sets_in_a_row(cfg, save, content, coco_root):
    content["images"] = content["images"][:1]
    register_lvis("more", save(content, "more.json"), coco_root)
    records = long_tail_dataset_dicts(["gappy", "more"])
    assert [record["image_id"] for record in records] == [12, 25, 30, 30]
    cfg.DATASETS.TRAIN = ("gappy", "more")
    for sampler in ("TrainingSampler", "RepeatFactorTrainingSampler", "ClassAwareSampler"):
        cfg.DATALOADER.SAMPLER_TRAIN = sampler
        assert {id_ for batch in first_ids(build_train_loader(cfg), 20) for id_ in batch} == {12, 25, 30}


@pytest.mark.parametrize(
    "sampler",
    ["TrainingSampler", "RepeatFactorTrainingSampler", "ClassAwareSampler"],
)
def test_train_loader_is_reproducible(cfg, sampler):
    cfg.DATALOADER.SAMPLER_TRAIN = sampler
    first = first_ids(build_train_loader(cfg), 10)
    np.random.seed(123)
    assert first_ids(build_train_loader(cfg), 10) == first
    assert all(len(batch) == 2 for batch in first)
    cfg.SEED = 8
    assert first_ids(build_train_loader(cfg), 10) != first


def test_training_examples(cfg):
    batch = next(iter(build_train_loader(cfg)))
    assert all(set(example["image_labels"]) == {"positive", "negative"} for example in batch)
    assert all(example["instances"].has("gt_masks") for example in batch)


def test_worker_processes(cfg, coco_root):
    cfg.DATALOADER.NUM_WORKERS = 2
    assert len(first_ids(build_train_loader(cfg), 3)) == 3
    cfg.DATALOADER.NUM_WORKERS = 1  # torch waits five seconds for each worker after an error
    (coco_root / "val2017" / "000000000025.jpg").unlink()
    with pytest.raises(InputError) as raised:
        list(build_test_loader(cfg, "gappy"))
    message = str(raised.value)
    assert message.startswith(str(coco_root)) and "is not there" in message
    assert "\n" not in message and "Traceback" not in message


def test_repeat_factors_are_detectron2s(cfg):
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.8
    dataset = long_tail_dataset_dicts(["gappy"], filter_empty=False)
    factors = repeat_factors(cfg, dataset)
    expected = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(list(dataset), 0.8)
    assert factors.tolist() == expected.tolist()
    # Label 0 and the crowd of label 2 are in one of four images, label 1 in two; image 40 shows nothing.
    assert factors.tolist() == pytest.approx([(0.8 / 0.5) ** 0.5, (0.8 / 0.25) ** 0.5, (0.8 / 0.25) ** 0.5, 1.0])


def test_repeat_factors_by_instances_and_with_another_exponent(cfg):
    """Labels 0 and 2 have 1 of 4 images, label 1 has 2; of the instances 0 and 2 have 1 each."""
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.8
    dataset = long_tail_dataset_dicts(["gappy"], filter_empty=False)
    labels = [annotation["category_id"] for record in dataset for annotation in record["annotations"]]
    shares = [labels.count(label) / len(labels) for label in range(3)]
    means = [(image_share * share) ** 0.5 for image_share, share in zip((0.25, 0.5, 0.25), shares)]
    by_image = [[max(1, (0.8 / means[a["category_id"]]) ** 0.3) for a in record["annotations"]] for record in dataset]
    cfg.MODEL.LONG_TAIL.update({"REPEAT_FREQUENCY": "geometric", "REPEAT_EXPONENT": 0.3})
    assert repeat_factors(cfg, dataset).tolist() == pytest.approx([max(factors, default=1) for factors in by_image])
    cfg.MODEL.LONG_TAIL.REPEAT_FREQUENCY = "boxes"
    with pytest.raises(InputError, match="REPEAT_FREQUENCY is 'boxes'"):
        repeat_factors(cfg, dataset)
    cfg.MODEL.LONG_TAIL.update({"REPEAT_FREQUENCY": "images", "REPEAT_EXPONENT": -1.0})
    with pytest.raises(InputError, match="REPEAT_EXPONENT is -1"):
        repeat_factors(cfg, dataset)


def test_repeated_images_are_the_right_ones(cfg):
    # Without the square root image 25 has factor 4 and the others 1: four of seven draws, also with an empty image.
    cfg.DATALOADER.update({"REPEAT_THRESHOLD": 1.0, "REPEAT_SQRT": False, "FILTER_EMPTY_ANNOTATIONS": False})
    dataset = long_tail_dataset_dicts(["gappy"], filter_empty=False)
    sampler = RepeatFactorTrainingSampler(repeat_factors(cfg, dataset), seed=0)
    drawn = [dataset[index]["image_id"] for index in islice(sampler, 11)]
    assert sorted(drawn) == [12, 12, 25, 25, 25, 25, 30, 30, 30, 30, 40]


def test_class_aware_sampler_ignores_crowds(cfg):
    cfg.DATALOADER.SAMPLER_TRAIN = "ClassAwareSampler"
    dataset = long_tail_dataset_dicts(["gappy"], filter_empty=False)
    drawn = [dataset[index]["image_id"] for index in islice(build_train_sampler(cfg, dataset), 40)]
    assert {id_: drawn.count(id_) for id_ in set(drawn)} == {25: 20, 12: 10, 30: 10}


def test_test_loader(cfg):
    batches = list(build_test_loader(cfg, "gappy"))
    assert [[example["image_id"] for example in batch] for batch in batches] == [[12], [25], [30], [40]]
    assert all("instances" not in batch[0] and "image_labels" not in batch[0] for batch in batches)


def test_test_set_without_annotations(cfg, save, content, coco_root):
    del content["annotations"]
    register_lvis("test_set", save(content, "test.json"), coco_root)
    assert len(list(build_test_loader(cfg, "test_set"))) == 4
    cfg.DATASETS.TRAIN = ("test_set",)
    with pytest.raises(InputError, match=r"test_set .* has no annotations and cannot be in DATASETS\.TRAIN"):
        build_train_loader(cfg)


def test_records_of_detectron2s_lvis_loader(save, content, coco_root):
    register_lvis_instances("theirs", {"thing_classes": list("abcd")}, save(without_gaps(content)), f"{coco_root}/")
    # Detectron2's loader sets the class names of a built-in vocabulary for a name that it knows, and fails on others.
    DatasetCatalog["theirs"] = lambda: load_lvis_json(MetadataCatalog.get("theirs").json_file, f"{coco_root}/")
    register_lvis("ours", save(content), coco_root)
    theirs = long_tail_dataset_dicts(["theirs"], filter_empty=False)
    ours = long_tail_dataset_dicts(["ours"], filter_empty=False)
    assert isinstance(theirs, list) and isinstance(ours, RecordList)
    for mine, other in zip(ours, theirs):
        for key in ("image_id", "image_labels", "not_exhaustive_category_ids"):
            assert mine[key] == other[key]
        assert "neg_category_ids" not in other
    assert len(long_tail_dataset_dicts(["theirs"])) == 3


def register_records(records, num_classes=4):
    DatasetCatalog.register("in_memory", lambda: records)
    MetadataCatalog.get("in_memory").thing_classes = [str(label) for label in range(num_classes)]


@pytest.mark.parametrize("label", [-1, 4])
def test_label_out_of_range(label):
    register_records([{"file_name": "a", "annotations": [{"category_id": label}]}])
    with pytest.raises(InputError, match=rf"category_id {label}; its 4 categories have the labels 0 to 3"):
        long_tail_dataset_dicts(["in_memory"])


def test_image_level_label_out_of_range():
    register_records([{"image_id": 5, "annotations": [{"category_id": 0}], "neg_category_ids": [5]}])
    with pytest.raises(InputError, match="image 5 names the category id 5 in its image-level labels"):
        long_tail_dataset_dicts(["in_memory"])


def test_nothing_to_train_on():
    register_records([{"image_id": 5, "annotations": []}])
    with pytest.raises(InputError, match="in_memory has no image with an instance"):
        long_tail_dataset_dicts(["in_memory"])
    assert len(long_tail_dataset_dicts(["in_memory"], filter_empty=False)) == 1


def test_number_of_classes(cfg):
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 80
    for build in (build_train_loader, lambda cfg: build_test_loader(cfg, "gappy")):
        with pytest.raises(InputError, match=r"NUM_CLASSES is 80, but gappy \(.*\) has 4 categories; set"):
            build(cfg)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 1203
    with pytest.raises(
        InputError, match=r"1203, but .*has 1230 categories \(LVIS v0.5 has 1230 categories, v1 has 1203"
    ):
        check_num_classes(cfg, ["lvis_v0.5_val"])


def test_bad_settings(cfg):
    cfg.DATALOADER.SAMPLER_TRAIN = "Sampler"
    with pytest.raises(InputError, match="SAMPLER_TRAIN is 'Sampler'; there are TrainingSampler"):
        build_train_loader(cfg)
    cfg.MODEL.LOAD_PROPOSALS = True
    with pytest.raises(InputError, match=r"MODEL\.LOAD_PROPOSALS is True"):
        build_train_loader(cfg)
    cfg.DATASETS.TRAIN = ()
    with pytest.raises(InputError, match=r"DATASETS\.TRAIN is empty"):
        build_train_loader(cfg)
    with pytest.raises(InputError, match=r"No data set is registered as 'gapy' .*did you mean gappy"):
        build_test_loader(cfg, "gapy")
