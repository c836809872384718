"""Factors exchanged by NCCL between the GPUs of workers, with no way through their hosts.

All members of a group take part in an exchange at the same time, and a call of NCCL does not come
back while one of them is missing. So such calls are made in threads of their own, which are given
up when the client says so, NCCL sees an error, or it takes too long; then the communicator is
aborted and the group is of no more use. engine.py says how a fit continues.
"""

from __future__ import annotations

import socket
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import numpy as np
from distributed import Future as DaskFuture
from distributed import get_worker

from gpu_als.backends import BackendChoice
from gpu_als.core.backend import Backend
from gpu_als.dask.cluster import Cluster, ExchangeError

__all__ = ["Group", "OnGpu", "gather", "gpu_for_nccl"]

_TIMEOUT_SECONDS = 120.0
"""For an exchange, which all members begin at nearly the same time, and for forming a group."""
_SLOWEST = 20e6
"""Bytes a second, for which there is time besides."""
_POLL_SECONDS = 0.05

_member: _Member | None = None
"""Of the one group that this worker is in. Exchanges of two groups, begun in another order on
another worker, would wait for each other."""
_changing_member = threading.Lock()


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
    places : tuple of Future
        Each member's place, which is free again once the future is released.
    """

    token: str
    members: tuple[str, ...]
    places: tuple[DaskFuture, ...]

    @classmethod
    def form(cls, cluster: Cluster, members: Sequence[str], choice: BackendChoice) -> Group:
        """Make each of the workers a member.

        Raises
        ------
        ExchangeError
            NCCL does not connect them, or one of them is a member of another group.
        """

        def on_each(function: Callable[..., None], *args: Any) -> tuple[DaskFuture, ...]:
            return tuple(
                cluster.submit(function, token, rank, *args, on=each, only=True)
                for rank, each in enumerate(members)
            )

        token = uuid.uuid4().hex
        group = cls(token, tuple(members), on_each(_take_place, choice))
        connected: tuple[DaskFuture, ...] = ()
        try:
            cluster.collect(group.places, needed=members)
            first = cluster.submit(_new_identity, choice, on=members[0], only=True)
            (identity,) = cluster.collect([first], needed=members)
            connected = on_each(_connect, identity, len(members))
            cluster.collect(connected, needed=members)
        except BaseException:
            for future in connected:
                future.release()
            group.leave(cluster)
            raise
        return group

    def leave(self, cluster: Cluster) -> None:
        """Have every member that is still there give up what it waits for, and leave."""
        for place in self.places:
            place.release()
        cluster.call_on(self.members, _leave, self.token)


def gpu_for_nccl(backend: Backend) -> str | None:
    """Return what identifies this worker's GPU, or None where NCCL cannot be used."""
    if backend.name != "cupy" or cast(Any, backend).nccl() is None:
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
    return _member_of(token).gather(own, bounds)


