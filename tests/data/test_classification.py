"""Image classification sets: the long tail of CIFAR, the formats, registration and batches."""

import io
import itertools
import json
import pickle
import tarfile

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from eql_d2.commands.check_dataset import main as check_command
from eql_d2.config import get_cfg
from eql_d2.data.builtin import register_from_config
from eql_d2.data.catalog import category_frequency
from eql_d2.data.check_images import check_image_set
from eql_d2.data.classification import (
    load_cifar,
    load_image_folder,
    load_image_list,
    load_inaturalist,
    long_tail_counts,
    long_tail_subset,
    record_label,
)
from eql_d2.data.images import build_image_test_loader, build_image_train_loader
from eql_d2.errors import InputError

#: The counts of CIFAR-100-LT at imbalance 200, from the class-balanced-loss repository's rule.
COUNTS_200 = [
    *(500, 473, 449, 425, 403, 382, 362, 343, 325, 308, 292, 277, 263, 249, 236, 224, 212, 201, 190, 180),
    *(171, 162, 154, 146, 138, 131, 124, 117, 111, 105, 100, 95, 90, 85, 81, 76, 72, 69, 65, 62),
    *(58, 55, 52, 50, 47, 44, 42, 40, 38, 36, 34, 32, 30, 29, 27, 26, 24, 23, 22, 21),
    *(20, 19, 18, 17, 16, 15, 14, 13, 13, 12, 11, 11, 10, 10, 9, 9, 8, 8, 7, 7),
    *(6, 6, 6, 5, 5, 5, 5, 4, 4, 4, 4, 3, 3, 3, 3, 3, 2, 2, 2, 2),
]


def labels_of(image_set):
    return [record_label(record) for record in image_set.records]


