"""Where the rows of a cluster's fit come from: a matrix of the client, or shards that all can read.

Collections of Dask are in :mod:`gpu_als.dask.collections`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Protocol, Self, TypeVar

import numpy as np

from gpu_als.core.problem import SparseRows
from gpu_als.dask.cluster import Cluster
from gpu_als.dask.placement import cut_by_work
from gpu_als.train.row_blocks import Rows, WholeRows
from gpu_als.train.training_data import InMemory, OnDisk

__all__ = ["MatrixSource", "ShardSource", "Source"]

T = TypeVar("T")
Look = Callable[[int, SparseRows], T]


class Source(Protocol):
    """Validated interactions of users with items that workers can get at."""

    @property
    def shape(self) -> tuple[int, int]:
        """Users and items."""
        ...

    @property
    def nnz(self) -> int:
        """Number of entries."""
        ...

    @property
    def ids(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """The ids of users and items, if they have any."""
        ...

    def astype(self, dtype: np.dtype) -> Self:
        """Return the same interactions with their values in another dtype."""
        ...

    def each(self, cluster: Cluster, function: Look[T]) -> list[T]:
        """See :meth:`gpu_als.train.training_data.TrainingData.each`."""
        ...

    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the number of entries of each user and of each item."""
        ...

    def rows(self, cluster: Cluster, side: int, first: int, last: int) -> Any:
        """Return rows ``first`` to ``last`` of a side: a ``Rows``, or a future of one."""
        ...


class _OfClient:
    """What is known of data that the client can get at."""

    data: InMemory | OnDisk

    @property
    def shape(self) -> tuple[int, int]:
        """See :class:`Source`."""
        return self.data.shape

    @property
    def nnz(self) -> int:
        """See :class:`Source`."""
        return self.data.nnz

    @property
    def ids(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """See :class:`Source`."""
        return self.data.user_ids, self.data.item_ids

    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`Source`."""
        return self.data.counts()


@dataclass(frozen=True)
class MatrixSource(_OfClient):
    """A matrix in the client's memory; rows are sent with the tasks that need them.

    Attributes
    ----------
    data : InMemory
    """

    data: InMemory

    def astype(self, dtype: np.dtype) -> MatrixSource:
        """See :class:`Source`."""
        return MatrixSource(self.data.astype(dtype))

    def each(self, cluster: Cluster, function: Look[T]) -> list[T]:
        """See :class:`Source`; the client does it."""
        return self.data.each(function)

    def rows(self, cluster: Cluster, side: int, first: int, last: int) -> Rows:
        """See :class:`Source`."""
        some = replace(self._both[side], bounds=(first, last)).part(0)
        assert isinstance(some, SparseRows)
        return WholeRows.of(replace(some, indices=some.indices.copy(), values=some.values.copy()))

    @cached_property
    def _both(self) -> tuple[WholeRows, WholeRows]:
        return self.data.rows()


@dataclass(frozen=True)
class ShardSource(_OfClient):
    """Shards in a folder that the client and all workers see under the same name.

    Attributes
    ----------
    data : OnDisk
    """

    data: OnDisk

    def astype(self, dtype: np.dtype) -> ShardSource:
        """See :class:`Source`."""
        return ShardSource(self.data.astype(dtype))

    def each(self, cluster: Cluster, function: Look[T]) -> list[T]:
        """See :class:`Source`; workers do it, each for its share of the rows."""
        counts = self.data.rows[0].counts()
        bounds = cut_by_work(counts + 1.0, len(cluster.workers()))
        futures = [
            cluster.submit(_look, self.data.rows[0].between(first, last), function)
            for first, last in pairwise(bounds)
        ]
        return [result for found in cluster.collect(futures) for result in found]

    def rows(self, cluster: Cluster, side: int, first: int, last: int) -> Rows:
        """See :class:`Source`; nothing is read yet."""
        return self.data.rows[side].between(first, last)


def _look(rows: Rows, function: Look[T]) -> list[T]:
    found = []
    for number, first in enumerate(rows.bounds[:-1]):
        part = rows.part(number)
        assert isinstance(part, SparseRows)
        found.append(function(first, part))
    return found
