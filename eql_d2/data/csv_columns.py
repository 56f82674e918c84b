"""Columns of a CSV file as numpy arrays, some rows at a time."""

import csv
import os
import warnings
from pathlib import Path
from typing import Iterator, List, Mapping, Sequence, TextIO

import numpy as np

from eql_d2.data.annotations import PathLike
from eql_d2.errors import InputError

#: Rows that are read at once; bounds the memory, not the result.
ROWS_AT_ONCE = 500_000


def read_header(path: PathLike, needed: Sequence[str]) -> List[str]:
    """Return the names of the columns of a CSV file, from its first line.

    Raises:
        InputError: if the file is missing, or lacks one of the columns that are needed.
    """
    with _open(path) as file:
        return _header(file, path, needed)


def csv_chunks(path: PathLike, columns: Mapping[str, str]) -> Iterator[np.ndarray]:
    """Yield the rows of a CSV file in order, as structured arrays ``[n]`` with a field for each column.

    At most :data:`ROWS_AT_ONCE` come at once.

    Args:
        path: of the file. Its first line names the columns, which may be in any order and more than are asked for.
        columns: the numpy type of each column, by name; text as bytes (``"S32"``).

    Raises:
        InputError: if the file is missing, lacks a column, a value is of another type, or text is as long as its type
            or longer.
    """
    dtype = np.dtype(list(columns.items()))
    with _open(path) as file:
        header = _header(file, path, list(columns))
        usecols = [header.index(name) for name in columns]
        before = 1
        while True:
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)  # it warns at the end of the file
                    chunk = np.loadtxt(
                        file,
                        dtype,
                        comments=None,
                        delimiter=",",
                        usecols=usecols,
                        ndmin=1,
                        max_rows=ROWS_AT_ONCE,
                        quotechar='"',
                    )
            except (ValueError, IndexError) as error:
                raise InputError(f"{path}, in the rows after line {before}: {str(error).rstrip('.')}.") from None
            if not len(chunk):
                return
            _check_lengths(chunk, path)
            yield chunk
            before += len(chunk)


def _open(path: PathLike) -> TextIO:
    try:
        return Path(path).open(encoding="utf-8-sig", newline="")
    except FileNotFoundError:
        raise InputError(f"{path}: there is no such file; it should be a CSV file of Open Images.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}).") from None


def _header(file: TextIO, path: PathLike, needed: Sequence[str]) -> List[str]:
    names = [name.strip() for name in next(csv.reader([file.readline()]), [])]
    missing = [name for name in needed if name not in names]
    if missing:
        raise InputError(
            f"{os.fspath(path)} has no column {', '.join(missing)}; its first line is {','.join(names)[:200]!r}."
        )
    return names


def _check_lengths(chunk: np.ndarray, path: PathLike) -> None:
    for name in chunk.dtype.names or ():
        width = chunk.dtype[name].itemsize
        if chunk.dtype[name].kind == "S":
            filled = np.ascontiguousarray(chunk[name]).view("S1").reshape(-1, width)[:, -1] != b""
            if filled.any():
                text = chunk[name][filled.argmax()].decode(errors="replace")
                raise InputError(f"{path} has {text!r}... in {name}; at most {width - 1} characters are expected.")
