"""What a fit is given: interactions, wherever they lie, and the engine that sweeps over them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import scipy.sparse as sp

from gpu_als.backends import BackendChoice
from gpu_als.core.objectives import Objective
from gpu_als.core.problem import SparseRows
from gpu_als.data.csr import as_csr
from gpu_als.data.shards import ShardedMatrix
from gpu_als.train.engine import Engine, LocalEngine
from gpu_als.train.fingerprints import add_marks, mark_of_entries
from gpu_als.train.row_blocks import ShardRows, WholeRows

__all__ = ["InMemory", "OnDisk", "TrainingData", "as_training_data"]

T = TypeVar("T")

_BLOCK = 1 << 20
"""Elements of an array taken at a time, so that it is never copied as a whole."""


class TrainingData(ABC):
    """Validated interactions of users with items.

    Attributes
    ----------
    shape : (int, int)
        Users and items.
    nnz : int
    user_ids, item_ids : array or None
    """

    shape: tuple[int, int]
    nnz: int
    user_ids: np.ndarray | None
    item_ids: np.ndarray | None

    @abstractmethod
    def each(self, function: Callable[[int, SparseRows], T]) -> list[T]:
        """Return ``function(first_row, rows)`` of every block of the users' rows, in order."""

    @abstractmethod
    def astype(self, dtype: np.dtype) -> TrainingData:
        """Return the same interactions with their values in another dtype."""

    @abstractmethod
    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the number of entries of each user and of each item."""

    def fingerprint(self) -> str:
        """Return what tells these interactions from others, wherever they lie and however cut."""
        return add_marks(self.each(mark_of_entries))

    @abstractmethod
    def engine(self, objective: Objective, n_factors: int, backend: BackendChoice) -> Engine:
        """Return the engine for a fit on these interactions."""


class InMemory(TrainingData):
    """A matrix in memory, trained on by this process.

    Parameters
    ----------
    matrix : csr_matrix, shape (n_users, n_items)
        From :func:`~gpu_als.data.csr.as_csr`.
    weights : array, shape (nnz,), or None
        Aligned with ``matrix.data``.
    source : object
        What the user passed; its ``user_ids`` and ``item_ids`` are taken over if it has any.
    """

    def __init__(
        self, matrix: sp.csr_matrix, weights: np.ndarray | None = None, source: Any = None
    ) -> None:
        self.matrix, self.weights = matrix, weights
        self.shape, self.nnz = matrix.shape, int(matrix.nnz)
        self.user_ids = getattr(source, "user_ids", None)
        self.item_ids = getattr(source, "item_ids", None)

    def astype(self, dtype: np.dtype) -> InMemory:
        """See :class:`TrainingData`."""
        if dtype == self.matrix.dtype:
            return self
        return InMemory(as_csr(self.matrix, dtype=dtype), self.weights, self)

    def each(self, function: Callable[[int, SparseRows], T]) -> list[T]:
        """See :class:`TrainingData`; there is one block."""
        return [function(0, SparseRows.from_csr(self.matrix, self.weights))]

    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`TrainingData`."""
        indices, n_items = self.matrix.indices, self.shape[1]
        items = np.zeros(n_items, np.int64)
        step = max(_BLOCK, n_items)  # bincount copies what it counts as int64
        for start in range(0, len(indices), step):
            items += np.bincount(indices[start : start + step], minlength=n_items)
        return np.diff(self.matrix.indptr), items

    def engine(self, objective: Objective, n_factors: int, backend: BackendChoice) -> Engine:
        """See :class:`TrainingData`; each side is one part."""
        return LocalEngine.of(self.rows(), objective, n_factors, backend)

    def rows(self) -> tuple[WholeRows, WholeRows]:
        """Return those of the users and those of the items."""
        users = WholeRows.of(SparseRows.from_csr(self.matrix, self.weights))
        item_users, item_weights = self.matrix.T.tocsr(), None
        if self.weights is not None:
            by_user = (self.weights, self.matrix.indices, self.matrix.indptr)
            item_weights = sp.csr_matrix(by_user, shape=self.shape).T.tocsr().data
        return users, WholeRows.of(SparseRows.from_csr(item_users, item_weights))


class OnDisk(TrainingData):
    """Shards on disk, trained on by this process, which reads them in every half-sweep.

    Parameters
    ----------
    matrix : ShardedMatrix
    dtype : dtype
        That the values are wanted in.
    """

    def __init__(self, matrix: ShardedMatrix, dtype: np.dtype) -> None:
        self.matrix, self.dtype = matrix, dtype
        self.shape, self.nnz = matrix.shape, matrix.nnz

    @property
    def user_ids(self) -> np.ndarray | None:  # type: ignore[override]
        """The ids of the users."""
        return self.matrix.user_ids

    @property
    def item_ids(self) -> np.ndarray | None:  # type: ignore[override]
        """The ids of the items."""
        return self.matrix.item_ids

    @cached_property
    def rows(self) -> tuple[ShardRows, ShardRows]:
        """Those of the users and those of the items."""
        n_users, n_items = self.shape
        return (
            ShardRows.of(self.matrix.users, n_items, self.dtype),
            ShardRows.of(self.matrix.items, n_users, self.dtype),
        )

    def astype(self, dtype: np.dtype) -> OnDisk:
        """See :class:`TrainingData`."""
        return OnDisk(self.matrix, dtype)

    def each(self, function: Callable[[int, SparseRows], T]) -> list[T]:
        """See :class:`TrainingData`."""
        users = self.rows[0]
        firsts = users.bounds[:-1]
        return [function(first, users.part(number)) for number, first in enumerate(firsts)]

    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`TrainingData`."""
        return self.rows[0].counts(), self.rows[1].counts()

    def engine(self, objective: Objective, n_factors: int, backend: BackendChoice) -> Engine:
        """See :class:`TrainingData`."""
        return LocalEngine.of(self.rows, objective, n_factors, backend)


def as_training_data(source: Any, *, name: str, dtype: np.dtype) -> TrainingData:
    """Return what a user passed to ``fit`` as validated interactions.

    Parameters
    ----------
    source : TrainingData, ShardedMatrix, or what :func:`~gpu_als.data.csr.as_csr` takes
    name : str
        What the caller calls this argument; used in messages.
    dtype : dtype
        That the values are wanted in.
    """
    if isinstance(source, TrainingData):
        return source.astype(dtype)
    if isinstance(source, ShardedMatrix):
        return OnDisk(source, dtype)
    return InMemory(as_csr(source, name=name, dtype=dtype), source=source)
