"""Training on a Dask cluster from the command line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gpu_als.errors import ClusterError, InputError

__all__ = ["on_cluster"]

_SECONDS = 20
"""How long to wait for the scheduler to answer."""


@contextmanager
def on_cluster(scheduler: str | None, ratings: Any) -> Iterator[Any]:
    """Give what a model is to be trained on: on a cluster, if there is the address of one.

    Parameters
    ----------
    scheduler : str or None
    ratings : Interactions or ShardedMatrix

    Raises
    ------
    InputError
        dask.distributed is not installed; the message says how to install it.
    ClusterError
        The scheduler does not answer, or has no workers.
    """
    if scheduler is None:
        yield ratings
        return
    try:
        from gpu_als.dask import DaskInteractions
    except ImportError as error:
        raise InputError(f"--scheduler: {error}") from error
    from distributed import Client

    try:
        client = Client(scheduler, timeout=_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ClusterError(
            f"--scheduler: no answer from {scheduler} ({error}); pass the address that 'dask "
            "scheduler' printed, such as tcp://host:8786"
        ) from error
    with client:
        yield DaskInteractions(client, ratings)
