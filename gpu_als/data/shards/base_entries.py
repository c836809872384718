"""The entries of a folder of shards, read in pieces and not through memory maps.

Maps would count as memory of the process, and take as much as there is.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from gpu_als.data.shards.reader import ShardedMatrix
from gpu_als.data.shards.records import INDPTR_DTYPE, SIDES, ShardRecord, index_dtype
from gpu_als.data.shards.values import VALUE_DTYPES, decode
from gpu_als.errors import ReadError

__all__ = ["base_blocks", "n_base_bytes"]

_ROWS_AT_ONCE = 1 << 16


def n_base_bytes(base: ShardedMatrix) -> int:
    """Return the bytes that :func:`base_blocks` reads."""
    return base.nnz * sum(dtype.itemsize for dtype in _dtypes(base))


def base_blocks(
    base: ShardedMatrix, entries_at_once: int
) -> Iterator[tuple[int, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield all entries, row by row.

    Yields
    ------
    n_bytes : int
        Bytes read for this block.
    rows, columns : ndarray of int64, shape (n,)
    values : ndarray of float32, shape (n,)

    Raises
    ------
    ReadError
        If a shard makes no matrix.
    """
    dtypes = _dtypes(base)
    folder = base.folder / SIDES[0]
    for shard in base.manifest.shards[SIDES[0]]:
        for rows, start, stop in _spans(folder, shard, entries_at_once):
            indices, stored = (
                np.fromfile(
                    folder / record.name, dtype, stop - start, offset=start * dtype.itemsize
                )
                for record, dtype in zip((shard.indices, shard.data), dtypes, strict=True)
            )
            if len(stored) < stop - start or indices.min() < 0 or indices.max() >= base.shape[1]:
                raise _damaged(folder, shard)
            values = decode(stored, base.manifest.codes)
            yield indices.nbytes + stored.nbytes, rows, indices.astype(np.int64), values


def _dtypes(base: ShardedMatrix) -> tuple[np.dtype, np.dtype]:
    return index_dtype(base.shape[1]), VALUE_DTYPES[base.value_type]


def _spans(
    folder: Path, shard: ShardRecord, entries_at_once: int
) -> Iterator[tuple[np.ndarray, int, int]]:
    """Yield pieces of a shard: the row of each entry, and where they start and stop."""
    n_rows, end = shard.stop - shard.start, 0
    for first in range(0, n_rows, _ROWS_AT_ONCE):
        n = min(_ROWS_AT_ONCE, n_rows - first)
        offset = first * INDPTR_DTYPE.itemsize
        indptr = np.fromfile(folder / shard.indptr.name, INDPTR_DTYPE, n + 1, offset=offset)
        descends = bool((indptr[1:] < indptr[:-1]).any())
        if indptr[0] != end or descends or indptr[-1] > shard.nnz:
            raise _damaged(folder, shard)
        end = int(indptr[-1])
        for start in range(int(indptr[0]), int(indptr[-1]), entries_at_once):
            stop = min(start + entries_at_once, int(indptr[-1]))
            rows = np.searchsorted(indptr, np.arange(start, stop), side="right") - 1
            yield rows + (shard.start + first), start, stop
    if end != shard.nnz:
        raise _damaged(folder, shard)


def _damaged(folder: Path, shard: ShardRecord) -> ReadError:
    return ReadError(
        f"{folder / shard.indptr.name}: this shard is damaged; convert the data again, "
        "or restore the folder from a backup"
    )
