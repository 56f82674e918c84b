"""Predictions on disk while they are made: one text file for each process, one line for each image."""

import io
import json
import logging
import os
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import (
    Any,
    BinaryIO,
    Callable,
    Dict,
    Iterable,
    Iterator,
    List,
    NamedTuple,
    Optional,
    Sequence,
    Set,
    Tuple,
    Union,
)

from eql_d2.errors import InputError, cannot_write
from eql_d2.files import whole_file

logger = logging.getLogger("detectron2.eql_d2.evaluation")

#: (image id, file, offset of the line, its length)
_Entry = Tuple[int, Path, int, int]


class Layout(NamedTuple):
    """How the detections of images become one results file.

    Attributes:
        start, separator, end: of the file; before the first image stands a new line.
        encode: from the detections of an image to a line without a new line in it; raises a ``ValueError`` for NaN.
        decode: from that line to what the file has of the image; empty for an image without detections.
    """

    start: bytes
    separator: bytes
    end: bytes
    encode: Callable[[Sequence[Any]], bytes]
    decode: Callable[[bytes], bytes]

    def write(self, target: BinaryIO, images: Iterable[bytes]) -> None:
        """Write a whole results file.

        Args:
            target: an open file.
            images: what the file has of each image, as :attr:`decode` gives it; only one is in memory at a time.
        """
        target.write(self.start)
        separator = b"\n"
        for detections in images:
            if detections:
                target.write(separator + detections)
                separator = self.separator
        target.write(self.end)


#: A json list of detections.
JSON_LIST = Layout(
    b"[", b",\n", b"\n]\n", lambda records: json.dumps(records, allow_nan=False).encode(), lambda line: line[1:-1]
)


def csv_layout(header: str) -> Layout:
    """Return the layout of a CSV file, whose detections are rows of text without tabs."""
    return Layout(header.encode(), b"\n", b"\n", _encode_rows, lambda line: line.replace(b"\t", b"\n"))


def _encode_rows(rows: Sequence[str]) -> bytes:
    encoded = "\t".join(rows).encode()
    if b",nan" in encoded or b",inf" in encoded or b",-inf" in encoded:
        raise ValueError("NaN or infinity")
    return encoded


@dataclass
class PredictionStore:
    """The predictions of one evaluation, in a folder that all processes share.

    A file begins with a line that says whose predictions it holds (the fingerprint). Each further line is an image id,
    the CRC-32 of the line without it and the image's detections, with tabs between them. A line that
    was cut off by an interruption, or whose checksum is another, counts for nothing: its image is done again.

    Attributes:
        folder: created on :meth:`open`.
        rank: of this process; it writes ``rank<N>.jsonl`` and no other file.
        layout: of the results file.
    """

    folder: Path
    rank: int
    layout: Layout = JSON_LIST

    def __post_init__(self):
        self.folder = Path(self.folder)
        self._file: Optional[io.FileIO] = None

    @property
    def _path(self) -> Path:
        return self.folder / f"rank{self.rank}.jsonl"

    def prepare(self, fingerprint: str, resume: bool) -> None:
        """Delete what must not be used again, also damaged lines. On one process, before any calls :meth:`open`.

        Raises:
            InputError: if the folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in self._files():
                if resume and _fingerprint(path) == fingerprint:
                    _drop_damaged_lines(path)
                else:
                    path.unlink()
        except OSError as error:
            raise InputError(cannot_write(self.folder, error)) from None

    def open(self, fingerprint: str) -> Set[int]:
        """Open this process's file and return the ids of the images that any process has finished."""
        done = self.image_ids()
        is_new = not self._path.exists()
        try:
            self._file = self._path.open("ab", buffering=0)
        except OSError as error:
            raise InputError(cannot_write(self._path, error)) from None
        if is_new:
            self._write(json.dumps({"fingerprint": fingerprint}).encode() + b"\n")
        return done

    def append(self, image_id: int, detections: Sequence[Any]) -> None:
        """Write one image's detections, as the layout takes them, and hand them to the operating system.

        Raises:
            InputError: if they cannot be written, or hold NaN; what was written before stays, to go on with.
        """
        try:
            encoded = self.layout.encode(detections)
        except ValueError:
            raise InputError(f"The model's detections in image {image_id} hold NaN or infinity.") from None
        self._write(_line(image_id, encoded))

    def _write(self, line: bytes) -> None:
        if self._file is None:
            raise ValueError(f"{self._path} is not open; call open() before append().")
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            raise InputError(cannot_write(self._path, error)) from None

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
            InputError: if the file cannot be written, or if the predictions change meanwhile.
        """
        entries = {entry[0]: entry for entry in self._entries()}
        with whole_file(path) as target:
            self.layout.write(target, map(self.layout.decode, _read_in_order(entries)))
        return len(entries)

    def delete(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _files(self) -> List[Path]:
        return sorted(self.folder.glob("rank*.jsonl"))

    def _entries(self) -> Iterator[_Entry]:
        for path in self._files():
            for image_id, offset, length in _sound_lines(path):
                yield image_id, path, offset, length


def _line(image_id: int, detections: bytes) -> bytes:
    return b"%d\t%08x\t%s\n" % (image_id, zlib.crc32(b"%d\t%s" % (image_id, detections)), detections)


def _parse(line: bytes) -> Optional[Tuple[int, bytes]]:
    """Return the image id and its encoded detections, ``None`` if the line is damaged."""
    try:
        image_id, _, detections = line.split(b"\t", 2)
        parsed = int(image_id), detections[:-1]
    except ValueError:
        return None
    return parsed if line == _line(*parsed) else None


def _sound_lines(path: Path) -> Iterator[Tuple[int, int, int]]:
    """Yield the image id, the offset and the length of each line that is not damaged."""
    with path.open("rb") as file:
        offset = len(file.readline())
        for line in file:
            parsed = _parse(line)
            if parsed is not None:
                yield parsed[0], offset, len(line)
            offset += len(line)


def _fingerprint(path: Path) -> Optional[str]:
    """Return whose predictions a file holds, ``None`` if its first line is damaged."""
    with path.open("rb") as file:
        line = file.readline()
        try:
            return json.loads(line)["fingerprint"] if line.endswith(b"\n") else None
        except (ValueError, KeyError, TypeError):
            return None


def _drop_damaged_lines(path: Path) -> None:
    """Leave the first line of the file, the fingerprint, and those of its lines that are sound."""
    with path.open("rb") as file:
        sound = [(0, len(file.readline()))] + [line[1:] for line in _sound_lines(path)]
        end = sum(sound[-1])
        if sum(length for _, length in sound) == end:  # all that is damaged is the end, which was being written
            os.truncate(path, end)
            return
        with whole_file(path) as mended:
            for offset, length in sound:
                file.seek(offset)
                mended.write(file.read(length))
    logger.warning("%s was damaged; the %d images that are sound in it are used.", path, len(sound) - 1)


def _read_in_order(entries: Dict[int, _Entry]) -> Iterator[bytes]:
    """Yield the encoded detections of each image by ascending id."""
    files: Dict[Path, BinaryIO] = {}
    try:
        for image_id in sorted(entries):
            _, path, offset, length = entries[image_id]
            file = files.get(path) or files.setdefault(path, path.open("rb"))
            file.seek(offset)
            parsed = _parse(file.read(length))
            if parsed is None or parsed[0] != image_id:
                raise InputError(f"{path} has changed while it was read; evaluate again.")
            yield parsed[1]
    finally:
        for file in files.values():
            file.close()
