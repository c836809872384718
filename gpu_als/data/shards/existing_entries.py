"""The entries of a folder of shards, mapped into memory in blocks.

The maps of whole shards would count as memory of the process, and take as much as there is.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gpu_als.data.shards.reader import ShardedMatrix
from gpu_als.data.shards.records import index_dtype
from gpu_als.data.shards.shard import Shard
from gpu_als.data.shards.values import VALUE_DTYPES

__all__ = ["existing_blocks", "n_existing_bytes"]

_ROWS_AT_ONCE = 1 << 16


def n_existing_bytes(existing: ShardedMatrix) -> int:
    """Return the bytes that :func:`existing_blocks` reads."""
    entry_bytes = (
        index_dtype(existing.shape[1]).itemsize + VALUE_DTYPES[existing.value_type].itemsize
    )
    return existing.nnz * entry_bytes


def existing_blocks(
    existing: ShardedMatrix, entries_at_once: int
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
        If a file is gone or has another size, or a shard makes no matrix.
    """
    for shard in existing.users:
        for rows, start, stop in _spans(shard, entries_at_once):
            columns, stored = shard.columns(start, stop), shard.stored(start, stop)
            values = shard.decode(stored)
            if columns.min() < 0 or columns.max() >= shard.n_columns:
                raise shard.damaged("its columns leave the matrix")
            if not np.isfinite(values).all():
                raise shard.damaged("a value is not finite")
            yield columns.nbytes + stored.nbytes, rows, columns.astype(np.int64), values


def _spans(shard: Shard, entries_at_once: int) -> Iterator[tuple[np.ndarray, int, int]]:
    """Yield blocks of a shard: the row of each entry, and where they start and stop."""
    n_rows, end = shard.stop - shard.start, 0
    for first in range(0, n_rows, _ROWS_AT_ONCE):
        starts = np.array(shard.starts(first, min(first + _ROWS_AT_ONCE, n_rows) + 1))
        if starts[0] != end or (starts[1:] < starts[:-1]).any() or starts[-1] > shard.nnz:
            raise shard.damaged("its rows do not begin and end where they should")
        end = int(starts[-1])
        for start in range(int(starts[0]), end, entries_at_once):
            stop = min(start + entries_at_once, end)
            rows = np.searchsorted(starts, np.arange(start, stop), side="right") - 1
            yield rows + (shard.start + first), start, stop
    if end != shard.nnz:
        raise shard.damaged(f"its rows end at {end}")
