"""The one exception for input that the user can mend, and what a tool does with it."""

import os
import sys
from typing import Callable, NoReturn, Optional


class InputError(ValueError):
    """A file, a config value or a data set is wrong in a way that the user can mend.

    The message is one sentence that names the file, the field and the value, and says what would be right. The tools
    print it without a stack and exit with status 2.
    """


def run_tool(main: Callable[[], Optional[int]]) -> NoReturn:
    """Call a tool's ``main()`` and exit with what it returns; on an :class:`InputError` with one line and status 2."""
    try:
        sys.exit(main())
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # who reads the output, as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
