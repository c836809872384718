"""What a cluster trains on, in the place of a matrix: data of the client, shards, collections.

The entries of a Dask collection are sorted by user and by item on the workers.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import dask
import numpy as np
import scipy.sparse as sp
from distributed import Client, Future

from gpu_als.backends import BackendChoice
from gpu_als.core.objectives import Objective
from gpu_als.core.problem import SparseRows
from gpu_als.dask.cluster import Cluster, partition_by_work
from gpu_als.dask.engine import DaskEngine
from gpu_als.data.csr import as_csr, partition_rows
from gpu_als.data.shards import ShardedMatrix
from gpu_als.errors import InputError, NotFiniteError
from gpu_als.train.row_blocks import MemoryRows
from gpu_als.train.training_data import TrainingData, as_training_data, map_blocks

__all__ = ["DaskInteractions", "WorkerRows"]

T = TypeVar("T")
_NUMBERS = "row numbers from 0; encode ids first, for example as categories"


class DaskInteractions(TrainingData):
    """Interactions on which the workers of a Dask cluster train: give them to ``fit``.

    Parameters
    ----------
    client : distributed.Client
    interactions : matrix, Interactions, ShardedMatrix or Dask collection
        A matrix of the client is sent to the scheduler, which keeps it, so that it need not be
        sent again when a worker is lost: it has to fit there, in both orientations. The folder of
        a :class:`~gpu_als.data.shards.ShardedMatrix` has to be seen by all under the same name; it
        is read by workers, as much at a time as fits. A Dask DataFrame has the columns user, item
        and perhaps value, in this order, the first two with row and column numbers; a Dask array
        has the shape (users, items), in blocks of NumPy arrays or SciPy matrices. Values of one
        user and item are added up.
    shape : (int, int), optional
        Users and items of a DataFrame; by default its largest numbers say.

    Attributes
    ----------
    shape : (int, int)
    nnz : int
    user_ids, item_ids : array or None

    Raises
    ------
    InputError
        The client or the interactions cannot be used; the message says why.
    ClusterError
        The cluster has no workers.
    """

    def __init__(
        self, client: Client, interactions: Any, *, shape: tuple[int, int] | None = None
    ) -> None:
        if not isinstance(client, Client) or client.asynchronous:
            raise InputError(
                f"client must be a distributed.Client that is not asynchronous, not {client!r}"
            )
        self._cluster = Cluster(client)
        if dask.is_dask_collection(interactions):
            super().__init__(*_sort_collection(self._cluster, interactions, shape))
            return
        if shape is not None:
            raise InputError("shape goes with a Dask DataFrame; others have a shape of their own")
        if isinstance(interactions, DaskInteractions):
            raise InputError("interactions: these are DaskInteractions already; pass them to fit")
        data = as_training_data(interactions, name="interactions", dtype=_own_dtype(interactions))
        super().__init__(data.users, data.items, data.user_ids, data.item_ids)

    def map_blocks(self, function: Callable[[int, SparseRows], T]) -> list[T]:
        """Return ``function(first_row, rows)`` of every block of the users' rows, in order.

        Workers call the function, unless the client has the rows in its memory.
        """
        users, cluster = self.users, self._cluster
        if users.nbytes:
            return super().map_blocks(function)
        bounds = partition_by_work(users.counts() + 1.0, len(cluster.workers()))
        futures = [
            cluster.submit(map_blocks, users.between(first, last), function)
            for first, last in pairwise(bounds)
        ]
        return [result for found in cluster.collect(futures) for result in found]

    def engine(self, objective: Objective, n_factors: int, choice: BackendChoice) -> DaskEngine:
        """Return the engine whose half-sweeps run on the cluster's workers."""
        return DaskEngine(self._cluster, (self.users, self.items), objective, n_factors, choice)


def _own_dtype(interactions: Any) -> np.dtype:
    """Return float64 for what is more exact than float32: the estimator says what it wants."""
    if isinstance(interactions, ShardedMatrix):
        return interactions.dtype
    matrix = getattr(interactions, "user_items", interactions)
    narrow = getattr(matrix, "dtype", None) in (np.float32, np.float16, np.int8, np.uint8, bool)
    return np.dtype(np.float32 if narrow else np.float64)


