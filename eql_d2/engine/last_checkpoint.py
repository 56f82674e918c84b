"""Which checkpoint of a folder a training goes on from: the last one, or if it is damaged the newest that is sound.

A checkpoint carries its checksums: ``torch.save`` writes a zip archive with a CRC-32 of every tensor, which
:mod:`eql_d2.weights` compares.
"""

import logging
import os
import re
from pathlib import Path
from typing import List, Optional, Tuple

from eql_d2.errors import InputError
from eql_d2.run_folder import FINAL_WEIGHTS
from eql_d2.weights import read_torch

logger = logging.getLogger("detectron2.eql_d2")

#: The file that names the checkpoint that was written last.
TAG = "last_checkpoint"
_PERIODIC = re.compile(r"model_\d+\.pth")
_TEMPORARY = re.compile(r".+\.tmp\d+")


def last_sound_checkpoint(folder: Path) -> Optional[Path]:
    """Return the checkpoint to go on from, ``None`` if the folder has never had one.

    It is the one that ``last_checkpoint`` names; if that file or the one it names cannot be used, the checkpoint that
    was written last of those that can, with one warning.

    Raises:
        InputError: if there are checkpoints, or was one, and none can be used.
    """
    tagged, problem = _tagged(folder)
    if tagged is not None:
        problem = _damage(tagged)
        if not problem:
            return tagged
    problems = [problem] if problem else []
    for path in _checkpoints(folder):
        if path == tagged:
            continue
        problem = _damage(path)
        if not problem:
            logger.warning("%s Going on from %s.", " ".join(problems or [f"{folder} has no {TAG}."]), path)
            return path
        problems.append(problem)
    if problems:
        raise InputError(
            f"OUTPUT_DIR {str(folder)!r} has no checkpoint to go on from. {' '.join(problems)} Put one back, or remove "
            f"these files to start anew."
        )
    return None


def drop_old_checkpoints(folder: Path, keep: int) -> None:
    """Remove all but the last ``keep`` checkpoints with a number; 0 keeps all. The final one stays."""
    periodic = [path for path in _checkpoints(folder) if _PERIODIC.fullmatch(path.name)]
    for path in periodic[keep:] if keep else ():
        path.unlink(missing_ok=True)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of :mod:`eql_d2.files` that a process left which was killed while it wrote."""
    for path in folder.glob("*.tmp*"):
        if _TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)
            logger.info("Removed %s, which a process that was killed has left.", path)


def _damage(path: Path) -> str:
    """Return the sentence that says why a checkpoint cannot be read; empty if it can."""
    try:
        read_torch(path)
    except InputError as error:
        return str(error)
    return ""


def _tagged(folder: Path) -> Tuple[Optional[Path], str]:
    """Return the file that ``last_checkpoint`` names, and what is wrong with ``last_checkpoint`` itself."""
    path = folder / TAG
    if not path.is_file():
        return None, ""
    try:
        name = path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None, f"{path} cannot be read."
    if not name or os.path.basename(name) != name or not name.endswith(".pth"):
        return None, f"{path} does not name a checkpoint of this folder."
    return folder / name, ""


def _checkpoints(folder: Path) -> List[Path]:
    """Return the checkpoints of a training, those that were written last first."""
    files = [
        path for path in folder.glob("model_*.pth") if _PERIODIC.fullmatch(path.name) or path.name == FINAL_WEIGHTS
    ]
    # Of the same moment, "final" comes after all numbers.
    return sorted(files, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)
