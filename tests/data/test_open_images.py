"""Open Images: from the CSV files to dataset dicts."""

import pickle
from itertools import islice

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode

from eql_d2.commands.check_dataset import main as check_dataset
from eql_d2.config import get_cfg
from eql_d2.data import cache, csv_columns
from eql_d2.data.build import (
    build_test_loader,
    build_train_loader,
    build_train_sampler,
    long_tail_dataset_dicts,
    repeat_factors,
)
from eql_d2.data.builtin import OPEN_IMAGES_SPLITS, register_builtin, register_from_config
from eql_d2.data.catalog import category_frequency
from eql_d2.data.check_open_images import check_open_images
from eql_d2.data.image_sizes import ImageSizes
from eql_d2.data.mapper import LongTailDatasetMapper
from eql_d2.data.open_images import is_open_images, load_open_images, register_open_images
from eql_d2.data.open_images_files import open_images_table
from eql_d2.data.records import RecordError
from eql_d2.errors import InputError
from tests.data.open_images import BOXES, IMAGES, LABELS, write_open_images

FLAG_KEYS = ["is_occluded", "is_truncated", "is_group_of", "is_depiction", "is_inside"]


@pytest.fixture
def files(tmp_path):
    return write_open_images(tmp_path)


@pytest.fixture
def cached(monkeypatch):
    """Cache even small files."""
    monkeypatch.setattr(cache, "MIN_CACHED_BYTES", 0)
    monkeypatch.delenv(cache.ENVIRONMENT_VARIABLE, raising=False)
    cache._cached_table.cache_clear()
    yield
    cache._cached_table.cache_clear()


def annotation(bbox, label, *flags):
    return {"bbox": bbox, "bbox_mode": BoxMode.XYXY_ABS, "category_id": label, **dict(zip(FLAG_KEYS, flags))}


def expected_records(folder):
    """What the files of ``tests.data.open_images`` say, by hand."""
    return [
        {
            "file_name": str(folder / "images/a0.jpg"),
            "image_id": 0,
            "width": 40,
            "height": 20,
            "annotations": [annotation([0, 0, 40, 20], 1, 1, 0, 1, 0, 0)],
            "image_labels": {"positive": [0, 1, 4], "negative": []},
        },
        {
            "file_name": str(folder / "images/b1.jpg"),
            "image_id": 1,
            "width": 20,
            "height": 40,
            "annotations": [
                annotation([2, 8, 10, 24], 2, 0, 1, 0, -1, 0),
                annotation([5, 0, 20, 40], 1, 0, 0, 0, 0, 1),
            ],
            "image_labels": {"positive": [0, 1, 2], "negative": [3]},
        },
        {
            "file_name": str(folder / "images/c2.jpg"),
            "image_id": 2,
            "width": 30,
            "height": 30,
            "annotations": [],
            "image_labels": {"positive": [], "negative": [0, 1, 2]},
        },
    ]


def test_records(files, tmp_path, caplog):
    assert list(load_open_images(files, tmp_path / "images")) == expected_records(tmp_path)
    assert "1 boxes are of classes that are not in the list" in caplog.text


def test_rows_in_pieces_and_in_any_order_of_columns(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_columns, "ROWS_AT_ONCE", 2)
    turned = "".join(",".join(line.split(",")[::-1]) + "\n" for line in BOXES.splitlines())
    files = write_open_images(tmp_path, boxes=turned)
    chunks = [len(chunk) for chunk in csv_columns.csv_chunks(files.boxes, {"XMin": "f8"})]
    assert chunks == [2, 2]
    assert list(load_open_images(files, tmp_path / "images")) == expected_records(tmp_path)


def test_the_challenges_columns_and_no_labels(tmp_path):
    files = write_open_images(tmp_path, boxes="ImageID,LabelName,XMin,XMax,YMin,YMax\nb1,/m/dog,0,0.5,0,1\n")
    files = type(files)(files.boxes, files.classes)
    (record,) = load_open_images(files, tmp_path / "images")
    assert record["annotations"] == [annotation([0, 0, 10, 40], 2)]
    assert "image_labels" not in record


def test_cached_and_pickled(files, tmp_path, cached, monkeypatch):
    first = load_open_images(files, tmp_path / "images")
    assert (tmp_path / "boxes.csv.eql_d2_cache").is_file()
    cache._cached_table.cache_clear()
    monkeypatch.setattr("eql_d2.data.open_images_files.csv_chunks", None)  # nothing is read again
    second = load_open_images(files, tmp_path / "images")
    expected = expected_records(tmp_path)
    assert list(first) == list(second) == list(pickle.loads(pickle.dumps(second))) == expected
    assert list(second[1:]) == list(second.select([1, 2])) == expected[1:]


def test_a_changed_file_is_read_again(files, tmp_path, cached):
    assert open_images_table(files).header.has_image_labels
    (tmp_path / "labels.csv").write_text(LABELS.replace("b1,/m/owl,0", "b1,/m/owl,1"))
    assert open_images_table(files).verified(1) == {"positive": {0, 1, 2, 3}, "negative": set()}


