"""What a fit is given: interactions to train on, wherever they lie, and ratings to watch."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
import scipy.sparse as sp

from gpu_als.backends import BackendChoice
from gpu_als.core.objectives import Objective
from gpu_als.core.problem import SparseRows
from gpu_als.data.csr import as_csr, check_index_array
from gpu_als.data.interactions import Interactions
from gpu_als.data.shards import ShardedMatrix
from gpu_als.errors import InputError
from gpu_als.train.engine import Engine, LocalEngine
from gpu_als.train.row_blocks import (
    MemoryRows,
    RowBlocks,
    ShardRows,
    add_hashes,
    hash_entries,
)

__all__ = ["Summary", "TrainingData", "as_training_data", "map_blocks", "validation_ratings"]

T = TypeVar("T")
Weigh = Callable[[sp.csr_matrix], tuple[sp.csr_matrix, np.ndarray]]


@dataclass(frozen=True)
class Summary:
    """What is remembered of interactions.

    Attributes
    ----------
    entries : int
    values : (float, float, float)
        The least, the greatest and the mean of the values; of no values inf, -inf and 0.
    fingerprint : str
        What distinguishes these entries from others, wherever and in whatever blocks.
    """

    entries: int
    values: tuple[float, float, float]
    fingerprint: str


@dataclass(eq=False)
class TrainingData:
    """Validated interactions of users with items.

    Attributes
    ----------
    users, items : RowBlocks
        The same entries twice, by user and by item.
    user_ids, item_ids : array or None
    weights : array, shape (nnz,), or None
        Sample weights, in the order of the users' entries.
    """

    users: RowBlocks
    items: RowBlocks
    user_ids: np.ndarray | None = None
    item_ids: np.ndarray | None = None
    weights: np.ndarray | None = None

    @classmethod
    def of_matrix(cls, matrix: sp.csr_matrix, weights: np.ndarray | None = None) -> TrainingData:
        """Return the entries of a matrix in memory, each side as one block.

        Parameters
        ----------
        matrix : csr_matrix, shape (n_users, n_items)
            From :func:`~gpu_als.data.csr.as_csr`; its arrays are shared.
        weights : array, shape (nnz,), optional
            Aligned with ``matrix.data``.
        """
        by_item, item_weights = matrix.T.tocsr(), None
        if weights is not None:
            by_user = weights, matrix.indices, matrix.indptr
            item_weights = sp.csr_matrix(by_user, shape=matrix.shape).T.tocsr().data
        users = MemoryRows.of(SparseRows.from_csr(matrix, weights))
        items = MemoryRows.of(SparseRows.from_csr(by_item, item_weights))
        return cls(users, items, weights=weights)

    @property
    def shape(self) -> tuple[int, int]:
        """Users and items."""
        return self.items.n_fixed, self.users.n_fixed

    @property
    def nnz(self) -> int:
        """Number of entries."""
        return int(self.users.counts().sum())

    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the number of entries of each user and of each item."""
        return self.users.counts(), self.items.counts()

    def astype(self, dtype: np.dtype) -> TrainingData:
        """Return the same interactions with their values in another dtype."""
        other = copy.copy(self)
        other.users, other.items = self.users.astype(dtype), self.items.astype(dtype)
        return other

    def map_blocks(self, function: Callable[[int, SparseRows], T]) -> list[T]:
        """Return ``function(first_row, rows)`` of every block of the users' rows, in order."""
        return map_blocks(self.users, function)

    def survey(self, look: Callable[[int, SparseRows], tuple[float, ...]]) -> tuple[Any, Summary]:
        """Look at every entry once.

        Parameters
        ----------
        look : callable
            ``look(first_row, rows)`` returns numbers to be added up over all blocks. Workers of a
            cluster get it.

        Returns
        -------
        sums : tuple of float
        summary : Summary
        """
        found = self.map_blocks(partial(_look_at, look))
        sums, hashes, least, most, totals, entries = zip(*found, strict=True)
        number = sum(entries)
        values = min(least), max(most), sum(totals) / max(number, 1)
        return tuple(map(sum, zip(*sums, strict=True))), Summary(number, values, add_hashes(hashes))

    def engine(self, objective: Objective, n_factors: int, choice: BackendChoice) -> Engine:
        """Return the engine for a fit on these interactions.

        Parameters
        ----------
        objective : Objective
        n_factors : int
            Columns of the factors, biases included.
        choice : BackendChoice
        """
        return LocalEngine((self.users, self.items), objective, n_factors, choice)