@dataclass(frozen=True, eq=False)
class WorkerRows:
    """Rows that lie on a cluster's workers; see :class:`~gpu_als.train.row_blocks.RowBlocks`.

    Attributes
    ----------
    cluster : Cluster
    matrices : tuple of Future
        Of csr_matrix, each with the rows from one of the ``limits`` to the next.
    limits : tuple of int
    n_fixed : int
    entries_of_rows : int64 array, shape (n_rows,)
    bounds : tuple of int
    dtype : dtype
        That the values are wanted in.
    """

    cluster: Cluster
    matrices: tuple[Future, ...]
    limits: tuple[int, ...]
    n_fixed: int
    entries_of_rows: np.ndarray
    bounds: tuple[int, ...]
    dtype: np.dtype = np.dtype(np.float32)  # noqa: RUF009

    nbytes, weighted = 0, False

    def block(self, number: int) -> SparseRows:
        """Fetch the rows of one block."""
        (rows,) = self.cluster.collect([self.between(*self.bounds[number : number + 2])])
        found: SparseRows = rows.rows
        return found

    def counts(self) -> np.ndarray:
        """Return the number of entries of each row."""
        return self.entries_of_rows

    def partition(self, max_bytes: int, entry_bytes: int, row_bytes: int) -> WorkerRows:
        """Return the same rows in other blocks."""
        cuts = partition_rows(self.entries_of_rows, max_bytes, entry_bytes, row_bytes)
        return replace(self, bounds=cuts)

    def between(self, first: int, last: int) -> Future:
        """Return a future of some rows, in the memory of whatever worker wants them."""
        held = [
            (start, matrix)
            for (start, stop), matrix in zip(pairwise(self.limits), self.matrices, strict=True)
            if start < last and first < stop
        ]
        starts, matrices = zip(*held, strict=True)
        cut = first - starts[0], last - starts[0]
        return self.cluster.submit(_rows_between, list(matrices), *cut, first, self.dtype)

    def astype(self, dtype: np.dtype) -> WorkerRows:
        """Return the same rows with their values in another dtype."""
        return replace(self, dtype=np.dtype(dtype))


def _rows_between(
    matrices: list[sp.csr_matrix], begin: int, end: int, first: int, dtype: np.dtype
) -> MemoryRows:
    matrix = sp.vstack(matrices, format="csr")[begin:end]
    with np.errstate(over="ignore"):  # estimators look at how large values are
        return MemoryRows.of(SparseRows.from_csr(matrix.astype(dtype, copy=False)), first)


# Collections

_ADDED_AT_ONCE = 8


class _Entries(NamedTuple):
    """Entries of one block of a collection.

    Attributes
    ----------
    users, items : int64 array
    values : float64 array
    """

    users: np.ndarray
    items: np.ndarray
    values: np.ndarray


def _sort_collection(
    cluster: Cluster, collection: Any, shape: tuple[int, int] | None
) -> tuple[WorkerRows, WorkerRows]:
    """Return the entries of a Dask DataFrame or array by user and by item."""
    if hasattr(collection, "partitions") and hasattr(collection, "columns"):
        blocks = cluster.compute(_frame_blocks(collection))
        shape = _checked_shape(shape, _least_shape(cluster, blocks))
    else:
        if shape is not None:
            raise InputError("shape goes with a Dask DataFrame; an array has its own")
        blocks = cluster.compute(_array_blocks(collection))
        shape = int(collection.shape[0]), int(collection.shape[1])
    if 0 in shape:
        raise InputError(f"interactions: found shape {shape}; there must be a user and an item")
    return _by_row(cluster, blocks, 0, shape), _by_row(cluster, blocks, 1, shape)


def _least_shape(cluster: Cluster, blocks: Sequence[Future]) -> tuple[int, int]:
    largest = cluster.collect([cluster.submit(_largest, block) for block in blocks])
    users, items = zip(*largest, strict=True)
    return max(users) + 1, max(items) + 1


def _by_row(
    cluster: Cluster, blocks: Sequence[Future], side: int, shape: tuple[int, int]
) -> WorkerRows:
    submit, collect, n_rows = cluster.submit, cluster.collect, shape[side]
    totals = [submit(_count, block, side, n_rows) for block in blocks]
    while len(totals) > 1:  # the client gets one array, however many blocks there are
        groups = range(0, len(totals), _ADDED_AT_ONCE)
        totals = [submit(sum, totals[start : start + _ADDED_AT_ONCE]) for start in groups]
    (counts,) = collect(totals)
    limits = partition_by_work(counts + 1.0, 2 * len(cluster.workers()))
    split = [submit(_split, block, side, limits) for block in blocks]
    matrices = []
    for number, (first, last) in enumerate(pairwise(limits)):
        picked = [submit(operator.getitem, each, number) for each in split]
        matrices.append(submit(_assemble, picked, first, last, side, shape))
    lengths = collect([submit(_row_counts, matrix) for matrix in matrices])
    entries = np.concatenate(lengths)
    return WorkerRows(cluster, tuple(matrices), limits, shape[1 - side], entries, (0, n_rows))