def test_sizes_are_read_once(files, tmp_path, cached):
    expected = list(load_open_images(files, tmp_path / "images"))
    for image in IMAGES:
        (tmp_path / "images" / f"{image}.jpg").unlink()
    assert list(load_open_images(files, tmp_path / "images")) == expected
    with pytest.raises(RecordError, match=r"a0.jpg is not there"):
        load_open_images(files, tmp_path)[0]  # the images of another folder have sizes of their own


def test_sizes_where_nothing_can_be_written(tmp_path, files):
    sizes = ImageSizes([tmp_path / "boxes.csv" / "no_folder"], 3)
    assert sizes.path is None
    assert sizes.size(1, tmp_path / "images/b1.jpg") == (20, 40)
    (tmp_path / "images/b1.jpg").unlink()
    assert sizes.size(1, tmp_path / "images/b1.jpg") == (20, 40)
    (tmp_path / "images/c2.jpg").write_text("no image")
    with pytest.raises(RecordError, match=r"c2.jpg cannot be read as an image"):
        sizes.size(2, tmp_path / "images/c2.jpg")


def test_two_processes_share_the_sizes(tmp_path, files):
    one, other = (ImageSizes([tmp_path / "sizes"], 3) for _ in range(2))
    assert one.size(0, tmp_path / "images/a0.jpg") == (40, 20)
    assert pickle.loads(pickle.dumps(other)).size(0, tmp_path / "absent.jpg") == (40, 20)


def config_of(tmp_path):
    cfg = get_cfg()
    entry = {"name": "oid_train", "boxes": str(tmp_path / "boxes.csv"), "classes": str(tmp_path / "classes.csv")}
    more = {"image_labels": str(tmp_path / "labels.csv"), "hierarchy": str(tmp_path / "hierarchy.json")}
    cfg.MODEL.LONG_TAIL.OPEN_IMAGES.DATASETS = [{**entry, **more, "images": str(tmp_path / "images")}]
    cfg.DATASETS.TRAIN, cfg.DATASETS.TEST = ("oid_train",), ("oid_train",)
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = 5
    cfg.MODEL.MASK_ON = False
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SEED = 0
    return cfg


def test_loaders_of_a_config(files, tmp_path):
    cfg = config_of(tmp_path)
    register_from_config(cfg)
    assert is_open_images("oid_train")
    assert MetadataCatalog.get("oid_train").thing_classes == ["Animal", "Cat", "Dog", "Owl, great", "Cat"]
    frequency = category_frequency(["oid_train"])
    assert (frequency.image_count.tolist(), frequency.num_images) == ([0, 2, 1, 0, 0], 3)
    cfg.DATALOADER.SAMPLER_TRAIN = "ClassAwareSampler"
    batch = next(iter(build_train_loader(cfg)))
    assert all(example["image_labels"]["positive"].tolist() for example in batch)
    assert all(len(example["instances"]) == {0: 1, 1: 2}[example["image_id"]] for example in batch)
    assert [inputs[0]["image_id"] for inputs in build_test_loader(cfg, "oid_train")] == [0, 1, 2]
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.5
    factors = repeat_factors(cfg, long_tail_dataset_dicts(["oid_train"], filter_empty=False))
    assert factors.tolist() == pytest.approx([1, (0.5 / (1 / 3)) ** 0.5, 1]), "a third of the images shows a dog"


def test_class_aware_sampling(files, tmp_path):
    cfg = config_of(tmp_path)
    cfg.DATALOADER.SAMPLER_TRAIN = "ClassAwareSampler"
    register_from_config(cfg)
    dataset = long_tail_dataset_dicts(["oid_train"], filter_empty=False)
    drawn = list(islice(build_train_sampler(cfg, dataset), 400))
    assert drawn.count(1) == 300, "it shows a dog, half of the draws, and one of two cats"
    assert drawn.count(2) == 0


def test_the_missing_image_is_named_by_the_loader(files, tmp_path):
    (tmp_path / "images/b1.jpg").unlink()
    records = load_open_images(files, tmp_path / "images")
    with pytest.raises(InputError, match=r"b1.jpg is not there; eql-d2 check-dataset lists all"):
        LongTailDatasetMapper(config_of(tmp_path), True)(records[1])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("boxes", BOXES.replace("0.25", "left"), r"boxes.csv, in the rows after line 1: .*'left' to float64"),
        ("boxes", BOXES.replace("0.25", "nan"), r"boxes.csv has a box with a coordinate that is not finite"),
        ("boxes", BOXES.replace("XMin", "Left"), r"boxes.csv has no column XMin; its first line is 'ImageID"),
        ("boxes", BOXES.replace("a0", "a" * 60), r"has 'a{48}'... in ImageID; at most 47 characters"),
        ("boxes", "ImageID,LabelName,XMin,XMax,YMin,YMax\n", r"boxes.csv has no row"),
        ("labels", LABELS.replace(",1\n", ",0.7\n"), r"labels.csv has the Confidence 0.7; labels that a human"),
        ("classes", "/m/cat,Cat\n/m/cat,Dog\n", r"classes.csv lists /m/cat twice"),
        ("classes", "/m/cat\n", r"classes.csv, class 1: '/m/cat' is not 'label,name'"),
        ("classes", "", r"classes.csv lists no class"),
        ("tree", [], r"hierarchy.json: The hierarchy has a node without a 'LabelName'"),
    ],
)
def test_bad_files(tmp_path, name, text, message):
    files = write_open_images(tmp_path, **{name: text})
    with pytest.raises(InputError, match=message):
        open_images_table(files)


