"""Image files: regular ones alone, of bounded size, decoded in this process, wherever images are opened."""

import io
import os
import re
import struct
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image

from eql_d2.cli import run as run_command
from eql_d2.data import image_files
from eql_d2.data.image_files import ImageFileError, load_image, read_bgr, read_upright_size
from eql_d2.data.images import ImageMapper
from eql_d2.data.mapper import LongTailDatasetMapper
from eql_d2.data.records import RecordError
from tests.conftest import tiny_config, write_image

READERS = [read_upright_size, load_image, read_bgr]


def bomb(path, side=20_000):
    """Write the start of a small PNG that stands for ``side`` squared pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compress(bytes(10_000))
    head = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


def smaller_bomb(path):
    """Write one of which Pillow would only warn."""
    bomb(path, side=10_000)


def pipe(path):
    os.mkfifo(path)


def device(path):
    path.symlink_to("/dev/zero")


def folder(path):
    path.mkdir()


def program(path):
    """Write EPS, which Pillow hands to Ghostscript."""
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n")


def truncated(path):
    write_image(path)
    path.write_bytes(path.read_bytes()[:3000])


def text(path):
    path.write_text("no picture")


#: What may lie in an image's place, and the words that say so.
HOSTILE = {
    pipe: "no regular file",
    device: "no regular file",
    folder: "no regular file",
    bomb: "400000000 pixels.*EQL_D2_MAX_IMAGE_PIXELS sets the bound",
    smaller_bomb: "10000 x 10000 pixels; EQL_D2_MAX_IMAGE_PIXELS allows 89478485",
    program: "cannot identify",
    text: "cannot identify",
    truncated: "truncated",
}


@pytest.fixture(params=HOSTILE, ids=lambda write: write.__name__)
def hostile(request, lvis_folder):
    """A data set whose second image is none, that image's path, and the words that say why."""
    path = sorted((lvis_folder / "images").iterdir())[1]
    path.unlink()
    request.param(path)
    return lvis_folder, path, HOSTILE[request.param]


@pytest.mark.parametrize("read", READERS)
def test_readers(hostile, read):
    _, path, words = hostile
    if words == "truncated" and read is read_upright_size:
        assert read(path) == (64, 64)  # of the head alone
        return
    with pytest.raises(ImageFileError, match="OpenCV cannot decode it|" + words if read is read_bgr else words):
        read(path)


def test_mappers(hostile):
    folder, path, words = hostile
    record = {"file_name": str(path), "image_id": 2, "height": 64, "width": 64, "annotations": [{"category_id": 0}]}
    cfg = tiny_config(folder)
    with pytest.raises(RecordError, match=rf"{path.name}, .*cannot be read as an image \(.*{words}"):
        LongTailDatasetMapper(cfg, is_train=False)(record)
    with pytest.raises(RecordError, match=rf"{path.name}, .*cannot be read as an image \(.*{words}"):
        ImageMapper(cfg, is_train=False, listed_in="somewhere")(record)


def test_check(hostile, capsys):
    folder, path, words = hostile
    with pytest.raises(SystemExit) as ended:
        run_command("check-dataset", ["--json", str(folder / "train.json"), "--images", str(folder / "images")])
    printed = capsys.readouterr().out
    assert ended.value.code == 1 and "image files that cannot be read" in printed
    assert re.search(f"{path.name}: .*{words}", printed)


def test_galleries(hostile, capsys):
    folder, path, _ = hostile
    arguments = ["--annotations", folder / "train.json", "--images", folder / "images", "--output", folder / "look"]
    with pytest.raises(SystemExit) as ended:
        run_command("visualize-data", [str(argument) for argument in arguments])
    assert ended.value.code == 2
    assert f"{path.name}, listed in" in capsys.readouterr().err


def test_sound_images_are_as_pillow_and_opencv_read_them(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[274] = 6
    for name in ("a.png", "a.jpg", "a.bmp", "a.webp", "a.tif"):
        Image.fromarray(pixels).save(tmp_path / name)
        assert read_upright_size(tmp_path / name) == (60, 40)
        assert np.array_equal(np.asarray(load_image(tmp_path / name)), np.asarray(Image.open(tmp_path / name)))
        assert np.array_equal(read_bgr(tmp_path / name), cv2.imread(str(tmp_path / name)))
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif)
    assert read_upright_size(str(tmp_path / "turned.jpg")) == (40, 60)
    assert read_bgr(tmp_path / "turned.jpg").shape == (60, 40, 3)


def test_broken_exif_counts_as_absent(tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 4)).save(buffer, "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xffbroken")
    (tmp_path / "a.jpg").write_bytes(buffer.getvalue())
    assert read_upright_size(tmp_path / "a.jpg") == (8, 4)


def test_the_bound_is_a_setting(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)  # which the setting changes
    write_image(tmp_path / "a.png", size=64)
    monkeypatch.setenv(image_files.ENVIRONMENT_VARIABLE, "4095")
    with pytest.raises(ImageFileError, match="64 x 64 pixels; EQL_D2_MAX_IMAGE_PIXELS allows 4095"):
        load_image(tmp_path / "a.png")
    monkeypatch.setenv(image_files.ENVIRONMENT_VARIABLE, "4096")
    assert load_image(tmp_path / "a.png").size == (64, 64)
    bomb(tmp_path / "large.png", side=30_000)
    for limit in ("900000000", "0"):
        monkeypatch.setenv(image_files.ENVIRONMENT_VARIABLE, limit)
        assert read_upright_size(tmp_path / "large.png") == (30_000, 30_000)
    monkeypatch.setenv(image_files.ENVIRONMENT_VARIABLE, "many")
    with pytest.raises(Exception, match="EQL_D2_MAX_IMAGE_PIXELS is 'many'; it is a number of pixels"):
        load_image(tmp_path / "a.png")
