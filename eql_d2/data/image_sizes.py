"""Width and height of images whose annotation files do not state them, read from each image once."""

import os
from pathlib import Path
from typing import Optional, Sequence, Tuple

import numpy as np

from eql_d2.data.annotations import PathLike
from eql_d2.data.cache import is_strangers
from eql_d2.data.image_files import read_upright_size
from eql_d2.data.records import RecordError
from eql_d2.errors import InputError
from eql_d2.files import whole_file


class ImageSizes:
    """The sizes of N images, each read from the head of its file when it is first asked for.

    They are kept in a file that all processes map, so that no other process and no later run reads them again. Deleting
    the file is always safe; an image that is replaced by one of another size needs it.

    Args:
        locations: where the file may lie, the best place first; with none, each process remembers for itself.
        num_images: N.
    """

    def __init__(self, locations: Sequence[Path], num_images: int):
        self._shape = (num_images, 2)
        self._path = next((path for path in locations if self._is_there(path)), None)
        self._sizes = self._open()

    def _is_there(self, path: Path) -> bool:
        """Return whether there is a file of the right length that can be written to, and make one if there is none."""
        if is_strangers(path):
            return False
        num_bytes = self._shape[0] * 2 * np.dtype(np.int32).itemsize
        if not path.is_file() or path.stat().st_size != num_bytes:
            try:
                with whole_file(path) as file:
                    file.truncate(num_bytes)
                    os.chmod(file.name, 0o644)
            except InputError:
                return False
        return os.access(path, os.W_OK)

    def _open(self) -> np.ndarray:
        if self._path is None or not self._shape[0]:
            return np.zeros(self._shape, np.int32)
        return np.memmap(self._path, np.int32, "r+", shape=self._shape)

    def __getstate__(self):
        return {"_shape": self._shape, "_path": self._path}

    def __setstate__(self, state):
        self.__dict__.update(state)
        self._sizes = self._open()

    @property
    def path(self) -> Optional[Path]:
        """The file; ``None`` if there is none."""
        return self._path

    def size(self, index: int, file_name: PathLike) -> Tuple[int, int]:
        """Return width and height of an image in pixels, upright.

        Args:
            index: of the image, 0 to N - 1.
            file_name: opened if the size is not known yet.

        Raises:
            RecordError: if the file is missing or no image.
        """
        width, height = map(int, self._sizes[index])
        # A process that was killed, or another one that is writing now, may leave one of the two.
        if not (width and height):
            width, height = read_size(file_name)
            self._sizes[index] = width, height
        return width, height


def read_size(file_name: PathLike) -> Tuple[int, int]:
    """Return width and height of an image file in pixels, upright, from its head.

    Raises:
        RecordError: if the file is missing or no image.
    """
    try:
        return read_upright_size(file_name)
    except FileNotFoundError:
        raise RecordError(f"{os.fspath(file_name)} is not there; eql-d2 check-dataset lists all such images.") from None
    except OSError as error:
        raise RecordError(
            f"{os.fspath(file_name)} cannot be read as an image ({error}); eql-d2 check-dataset lists all such images."
        ) from None