def random_images(num_images, side=32, seed=0):
    return np.random.RandomState(seed).randint(0, 256, (num_images, side, side, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    """A set of 4 classes with 40 training and 2 test images each, in the order of a shuffle."""
    path = tmp_path_factory.mktemp("npz") / "small.npz"
    order = np.random.RandomState(1).permutation(160)
    np.savez(
        path,
        x_train=random_images(160),
        y_train=np.repeat(np.arange(4), 40)[order].astype(np.int16),
        x_test=random_images(8, seed=1),
        y_test=np.arange(8) // 2,
        classes=np.array(["ant", "bee", "cat", "dog"]),
    )
    return path


def test_counts_of_cifar100():
    assert long_tail_counts(500, 100, 200) == COUNTS_200
    assert sum(COUNTS_200) == 9502
    assert sum(long_tail_counts(500, 100, 100)) == 10847
    assert sum(long_tail_counts(500, 100, 50)) == 12608
    totals = [sum(long_tail_counts(5000, 10, imbalance)) for imbalance in (10, 20, 50, 100, 200)]
    assert totals == [20431, 17023, 13996, 12406, 11203]


def test_subset_is_the_seed_s_and_has_the_counts():
    labels = np.random.RandomState(0).permutation(np.repeat(np.arange(100), 500))
    kept = long_tail_subset(labels, 100, 200, 0, "made up")
    assert np.bincount(labels[kept]).tolist() == COUNTS_200
    assert (np.diff(kept) > 0).all()
    assert np.array_equal(kept, long_tail_subset(labels, 100, 200, 0, "made up"))
    other = long_tail_subset(labels, 100, 200, 1, "made up")
    assert len(np.intersect1d(kept, other)) < len(kept)


def test_subset_of_a_subset():
    """What was cut with imbalance 200 is all of it again, and too little for imbalance 100."""
    labels = np.repeat(np.arange(100), COUNTS_200)
    assert len(long_tail_subset(labels, 100, 200, 0, "cut")) == 9502
    with pytest.raises(InputError, match=r"cut: class .* has .* images, and at imbalance 100 it should keep"):
        long_tail_subset(labels, 100, 100, 0, "cut")


@pytest.mark.parametrize("imbalance", [0.5, float("nan"), -3])
def test_imbalance_below_one(imbalance):
    with pytest.raises(InputError, match="at least 1"):
        long_tail_counts(500, 100, imbalance)


def test_npz(npz):
    train, test = load_cifar(npz), load_cifar(npz, "test")
    assert train.class_names == test.class_names == ["ant", "bee", "cat", "dog"]
    assert np.bincount(labels_of(train)).tolist() == [40, 40, 40, 40]
    assert labels_of(test) == [0, 0, 1, 1, 2, 2, 3, 3]
    cut = load_cifar(npz, imbalance=8, seed=3)
    assert np.bincount(labels_of(cut)).tolist() == [40, 20, 10, 5]
    with np.load(npz) as content:
        for record in cut.records[::7]:
            assert np.array_equal(record["image"], content["x_train"][record["image_id"]])
            assert record_label(record) == content["y_train"][record["image_id"]]


def write_archive(folder, fine, num_images=30):
    """The files of CIFAR-100 (``fine``) or CIFAR-10, and the images and labels in them."""
    folder.mkdir()
    names = ["ant", "bee", "cat"]
    key, meta = ("fine_labels", "meta") if fine else ("labels", "batches.meta")
    label_names = {f"{'fine_' if fine else ''}label_names": names}
    (folder / meta).write_bytes(pickle.dumps({k.encode(): [n.encode() for n in v] for k, v in label_names.items()}))
    batches = ["train", "test"] if fine else [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    for i, batch in enumerate(batches):
        images = random_images(num_images, seed=i)
        content = {b"data": images.transpose(0, 3, 1, 2).reshape(num_images, -1)}
        content[key.encode()] = [j % 3 for j in range(num_images)]
        (folder / batch).write_bytes(pickle.dumps(content, protocol=2))
    return folder


@pytest.mark.parametrize("fine", [True, False])
def test_cifar_archive(tmp_path, fine):
    folder = write_archive(tmp_path / "cifar", fine)
    train, test = load_cifar(folder), load_cifar(folder, "test")
    assert train.class_names == ["ant", "bee", "cat"]
    assert len(train.records) == (30 if fine else 150)
    assert len(test.records) == 30
    assert np.array_equal(train.records[4]["image"], random_images(30)[4])
    assert labels_of(train)[:4] == [0, 1, 2, 0]
    with tarfile.open(tmp_path / "cifar.tar.gz", "w:gz") as archive:
        archive.add(folder, "cifar-100-python")
    packed = load_cifar(tmp_path / "cifar.tar.gz")
    assert labels_of(packed) == labels_of(train)
    assert np.array_equal(packed.records[-1]["image"], train.records[-1]["image"])


def test_an_archive_cannot_run_code(tmp_path):
    folder = write_archive(tmp_path / "cifar", fine=True)
    (folder / "train").write_bytes(pickle.dumps({b"data": print}))
    with pytest.raises(InputError, match=r"damaged .*print, which is neither an array"):
        load_cifar(folder)


def test_image_list(tmp_path):
    (tmp_path / "list.txt").write_text("a/b c.jpg 2\n\nd.jpg 0\n")
    content = load_image_list(tmp_path / "list.txt", "/images")
    assert [record["file_name"] for record in content.records] == ["/images/a/b c.jpg", "/images/d.jpg"]
    assert labels_of(content) == [2, 0]
    assert content.class_names == ["0", "1", "2"]
    (tmp_path / "names.txt").write_text("ant\nbee\ncat\ndog\n")
    named = load_image_list(tmp_path / "list.txt", "/images", tmp_path / "names.txt")
    assert named.class_names == ["ant", "bee", "cat", "dog"]


def test_inaturalist(tmp_path):
    content = {
        "images": [{"id": 7, "file_name": "x/7.jpg"}, {"id": 9, "file_name": "x/9.jpg"}],
        "annotations": [{"id": 1, "image_id": 9, "category_id": 30}, {"id": 2, "image_id": 7, "category_id": 10}],
        "categories": [{"id": 30, "name": "newt"}, {"id": 10, "name": "frog"}],
    }
    (tmp_path / "train.json").write_text(json.dumps(content))
    images = load_inaturalist(tmp_path / "train.json", "/images")
    assert images.class_names == ["frog", "newt"]
    assert [(r["image_id"], r["file_name"], record_label(r)) for r in images.records] == [
        (9, "/images/x/9.jpg", 1),
        (7, "/images/x/7.jpg", 0),
    ]
    del content["categories"]
    (tmp_path / "train.json").write_text(json.dumps(content))
    assert labels_of(load_inaturalist(tmp_path / "train.json", "/images")) == [30, 10]


def write_image_folder(root, num_images=3):
    for label, name in enumerate(("bee", "ant")):
        (root / name).mkdir(parents=True)
        for i in range(num_images):
            Image.fromarray(random_images(1, 40, seed=10 * label + i)[0]).save(root / name / f"{i}.png")
    return root


def test_image_folder(tmp_path):
    content = load_image_folder(write_image_folder(tmp_path / "images"))
    assert content.class_names == ["ant", "bee"]
    assert labels_of(content) == [0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("load", "match"),
    [
        (lambda p: load_cifar(p / "absent.npz"), "absent.npz: there is no such file"),
        (lambda p: load_cifar(p / "text.npz"), "text.npz is no .npz"),
        (lambda p: load_cifar(p / "absent"), "absent: there is no such file"),
        (lambda p: load_cifar(p / "text.txt"), "text.txt is no CIFAR archive"),
        (lambda p: load_cifar(p), "has no file batches.meta"),
        (lambda p: load_cifar(p / "absent.npz", "val"), "split is 'val'"),
        (lambda p: load_image_list(p / "absent.txt", p), "absent.txt: there is no such file"),
        (lambda p: load_image_list(p / "text.txt", p), "text.txt, line 1: 'no label'"),
        (lambda p: load_image_list(p / "empty.txt", p), "empty.txt has no image"),
        (lambda p: load_image_list(p / "one.txt", p, p / "empty.txt"), "has the label 3; its 0 classes"),
        (lambda p: load_inaturalist(p / "text.txt", p), "text.txt is no iNaturalist json"),
        (lambda p: load_image_folder(p / "absent"), "absent: there is no such folder"),
    ],
)
def test_bad_input(tmp_path, load, match):
    for name, text in {"text.npz": "no", "text.txt": "no label\n", "empty.txt": "", "one.txt": "a.jpg 3"}.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=match):
        load(tmp_path)


def config(entries, num_classes=4, batch=16):
    cfg = get_cfg()
    cfg.MODEL.LONG_TAIL.CLASSIFICATION.DATASETS = entries
    cfg.MODEL.LONG_TAIL.CLASSIFICATION.SIZE = 32
    cfg.MODEL.LONG_TAIL.CLASSIFICATION.RESIZE_TEST = 36
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = num_classes
    cfg.SOLVER.IMS_PER_BATCH = batch
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SEED = 1
    return cfg


@pytest.fixture
def registered():
    """A function that registers entries and undoes it after the test."""
    names = []

    def register(cfg):
        names.extend(entry["name"] for entry in cfg.MODEL.LONG_TAIL.CLASSIFICATION.DATASETS if "name" in entry)
        register_from_config(cfg)
        return cfg

    yield register
    from eql_d2.data.classification import _REGISTERED

    for name in names:
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
        MetadataCatalog.pop(name, None)
        _REGISTERED.pop(name, None)


def test_registration_gives_the_counts(npz, registered, monkeypatch):
    monkeypatch.setenv("SMALL", str(npz))
    entry = {"name": "small_lt", "kind": "cifar", "path": "$SMALL", "imbalance": 8}
    registered(config([entry]))
    registered(config([entry]))  # the same again is no error
    frequency = category_frequency(["small_lt"])
    assert frequency.image_count.tolist() == frequency.instance_count.tolist() == [40, 20, 10, 5]
    assert frequency.num_images == 75
    assert MetadataCatalog.get("small_lt").evaluator_type == "classification"
    with pytest.raises(InputError, match="already registered for another"):
        registered(config([{**entry, "imbalance": 4}]))


@pytest.mark.parametrize(
    ("entry", "match"),
    [
        ({"name": "x", "kind": "cifar"}, "mapping with name, kind and path"),
        ({"name": "x", "kind": "coco", "path": "a"}, "of kind 'coco'; there are cifar, list"),
        ({"name": "x", "kind": "folder", "path": "a", "split": "b"}, "no option 'split'; there are none"),
        ({"name": "x", "kind": "cifar", "path": "$EQL_D2_ABSENT"}, "EQL_D2_ABSENT, which is not set"),
    ],
)
def test_bad_entries(entry, match, registered):
    with pytest.raises(InputError, match=match):
        registered(config([entry]))


def take(loader, number):
    return list(itertools.islice(iter(loader), number))


def test_memory_batches_follow_from_seed_and_number(npz, registered):
    cfg = registered(config([{"name": "small_lt", "kind": "cifar", "path": str(npz), "imbalance": 8}]))
    cfg.DATASETS.TRAIN = ("small_lt",)
    cfg.MODEL.LONG_TAIL.CLASSIFICATION.AUTO_AUGMENT = "cifar10"
    cfg.MODEL.LONG_TAIL.CLASSIFICATION.CUTOUT = 8
    batches = take(build_image_train_loader(cfg), 6)
    later = build_image_train_loader(cfg)
    later.seek(4)
    for batch, again in zip(batches[4:], take(later, 2)):
        assert len(batch) == 16
        for image, other in zip(batch, again):
            assert image["image_id"] == other["image_id"]
            assert torch.equal(image["image"], other["image"])
    # An epoch of 75 images shows each of them once, with its label.
    seen = list(itertools.chain(*batches))[:75]
    assert len({image["image_id"] for image in seen}) == 75
    labels = {r["image_id"]: record_label(r) for r in DatasetCatalog.get("small_lt")}
    assert all(image["gt_class"] == labels[image["image_id"]] for image in seen)
    assert not torch.equal(batches[0][0]["image"], batches[1][0]["image"])


def test_test_batches_are_the_images(npz, registered):
    cfg = registered(config([{"name": "small_test", "kind": "cifar", "path": str(npz), "split": "test"}], batch=3))
    batches = list(build_image_test_loader(cfg, "small_test"))
    assert [len(batch) for batch in batches] == [3, 3, 2]
    images = torch.stack([image["image"] for batch in batches for image in batch])
    assert torch.equal(images, torch.from_numpy(random_images(8, seed=1)).permute(0, 3, 1, 2))
    assert [image["gt_class"] for batch in batches for image in batch] == [0, 0, 1, 1, 2, 2, 3, 3]


def test_files(tmp_path, registered):
    folder = write_image_folder(tmp_path / "images")
    cfg = registered(config([{"name": "folder_set", "kind": "folder", "path": str(folder)}], num_classes=2, batch=4))
    cfg.DATASETS.TRAIN = ("folder_set",)
    cfg.MODEL.LONG_TAIL.CLASSIFICATION.COLOR_JITTER = 0.4
    (batch,) = take(build_image_train_loader(cfg), 1)
    assert {image["image"].shape for image in batch} == {torch.Size([3, 32, 32])}
    assert batch[0]["image"].dtype == torch.uint8
    (first, *_) = build_image_test_loader(cfg, "folder_set")
    resized = Image.open(folder / "ant" / "0.png").resize((36, 36), Image.Resampling.BILINEAR).crop((2, 2, 34, 34))
    expected = torch.from_numpy(np.asarray(resized).copy()).permute(2, 0, 1)
    assert torch.equal(first[0]["image"], expected)
    (folder / "ant" / "0.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"0.png, listed in folder_set, cannot be read"):
        next(iter(build_image_test_loader(cfg, "folder_set")))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda cfg: cfg.INPUT.__setattr__("RANDOM_FLIP", "vertical"), "RANDOM_FLIP is 'vertical'"),
        (lambda cfg: cfg.MODEL.ROI_HEADS.__setattr__("NUM_CLASSES", 9), "NUM_CLASSES is 9, but small_lt has 4"),
        (lambda cfg: cfg.SOLVER.__setattr__("IMS_PER_BATCH", 0), "IMS_PER_BATCH is 0"),
        (lambda cfg: cfg.DATASETS.__setattr__("TRAIN", ()), "DATASETS.TRAIN is empty"),
        (lambda cfg: cfg.MODEL.LONG_TAIL.CLASSIFICATION.__setattr__("AUTO_AUGMENT", "mnist"), "there are imagenet"),
        (lambda cfg: cfg.MODEL.LONG_TAIL.CLASSIFICATION.__setattr__("CUTOUT", -1), "CUTOUT is -1"),
    ],
)
def test_bad_settings(npz, registered, change, match):
    cfg = registered(config([{"name": "small_lt", "kind": "cifar", "path": str(npz)}]))
    cfg.DATASETS.TRAIN = ("small_lt",)
    change(cfg)
    with pytest.raises(InputError, match=match):
        build_image_train_loader(cfg)


