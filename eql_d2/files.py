"""Writing files so that nobody ever sees half of one."""

import contextlib
import os
from pathlib import Path
from typing import BinaryIO, Iterator, Union

from eql_d2.errors import InputError


@contextlib.contextmanager
def whole_file(path: Union[str, os.PathLike]) -> Iterator[BinaryIO]:
    """Open a file to write (and read back) piece by piece; it appears when the context ends, whole or not at all.

    Its folder is made. Of several writers the last one wins. The content is on the disk before the name is, so that a
    machine that stops leaves no empty file either.

    Raises:
        InputError: if it cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.tmp{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if not isinstance(error, OSError):
            raise
        raise InputError(f"{path} cannot be written ({error.strerror}); name another place.") from None


def write_whole(path: Union[str, os.PathLike], content: Union[str, bytes]) -> None:
    """Write a file at once; as :func:`whole_file`.

    Raises:
        InputError: if it cannot be written.
    """
    with whole_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)
