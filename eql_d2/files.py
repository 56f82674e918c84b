"""Writing files so that nobody ever sees half of one, and folders that one process at a time may write to."""

import contextlib
import errno
import json
import os
import socket
from pathlib import Path
from typing import BinaryIO, Dict, Iterator, Tuple, Union

from eql_d2.errors import InputError, cannot_write, os_error

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

PathLike = Union[str, os.PathLike]
LOCK_NAME = ".lock"
#: The file systems that know no locks say one of these.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


@contextlib.contextmanager
def whole_file(path: PathLike) -> Iterator[BinaryIO]:
    """Open a file to write (and read back) piece by piece; it appears when the context ends, whole or not at all.

    Its folder is made. Of several writers the last one wins. The content is on the disk before the name is, so that a
    machine that stops leaves no empty file either; where a disk is full, the earlier file stays as it was.

    Raises:
        InputError: if it cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f"{path.name}.tmp{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Made anew: in a folder that others write to, what lies there may be a link to any file of the user's.
        temporary.unlink(missing_ok=True)
        with temporary.open("x+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        cause = os_error(error)
        if cause is None:
            raise
        raise InputError(cannot_write(path, cause)) from None


def write_whole(path: PathLike, content: Union[str, bytes]) -> None:
    """Write a file at once; as :func:`whole_file`.

    Raises:
        InputError: if it cannot be written.
    """
    with whole_file(path) as file:
        file.write(content.encode() if isinstance(content, str) else content)


class FolderLock:
    """The right of one process to write to a folder, until :meth:`release` or the end of the process, however it ends.

    A record lock (``fcntl.lockf``) on the file ``.lock``, which stays there. The kernel drops it when the process
    dies, also by SIGKILL; children that live on for a while, as the workers of a data loader do, do not inherit it, as
    they would with ``flock``. On NFS the server keeps it, so that it holds between machines. Where the file system
    knows no locks at all, there is none, and nobody is refused.

    Raises:
        InputError: if another process holds the folder, naming it; or if the folder cannot be written.
    """

    #: By process, since a fork copies it, and path. Closing any descriptor of a file drops the process's locks on it.
    _held: Dict[Tuple[int, Path], BinaryIO] = {}

    def __init__(self, folder: PathLike):
        self._path = Path(folder).resolve() / LOCK_NAME
        if self._key in self._held or fcntl is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            file = self._path.open("a+b")
        except OSError as error:
            raise InputError(cannot_write(self._path, error)) from None
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            holder = _holder(file)
            file.close()
            if error.errno in _NO_LOCKS:
                return
            raise InputError(
                f"{folder} is in use{holder}: two runs in one folder overwrite each other's files. Wait until it "
                f"ends, or name another folder."
            ) from None
        self._held[self._key] = file
        with contextlib.suppress(OSError):  # on a full disk the lock holds all the same
            file.truncate(0)
            file.write(json.dumps({"process": os.getpid(), "host": socket.gethostname()}).encode())
            file.flush()

    @property
    def _key(self) -> Tuple[int, Path]:
        return os.getpid(), self._path

    def release(self) -> None:
        """Let others write to the folder; further calls do nothing."""
        file = self._held.pop(self._key, None)
        if file is not None:
            file.close()

    @classmethod
    def release_folder(cls, folder: PathLike) -> None:
        """Let others write to a folder, if this process holds it."""
        path = Path(folder).resolve() / LOCK_NAME
        if (os.getpid(), path) in cls._held:
            cls(folder).release()


def _holder(file: BinaryIO) -> str:
    """Return which process has written itself into a lock's file, as far as it can be told."""
    try:
        file.seek(0)
        content = json.loads(file.read())
        return f" by process {content['process']} on {content['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        return " by another process"
