"""Files of raw arrays, opened only if they are what the manifest says."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import numpy as np

from gpu_als.data.shards.records import FileRecord
from gpu_als.errors import ReadError

__all__ = ["check_file", "map_array", "open_file"]

_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


def check_file(path: Path, record: FileRecord) -> None:
    """Refuse what is not a plain file of the size that its record says.

    Raises
    ------
    ReadError
    """
    try:
        found = path.lstat()
    except OSError as error:
        raise ReadError(f"{path}: is missing from the folder ({error.strerror})") from error
    _check_size(path, found, record)


def open_file(folder: Path, record: FileRecord) -> int:
    """Return a descriptor of a file, following no link.

    Raises
    ------
    ReadError
        If it is gone or has another size.
    """
    path = folder / record.name
    try:
        descriptor = os.open(path, _FLAGS)
    except OSError as error:
        raise ReadError(
            f"{path}: cannot be opened ({error.strerror}); if data were appended meanwhile, open "
            "the folder again"
        ) from error
    try:
        _check_size(path, os.fstat(descriptor), record)
    except ReadError:
        os.close(descriptor)
        raise
    return descriptor


def map_array(
    folder: Path, record: FileRecord, dtype: np.dtype, start: int = 0, stop: int | None = None
) -> np.ndarray:
    """Return elements ``start`` to ``stop`` - 1 of a file as a read-only memory map.

    Raises
    ------
    ReadError
        If the file is gone or has another size.
    """
    stop = record.bytes // dtype.itemsize if stop is None else stop
    with os.fdopen(open_file(folder, record), "rb") as stream:
        if start == stop:
            return np.zeros(0, dtype)  # there are no empty maps
        return np.memmap(stream, dtype, "r", start * dtype.itemsize, (stop - start,))


def _check_size(path: Path, found: os.stat_result, record: FileRecord) -> None:
    if not stat.S_ISREG(found.st_mode) or found.st_size != record.bytes:
        raise ReadError(
            f"{path}: found {found.st_size} bytes where the manifest says a file of "
            f"{record.bytes}; convert the data again, or restore the folder from a backup"
        )
