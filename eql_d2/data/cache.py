"""The packed form of large annotation files, kept on disk so that they are parsed once and not by every process.

A cache file is used only if it was made from the very bytes that the files have now (SHA-256) and is itself whole
(CRC-32), so it is never stale; anything else is built anew. It lies beside the first of them, or, where that folder
cannot be written, in the user's cache folder; where neither can be written, they are parsed each time. Set
``EQL_D2_CACHE`` to a folder to have it there, or to ``off``. Deleting a cache file is always safe.
"""

import gc
import hashlib
import io
import logging
import mmap
import os
import stat
import struct
import time
import zlib
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, Iterator, List, Optional, Protocol, Sequence, Tuple

import msgspec

from eql_d2.data.annotations import AnnotationFile, PathLike, parse_annotations, readable_json
from eql_d2.data.records import AnnotationTable, Header, Writer, pack
from eql_d2.errors import InputError
from eql_d2.files import whole_file

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger("detectron2.eql_d2.data")

#: Below this size of the annotation files, parsing takes well under a second and nothing is written.
MIN_CACHED_BYTES = 16 * 2**20
#: Seconds to wait for a process that makes the cache; the largest files take a minute.
LONGEST_WAIT = 600
ENVIRONMENT_VARIABLE = "EQL_D2_CACHE"

# Records, header, footer. The last characters are the version of the format: change them with what is packed.
_FOOTER = struct.Struct("<QI8s")  # where the header starts, CRC-32 of all before the footer, the magic
_MAGIC = b"EQLD2-05"
_CHUNK = 4 * 2**20


class PackedHeader(Protocol):
    """What is known of packed annotations without unpacking an image; a ``msgspec.Struct``."""

    checksum: str

    def table(self, buffer: Any, reopen: Optional[tuple] = None) -> Any:
        """Return the table over the packed images."""

    def losses(self, name: str) -> List[str]:
        """Say what of the files, called ``name``, is not used, a sentence each."""


class Source(Protocol):
    """Annotation files of one format, as the cache sees them; hashable.

    Attributes:
        files: absolute paths. The cache lies beside the first one, which is locked while it is built.
        name: of the files as the user wrote it, for messages.
        header_type: what :meth:`pack` returns.
    """

    @property
    def files(self) -> Tuple[str, ...]: ...

    @property
    def name(self) -> str: ...

    @property
    def header_type(self) -> type: ...

    def __hash__(self) -> int: ...

    def checksum(self) -> str:
        """Return what tells this content of the files from any other, without parsing it: :func:`checksum_of`."""

    def read(self) -> Tuple[Any, str]:
        """Return the parsed content, and the checksum of what it was parsed from."""

    def pack(self, content: Any, checksum: str, out: Writer) -> Any:
        """Check the content, write it to ``out`` and return its header."""


@dataclass(frozen=True)
class _JsonFile:
    """A json in LVIS or COCO format."""

    path: str
    name: str
    header_type = Header

    @property
    def files(self) -> Tuple[str, ...]:
        return (self.path,)

    def checksum(self) -> str:
        return file_checksum(self.path)

    def read(self) -> Tuple[AnnotationFile, str]:
        with open(self.path, "rb") as file:
            encoded = file.read()
        return parse_annotations(encoded, self.name), hashlib.sha256(encoded).hexdigest()

    def pack(self, content: AnnotationFile, checksum: str, out: Writer) -> Header:
        return pack(content, checksum, self.name, out)


def cached_table(json_file: PathLike) -> AnnotationTable:
    """Return the images of a json in LVIS or COCO format, from memory, from the cache, or by parsing it.

    Raises:
        InputError: if the json is missing, truncated, of neither format, or its ids do not fit together.
    """
    with readable_json(json_file):
        return packed_table(_JsonFile(os.path.abspath(json_file), str(json_file)))


def packed_table(source: Source) -> Any:
    """Return the table of annotation files of any format, from memory, from the cache, or by parsing them.

    Raises:
        InputError: as the source does.
        OSError: if a file cannot be read.
    """
    # Within a process a file counts as unchanged while its inode, size and times are; between processes, its bytes.
    stats = map(os.stat, source.files)
    stamps = tuple((found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns) for found in stats)
    return _cached_table(source, stamps)


def is_worth_caching(files: Sequence[str]) -> bool:
    """Return whether files together are so large that what is made of them is kept on disk."""
    return sum(map(os.path.getsize, files)) >= MIN_CACHED_BYTES


