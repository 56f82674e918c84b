"""Writing files so that nobody ever sees half of one."""

import contextlib
import os
from pathlib import Path
from typing import Union

from eql_d2.errors import InputError


def write_whole(path: Path, content: Union[str, bytes]) -> None:
    """Write a file that appears whole or not at all; its folder is made.

    Raises:
        InputError: if it cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.tmp{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise InputError(f"{path} cannot be written ({error.strerror}); name another place.") from None