def _checked_shape(given: Any, found: tuple[int, ...]) -> tuple[int, int]:
    if given is None:
        return found[0], found[1]
    whole = isinstance(given, tuple) and len(given) == 2
    if not whole or any(n < least for n, least in zip(given, found, strict=True)):
        raise InputError(f"shape: found {given!r}; the interactions need at least {found}")
    return int(given[0]), int(given[1])


def _frame_blocks(frame: Any) -> list[Any]:
    if len(frame.columns) not in (2, 3):
        raise InputError(
            f"interactions: found the columns {list(frame.columns)}; pass a DataFrame of user, "
            "item and perhaps value, such as frame[['user', 'item', 'rating']]"
        )
    return [dask.delayed(_of_frame)(partition) for partition in frame.to_delayed()]


def _array_blocks(array: Any) -> list[Any]:
    if getattr(array, "ndim", 0) != 2:
        raise InputError("interactions: pass a Dask DataFrame, or a Dask array of two dimensions")
    if any(np.isnan(size) for sizes in array.chunks for size in sizes):
        raise InputError(
            "interactions: blocks of unknown size; call compute_chunk_sizes() on the array first"
        )
    firsts = [np.append(0, np.cumsum(sizes)) for sizes in array.chunks]
    grid = array.to_delayed()
    return [
        dask.delayed(_of_array)(grid[row, column], int(firsts[0][row]), int(firsts[1][column]))
        for row in range(grid.shape[0])
        for column in range(grid.shape[1])
    ]


def _of_frame(frame: Any) -> _Entries:
    columns = [frame[name].to_numpy() for name in frame.columns]
    for name, column in zip(frame.columns[:2], columns, strict=False):
        if column.dtype.kind not in "iu":
            raise InputError(f"interactions: column {name!r} holds {column.dtype}; pass {_NUMBERS}")
        if column.min(initial=0) < 0:
            raise InputError(f"interactions: column {name!r} holds {column.min()}; pass {_NUMBERS}")
    users, items = (column.astype(np.int64) for column in columns[:2])
    if len(columns) == 2:
        return _Entries(users, items, np.ones(len(users)))
    if columns[2].dtype.kind not in "biuf":
        raise InputError(
            f"interactions: column {frame.columns[2]!r} holds {columns[2].dtype}; pass numbers"
        )
    return _finite(_Entries(users, items, columns[2].astype(np.float64)))


def _of_array(block: Any, first_user: int, first_item: int) -> _Entries:
    matrix = as_csr(block, name="interactions", dtype=np.float64, require_finite=False)
    entries = matrix.tocoo()
    users, items = entries.row.astype(np.int64), entries.col.astype(np.int64)
    return _finite(_Entries(users + first_user, items + first_item, entries.data))


def _finite(block: _Entries) -> _Entries:
    bad = np.flatnonzero(~np.isfinite(block.values))
    if len(bad):
        user, item, value = (array[bad[0]] for array in block)
        raise NotFiniteError(
            "interactions: found values that are NaN or infinite, such as "
            f"{value} at (row, column) ({user}, {item}); remove these entries or give them finite "
            "values"
        )
    return block


def _largest(block: _Entries) -> tuple[int, int]:
    return int(block.users.max(initial=-1)), int(block.items.max(initial=-1))


def _count(block: _Entries, side: int, n: int) -> np.ndarray:
    return np.bincount(block[side], minlength=n)


def _split(block: _Entries, side: int, limits: Sequence[int]) -> list[_Entries]:
    """Return a block's entries by the range that their row is in."""
    part = np.searchsorted(limits, block[side], side="right") - 1
    order = np.argsort(part, kind="stable")
    ends = np.cumsum(np.bincount(part, minlength=len(limits) - 1))[:-1]
    split = (np.split(array[order], ends) for array in block)
    return [_Entries(*each) for each in zip(*split, strict=True)]


def _assemble(
    parts: list[_Entries], first: int, last: int, side: int, shape: tuple[int, int]
) -> sp.csr_matrix:
    """Return the rows ``first`` to ``last`` of a side."""
    users, items, values = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    rows, columns = (users, items) if side == 0 else (items, users)
    size = last - first, shape[1 - side]
    matrix = sp.coo_matrix((values, (rows - first, columns)), shape=size).tocsr()
    if not np.isfinite(matrix.data).all():
        raise NotFiniteError("interactions: the values of one user and item add up to infinity")
    return matrix


def _row_counts(matrix: sp.csr_matrix) -> np.ndarray:
    counts: np.ndarray = np.diff(matrix.indptr).astype(np.int64)
    return counts
