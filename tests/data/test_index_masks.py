"""Index masks: what is in them, what is no mask, their transforms, and the pixels of each class."""

import os
import pickle
from collections import Counter

import numpy as np
import pytest
from detectron2.data import transforms as T
from detectron2.data.detection_utils import read_image
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from eql_d2.data import cache, index_masks
from eql_d2.data.index_masks import MaskSet, MaskValues, read_mask, transform_mask
from eql_d2.data.semantic import load_masks
from eql_d2.errors import InputError
from tests.data.masks import MASKS, write_mask, write_masks

THREE = MaskValues(3)
FULL = MaskValues(847, 0, 65535)


@pytest.fixture
def cached(monkeypatch):
    """Cache even small folders."""
    monkeypatch.setattr(cache, "MIN_CACHED_BYTES", 0)
    monkeypatch.delenv(cache.ENVIRONMENT_VARIABLE, raising=False)


@pytest.mark.parametrize(
    "values, found, expected, dtype",
    [
        (THREE, [[0, 2, 255]], [[0, 2, 255]], np.uint8),
        (MaskValues(150, 1, 0), [[0, 1, 150]], [[255, 0, 149]], np.uint8),  # ADE20K as released
        (MaskValues(254, 0, 255), [[0, 253, 255]], [[0, 253, 255]], np.uint8),
        (MaskValues(255, 0, 255), [[0, 254, 255]], [[0, 254, 65535]], np.uint8),
        (FULL, [[0, 846, 65535]], [[0, 846, 65535]], np.uint16),
        (MaskValues(3, 1000, 7), [[1000, 1002, 7]], [[0, 2, 255]], np.uint16),
    ],
)
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_labels_of_values(tmp_path, values, found, expected, dtype, suffix):
    write_mask(tmp_path / f"a{suffix}", found, dtype)
    labels = read_mask(tmp_path / f"a{suffix}", values, (3, 1))
    assert labels.tolist() == expected
    assert labels.dtype == (np.uint8 if values.num_classes < 255 else np.uint16)


def test_other_kinds_of_masks(tmp_path):
    palette = Image.fromarray(np.array([[0, 2, 255]], np.uint8)).convert("P")
    palette.putpalette([5, 5, 5] * 256)  # the colours are of no matter
    palette.putdata([0, 2, 255])
    palette.save(tmp_path / "palette.png")
    Image.fromarray(np.array([[0, 846, 65535]], np.int32)).save(tmp_path / "wide.tif")
    assert read_mask(tmp_path / "palette.png", THREE).tolist() == [[0, 2, 255]]
    assert read_mask(tmp_path / "wide.tif", FULL).tolist() == [[0, 846, 65535]]


@pytest.mark.parametrize(
    "write, words",
    [
        (lambda path: write_mask(path, [[0, 3]]), "has the value 3; its 3 classes have the values 0 to 2, and 255 is"),
        (lambda path: write_mask(path, [[0, 65535]], np.uint16), "has the value 65535; its 3 classes"),
        (lambda path: Image.fromarray(np.array([[0, -1]], np.int32)).save(path, "TIFF"), "has the value -1; its 3"),
        (
            lambda path: Image.new("RGB", (2, 1)).save(path),
            "pixels of the kind RGB; an index mask has one whole number",
        ),
        (lambda path: write_mask(path, [[0], [1]]), r"1 x 2 pixels \(width x height\), and its image 2 x 1"),
        (lambda path: path.write_bytes(b"\x89PNG"), "cannot be read as an index mask"),
        (lambda path: None, "there is no such file; it should be an index mask"),
        (lambda path: os.mkfifo(path), "cannot be read as an index mask .*no regular file"),
    ],
)
def test_what_is_no_mask(tmp_path, write, words):
    write(tmp_path / "a.png")
    with pytest.raises(InputError, match=words) as caught:
        read_mask(tmp_path / "a.png", THREE, (2, 1))
    assert str(tmp_path / "a.png") in str(caught.value)


@pytest.mark.filterwarnings("ignore:::PIL")
@settings(max_examples=200, deadline=None)
@given(st.sampled_from([".png", ".tif"]), st.integers(0, 2**32 - 1))
def test_a_damaged_file_gives_labels_or_one_line(tmp_path_factory, suffix, seed):
    rng = np.random.default_rng(seed)
    path = tmp_path_factory.getbasetemp() / f"damaged{suffix}"
    write_mask(path, rng.integers(0, 847, (9, 7)), np.uint16)
    content = bytearray(path.read_bytes())
    for _ in range(rng.integers(1, 4)):
        content[rng.integers(0, len(content))] = rng.integers(0, 256)
    path.write_bytes(content[: rng.integers(1, len(content) + 1)] if rng.random() < 0.3 else content)
    try:
        labels = read_mask(path, FULL, (7, 9))
    except InputError as error:
        assert str(path) in str(error) and "\n" not in str(error)
    else:
        assert labels.shape == (9, 7) and ((labels < 847) | (labels == 65535)).all()


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((0,), "at least one class"),
        ((3, -1), "values are 0 to 65535"),
        ((3, 0, 65536), "values are 0 to 65535"),
        ((70000, 0, 65535), "values are 0 to 65535"),
        ((3, 0, 2), "The value 2 of pixels without a label is also that of class 2"),
        ((256, 0, 255), "255 classes and more need 16 bits"),
    ],
)
def test_values_that_are_no_use(arguments, words):
    with pytest.raises(InputError, match=words):
        MaskValues(*arguments)


