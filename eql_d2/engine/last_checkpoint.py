"""Which checkpoint of a folder a training goes on from: the last one, or if it is damaged the newest that is sound.

A checkpoint carries its checksums: ``torch.save`` writes a zip archive with a CRC-32 of every tensor, which
``torch.load`` does not look at and :func:`damage` does.
"""

import logging
import os
import re
import zipfile
from pathlib import Path
from typing import List, Optional, Tuple

import torch

from eql_d2.errors import InputError
from eql_d2.run_folder import FINAL_WEIGHTS

logger = logging.getLogger("detectron2.eql_d2")

#: The file that names the checkpoint that was written last.
TAG = "last_checkpoint"
_PERIODIC = re.compile(r"model_\d+\.pth")
_TEMPORARY = re.compile(r".+\.tmp\d+")


def damage(path: Path) -> Optional[str]:
    """Return what is wrong with a file that ``torch.save`` should have written, ``None`` if it is whole."""
    if not path.is_file():
        return "is not there"
    if not path.stat().st_size:
        return "is empty"
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
        if broken:
            return f"is damaged (the checksum of {broken} does not fit)"
        torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:  # neither zipfile nor torch says which errors a damaged file may end in
        return "is no checkpoint, or an incomplete one"
    return None


def last_sound_checkpoint(folder: Path) -> Optional[Path]:
    """Return the checkpoint to go on from, ``None`` if the folder has never had one.

    It is the one that ``last_checkpoint`` names; if that file or the one it names cannot be used, the checkpoint that
    was written last of those that can, with one warning.

    Raises:
        InputError: if there are checkpoints, or was one, and none can be used.
    """
    tagged, problem = _tagged(folder)
    if tagged is not None:
        wrong = damage(tagged)
        if wrong is None:
            return tagged
        problem = f"{tagged.name} {wrong}"
    problems = [problem] if problem else []
    for path in _checkpoints(folder):
        wrong = damage(path) if path != tagged else problem
        if wrong is None:
            logger.warning("%s: %s; going on from %s.", folder, "; ".join(problems or [f"no {TAG}"]), path.name)
            return path
        if path != tagged:
            problems.append(f"{path.name} {wrong}")
    if problems:
        raise InputError(
            f"OUTPUT_DIR {str(folder)!r} has no checkpoint to go on from: {'; '.join(problems)}. Put one back, or "
            f"remove these files to start anew."
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


def _tagged(folder: Path) -> Tuple[Optional[Path], str]:
    """Return the file that ``last_checkpoint`` names, and what is wrong with ``last_checkpoint`` itself."""
    path = folder / TAG
    if not path.is_file():
        return None, ""
    try:
        name = path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return None, f"{TAG} cannot be read"
    if not name or os.path.basename(name) != name or not name.endswith(".pth"):
        return None, f"{TAG} does not name a checkpoint of this folder"
    return folder / name, ""


def _checkpoints(folder: Path) -> List[Path]:
    """Return the checkpoints of a training, those that were written last first."""
    files = [
        path for path in folder.glob("model_*.pth") if _PERIODIC.fullmatch(path.name) or path.name == FINAL_WEIGHTS
    ]
    # Of the same moment, "final" comes after all numbers.
    return sorted(files, key=lambda path: (path.stat().st_mtime_ns, path.name), reverse=True)