def test_missing_files_and_bad_entries(tmp_path, files):
    with pytest.raises(InputError, match=r"absent.csv: there is no such file"):
        register_open_images("absent", type(files)(str(tmp_path / "absent.csv"), files.classes), tmp_path)
    register_open_images("twice", files, tmp_path)
    register_open_images("twice", files, tmp_path)
    with pytest.raises(InputError, match=r"'twice' is already registered for another data set"):
        register_open_images("twice", files, tmp_path / "images")
    cfg = config_of(tmp_path)
    cfg.MODEL.LONG_TAIL.OPEN_IMAGES.DATASETS = [{"name": "a", "boxes": "b"}]
    with pytest.raises(InputError, match=r"must be a mapping with boxes, classes, images, name and, if there are any"):
        register_from_config(cfg)


def test_builtin_names_read_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    register_builtin(OPEN_IMAGES_SPLITS)
    metadata = MetadataCatalog.get("openimages_challenge2019_val")
    folder = tmp_path / "openimages"
    assert metadata.image_root == str(folder / "validation")
    assert metadata.open_images_files.boxes == str(folder / "annotations/challenge-2019-validation-detection-bbox.csv")
    with pytest.raises(InputError, match=r"challenge-2019-validation-detection-bbox.csv: there is no such file"):
        DatasetCatalog.get("openimages_challenge2019_val")


def test_check(files, tmp_path, capsys):
    register_open_images("oid_check", files, tmp_path / "images")
    assert check_dataset(["oid_check"]) == 0
    printed = capsys.readouterr().out
    assert "3 images, 3 boxes (1 group-of), 3 image-level labels of 5 classes" in printed
    assert "No errors found." in printed
    assert "class names that occur more than once (the labels tell them apart): 1" in printed


def test_check_finds_what_is_wrong(tmp_path):
    boxes = BOXES + "c2,x,/m/owl,1,0.5,1.2,0,1,0,0,0,0,0\nc2,x,/m/cat,1,0.5,0.5,0,1,0,0,0,0,0\n"
    files = write_open_images(tmp_path, boxes=boxes, labels=LABELS + "b1,/m/dog,0\nb1,/m/owl,1\n")
    (tmp_path / "images/c2.jpg").unlink()
    (tmp_path / "images/a0.jpg").write_text("no image")
    report = check_open_images("openimages_challenge2019_val", files, tmp_path / "images")
    errors = {finding.what.split(" (")[0]: finding.examples for finding in report.findings.values() if finding.is_error}
    assert errors.pop("image files that cannot be read")[0].startswith(str(tmp_path / "images/a0.jpg"))
    assert errors == {
        "a count is not the published one": ["openimages_challenge2019_val should have 500 classes, found 5"],
        "boxes that reach out of their image": ["image c2: [0.5, 0.0, 1.2, 1.0]"],
        "classes that are verified to be absent from an image with a box of them": ["image b1: /m/dog"],
        "classes that are verified both to be in an image and not to be": ["image b1: /m/owl"],
        "image files that are not there": [str(tmp_path / "images/c2.jpg")],
    }
    assert report.findings["boxes without an area (Detectron2 leaves them out of training)"].count == 1


def test_random_files_give_the_columns_that_went_in(tmp_path):
    rng = np.random.default_rng(0)
    rows = sorted(
        (f"{image:04d}", f"/m/{label}", *rng.random(4).round(6)) for image, label in rng.integers(0, 99, (500, 2))
    )
    lines = ["ImageID,LabelName,XMin,XMax,YMin,YMax", *(",".join(map(str, row)) for row in rows)]
    classes = "".join(f"/m/{label},{label}\n" for label in rng.permutation(99))
    for name, order in (("sorted", slice(None)), ("shuffled", rng.permutation(len(rows)))):
        body = np.array(lines[1:], dtype=object)[order].tolist()
        files = write_open_images(tmp_path / name, boxes="\n".join([lines[0], *body]) + "\n", classes=classes)
        table = open_images_table(type(files)(files.boxes, files.classes))
        image = np.repeat(np.arange(len(table)), np.diff(table.box_ends, prepend=0))
        labels = [table.header.class_ids[label] for label in table.box_labels]
        found = zip([table.image_id(row) for row in image], labels, *table.corners[:, [0, 2, 1, 3]].T)
        assert sorted(found) == rows