@pytest.mark.parametrize(
    "transform", [T.ResizeTransform(7, 5, 19, 12), T.CropTransform(1, 2, 3, 4), T.HFlipTransform(5)]
)
@pytest.mark.parametrize("values", [MaskValues(200), FULL])
def test_masks_of_16_bits_are_transformed_as_those_of_8(tmp_path, transform, values):
    rng = np.random.default_rng(0)
    small = rng.integers(0, 200, (7, 5)).astype(np.uint8)
    small[0, :3] = 255
    # Detectron2's own way with the same labels, of 8 bits
    Image.fromarray(small).save(tmp_path / "mask.png")
    expected = transform.apply_segmentation(read_image(str(tmp_path / "mask.png"), "L").squeeze(2)).astype(np.int64)
    expected[expected == 255] = values.ignore_label
    mask = small.astype(np.uint8 if values.num_classes < 255 else np.uint16)
    mask[small == 255] = values.ignore_label
    assert transform_mask(mask, T.TransformList([transform]), values).tolist() == expected.tolist()


def test_high_labels_survive_a_resize():
    mask = np.array([[0, 300], [846, 65535]], np.uint16)
    turned = transform_mask(mask, T.TransformList([T.ResizeTransform(2, 2, 4, 4)]), FULL)
    assert turned.tolist() == np.repeat(np.repeat(mask, 2, 0), 2, 1).tolist()


@pytest.mark.parametrize("values", [MaskValues(10), FULL])
def test_padding_has_no_label(values):
    mask = np.zeros((1, 1), np.uint8 if values.num_classes < 255 else np.uint16)
    for filler in (255, 77):
        padded = transform_mask(mask, T.TransformList([T.PadTransform(0, 0, 1, 0, 1, 1, 0, filler)]), MaskValues(10))
        assert padded.tolist() == [[0, 255]]
    padded = transform_mask(mask, T.TransformList([T.PadTransform(0, 0, 1, 0, 1, 1, 0, 255)]), values)
    assert padded.tolist() == [[0, values.ignore_label]]


def slow_counts(masks, num_classes):
    """Images and pixels of each class, pixel by pixel."""
    images, pixels = Counter(), Counter()
    for mask in masks:
        seen = set()
        for row in mask:
            for value in row:
                if value < num_classes:
                    pixels[value] += 1
                    seen.add(value)
        images.update(seen)
    return [images[k] for k in range(num_classes)], [pixels[k] for k in range(num_classes)]


def test_counts(tmp_path):
    folder = write_masks(tmp_path)
    frequency = load_masks(folder / "images", folder / "masks", THREE).frequency
    assert frequency.image_count.tolist() == [2, 1, 1]
    assert frequency.instance_count.tolist() == [10, 2, 1]
    assert frequency.num_images == 3
    assert slow_counts(MASKS.values(), 3) == ([2, 1, 1], [10, 2, 1])


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 400), st.integers(0, 2**32 - 1))
def test_counts_are_those_of_a_loop(tmp_path_factory, num_classes, seed):
    rng = np.random.default_rng(seed)
    values = MaskValues(num_classes, int(rng.integers(0, 300)), 65535)
    masks = {
        f"{i}": np.where(rng.random((3, 4)) < 0.2, num_classes, rng.integers(0, num_classes, (3, 4))) for i in range(4)
    }
    folder = write_masks(
        tmp_path_factory.mktemp("masks"),
        {name: np.where(mask == num_classes, 65535, mask + values.first_label) for name, mask in masks.items()},
        np.uint16,
    )
    frequency = load_masks(folder / "images", folder / "masks", values).frequency
    expected = slow_counts([mask.tolist() for mask in masks.values()], num_classes)
    assert (frequency.image_count.tolist(), frequency.instance_count.tolist()) == expected


def test_counted_once(tmp_path, cached, monkeypatch):
    folder = write_masks(tmp_path)
    first = load_masks(folder / "images", folder / "masks", THREE).frequency
    assert (folder / "masks.eql_d2_cache").is_file()
    with monkeypatch.context() as patched:
        patched.setattr(index_masks, "read_mask", None)  # nothing is read again
        again = load_masks(folder / "images", folder / "masks", THREE)
        assert again.frequency.instance_count.tolist() == first.instance_count.tolist()
        assert pickle.loads(pickle.dumps(again)).frequency.image_count.tolist() == first.image_count.tolist()
    write_mask(folder / "masks/a.png", [[2, 2, 2, 2], [2, 2, 2, 2]])
    changed = load_masks(folder / "images", folder / "masks", THREE).frequency
    assert changed.instance_count.tolist() == [5, 0, 9]


def test_a_damaged_cache_is_built_anew(tmp_path, cached, caplog):
    folder = write_masks(tmp_path)
    records = load_masks(folder / "images", folder / "masks", THREE)
    assert records.frequency.num_images == 3
    path = folder / "masks.eql_d2_cache"
    content = bytearray(path.read_bytes())
    content[10] ^= 1
    path.write_bytes(content)
    assert load_masks(folder / "images", folder / "masks", THREE).frequency.instance_count.tolist() == [10, 2, 1]
    assert "is damaged" in caplog.text


def test_counting_names_the_first_file_that_is_no_mask(tmp_path, cached):
    folder = write_masks(tmp_path)
    write_mask(folder / "masks/b.png", [[7, 0, 0], [0, 0, 0]])
    with pytest.raises(InputError, match=r"masks/b\.png has the value 7; its 3 classes"):
        load_masks(folder / "images", folder / "masks", THREE).frequency  # noqa: B018
    with pytest.raises(InputError, match=r"absent\.jpg, the image of .*a\.png, cannot be read"):
        MaskSet(("absent.jpg",), (str(folder / "masks/a.png"),), THREE).counts()
    (folder / "masks/a.png").unlink()
    with pytest.raises(InputError, match=r"masks/a\.png: there is no such file"):
        MaskSet((str(folder / "images/a.jpg"),), (str(folder / "masks/a.png"),), THREE).counts()
