"""Results files read image by image, whatever their order, in bounded memory."""

import sqlite3
import tempfile
from itertools import chain, groupby
from pathlib import Path
from typing import Iterator, List, NamedTuple, Sequence, Tuple

import msgspec

from eql_d2.data.annotations import MAX_ID
from eql_d2.errors import InputError
from eql_d2.evaluation.checks import Detection, read_detections
from eql_d2.files import PathLike


class Found(NamedTuple):
    """What one file has of an image: its number in the list of files, and its detections in their order."""

    file: int
    detections: List[Detection]


_DECODER = msgspec.json.Decoder(List[Detection])


def by_image(paths: Sequence[PathLike]) -> Iterator[Tuple[int, List[Found]]]:
    """Yield each image that any of some results files has a detection of, by ascending id, with all there is of it.

    A database in the folder for temporary files, as large as the results files, sorts them; in memory is one image, and
    SQLite's own few megabytes. It is deleted at the end.

    Args:
        paths: files in the submission format, their detections in any order.

    Raises:
        InputError: for a file that is missing or damaged, an image id that is no whole number, or a full disk.
    """
    with tempfile.TemporaryDirectory(prefix="eql_d2_") as folder:
        database = sqlite3.connect(Path(folder) / "detections.sqlite", isolation_level=None)
        try:
            database.execute("PRAGMA journal_mode = OFF")
            database.execute("PRAGMA synchronous = OFF")
            database.execute("CREATE TABLE found (image INTEGER, file INTEGER, detections BLOB)")
            database.execute("BEGIN")
            for number, path in enumerate(paths):
                database.executemany("INSERT INTO found VALUES (?, ?, ?)", _runs(path, number))
            database.execute("COMMIT")
            database.execute("CREATE INDEX place ON found (image, file)")
            rows = database.execute("SELECT image, file, detections FROM found ORDER BY image, file, rowid")
            for image, of_image in groupby(rows, key=lambda row: row[0]):
                yield (
                    image,
                    [
                        Found(number, list(chain.from_iterable(_DECODER.decode(row[2]) for row in of_file)))
                        for number, of_file in groupby(of_image, key=lambda row: row[1])
                    ],
                )
        except sqlite3.Error as error:
            raise InputError(f"{folder}: the detections cannot be sorted there ({error}); is the disk full?") from None
        finally:
            database.close()


def _runs(path: PathLike, number: int) -> Iterator[Tuple[int, int, bytes]]:
    """Yield the neighbouring detections of one image as json: image id, number of the file, json."""
    for image, of_image in groupby(chain.from_iterable(read_detections(path)), key=lambda found: found.image_id):
        yield whole_id(image, "image_id", path), number, encode(list(of_image))


def whole_id(value: float, field: str, path: PathLike) -> int:
    """Return an id of a detection as a whole number: some programs write 3.0.

    Raises:
        InputError: if it is none, naming the file and the field.
    """
    if value != int(value) or abs(value) > MAX_ID:
        raise InputError(f"{path}: {field} {value} of a detection is no whole number up to {MAX_ID}.")
    return int(value)


def encode(detections: Sequence[Detection]) -> bytes:
    """Return detections as a json list, their masks as they were read, without the boxes and masks that are absent."""
    return msgspec.json.encode([_fields(detection) for detection in detections])


def _fields(detection: Detection) -> dict:
    absent = [field for field in ("bbox", "segmentation") if not detection.has(field)]
    return {field: getattr(detection, field) for field in detection.__struct_fields__ if field not in absent}
