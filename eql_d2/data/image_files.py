"""Image files that may come from anybody: below the image folder, regular, of bounded size, decoded in this process.

A pipe or a device in the place of an image would be waited for, a file of a few kilobytes may stand for billions of
pixels, and an EPS file is a program, which Pillow hands to Ghostscript. Each is an error here. The bound is Pillow's
(``PIL.Image.MAX_IMAGE_PIXELS``, 89 million pixels), which itself only warns; ``EQL_D2_MAX_IMAGE_PIXELS`` sets another.
"""

import io
import os
import stat
from contextlib import contextmanager
from typing import BinaryIO, Hashable, Iterator, Optional, Tuple

import cv2
import numpy as np
from detectron2.utils.file_io import PathManager
from PIL import Image

from eql_d2.data.annotations import PathLike
from eql_d2.errors import InputError

ENVIRONMENT_VARIABLE = "EQL_D2_MAX_IMAGE_PIXELS"
_EXIF_ORIENTATION = 274


#: How the images of one data set are found among those of another.
MATCHES = ("id", "file_name")


def image_key(match: str, image_id: int, name: str) -> Hashable:
    """Return what two data sets tell the same image by, one of :data:`MATCHES`; of the file name the last part."""
    return image_id if match == "id" else os.path.basename(name)


class ImageFileError(OSError):
    """A file is no image that can be used; the message says why, without the file's name."""


def _max_image_pixels() -> Optional[int]:
    """Return how many pixels an image may have; ``None`` for any number. Pillow is told, where the user has set it.

    Raises:
        InputError: if the environment variable is no number.
    """
    given = os.environ.get(ENVIRONMENT_VARIABLE, "")
    if not given:
        return Image.MAX_IMAGE_PIXELS
    if not given.isdigit():
        raise InputError(f"{ENVIRONMENT_VARIABLE} is {given!r}; it is a number of pixels, 0 for any number.")
    Image.MAX_IMAGE_PIXELS = int(given) or None
    return Image.MAX_IMAGE_PIXELS


def upright_size(image: Image.Image) -> Tuple[int, int]:
    """Return width and height after the rotation that the file's EXIF data asks for, as Detectron2 reads it."""
    width, height = image.size
    try:
        orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # what cannot be read of it counts as absent, as in Detectron2
        orientation = 1
    return (height, width) if orientation in (5, 6, 7, 8) else (width, height)


def read_upright_size(path: PathLike) -> Tuple[int, int]:
    """Return width and height of an image file, upright, from its head.

    Raises:
        FileNotFoundError: if it is not there.
        ImageFileError: if it is no image that can be used.
    """
    with _opened(path) as file, _image(file) as image:
        return upright_size(image)


def load_image(path: PathLike) -> Image.Image:
    """Return an image, decoded as a whole.

    Raises:
        FileNotFoundError, ImageFileError: as :func:`read_upright_size`.
    """
    with _opened(path) as file, _image(file) as image:
        image.load()
        return image


def read_bgr(path: PathLike) -> np.ndarray:
    """Return an image as OpenCV decodes it, uint8 BGR ``[H, W, 3]``, upright.

    Raises:
        FileNotFoundError, ImageFileError: as :func:`read_upright_size`.
    """
    with _opened(path) as file:
        content = file.read()
    with _image(io.BytesIO(content)):  # its kind and size are in order
        pass
    decoded = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    if decoded is None:
        raise ImageFileError("OpenCV cannot decode it")
    return decoded


def path_below(folder: str, name: str) -> Optional[str]:
    """Return the path of an image, or ``None`` if its name leads out of its folder, as ``/etc/x`` and ``../x`` do.

    What counts are the names, not where links lead: whole image folders are often links, and so are files in them,
    which the user has made. A path with ``..`` in it is returned without, so that it is the one that was looked at.

    Args:
        folder: of the images.
        name: of the image, by the annotations.
    """
    path = os.path.join(folder, name)
    if not leads_out(name):
        return path
    inside, root = os.path.abspath(path), os.path.abspath(folder)
    return os.path.normpath(path) if inside.startswith(os.path.join(root, "")) else None


def leads_out(name: str) -> bool:
    """Whether a name may lead out of a folder that it is joined to."""
    return os.path.isabs(name) or ".." in name.replace(os.sep, "/").split("/")


@contextmanager
def _opened(path: PathLike) -> Iterator[BinaryIO]:
    name = os.fspath(path)
    if "://" in name:
        with PathManager.open(name, "rb") as file:
            yield file
        return
    # Without the flag, the opening of a pipe would wait for somebody to write.
    descriptor = os.open(name, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ImageFileError("it is no regular file")
    with open(descriptor, "rb") as file:
        yield file


@contextmanager
def _image(file: BinaryIO) -> Iterator[Image.Image]:
    """Open an image; whatever Pillow raises, now or when it is decoded, becomes an :class:`ImageFileError`."""
    try:
        limit = _max_image_pixels()
        image = Image.open(file, formats=_formats())
        width, height = image.size
        if limit is not None and width * height > limit:
            raise ImageFileError(f"it has {width} x {height} pixels; {ENVIRONMENT_VARIABLE} allows {limit}")
        yield image
    except (ImageFileError, InputError):
        raise
    except Image.DecompressionBombError as error:  # from twice the bound on
        raise ImageFileError(f"{error}; {ENVIRONMENT_VARIABLE} sets the bound") from None
    except Exception as error:  # Pillow has no exception of its own: a broken file may end in any
        raise ImageFileError(" ".join(str(error).split()) or type(error).__name__) from None


def _formats() -> Tuple[str, ...]:
    Image.init()
    return tuple(name for name in Image.ID if name != "EPS")
