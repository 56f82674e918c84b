"""The one exception for input that the user can mend, and what a tool does with it."""

import errno
import os
import sys
from typing import Callable, NoReturn, Optional, Union

#: Exit status of a tool that ends with one line.
INPUT_ERROR_STATUS = 2
INTERRUPTED_STATUS = 128 + 2  # as shells have it for SIGINT

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
#: What is wrong with a path that somebody named.
_UNUSABLE = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP
)  # fmt: skip


class InputError(ValueError):
    """A file, a config value or a data set is wrong in a way that the user can mend.

    The message is one sentence that names the file, the field and the value, and says what would be right. The tools
    print it without a stack and exit with status 2.
    """


def cannot_write(path: Union[str, os.PathLike], error: OSError) -> str:
    """Return the sentence for a file that cannot be written."""
    advice = "free some space or name another place" if _is_full(error) else "name another place"
    return f"{path} cannot be written ({error.strerror or error}); {advice}."


def one_line(error: BaseException) -> Optional[str]:
    """Return what a tool says of an exception in place of its stack, ``None`` if the stack is wanted.

    The line is that of an :class:`InputError`, or of a training that has diverged (``FloatingPointError``); of a disk,
    quota or size of file that is exhausted wherever that comes to light (Detectron2 writes its logs and metrics
    itself); and of a path that may not be used as it is.
    """
    if isinstance(error, (InputError, FloatingPointError)):
        return str(error)
    cause = os_error(error)
    if cause is None:
        return None
    if _is_full(cause):
        return cannot_write(cause.filename or "A file of the output", cause)
    if cause.filename is not None and cause.errno in _UNUSABLE:
        return f"{cause.filename}: {cause.strerror}."
    return None


def os_error(error: BaseException) -> Optional[OSError]:
    """Return the operating system's error that an exception is or, as torch.save's own, comes from."""
    if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
        return error.__context__
    return error if isinstance(error, OSError) else None


def _is_full(error: OSError) -> bool:
    return error.errno in _FULL


def run_tool(main: Callable[[], Optional[int]]) -> NoReturn:
    """Call a tool's ``main()`` and exit with what it returns.

    Where :func:`one_line` says an exception in one line, with that line and status 2; interrupted from the keyboard,
    with status 130.
    """
    try:
        sys.exit(main())
    except BrokenPipeError:  # who reads the output, as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED_STATUS)
    except Exception as error:
        line = one_line(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        sys.exit(INPUT_ERROR_STATUS)
