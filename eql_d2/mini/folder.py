"""The folder of a generated data set: it appears whole or not at all, is not made twice, and replaces nothing else."""

import json
import os
import secrets
import shutil
from pathlib import Path
from typing import Any, Callable, Collection, Dict, Mapping, Union

from eql_d2.errors import InputError

#: Written last; holds what the files depend on.
STAMP = "mini.json"


def make_folder(
    output_dir: Union[str, os.PathLike],
    stamp: Mapping[str, Any],
    own_names: Collection[str],
    write: Callable[[Path], Mapping[str, Any]],
    overwrite: bool = False,
) -> Path:
    """Write a data set, or do nothing if it is there already.

    Args:
        output_dir: created if it is absent.
        stamp: everything that the files depend on; json-able.
        own_names: names of all files and folders of the set, :data:`STAMP` among them.
        write: called with an empty folder, which it fills with all but the stamp; what it returns is written beside
            ``stamp``.
        overwrite: replace a set with another stamp.

    Returns:
        ``output_dir``.

    Raises:
        InputError: if ``output_dir`` holds a set with another stamp and ``overwrite`` is not given, if it holds
            anything else, or if it cannot be written.
    """
    target = Path(output_dir).resolve()
    # A sibling, so that the rename stays on one file system.
    temporary = target.with_name(f".{target.name}.tmp-{secrets.token_hex(4)}")
    try:
        if not _is_made(target, stamp, own_names, overwrite):
            temporary.mkdir(parents=True)
            more = write(temporary)
            (temporary / STAMP).write_text(json.dumps({**stamp, **more}, indent=1))
            _move_into_place(temporary, target, stamp, own_names, overwrite)
    except OSError as error:
        raise InputError(f"{output_dir} cannot be written ({error}); name a folder that can be created.") from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return Path(output_dir)


def read_stamp(output_dir: Path) -> Dict[str, Any]:
    """Return what the stamp of a set says; nothing if it is no mapping.

    Raises:
        InputError: if it is absent or no json.
    """
    path = output_dir / STAMP
    try:
        stamp = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}); delete {output_dir} and generate it again.") from None
    return stamp if isinstance(stamp, dict) else {}


def _is_made(output_dir: Path, stamp: Mapping[str, Any], own_names: Collection[str], overwrite: bool) -> bool:
    """Return whether the set is there already; raise if something else is that must not be replaced."""
    if output_dir.exists() and not output_dir.is_dir():
        raise InputError(f"{output_dir} is a file; name a folder for the generated data set.")
    names = {path.name for path in output_dir.iterdir()} if output_dir.exists() else set()
    own_names = set(own_names)
    if not names:
        return False
    if STAMP not in names or names - own_names:
        other = sorted(names - own_names or names)[0]
        raise InputError(f"{output_dir} holds {other!r}, which is no part of a generated data set; name a new folder.")
    found = read_stamp(output_dir)
    differing = [key for key, value in stamp.items() if found.get(key) != value]
    if not differing and names == own_names:
        return True
    if not overwrite:
        reason = (
            f"made with {differing[0]} {found.get(differing[0])!r}, not {stamp[differing[0]]!r}"
            if differing
            else f"that lacks {sorted(own_names - names)[0]}"
        )
        raise InputError(f"{output_dir} holds a generated data set {reason}; overwrite it or name another folder.")
    return False


def _move_into_place(
    temporary: Path, target: Path, stamp: Mapping[str, Any], own_names: Collection[str], overwrite: bool
) -> None:
    """Rename the finished folder to its final name, where there is nothing, an empty folder, or a set to replace."""
    # Another process may have made the same set meanwhile.
    if _is_made(target, stamp, own_names, overwrite):
        return
    replaced = temporary.with_name(f"{temporary.name}-old")
    if target.exists():
        target.rename(replaced)
    try:
        temporary.rename(target)
    except OSError:
        if replaced.exists():
            replaced.rename(target)
        raise
    shutil.rmtree(replaced, ignore_errors=True)
