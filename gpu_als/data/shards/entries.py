"""Entries on their way from the input to the shards: temporary files of this machine."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from gpu_als.errors import ReadError

__all__ = ["Runs", "changed", "combine", "read_blocks", "write_block"]


def changed(path: Path) -> ReadError:
    """Return the error for a temporary file that another program has changed."""
    return ReadError(f"{path}: is not as it was left; start the conversion afresh")


def write_block(stream: BinaryIO, *columns: np.ndarray) -> None:
    """Append arrays of one length, after a line that says how long and of which types they are."""
    kinds = " ".join(column.dtype.str for column in columns)
    stream.write(f"{len(columns[0])} {kinds}\n".encode())
    for column in columns:
        stream.write(np.ascontiguousarray(column).view(np.uint8).data)


def read_blocks(path: Path) -> Iterator[tuple[int, list[np.ndarray]]]:
    """Yield what :func:`write_block` wrote, block by block, each after its size in the file."""
    with path.open("rb") as stream:
        while line := stream.readline():
            n, *kinds = line.decode().split()
            columns = [np.fromfile(stream, kind, int(n)) for kind in kinds]
            yield len(line) + sum(column.nbytes for column in columns), columns


def combine(keys: np.ndarray, values: np.ndarray, duplicates: str) -> tuple[np.ndarray, np.ndarray]:
    """Sort entries by cell, and make one of those of the same cell.

    Parameters
    ----------
    keys : ndarray of int64, shape (n,)
    values : ndarray of float64, shape (n,)
        In the order of the input.
    duplicates : {"sum", "last"}

    Returns
    -------
    keys : ndarray of int64, ascending
    values : ndarray of float64
        Sums are taken one after the other in the order of the input, so that those of both
        orientations are the same to the last bit, however the entries are divided into calls.
    """
    order = _stable_order(keys)
    ascending = keys[order]
    new = np.ones(len(keys), np.bool_)
    np.not_equal(ascending[1:], ascending[:-1], out=new[1:])
    if new.all():
        return ascending, values[order]
    if duplicates == "last":
        last = np.append(new[1:], True)
        return ascending[last], values[order[last]]
    cells = np.cumsum(new) - 1
    return ascending[new], np.bincount(cells, weights=values[order])


def _stable_order(keys: np.ndarray) -> np.ndarray:
    """Return the order that sorts keys, leaving equal ones as they are."""
    if len(keys) == 0:
        return np.zeros(0, np.int64)
    first, bits = int(keys.min()), len(keys).bit_length()
    if (int(keys.max()) - first).bit_length() + bits > 63:
        return np.argsort(keys, kind="stable")
    # Sorting numbers is several times quicker than sorting positions by number.
    numbered = (keys - first) << bits | np.arange(len(keys))
    numbered.sort()
    return numbered & ((1 << bits) - 1)


class Runs:
    """Entries by part, one file each.

    Parameters
    ----------
    folder : Path
    side : str
    value_dtype : dtype
        A float type that holds all values.
    """

    def __init__(self, folder: Path, side: str, value_dtype: np.dtype) -> None:
        self._folder, self._side = folder, side
        self._dtype = np.dtype([("key", "<i8"), ("value", value_dtype)])

    def path(self, part: int) -> Path:
        """Return where the entries of a part are, if it has any."""
        return self._folder / f"{self._side}-{part:06}.run"

    def n_entries(self, part: int) -> int:
        """Return how many entries a part has, duplicates counted."""
        path = self.path(part)
        return path.stat().st_size // self._dtype.itemsize if path.exists() else 0

    def clear(self) -> None:
        """Remove all files, of whatever parts."""
        for path in self._folder.glob(f"{self._side}-*.run"):
            path.unlink()

    def remove(self, parts: Iterable[int]) -> None:
        """Remove the files of parts that are done with."""
        for part in parts:
            self.path(part).unlink(missing_ok=True)

    def sync(self) -> None:
        """Make sure that all files are on disk."""
        for path in self._folder.glob(f"{self._side}-*.run"):
            with path.open("rb+") as stream:
                os.fsync(stream.fileno())

    def append(self, keys: np.ndarray, values: np.ndarray, parts: np.ndarray) -> None:
        """Append entries to the files of their parts, keeping their order."""
        order = np.argsort(parts, kind="stable")
        entries = np.empty(len(keys), self._dtype)
        entries["key"], entries["value"] = keys[order], values[order]
        found, firsts = np.unique(parts[order], return_index=True)
        for part, chunk in zip(found.tolist(), np.split(entries, firsts[1:]), strict=True):
            with self.path(part).open("ab") as stream:
                stream.write(chunk.view(np.uint8).data)

    def sorted(self, part: int, duplicates: str, limit: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the entries of a part by ascending key, each cell once.

        No more than ``limit`` entries are read at a time; what a part may hold beyond that are
        further values of the same cells.
        """
        keys, values = np.zeros(0, np.int64), np.zeros(0, np.float64)
        path = self.path(part)
        if not path.exists():
            return keys, values
        with path.open("rb") as stream:
            while len(entries := np.fromfile(stream, self._dtype, limit)):
                keys = np.concatenate([keys, entries["key"]])
                values = np.concatenate([values, entries["value"]])
                del entries
                keys, values = combine(keys, values, duplicates)
        return keys, values
