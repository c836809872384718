"""What a fit is given: interactions of users with items, wherever they lie."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import scipy.sparse as sp

from gpu_als.backends import BackendChoice
from gpu_als.core.objectives import Objective
from gpu_als.core.problem import SparseRows
from gpu_als.data.csr import as_csr
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

__all__ = ["TrainingData", "as_training_data", "map_blocks"]

T = TypeVar("T")
Weigh = Callable[[sp.csr_matrix], tuple[sp.csr_matrix, np.ndarray]]


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

    def fingerprint(self) -> str:
        """Return what distinguishes these entries from others, wherever and in whatever blocks."""
        return add_hashes(self.map_blocks(hash_entries))

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
