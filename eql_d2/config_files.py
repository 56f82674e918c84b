"""Where the configs are: the one place that knows the folder ``configs``, in a checkout and in an installed package.

Imports neither torch nor Detectron2. :mod:`eql_d2.model_zoo` is the room to ask for a config by its name.
"""

import os
from difflib import get_close_matches
from pathlib import Path
from typing import List

from eql_d2.errors import InputError

_SUFFIX = ".yaml"
#: Folder of the tables of ``eql-d2 reproduce``, which are no configs of a training.
TABLES_FOLDER = "tables"


def configs_root() -> Path:
    """Return the folder ``configs``: inside the installed package, else the top-level one of the checkout."""
    package = Path(__file__).resolve().parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def list_configs() -> List[str]:
    """Return the names of all configs that train or evaluate a model, sorted.

    A name is the path below ``configs`` without its suffix, as ``LVISv0.5/eql/mask_rcnn_R_50_FPN_paper``. The bases
    that others start from (``Base-*``) and the tables are left out.
    """
    root = configs_root()
    paths = (path.relative_to(root) for path in root.rglob(f"*{_SUFFIX}") if not path.name.startswith("Base-"))
    return sorted(path.with_suffix("").as_posix() for path in paths if path.parts[0] != TABLES_FOLDER)


def get_config_file(name: str) -> str:
    """Return the path of a config.

    Args:
        name: path below ``configs``, with or without ``.yaml``; that of a base is allowed too.

    Raises:
        InputError: if there is no such config; the message names the closest ones.
    """
    stem = str(name)[: -len(_SUFFIX)] if str(name).endswith(_SUFFIX) else str(name)
    path = configs_root() / f"{stem}{_SUFFIX}"
    if stem and path.is_file() and ".." not in path.parts:
        return str(path)
    names = list_configs()
    # The whole name first, then its last part: who knows the file may have the folder wrong.
    near = get_close_matches(stem, names, n=3) or [
        other for other in names if other.rsplit("/", 1)[-1] == stem.rsplit("/", 1)[-1]
    ]
    hint = f"did you mean {' or '.join(near[:3])}?" if near else "eql_d2.model_zoo.list_configs() has all names."
    raise InputError(f"There is no config {str(name)!r}; {hint}")


def find_config_file(name_or_path: str) -> str:
    """Return a path as it is if a file lies there, else take it for a name of :func:`get_config_file`.

    A path that starts at ``configs/`` names a packaged config too, so that a command that was written for a checkout
    works from any folder.

    Raises:
        InputError: if it is neither.
    """
    if os.path.isfile(name_or_path):
        return name_or_path
    name = str(name_or_path)
    try:
        return get_config_file(name[len("configs/") :] if name.startswith("configs/") else name)
    except InputError as error:
        raise InputError(f"--config-file {name}: there is no such file. {error}") from None