def test_members_of_an_archive_may_lie_in_any_folder(tmp_path):
    folder = write_archive(tmp_path / "cifar", fine=True)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name in ("meta", "train", "test"):
            archive.add(folder / name, f"elsewhere/{name}")
    (tmp_path / "moved.tar.gz").write_bytes(buffer.getvalue())
    assert len(load_cifar(tmp_path / "moved.tar.gz", "test").records) == 30


def test_check(tmp_path, registered):
    folder = write_image_folder(tmp_path / "images")
    (folder / "ant" / "0.png").write_bytes(b"no image")
    (tmp_path / "list.txt").write_text("ant/0.png 0\nant/1.png 0\nant/1.png 0\nbee/9.png 2\n")
    registered(
        config([{"name": "listed", "kind": "list", "path": str(tmp_path / "list.txt"), "images": str(folder)}], 3)
    )
    findings = {finding.what: finding for finding in check_image_set("listed").findings.values()}
    assert {what: finding.count for what, finding in findings.items()} == {
        "classes without an image (they cannot be learnt or evaluated)": 1,
        "image files that are listed more than once": 1,
        "image files that are not there": 1,
        "image files that cannot be read": 1,
    }
    assert findings["image files that are not there"].examples == [str(folder / "bee" / "9.png")]
    without = check_image_set("listed", with_images=False)
    assert not without.has_errors
    assert without.summary == ["listed: 4 images, 3 classes of 0 to 3 images; r/c/f: 3, 0 and 0 classes"]


def test_check_by_the_command(npz, registered, tmp_path, capsys):
    cfg = config([{"name": "small_lt", "kind": "cifar", "path": str(npz), "imbalance": 8}])
    (tmp_path / "config.yaml").write_text(cfg.dump())
    registered(cfg)
    assert check_command(["--config-file", str(tmp_path / "config.yaml"), "small_lt"]) == 0
    assert "small_lt: 75 images, 4 classes of 5 to 40 images" in capsys.readouterr().out