@lru_cache(maxsize=4)
def _cached_table(source: Source, _stamps: Tuple[Tuple[int, int, int, int], ...]) -> Any:
    locations = cache_files(source.files[0]) if is_worth_caching(source.files) else []
    table = find_or_build(source, locations)
    for sentence in table.header.losses(source.name):
        logger.warning(sentence)
    return table


def find_or_build(source: Source, locations: List[Path]) -> Any:
    """Return the table of annotation files from one of the places where it may be kept, or by parsing them.

    Raises:
        InputError: as the source does.
    """
    if not locations:
        return _parse(source, [])
    table = _find_cached(source, locations)
    if table is None:
        with _one_process_at_a_time(source.files[0]) as waited:
            table = _find_cached(source, locations) if waited else None
            table = _parse(source, locations) if table is None else table
    return table


def _find_cached(source: Source, locations: List[Path]) -> Any:
    existing = list(filter(os.path.exists, locations))
    checksum = source.checksum() if existing else ""  # reading the files just for that takes time
    for location in existing:
        table = _read_cache(location, source, checksum)
        if table is not None:
            logger.info(f"Using {location} instead of parsing {source.name}.")
            return table
    return None


def _parse(source: Source, locations: List[Path]) -> Any:
    with _no_garbage_collection():
        content, checksum = source.read()
        return _build(source, content, checksum, locations)


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keep Python's collector from going through millions of new objects again and again: none of them is garbage."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


@contextmanager
def _one_process_at_a_time(path: str) -> Iterator[bool]:
    """Hold a lock on a json while its cache is built, and yield whether another process had it first.

    The processes of a run start together; one of them parses and the others take its cache. Where files cannot be
    locked they all parse, which costs time and nothing else. The lock of a process that dies is free. Whoever may read
    the json can hold it, so that nobody is waited for without end.
    """
    waited, deadline = False, time.monotonic() + LONGEST_WAIT
    with open(path, "rb") as file:
        while fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                waited = True
                if time.monotonic() > deadline:
                    logger.warning(f"Another process has held {path} for {LONGEST_WAIT} s: going on without it.")
                    break
                time.sleep(0.05)
            except OSError as error:
                logger.info(f"{path} cannot be locked ({error.strerror}).")
                break
        yield waited