class _Member:
    """A worker's part in a group.

    Parameters
    ----------
    token : str
    place : Key
        Of the task that took this place.
    backend : Backend
    rank : int
    """

    def __init__(self, token: str, place: Any, backend: Backend, rank: int) -> None:
        self.token, self.place = token, place
        self._backend, self._rank, self._nccl = backend, rank, cast(Any, backend).nccl()
        self._communicator: Any = None
        self._lock = threading.Lock()  # no check for errors while aborting
        self._given_up = threading.Event()

    def connect(self, identity: Any, n_members: int) -> None:
        """Find the other members, and exchange a number with each."""

        def connect() -> None:
            communicator = self._nccl.NcclCommunicator(n_members, identity, self._rank)
            with self._lock:
                if not self._given_up.is_set():
                    self._communicator = communicator
            if self._communicator is None:  # too late
                communicator.abort()

        self._wait(connect, _TIMEOUT_SECONDS)
        xp = self._backend.xp
        with self._backend.session():
            found = self.gather(xp.full((1, 1), self._rank, xp.float32), range(n_members + 1))
            ranks = self._backend.to_host(found)[:, 0].tolist()
        if ranks != list(range(n_members)):
            raise ExchangeError("NCCL does not deliver what is sent")

    def gather(self, own: Any, bounds: Sequence[int]) -> Any:
        """Return the factors of a side, given those that this member has."""
        xp = self._backend.xp
        every = xp.empty((bounds[-1], own.shape[1]), own.dtype)
        every[bounds[self._rank] : bounds[self._rank + 1]] = own
        xp.cuda.get_current_stream().synchronize()
        seconds = _TIMEOUT_SECONDS + every.nbytes / _SLOWEST
        self._wait(lambda: self._broadcast(every, bounds), seconds)
        return every

    def leave(self) -> None:
        """End a wait, if there is one, and the communicator; does not wait for it itself."""

        def end() -> None:
            with self._lock:
                communicator, self._communicator = self._communicator, None
            if communicator is not None:
                communicator.abort()

        self._given_up.set()
        threading.Thread(target=end, daemon=True).start()

    def _broadcast(self, every: Any, bounds: Sequence[int]) -> None:
        """Have each member send its rows to all others."""
        nccl, stream = self._nccl, self._backend.xp.cuda.Stream(non_blocking=True)
        communicator, row_bytes = self._communicator, every.itemsize * every.shape[1]
        if communicator is None:
            raise TimeoutError("the group is given up")
        nccl.groupStart()
        try:
            for rank, (first, last) in enumerate(pairwise(bounds)):
                place, size = every.data.ptr + first * row_bytes, (last - first) * row_bytes
                communicator.broadcast(place, place, size, nccl.NCCL_UINT8, rank, stream.ptr)
        finally:
            nccl.groupEnd()
        stream.synchronize()

    def _wait(self, call: Callable[[], None], seconds: float) -> None:
        """Make a call of NCCL in a thread, for it may never come back."""
        done: Future[None] = Future()

        def make() -> None:
            try:
                with self._backend.session():
                    call()
                done.set_result(None)
            except BaseException as error:
                done.set_exception(error.with_traceback(None))  # which holds factors

        threading.Thread(target=make, daemon=True).start()
        until = time.monotonic() + seconds
        try:
            while not wait_for([done], _POLL_SECONDS).done:
                if self._given_up.is_set():
                    raise TimeoutError("another member of the group is gone")
                if time.monotonic() > until:
                    raise TimeoutError(f"not done after {seconds:.3g} seconds")
                self._check()
            done.result()
            self._check()
        except Exception as error:
            self.leave()
            raise ExchangeError(f"{type(error).__name__}: {error}") from None

    def _check(self) -> None:
        """Raise what NCCL has found to be wrong meanwhile."""
        with self._lock:
            if self._communicator is not None:
                self._communicator.check_async_error()


def _member_of(token: str) -> _Member:
    if _member is None or _member.token != token:
        raise ExchangeError("a worker has left the group, or was started anew")
    return _member


def _take_place(token: str, rank: int, choice: BackendChoice) -> None:
    """Make this worker a member, unless it is one of a group that there still is.

    There is none where the client has died, as Dask then forgets the task that took the place.
    """
    global _member
    worker = get_worker()
    with _changing_member:
        if _member is not None:
            if _member.place in worker.state.tasks:
                raise ExchangeError("another fit exchanges factors by NCCL on this worker")
            _member.leave()
        _member = _Member(token, worker.get_current_task(), choice.get(), rank)


def _new_identity(choice: BackendChoice) -> Any:
    try:
        return cast(Any, choice.get()).nccl().get_unique_id()
    except Exception as error:
        raise ExchangeError(f"{type(error).__name__}: {error}") from None


def _connect(token: str, rank: int, identity: Any, n_members: int) -> None:
    _member_of(token).connect(identity, n_members)


def _leave(token: str) -> None:
    global _member
    with _changing_member:
        if _member is not None and _member.token == token:
            _member.leave()
            _member = None