def map_blocks(rows: RowBlocks, function: Callable[[int, SparseRows], T]) -> list[T]:
    """Return ``function(first_row, rows)`` of every block, in order."""
    return [function(first, rows.block(number)) for number, first in enumerate(rows.bounds[:-1])]


def _look_at(look: Callable[[int, SparseRows], Any], first_row: int, rows: SparseRows) -> Any:
    values, inf = rows.values, float("inf")
    least, most = float(values.min(initial=inf)), float(values.max(initial=-inf))
    total = float(values.sum(dtype=np.float64))
    return look(first_row, rows), hash_entries(first_row, rows), least, most, total, len(values)


def as_training_data(
    source: Any, *, name: str, dtype: np.dtype, weigh: Weigh | None = None
) -> TrainingData:
    """Return what a user passed to ``fit`` as validated interactions.

    Parameters
    ----------
    source : TrainingData, ShardedMatrix, or what :func:`~gpu_als.data.csr.as_csr` takes
    name : str
        What the caller calls this argument; used in messages.
    dtype : dtype
        That the values are wanted in.
    weigh : callable, optional
        Returns the entries of the validated matrix that count, as a matrix, and their weights.

    Raises
    ------
    InputError
        The source cannot be used, or has weights and is not in memory.
    """
    elsewhere = isinstance(source, TrainingData | ShardedMatrix)
    if elsewhere and weigh is not None:
        raise InputError(
            f"sample_weight goes with {name} in memory; leave it None, or pass a matrix"
        )
    if isinstance(source, TrainingData):
        return source.astype(dtype)
    if isinstance(source, ShardedMatrix):
        users, items = (ShardRows.of(shards, dtype) for shards in (source.users, source.items))
        return TrainingData(users, items, source.user_ids, source.item_ids)
    matrix, weights = as_csr(source, name=name, dtype=dtype), None
    if weigh is not None:
        matrix, weights = weigh(matrix)
    data = TrainingData.of_matrix(matrix, weights)
    data.user_ids = getattr(source, "user_ids", None)
    data.item_ids = getattr(source, "item_ids", None)
    return data


def validation_ratings(
    validation: Any, data: TrainingData
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a validation set as row numbers, column numbers and ratings.

    Parameters
    ----------
    validation : matrix, Interactions, or tuple (users, items, ratings)
        As :meth:`gpu_als.ExplicitALS.fit` takes it.
    data : TrainingData
        What is trained on; its rows, columns and ids are meant.

    Returns
    -------
    users, items : int array, shape (n,)
    ratings : float64 array, shape (n,)

    Raises
    ------
    InputError
        The set is empty, not finite, or does not go with the data.
    """
    if isinstance(validation, tuple):
        rows, columns, values = _of_tuple(validation, data.shape)
    else:
        if isinstance(validation, Interactions):
            _check_ids(validation, data)
        entries = as_csr(validation, name="validation", dtype=np.float64).tocoo()
        if entries.shape != data.shape:
            raise InputError(f"validation has shape {entries.shape}; ratings has {data.shape}")
        rows, columns, values = entries.row, entries.col, entries.data
    if len(values) == 0 or not np.isfinite(values).all():
        raise InputError("validation must hold at least one rating, and no NaN or inf")
    return rows, columns, values


def _of_tuple(
    validation: tuple[Any, ...], shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if len(validation) != 3:
        raise InputError("validation must be a matrix or a tuple (users, items, ratings)")
    rows = check_index_array(validation[0], shape[0], name="validation users")
    columns = check_index_array(validation[1], shape[1], name="validation items")
    try:
        values = np.atleast_1d(np.asarray(validation[2], np.float64))
    except (TypeError, ValueError):
        raise InputError("validation: its ratings are not numbers") from None
    if not len(rows) == len(columns) == len(values):
        raise InputError("validation: users, items and ratings must have one length")
    return rows, columns, values


def _check_ids(validation: Interactions, data: TrainingData) -> None:
    """Refuse a set whose row 0 is another user than row 0 of the data."""
    for ids in ("user_ids", "item_ids"):
        if not np.array_equal(getattr(validation, ids), getattr(data, ids)):
            raise InputError(
                f"validation: its {ids} are not those of ratings; express it in their rows and "
                "columns with encode(users, items, values, unknown='skip') of the Interactions or "
                "shards that are trained on, and pass that tuple"
            )
