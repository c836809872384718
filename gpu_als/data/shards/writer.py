"""Writes one orientation shard by shard, from entries that come in the order of their cells."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np

from gpu_als.data.atomic import replacing
from gpu_als.data.shards.records import (
    INDPTR_DTYPE,
    SHARD_FILES,
    FileRecord,
    ShardRecord,
    index_dtype,
)

__all__ = ["HashedFile", "SideWriter", "hashed_file", "writing_side"]

_ROWS_AT_ONCE = 1 << 18


class HashedFile:
    """A file that is written from its start, and its checksum."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._stream, self._name = stream, name
        self._bytes = 0
        self._hash = hashlib.sha256()

    def write(self, content: np.ndarray | bytes) -> None:
        """Append bytes, or those of a one-dimensional array."""
        view = memoryview(content) if isinstance(content, bytes) else content.view(np.uint8).data
        self._stream.write(view)
        self._hash.update(view)
        self._bytes += len(view)

    def record(self) -> FileRecord:
        """Return what a manifest says of the file."""
        return FileRecord(self._name, self._bytes, self._hash.hexdigest())


@contextmanager
def hashed_file(path: Path) -> Iterator[HashedFile]:
    """Open a file that appears under its name once it is complete and on disk."""
    with replacing(path) as stream:
        yield HashedFile(stream, path.name)


@contextmanager
def writing_side(
    folder: Path,
    version: int,
    bounds: np.ndarray,
    n_columns: int,
    encode: Callable[[np.ndarray], np.ndarray],
    finished: Iterable[ShardRecord] = (),
) -> Iterator[SideWriter]:
    """Open a writer of one orientation, whose last shards are completed at the end.

    When anything fails, the files of the shard that is not complete are removed.

    Parameters
    ----------
    folder : Path
        Of this orientation; it exists.
    version : int
    bounds : ndarray of int64, shape (shards + 1,)
        The first row of each shard, and the number of rows.
    n_columns : int
    encode : callable
        From values to what is stored.
    finished : iterable of ShardRecord
        Shards that are there already, from the first.
    """
    with ExitStack() as opened:

        def open_shard(number: int) -> dict[str, HashedFile]:
            paths = {kind: folder / f"{version}-{number:06}.{kind}" for kind in SHARD_FILES}
            return {kind: opened.enter_context(hashed_file(paths[kind])) for kind in paths}

        writer = SideWriter(open_shard, opened.close, bounds, n_columns, encode, list(finished))
        yield writer
        writer.finish()


class SideWriter:
    """Writes the shards of one orientation one after the other; see :func:`writing_side`.

    Attributes
    ----------
    finished : list of ShardRecord
        The shards that are complete and on disk so far.
    """

    def __init__(
        self,
        open_shard: Callable[[int], dict[str, HashedFile]],
        close_shard: Callable[[], None],
        bounds: np.ndarray,
        n_columns: int,
        encode: Callable[[np.ndarray], np.ndarray],
        finished: list[ShardRecord],
    ) -> None:
        self.finished = finished
        self._open_shard, self._close_shard = open_shard, close_shard
        self._bounds, self._n_columns = bounds, n_columns
        self._encode = encode
        self._files: dict[str, HashedFile] = {}
        self._row = 0  # the first whose start is not in indptr yet
        self._nnz = 0  # of the shard that is being written

    @property
    def complete(self) -> bool:
        """Whether all shards are finished."""
        return len(self.finished) == len(self._bounds) - 1

    @property
    def first_key(self) -> int:
        """The key of the cell with which the first unfinished shard begins."""
        return int(self._bounds[len(self.finished)]) * self._n_columns

    def add(self, keys: np.ndarray, values: np.ndarray) -> None:
        """Append entries.

        Parameters
        ----------
        keys : ndarray of int64, shape (n,)
            ``row * n_columns + column``, ascending, each once, and above all that came before.
        values : ndarray of numbers, shape (n,)
        """
        while len(keys):
            end = int(self._bounds[len(self.finished) + 1]) * self._n_columns
            here = int(np.searchsorted(keys, end))
            self._append(keys[:here], values[:here])
            keys, values = keys[here:], values[here:]
            if len(keys):
                self._finish_shard()

    def finish(self) -> None:
        """Complete the last shard, and those without entries behind it."""
        while not self.complete:
            self._finish_shard()

    def _append(self, keys: np.ndarray, values: np.ndarray) -> None:
        files = self._current()
        rows, columns = np.divmod(keys, self._n_columns)
        if len(rows):
            self._write_starts(rows, int(rows[-1]) + 1)
        files["indices"].write(columns.astype(index_dtype(self._n_columns)))
        files["data"].write(self._encode(values))
        self._nnz += len(keys)

    def _write_starts(self, rows: np.ndarray, stop: int) -> None:
        """Say where the rows before ``stop`` start, given the rows of the next entries."""
        while self._row < stop:
            following = np.arange(self._row, min(stop, self._row + _ROWS_AT_ONCE))
            starts = self._nnz + np.searchsorted(rows, following)
            self._files["indptr"].write(starts.astype(INDPTR_DTYPE))
            self._row = int(following[-1]) + 1

    def _current(self) -> dict[str, HashedFile]:
        """Return the files of the shard that is being written, opening them if need be."""
        if not self._files:
            number = len(self.finished)
            self._files = self._open_shard(number)
            self._row, self._nnz = int(self._bounds[number]), 0
        return self._files

    def _finish_shard(self) -> None:
        files = self._current()
        start, stop = (int(row) for row in self._bounds[len(self.finished) :][:2])
        self._write_starts(np.zeros(0, np.int64), stop)
        files["indptr"].write(np.array([self._nnz], INDPTR_DTYPE))
        self._close_shard()
        records = {kind: file.record() for kind, file in files.items()}
        self.finished.append(ShardRecord(start, stop, self._nnz, **records))
        self._files = {}
