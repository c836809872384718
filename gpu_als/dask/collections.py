"""Collections of Dask as a source of rows: sorted out by user and by item, on the workers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, NamedTuple, TypeVar

import dask
import numpy as np
import scipy.sparse as sp
from distributed import Future

from gpu_als.core.problem import SparseRows
from gpu_als.dask.cluster import Cluster
from gpu_als.dask.placement import cut_by_work
from gpu_als.data.csr import as_csr
from gpu_als.errors import InputError, NotFiniteError
from gpu_als.train.row_blocks import WholeRows

__all__ = ["CollectionSource", "is_collection"]

T = TypeVar("T")
_NUMBERS = "row numbers from 0; encode ids first, for example as categories"


class Triples(NamedTuple):
    """Entries of one block.

    Attributes
    ----------
    users, items : int64 array
    values : float64 array
    """

    users: np.ndarray
    items: np.ndarray
    values: np.ndarray


def is_collection(interactions: Any) -> bool:
    """Tell whether this is a Dask DataFrame or array."""
    known: bool = dask.is_dask_collection(interactions)
    return known


@dataclass(frozen=True)
class CollectionSource:
    """Entries that lie on the workers, by user and by item.

    Attributes
    ----------
    shape : (int, int)
    bounds : pair of tuple of int
        Where the matrices of either side begin and end.
    matrices : pair of list of Future
        Of csr_matrix, each with the rows from one bound to the next.
    row_counts : pair of int64 array
    dtype : dtype
        That the values are wanted in.
    """

    shape: tuple[int, int]
    bounds: tuple[tuple[int, ...], tuple[int, ...]]
    matrices: tuple[list[Future], list[Future]]
    row_counts: tuple[np.ndarray, np.ndarray]
    dtype: np.dtype = np.dtype(np.float32)  # noqa: RUF009

    @classmethod
    def of(
        cls, cluster: Cluster, collection: Any, shape: tuple[int, int] | None
    ) -> CollectionSource:
        """Sort a collection out.

        Parameters
        ----------
        cluster : Cluster
        collection : Dask DataFrame or array
        shape : (int, int), optional
            Of a DataFrame.
        """
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
        users, items = (_by_row(cluster, blocks, side, shape) for side in (0, 1))
        (user_bounds, by_user, user_counts), (item_bounds, by_item, item_counts) = users, items
        both = (user_bounds, item_bounds), (by_user, by_item), (user_counts, item_counts)
        return cls(shape, *both)

    @property
    def nnz(self) -> int:
        """See :class:`~gpu_als.dask.sources.Source`."""
        return int(self.row_counts[0].sum())

    @property
    def ids(self) -> tuple[None, None]:
        """Numbers are the ids."""
        return None, None

    def astype(self, dtype: np.dtype) -> CollectionSource:
        """See :class:`~gpu_als.dask.sources.Source`."""
        return replace(self, dtype=np.dtype(dtype))

    def each(self, cluster: Cluster, function: Callable[[int, SparseRows], T]) -> list[T]:
        """See :class:`~gpu_als.dask.sources.Source`; workers do it."""
        futures = [
            cluster.submit(_look, matrix, first, self.dtype, function)
            for matrix, first in zip(self.matrices[0], self.bounds[0], strict=False)
        ]
        found: list[T] = cluster.collect(futures)
        return found

    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`~gpu_als.dask.sources.Source`."""
        return self.row_counts

    def rows(self, cluster: Cluster, side: int, first: int, last: int) -> Future:
        """See :class:`~gpu_als.dask.sources.Source`."""
        begins, matrices = [], []
        for matrix, (start, stop) in zip(
            self.matrices[side], pairwise(self.bounds[side]), strict=True
        ):
            if start < last and first < stop:
                begins.append(start)
                matrices.append(matrix)
        cut = first - begins[0], last - begins[0]
        return cluster.submit(_rows_between, matrices, *cut, self.dtype)


def _least_shape(cluster: Cluster, blocks: Sequence[Future]) -> tuple[int, int]:
    largest = cluster.collect([cluster.submit(_largest, block) for block in blocks])
    users, items = zip(*largest, strict=True)
    return max(users) + 1, max(items) + 1


