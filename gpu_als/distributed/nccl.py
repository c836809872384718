"""Factors exchanged by NCCL between the GPUs of workers, with no way through their hosts.

All members of a group take part in an exchange at the same time, and a call of NCCL does not come
back while one of them is missing. So such calls are made in threads of their own, which are given
up when the client says so, NCCL sees an error, or patience is at its end; then the communicator is
aborted and the group is of no more use. How a fit goes on from there: engine.py.
"""

from __future__ import annotations

import socket
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from gpu_als.backends import BackendChoice
from gpu_als.backends.ops import Backend
from gpu_als.distributed.cluster import Cluster, ExchangeError
from gpu_als.errors import GpuAlsError

__all__ = ["Group", "OnGpu", "gather", "gpu_for_nccl"]

_PATIENCE_SECONDS = 120.0
"""For an exchange, which all members begin at nearly the same time, and for forming a group."""
_LOOK_SECONDS = 0.02

_member: _Member | None = None
"""Of the one group that this worker is in. Exchanges of two groups, begun in another order on
another worker, would wait for each other."""
_joining = threading.Lock()


class OnGpu:
    """Factors on a worker's GPU. Of host memory they take nothing, which is what Dask counts.

    Attributes
    ----------
    array : array, shape (n, k)
    """

    def __init__(self, array: Any) -> None:
        self.array = array

    @property
    def nbytes(self) -> int:
        """Bytes on the GPU."""
        return int(self.array.nbytes)

    def to_host(self) -> np.ndarray:
        """Return a NumPy array."""
        host: np.ndarray = self.array.get()
        return host


@dataclass(frozen=True)
class Group:
    """Workers whose GPUs exchange factors by NCCL.

    Attributes
    ----------
    token : str
        What members know the group by.
    members : tuple of str
        Addresses, by rank.
    """

    token: str
    members: tuple[str, ...]

    @classmethod
    def form(cls, cluster: Cluster, members: Sequence[str], choice: BackendChoice) -> Group:
        """Make each of the workers a member.

        Raises
        ------
        ExchangeError
            NCCL does not connect them, or one of them is a member of another group.
        """
        group = cls(uuid.uuid4().hex, tuple(members))
        try:
            first = cluster.submit(_new_identity, on=members[0], only=True)
            (identity,) = cluster.collect([first], needed=members)
            joined = [
                cluster.submit(
                    _join, group.token, identity, len(members), rank, choice, on=each, only=True
                )
                for rank, each in enumerate(members)
            ]
            cluster.collect(joined, needed=members)
        except GpuAlsError:
            group.leave(cluster)
            raise
        return group

    def leave(self, cluster: Cluster) -> None:
        """Have every member that is still there give up what it waits for, and leave."""
        cluster.call_on(self.members, _leave, self.token)


def gpu_for_nccl(backend: Backend) -> str | None:
    """Return what tells this worker's GPU from others, or None where NCCL cannot be used."""
    if backend.name != "cupy":
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CuPy's, where the library is missing
        nccl = _nccl()
    if not getattr(nccl, "available", False):
        return None
    with backend.session():
        return f"{socket.gethostname()} {backend.xp.cuda.Device().pci_bus_id}"


def gather(token: str, own: Any, bounds: Sequence[int]) -> Any:
    """Return the factors of a side, of which each member has some.

    Parameters
    ----------
    token : str
        Of the group, all of whose members call this at the same time.
    own : array, shape (bounds[rank + 1] - bounds[rank], k)
        On this worker's GPU.
    bounds : sequence of int
        The member of rank r has the rows ``bounds[r]`` to ``bounds[r + 1]``.

    Returns
    -------
    array, shape (bounds[-1], k)

    Raises
    ------
    ExchangeError
    """
    member = _member
    if member is None or member.token != token:
        raise ExchangeError("a worker was started anew")
    return member.gather(own, bounds)


class _Member:
    """A worker's part in a group."""

    def __init__(self, token: str, backend: Backend, rank: int) -> None:
        self.token = token
        self._backend, self._rank = backend, rank
        self._communicator: Any = None
        self._in_use, self._given_up = threading.Lock(), threading.Event()

    def connect(self, identity: tuple[int, ...], n_members: int) -> None:
        def connected() -> Any:
            return _nccl().NcclCommunicator(n_members, identity, self._rank)

        self._communicator = self._wait(connected)

    def gather(self, own: Any, bounds: Sequence[int]) -> Any:
        xp = self._backend.xp
        every = xp.empty((bounds[-1], own.shape[1]), own.dtype)
        every[slice(*bounds[self._rank : self._rank + 2])] = own
        xp.cuda.get_current_stream().synchronize()
        self._wait(lambda: self._broadcast(every, bounds))
        return every

    def leave(self) -> None:
        """End a wait, if there is one, and then the communicator; does not wait for either."""

        def end() -> None:
            with self._in_use:
                self._abort()

        self._given_up.set()
        threading.Thread(target=end, daemon=True).start()

    def _broadcast(self, every: Any, bounds: Sequence[int]) -> None:
        """Have each member send its rows to all others."""
        nccl, stream = _nccl(), self._backend.xp.cuda.Stream(non_blocking=True)
        row_bytes = every.itemsize * every.shape[1]
        nccl.groupStart()
        try:
            for rank, (first, last) in enumerate(pairwise(bounds)):
                place, size = every.data.ptr + first * row_bytes, (last - first) * row_bytes
                self._communicator.broadcast(place, place, size, nccl.NCCL_UINT8, rank, stream.ptr)
        finally:
            nccl.groupEnd()
        stream.synchronize()

    def _wait(self, call: Callable[[], Any]) -> Any:
        """Make a call of NCCL in a thread, for it may never come back."""
        result: Future[Any] = Future()

        def make() -> None:
            try:
                with self._backend.session():
                    result.set_result(call())
            except BaseException as error:
                result.set_exception(error)

        with self._in_use:
            threading.Thread(target=make, daemon=True).start()
            try:
                self._until(result.done)
                found = result.result()
                self._check()
            except Exception as error:
                self._abort()
                raise ExchangeError(f"{type(error).__name__}: {error}") from error
        return found

    def _until(self, done: Callable[[], bool]) -> None:
        until = time.monotonic() + _PATIENCE_SECONDS
        while not done():
            if self._given_up.wait(_LOOK_SECONDS):
                raise TimeoutError("another member of the group is gone")
            if time.monotonic() > until:
                raise TimeoutError(f"nothing came for {_PATIENCE_SECONDS:g} seconds")
            self._check()

    def _check(self) -> None:
        """Raise what has gone wrong meanwhile."""
        if self._communicator is not None:
            self._communicator.check_async_error()

    def _abort(self) -> None:
        """End what is under way; only whoever has ``_in_use`` may do it."""
        self._given_up.set()
        if self._communicator is not None:
            self._communicator.abort()
            self._communicator = None


def _nccl() -> Any:
    from cupy.cuda import nccl  # only here, so CuPy stays optional

    return nccl


def _new_identity() -> tuple[int, ...]:
    identity: tuple[int, ...] = _nccl().get_unique_id()
    return identity


def _join(
    token: str, identity: tuple[int, ...], n_members: int, rank: int, choice: BackendChoice
) -> None:
    global _member
    with _joining:
        if _member is not None:
            raise ExchangeError("another fit exchanges factors by NCCL on this worker")
        _member = _Member(token, choice.get(), rank)
    _member.connect(identity, n_members)


def _leave(token: str) -> None:
    global _member
    with _joining:
        if _member is not None and _member.token == token:
            _member.leave()
            _member = None
