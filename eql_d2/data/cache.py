"""The packed form of a large json, kept on disk so that it is parsed once and not by every process of every run.

A cache file is used only if it was made from the very bytes that the json has now (SHA-256) and is itself whole
(CRC-32), so it is never stale; anything else is built anew. It lies beside the json, or, where that folder cannot be
written, in the user's cache folder; where neither can be written, the json is parsed each time. Set ``EQL_D2_CACHE`` to
a folder to have it there, or to ``off``. Deleting a cache file is always safe.
"""

import gc
import hashlib
import io
import logging
import mmap
import os
import stat
import struct
import zlib
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Iterator, List, Optional, Tuple

import msgspec

from eql_d2.data.annotations import AnnotationFile, PathLike, parse_annotations, readable_json
from eql_d2.data.records import AnnotationTable, Header, pack
from eql_d2.errors import InputError
from eql_d2.files import whole_file

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger("detectron2.eql_d2.data")

#: Below this size of the json, parsing takes well under a second and nothing is written.
MIN_CACHED_BYTES = 16 * 2**20
ENVIRONMENT_VARIABLE = "EQL_D2_CACHE"

# Records, header, footer. The last characters are the version of the format: change them with what is packed.
_FOOTER = struct.Struct("<QI8s")  # where the header starts, CRC-32 of all before the footer, the magic
_MAGIC = b"EQLD2-03"
_CHUNK = 4 * 2**20


def cached_table(json_file: PathLike) -> AnnotationTable:
    """Return the images of a json in LVIS or COCO format, from memory, from the cache, or by parsing it.

    Raises:
        InputError: if the json is missing, truncated, of neither format, or its ids do not fit together.
    """
    path = os.path.abspath(json_file)
    with readable_json(json_file):
        status = os.stat(path)
    # Within a process the file counts as unchanged while its inode, size and times are; between processes, its bytes.
    return _cached_table(path, str(json_file), status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


@lru_cache(maxsize=4)
def _cached_table(path: str, json_file: str, _inode: int, size: int, _modified: int, _changed: int) -> AnnotationTable:
    locations = _cache_files(path) if size >= MIN_CACHED_BYTES else []
    with readable_json(json_file):
        table = _find_or_build(path, json_file, locations) if locations else _parse(path, json_file, [])
    _warn_of_losses(table.header, json_file)
    return table


def _find_or_build(path: str, json_file: str, locations: List[Path]) -> AnnotationTable:
    table = _find_cached(path, locations, json_file)
    if table is None:
        with _one_process_at_a_time(path) as waited:
            table = _find_cached(path, locations, json_file) if waited else None
            table = _parse(path, json_file, locations) if table is None else table
    return table


def _find_cached(path: str, locations: List[Path], json_file: str) -> Optional[AnnotationTable]:
    existing = list(filter(os.path.exists, locations))
    checksum = file_checksum(path) if existing else ""  # reading the json just for that takes time
    for location in existing:
        table = _read_cache(location, checksum)
        if table is not None:
            logger.info(f"Using {location} instead of parsing {json_file}.")
            return table
    return None


def _parse(path: str, json_file: str, locations: List[Path]) -> AnnotationTable:
    with open(path, "rb") as file:
        encoded = file.read()
    checksum = hashlib.sha256(encoded).hexdigest()
    with _no_garbage_collection():
        return _build(parse_annotations(encoded, json_file), checksum, json_file, locations)


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
    locked they all parse, which costs time and nothing else. The lock of a process that dies is free.
    """
    waited = False
    with open(path, "rb") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waited = True
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                logger.info(f"{path} cannot be locked ({error.strerror}).")
        yield waited


def file_checksum(path: PathLike) -> str:
    """Return the SHA-256 of a file, hexadecimal, without holding the file in memory."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _cache_files(json_file: str) -> List[Path]:
    """Return where the cache of a json may lie, the best place first."""
    path = Path(json_file)
    # One file for each json: a new version of the json takes the place of the old one's cache.
    in_folder = f"{path.name}.{hashlib.sha256(os.fsencode(path)).hexdigest()[:16]}.eql_d2_cache"
    chosen = os.environ.get(ENVIRONMENT_VARIABLE, "")
    if chosen == "off":
        return []
    if chosen:
        return [Path(chosen).expanduser() / in_folder]
    user_cache = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    return [path.with_name(f"{path.name}.eql_d2_cache"), user_cache / "eql_d2" / in_folder]


def _build(content: AnnotationFile, checksum: str, json_file: str, locations: List[Path]) -> AnnotationTable:
    """Pack a parsed json into the first of the cache files that can be written, or into memory."""
    for location in locations:
        try:
            return _write_cache(content, checksum, json_file, location)
        except InputError as error:
            logger.info(error)
    buffer = io.BytesIO()
    header = pack(content, checksum, json_file, buffer)
    return AnnotationTable(buffer.getvalue(), header)


def _write_cache(content: AnnotationFile, checksum: str, json_file: str, location: Path) -> AnnotationTable:
    """Write a cache file; it appears whole or not at all, and of several writers the last one wins."""
    with whole_file(location) as file:
        # Whoever may read the json may read its cache, and nobody else.
        os.chmod(file.name, stat.S_IMODE(os.stat(json_file).st_mode) & 0o666 | stat.S_IRUSR | stat.S_IWUSR)
        checked = _ChecksummingWriter(file)
        header = pack(content, checksum, json_file, checked)
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


def _read_cache(location: Path, checksum: str) -> Optional[AnnotationTable]:
    """Return the table in a cache file; ``None`` if there is none, it is damaged, or was made from another json."""
    try:
        with open(location, "rb") as file:
            header, header_start = _read_header(file)
            if header.checksum != checksum:
                logger.info(f"{location} was made from an earlier version of the json and is built anew.")
                return None
            return _mapped_table(file, header, header_start, location)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, struct.error, msgspec.MsgspecError) as error:
        logger.warning(f"{location} is damaged ({error}) and is built anew.")
        return None


def _read_header(file: BinaryIO) -> Tuple[Header, int]:
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
    return msgspec.msgpack.decode(file.read(end - header_start), type=Header), header_start


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


def _mapped_table(file: BinaryIO, header: Header, header_start: int, location: Path) -> AnnotationTable:
    # The map outlives the file's name: another process may replace the cache while this one reads on.
    mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    reopen = (_reopen, (str(location), header, header_start))
    return AnnotationTable(memoryview(mapped)[:header_start], header, reopen)


def _reopen(location: str, header: Header, header_start: int) -> AnnotationTable:
    """Map a cache file again in a worker process that was not forked."""
    with open(location, "rb") as file:
        found, found_start = _read_header(file)
        if (found.checksum, found_start) != (header.checksum, header_start):
            raise RuntimeError(f"{location} was replaced while it was in use; start again.")
        return _mapped_table(file, header, header_start, Path(location))


def _warn_of_losses(header: Header, json_file: str) -> None:
    """Say which annotations of a json are not used."""
    if header.num_left_out:
        logger.warning(
            f"{json_file}: {header.num_left_out} instances have no polygon of at least 3 points and are left out; "
            f"eql-d2 check-dataset lists them."
        )
    if header.num_orphans:
        logger.warning(
            f"{json_file}: {header.num_orphans} annotations are of images that are not in 'images' and are left out."
        )