def _by_row(
    cluster: Cluster, blocks: Sequence[Future], side: int, shape: tuple[int, int]
) -> tuple[tuple[int, ...], list[Future], np.ndarray]:
    """Return bounds, the matrices from one to the next, and all rows' numbers of entries."""
    submit, collect = cluster.submit, cluster.collect
    counts = sum(collect([submit(_count, block, side, shape[side]) for block in blocks]))
    bounds = cut_by_work(counts + 1.0, 2 * len(cluster.workers()))
    sorted_out = [submit(_sort_out, block, side, bounds) for block in blocks]
    matrices = []
    for number, (first, last) in enumerate(pairwise(bounds)):
        picked = [submit(_pick, each, number) for each in sorted_out]
        matrices.append(submit(_assemble, picked, first, last, side, shape))
    lengths = collect([submit(_row_counts, matrix) for matrix in matrices])
    return bounds, matrices, np.concatenate(lengths)


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


def _of_frame(frame: Any) -> Triples:
    columns = [frame[name].to_numpy() for name in frame.columns]
    for name, column in zip(frame.columns[:2], columns, strict=False):
        if column.dtype.kind not in "iu":
            raise InputError(f"interactions: column {name!r} holds {column.dtype}; pass {_NUMBERS}")
        if column.min(initial=0) < 0:
            raise InputError(f"interactions: column {name!r} holds {column.min()}; pass {_NUMBERS}")
    users, items = (column.astype(np.int64) for column in columns[:2])
    if len(columns) == 2:
        return Triples(users, items, np.ones(len(users)))
    if columns[2].dtype.kind not in "biuf":
        raise InputError(
            f"interactions: column {frame.columns[2]!r} holds {columns[2].dtype}; pass numbers"
        )
    return _finite(Triples(users, items, columns[2].astype(np.float64)))


def _of_array(block: Any, first_user: int, first_item: int) -> Triples:
    matrix = as_csr(block, name="interactions", dtype=np.float64, require_finite=False)
    entries = matrix.tocoo()
    users, items = entries.row.astype(np.int64), entries.col.astype(np.int64)
    return _finite(Triples(users + first_user, items + first_item, entries.data))


def _finite(block: Triples) -> Triples:
    bad = np.flatnonzero(~np.isfinite(block.values))
    if len(bad):
        user, item, value = (array[bad[0]] for array in block)
        raise NotFiniteError(
            "interactions: found values that are NaN or infinite, such as "
            f"{value} at (row, column) ({user}, {item}); remove these entries or give them finite "
            "values"
        )
    return block


def _largest(block: Triples) -> tuple[int, int]:
    return int(block.users.max(initial=-1)), int(block.items.max(initial=-1))


def _count(block: Triples, side: int, n: int) -> np.ndarray:
    return np.bincount(block[side], minlength=n)


def _sort_out(block: Triples, side: int, bounds: Sequence[int]) -> list[Triples]:
    """Return a block's entries by the range that their row is in."""
    part = np.searchsorted(bounds, block[side], side="right") - 1
    order = np.argsort(part, kind="stable")
    ends = np.cumsum(np.bincount(part, minlength=len(bounds) - 1))[:-1]
    split = (np.split(array[order], ends) for array in block)
    return [Triples(*each) for each in zip(*split, strict=True)]


def _pick(pieces: list[Triples], number: int) -> Triples:
    return pieces[number]


def _assemble(
    pieces: list[Triples], first: int, last: int, side: int, shape: tuple[int, int]
) -> sp.csr_matrix:
    """Return the rows ``first`` to ``last`` of a side."""
    users, items, values = (np.concatenate(arrays) for arrays in zip(*pieces, strict=True))
    rows, columns = (users, items) if side == 0 else (items, users)
    size = last - first, shape[1 - side]
    matrix = sp.coo_matrix((values, (rows - first, columns)), shape=size).tocsr()
    if not np.isfinite(matrix.data).all():
        raise NotFiniteError("interactions: the values of one user and item add up to infinity")
    return matrix


def _row_counts(matrix: sp.csr_matrix) -> np.ndarray:
    counts: np.ndarray = np.diff(matrix.indptr).astype(np.int64)
    return counts


def _rows_of(matrix: sp.csr_matrix, dtype: np.dtype) -> SparseRows:
    with np.errstate(over="ignore"):  # estimators look at how large values are
        return SparseRows.from_csr(matrix.astype(dtype, copy=False))


def _look(
    matrix: sp.csr_matrix, first: int, dtype: np.dtype, function: Callable[[int, SparseRows], T]
) -> T:
    return function(first, _rows_of(matrix, dtype))


def _rows_between(
    matrices: list[sp.csr_matrix], first: int, last: int, dtype: np.dtype
) -> WholeRows:
    return WholeRows.of(_rows_of(sp.vstack(matrices, format="csr")[first:last], dtype))
