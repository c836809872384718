"""Some rows of a matrix on disk, in any order, without the shards they lie in."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from gpu_als.data.csr import check_csr
from gpu_als.data.shards.records import index_dtype
from gpu_als.data.shards.shard import Shard
from gpu_als.errors import InputError, ReadError

__all__ = ["read_rows"]


def read_rows(shards: Sequence[Shard], numbers: np.ndarray, folder: Path) -> sp.csr_matrix:
    """Return rows as a matrix in memory.

    Only their entries are read, and where these start. Besides the result, memory is taken for a
    few numbers per row.

    Parameters
    ----------
    shards : sequence of Shard
        All of one orientation, in order.
    numbers : ndarray of int64, shape (n,)
        Rows there are, in any order, also several times.
    folder : Path
        For messages.

    Returns
    -------
    csr_matrix of float32, shape (n, columns)
        As :func:`~gpu_als.data.csr.as_csr` returns it.

    Raises
    ------
    ReadError
        If a file is gone or has another size, or these rows are damaged.
    """
    n_columns = shards[0].n_columns
    begins, ends = np.empty((2, len(numbers)), np.int64)
    places_of = _by_shard(shards, numbers)
    for shard, places in places_of:
        begins[places], ends[places] = _spans(shard, numbers[places] - shard.start)
    indptr = np.zeros(len(numbers) + 1, np.int64)
    np.cumsum(ends - begins, out=indptr[1:])
    indices = np.empty(indptr[-1], index_dtype(n_columns))
    data = np.empty(indptr[-1], np.float32)
    for shard, places in places_of:
        columns, stored = shard.columns(), shard.stored()
        for first, last in _runs(numbers, places):
            source = slice(begins[first], ends[last])
            target = slice(indptr[first], indptr[last + 1])
            indices[target] = columns[source]
            data[target] = shard.decode(stored[source])
    matrix = sp.csr_matrix((data, indices, indptr), shape=(len(numbers), n_columns), copy=False)
    try:
        check_csr(matrix, name="rows")
    except InputError as error:
        raise ReadError(
            f"{folder}: some of its rows are damaged ({error}); convert the data again, or restore "
            "the folder from a backup"
        ) from error
    return matrix


def _by_shard(shards: Sequence[Shard], numbers: np.ndarray) -> list[tuple[Shard, np.ndarray]]:
    """Return the shards that have some of the rows, each with the places of these, ascending."""
    firsts = [shard.start for shard in shards]
    found = np.searchsorted(firsts, numbers, side="right") - 1
    order = np.argsort(found, kind="stable")
    used, starts = np.unique(found[order], return_index=True)
    parts = np.split(order, starts[1:]) if len(used) else []
    return [(shards[shard], places) for shard, places in zip(used.tolist(), parts, strict=True)]


def _spans(shard: Shard, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return where rows of a shard begin and end among its entries."""
    starts = shard.starts()
    begins, ends = starts[rows], starts[rows + 1]
    if begins.min() < 0 or (begins > ends).any() or ends.max() > shard.nnz:
        raise shard.damaged("its rows do not begin and end where they should")
    return begins, ends


def _runs(numbers: np.ndarray, places: np.ndarray) -> list[tuple[int, int]]:
    """Return the first and last places of runs in which places and rows follow one another."""
    breaks = np.flatnonzero((np.diff(places) != 1) | (np.diff(numbers[places]) != 1)) + 1
    firsts, lasts = places[[0, *breaks]], places[[*(breaks - 1), -1]]
    return list(zip(firsts.tolist(), lasts.tolist(), strict=True))
