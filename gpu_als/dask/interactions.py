"""Interactions that a cluster trains on, in the place of a matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from distributed import Client

from gpu_als.backends import BackendChoice
from gpu_als.core.objectives import Objective
from gpu_als.core.problem import SparseRows
from gpu_als.dask.cluster import Cluster
from gpu_als.dask.collections import CollectionSource, is_collection
from gpu_als.dask.engine import DaskEngine
from gpu_als.dask.sources import MatrixSource, ShardSource, Source
from gpu_als.data.shards import ShardedMatrix
from gpu_als.errors import InputError
from gpu_als.train.training_data import InMemory, OnDisk, TrainingData, as_training_data

__all__ = ["DaskInteractions"]

T = TypeVar("T")


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
        self._source = _source(self._cluster, interactions, shape)

    @property
    def shape(self) -> tuple[int, int]:  # type: ignore[override]
        """Users and items."""
        return self._source.shape

    @property
    def nnz(self) -> int:  # type: ignore[override]
        """Number of entries."""
        return self._source.nnz

    @property
    def user_ids(self) -> np.ndarray | None:  # type: ignore[override]
        """The ids of the users."""
        return self._source.ids[0]

    @property
    def item_ids(self) -> np.ndarray | None:  # type: ignore[override]
        """The ids of the items."""
        return self._source.ids[1]

    def astype(self, dtype: np.dtype) -> DaskInteractions:
        """See :class:`~gpu_als.train.training_data.TrainingData`."""
        other = object.__new__(DaskInteractions)
        other._cluster, other._source = self._cluster, self._source.astype(dtype)
        return other

    def each(self, function: Callable[[int, SparseRows], T]) -> list[T]:
        """See :class:`~gpu_als.train.training_data.TrainingData`."""
        return self._source.each(self._cluster, function)

    def counts(self) -> tuple[np.ndarray, np.ndarray]:
        """See :class:`~gpu_als.train.training_data.TrainingData`."""
        return self._source.counts()

    def engine(self, objective: Objective, n_factors: int, backend: BackendChoice) -> DaskEngine:
        """See :class:`~gpu_als.train.training_data.TrainingData`."""
        return DaskEngine(self._cluster, self._source, objective, n_factors, backend)


def _source(cluster: Cluster, interactions: Any, shape: tuple[int, int] | None) -> Source:
    if is_collection(interactions):
        return CollectionSource.of(cluster, interactions, shape)
    if shape is not None:
        raise InputError("shape goes with a Dask DataFrame; others have a shape of their own")
    if isinstance(interactions, DaskInteractions):
        raise InputError("interactions: these are DaskInteractions already; pass them to fit")
    data = as_training_data(interactions, name="interactions", dtype=_own_dtype(interactions))
    if isinstance(data, OnDisk):
        return ShardSource(data)
    assert isinstance(data, InMemory)
    return MatrixSource(data)


def _own_dtype(interactions: Any) -> np.dtype:
    """Return float64 for what is more exact than float32: the estimator says what it wants."""
    if isinstance(interactions, ShardedMatrix):
        return interactions.dtype
    matrix = getattr(interactions, "user_items", interactions)
    narrow = getattr(matrix, "dtype", None) in (np.float32, np.float16, np.int8, np.uint8, bool)
    return np.dtype(np.float32 if narrow else np.float64)
