"""Predictions on disk while they are made: one text file for each process, one line for each image."""

import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Dict, Iterator, List, Optional, Set, Tuple, Union

from eql_d2.files import whole_file

#: (image id, file, offset of the line, its length)
_Entry = Tuple[int, Path, int, int]


@dataclass
class PredictionStore:
    """The predictions of one evaluation, in a folder that all processes share.

    A file begins with a line that says whose predictions it holds (the fingerprint). Each further line is an image id,
    a tab and the json list of the image's detections. A line that was cut off by an interruption is dropped.

    Attributes:
        folder: created on :meth:`open`.
        rank: of this process; it writes ``rank<N>.jsonl`` and no other file.
    """

    folder: Path
    rank: int

    def __post_init__(self):
        self.folder = Path(self.folder)
        self._file: Optional[BinaryIO] = None

    @property
    def _path(self) -> Path:
        return self.folder / f"rank{self.rank}.jsonl"

    def prepare(self, fingerprint: str, resume: bool) -> None:
        """Delete what must not be used again and mend cut-off lines. On one process, before any calls :meth:`open`."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self._files():
            if resume and _fingerprint(path) == fingerprint:
                _drop_unfinished_line(path)
            else:
                path.unlink()

    def open(self, fingerprint: str) -> Set[int]:
        """Open this process's file and return the ids of the images that any process has finished."""
        done = {entry[0] for entry in self._entries()}
        is_new = not self._path.exists()
        file = self._file = self._path.open("ab")
        if is_new:
            file.write(json.dumps({"fingerprint": fingerprint}).encode() + b"\n")
            file.flush()
        return done

    def append(self, image_id: int, detections: List[Dict[str, Any]]) -> None:
        """Write one image's detections, in the submission format, and hand them to the operating system."""
        if self._file is None:
            raise ValueError(f"{self._path} is not open; call open() before append().")
        self._file.write(b"%d\t%s\n" % (image_id, json.dumps(detections).encode()))
        self._file.flush()

    def close(self) -> None:
        """Close this process's file; further calls do nothing."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def image_ids(self) -> Set[int]:
        """Return the ids of the images that any process has finished."""
        return {entry[0] for entry in self._entries()}

    def merge(self, path: Union[str, os.PathLike]) -> int:
        """Write all detections as one results file, images by ascending id, one image in memory at a time.

        The file is the same for any number of processes. It appears whole or not at all.

        Returns:
            The number of images.

        Raises:
            InputError: if the file cannot be written.
        """
        entries = {entry[0]: entry for entry in self._entries()}
        with whole_file(path) as target:
            target.write(b"[")
            separator = b"\n"
            for detections in _read_in_order(entries):
                if detections:
                    target.write(separator + detections)
                    separator = b",\n"
            target.write(b"\n]\n")
        return len(entries)

    def delete(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _files(self) -> List[Path]:
        return sorted(self.folder.glob("rank*.jsonl"))

    def _entries(self) -> Iterator[_Entry]:
        for path in self._files():
            with path.open("rb") as file:
                offset = len(file.readline())
                for line in file:
                    if line.endswith(b"\n"):
                        yield int(line[: line.index(b"\t")]), path, offset, len(line)
                    offset += len(line)


def _fingerprint(path: Path) -> Optional[str]:
    """Return whose predictions a file holds, ``None`` if its first line is damaged."""
    with path.open("rb") as file:
        try:
            return json.loads(file.readline())["fingerprint"]
        except (ValueError, KeyError, TypeError):
            return None


def _drop_unfinished_line(path: Path) -> None:
    """Cut the file behind its last complete line."""
    size = 0
    with path.open("rb") as file:
        for line in file:
            size += len(line) if line.endswith(b"\n") else 0
    os.truncate(path, size)


def _read_in_order(entries: Dict[int, _Entry]) -> Iterator[bytes]:
    """Yield the detections of each image by ascending id, as json without the brackets of the list."""
    files: Dict[Path, BinaryIO] = {}
    try:
        for image_id in sorted(entries):
            _, path, offset, length = entries[image_id]
            file = files.get(path) or files.setdefault(path, path.open("rb"))
            file.seek(offset)
            line = file.read(length).rstrip(b"\n")
            yield line[line.index(b"\t") + 1 :][1:-1]
    finally:
        for file in files.values():
            file.close()