def file_checksum(path: PathLike) -> str:
    """Return the SHA-256 of a file, hexadecimal, without holding the file in memory."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def checksum_of(files: Sequence[str]) -> str:
    """Return the SHA-256 of one file, or of those of several, hexadecimal."""
    checksums = [file_checksum(file) for file in files]
    return checksums[0] if len(files) == 1 else hashlib.sha256("".join(checksums).encode()).hexdigest()


def cache_files(json_file: str) -> List[Path]:
    """Return where the cache of a file may lie, the best place first; nowhere if it is turned off."""
    path = Path(json_file)
    # One file for each json: a new version of the json takes the place of the old one's cache.
    in_folder = f"{path.name}.{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}.eql_d2_cache"
    chosen = os.environ.get(ENVIRONMENT_VARIABLE, "")
    if chosen == "off":
        return []
    place = Path(os.path.expanduser(chosen)) / in_folder if chosen else path.with_name(f"{path.name}.eql_d2_cache")
    if chosen and not is_strangers(place):
        return [place]
    user_cache = os.path.expanduser(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    # A user id that the system does not know has no home, and the ~ stays.
    places = [place, Path(user_cache) / "eql_d2" / in_folder] if os.path.isabs(user_cache) else [place]
    return [place for place in places if not is_strangers(place)]


def is_strangers(location: Path) -> bool:
    """Whether something lies there that is no file of this user's alone or root's; it is neither read nor replaced."""
    try:
        status = os.stat(location)
    except OSError:
        return False  # it is not there; or it cannot be read, which is said when that is tried
    if not _is_safe(status):
        logger.warning(
            f"{location} is not used: it should be a file that this user or root alone can write. Remove it."
        )
        return True
    return False


def _is_safe(status: os.stat_result) -> bool:
    if not stat.S_ISREG(status.st_mode):
        return False
    if not hasattr(os, "geteuid"):  # Windows
        return True
    return status.st_uid in (os.geteuid(), 0) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


@contextmanager
def _opened(location: Path) -> Iterator[BinaryIO]:
    """Open a cache file to read, and see once more that it is no stranger's, now that it cannot be exchanged.

    Raises:
        OSError: if it cannot be opened.
        ValueError: if it is a stranger's, or no file.
    """
    # Without the flag, the opening of a pipe would wait for somebody to write.
    descriptor = os.open(location, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    with open(descriptor, "rb") as file:
        if not _is_safe(os.fstat(descriptor)):
            raise ValueError("others have written or may write it")
        yield file


def _build(source: Source, content: Any, checksum: str, locations: List[Path]) -> Any:
    """Pack parsed files into the first of the cache files that can be written, or into memory."""
    for location in locations:
        try:
            return _write_cache(source, content, checksum, location)
        except InputError as error:
            logger.info(error)
    buffer = io.BytesIO()
    header = source.pack(content, checksum, buffer)
    return header.table(buffer.getvalue())


def _write_cache(source: Source, content: Any, checksum: str, location: Path) -> Any:
    """Write a cache file; it appears whole or not at all, and of several writers the last one wins."""
    with whole_file(location) as file:
        # Whoever may read the annotations may read their cache, and nobody else; nobody else may write it.
        os.chmod(file.name, stat.S_IMODE(os.stat(source.files[0]).st_mode) & 0o444 | stat.S_IRUSR | stat.S_IWUSR)
        checked = _ChecksummingWriter(file)
        header = source.pack(content, checksum, checked)
        header_start = file.tell()
        checked.write(msgspec.msgpack.encode(header))
        file.write(_FOOTER.pack(header_start, checked.crc, _MAGIC))
        file.flush()
        return _mapped_table(file, header, header_start, location)


class _ChecksummingWriter:
    """Writes through to a file and keeps the CRC-32 of all that it wrote."""

    def __init__(self, file: BinaryIO):
        self._file = file
        self.crc = 0

    def write(self, data: bytes) -> int:
        self.crc = zlib.crc32(data, self.crc)
        return self._file.write(data)


def _read_cache(location: Path, source: Source, checksum: str) -> Any:
    """Return the table in a cache file; ``None`` if there is none, it is damaged, or was made from other files."""
    try:
        with _opened(location) as file:
            header, header_start = _read_header(file, source.header_type)
            if header.checksum != checksum:
                logger.info(f"{location} was made from an earlier version of {source.name} and is built anew.")
                return None
            return _mapped_table(file, header, header_start, location)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, struct.error, msgspec.MsgspecError) as error:
        logger.warning(f"{location} is damaged ({error}) and is built anew.")
        return None


def _read_header(file: BinaryIO, header_type: type) -> Tuple[Any, int]:
    """Check a cache file as a whole and return its header and where the header starts.

    Raises:
        ValueError: if the file is truncated, altered, or of another version of the format.
    """
    end = file.seek(0, os.SEEK_END) - _FOOTER.size
    if end < 0:
        raise ValueError("it is too short")
    file.seek(end)
    header_start, expected_crc, magic = _FOOTER.unpack(file.read())
    if magic != _MAGIC or header_start > end:
        raise ValueError("it does not end as it should, or is of another version")
    if _crc_of(file, end) != expected_crc:
        raise ValueError("its checksum does not fit its content")
    file.seek(header_start)
    return msgspec.msgpack.decode(file.read(end - header_start), type=header_type), header_start


def _crc_of(file: BinaryIO, end: int) -> int:
    """Return the CRC-32 of the first ``end`` bytes, read piece by piece: mapped pages would count as our memory."""
    file.seek(0)
    crc = 0
    while end > 0:
        chunk = file.read(min(_CHUNK, end))
        crc = zlib.crc32(chunk, crc)
        end -= len(chunk)
        if not chunk:
            break
    return crc


def _mapped_table(file: BinaryIO, header: PackedHeader, header_start: int, location: Path) -> Any:
    # The map outlives the file's name: another process may replace the cache while this one reads on.
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    reopen = (_reopen, (str(location), header, header_start))
    return header.table(memoryview(mapped)[:header_start], reopen)


def _reopen(location: str, header: PackedHeader, header_start: int) -> Any:
    """Map a cache file again in a worker process that was not forked."""
    with _opened(Path(location)) as file:
        found, found_start = _read_header(file, type(header))
        if (found.checksum, found_start) != (header.checksum, header_start):
            raise RuntimeError(f"{location} was replaced while it was in use; start again.")
        return _mapped_table(file, header, header_start, Path(location))
