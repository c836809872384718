"""A Dask cluster as fits use it: its tasks, what went wrong with them, and who gets which rows."""

from __future__ import annotations

import asyncio
import copy
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError
from concurrent.futures import wait as wait_for
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast

import dask
import numpy as np
from distributed import Client, Future, wait
from distributed.scheduler import KilledWorker

from gpu_als.errors import ClusterError, GpuAlsError, ReadError

__all__ = ["Cluster", "ExchangeError", "partition_by_work", "place", "work_of_rows"]

_POLL_SECONDS = 2.0
"""How often to look whether the cluster is still there."""
_TIMEOUT_SECONDS = 60.0
"""How long to wait for a worker when there is none."""
_CALL_SECONDS = 5.0
"""How long to wait for a short function beside the tasks."""
_HINT = (
    "with fit(..., checkpoint=FILE) the state of the last iteration is in that file, and "
    "resume=True continues from it"
)
_MORE_MEMORY = "give workers more memory, add workers, or use fewer factors. Then " + _HINT

_changing_config = threading.Lock()


class ExchangeError(ClusterError):
    """Workers that do something together have lost one of them, or cannot reach each other."""


@dataclass(frozen=True)
class Cluster:
    """Workers that a client can reach.

    Methods raise :class:`~gpu_als.errors.ClusterError` where the cluster is lost, and the errors
    of tasks as they are.

    Attributes
    ----------
    client : distributed.Client
    timeout : float, optional
        Seconds to wait for a worker when there is none.
    """

    client: Client
    timeout: float | None = None

    def workers(self) -> dict[str, int]:
        """Return the address and the number of threads of each worker that takes tasks.

        Waits a while if there is none.
        """
        with self._plain_errors():
            until = self._until()
            while not (found := self._running()):
                self._check_timeout(until)
                time.sleep(_POLL_SECONDS / 10)
        return found

    def submit(
        self,
        function: Callable[..., Any],
        *args: Any,
        on: str | None = None,
        only: bool = False,
    ) -> Future:
        """Have a worker call a function: the one ``on`` an address, if it is there, or any.

        With ``only`` none but that one, so that the task waits for ever if it is gone.
        """
        where = {} if on is None else {"workers": [on], "allow_other_workers": not only}
        with self._plain_errors(), _large_graphs():
            self._check()
            return self.client.submit(function, *args, pure=False, **where)

    def compute(self, delayed: Sequence[Any]) -> list[Future]:
        """Have workers compute delayed values."""
        with self._plain_errors(), _large_graphs():
            self._check()
            futures: list[Future] = self.client.compute(list(delayed))
            return futures

    def collect(self, futures: Sequence[Future], needed: Sequence[str] = ()) -> list[Any]:
        """Return the results of tasks, and see meanwhile whether there is anyone to compute them.

        Errors of tasks end the waiting, and all of these futures. It ends too, with an
        :class:`ExchangeError`, when a worker that is ``needed`` takes no tasks any more.
        """
        with self._plain_errors():
            self._check()
            self._wait(futures, needed)
            try:
                return self._fetch(futures, needed)
            except Exception as error:
                if any(future.status == "error" for future in futures):
                    for future in futures:
                        future.release()  # tracebacks, in Dask too, may keep them
                    raise _OfTask from error
                raise

    def call_on(self, workers: Sequence[str], function: Callable[..., Any], *args: Any) -> None:
        """Call a short function on workers beside their tasks, on those that can be reached."""

        def call() -> None:
            with suppress(Exception):
                known = self.client.nthreads()
                there = [each for each in workers if each in known]
                if there:
                    self.client.run(function, *args, workers=there, on_error="ignore")

        if self.client.status == "running":
            calling = threading.Thread(target=call, daemon=True)  # which may hang with a worker
            calling.start()
            calling.join(_CALL_SECONDS)

    def _wait(self, futures: Sequence[Future], needed: Sequence[str]) -> None:
        until = self._until()
        while any(future.status == "pending" for future in futures):
            if any(future.status == "error" for future in futures):
                return
            try:
                with self.client.as_current():
                    wait(futures, timeout=_POLL_SECONDS)
                return
            except TimeoutError as error:
                # A frame of Dask's holds the error, which holds that frame, all callers' and every
                # future they know: workers would keep results until garbage is collected here.
                error.__traceback__ = None
            until = self._poll(until, futures, needed)

    def _fetch(self, futures: Sequence[Future], needed: Sequence[str]) -> list[Any]:
        """Return results that are there, or were just now."""
        until, loop = self._until(), cast(Any, self.client.loop)
        coming = self.client.gather(list(futures), asynchronous=True)
        fetching = asyncio.run_coroutine_threadsafe(coming, loop.asyncio_loop)
        try:
            while not wait_for([fetching], _POLL_SECONDS).done:
                until = self._poll(until, futures, needed)
            found: list[Any] = fetching.result()
            return found
        finally:
            fetching.cancel()

    def _running(self) -> dict[str, int]:
        """Return the workers that Dask has not paused, as it does when memory is nearly full."""
        self._check()
        known = self.client.scheduler_info(n_workers=-1)[
            "workers"
        ]  # some versions return five by default
        paused = {address for address, each in known.items() if each["status"] == "paused"}
        return {each: n for each, n in self.client.nthreads().items() if each not in paused}

    def _makes_progress(self, futures: Sequence[Future]) -> bool:
        """Return whether workers that are not paused compute something, or have all results."""
        running = self._running()
        busy = {address for address, tasks in self.client.processing().items() if tasks}
        if not busy:  # results are on their way, or were lost with what they are made of
            return bool(running) and all(self.client.who_has(list(futures)).values())
        if busy <= running.keys():
            return True
        try:
            return bool(busy & running.keys()) or any(self.client.call_stack().values())
        except OSError:  # a worker was lost while it was asked; the next poll finds out
            return True

    def _until(self) -> float:
        return time.monotonic() + (_TIMEOUT_SECONDS if self.timeout is None else self.timeout)

    def _poll(self, until: float, futures: Sequence[Future], needed: Sequence[str]) -> float:
        """Return until when to wait; see :meth:`_check_timeout`."""
        if not self._running().keys() >= set(needed):
            raise ExchangeError("a worker was lost, or paused because its memory is nearly full")
        if self._makes_progress(futures):
            return self._until()
        self._check_timeout(until)
        return until

    def _check_timeout(self, until: float) -> None:
        if time.monotonic() < until:
            return
        if self._running():
            raise ClusterError(
                "workers were lost with what the others need, and came back without it; " + _HINT
            )
        if self.client.nthreads():
            raise ClusterError(
                "workers are paused because their memory is nearly full; " + _MORE_MEMORY
            )
        raise ClusterError(f"the cluster has no workers (any more); {_HINT}")

    def _check(self) -> None:
        if self.client.status != "running":
            raise ClusterError(f"the client has lost the cluster, or was closed; {_HINT}")

    @contextmanager
    def _plain_errors(self) -> Iterator[None]:
        try:
            yield
        except _OfTask as error:
            raise _plainly(error.__cause__) from None
        except GpuAlsError:
            raise
        except Exception as error:
            lost = isinstance(error, CancelledError | OSError) or self.client.status != "running"
            if not lost:
                raise
            raise ClusterError(f"the cluster was lost ({_in_words(error)}); {_HINT}") from error


class _OfTask(Exception):
    """Its cause was raised by a task, not by the way to the cluster."""


def _plainly(error: BaseException | None) -> BaseException:
    """Return an error of a task, or one that says what it means for the fit."""
    if isinstance(error, ReadError):
        plain: BaseException = ReadError(
            f"a worker says: {error}. Every worker has to see the folder under the same name"
        )
    elif isinstance(error, GpuAlsError):
        plain = copy.copy(error)
    elif isinstance(error, KilledWorker):
        plain = ClusterError(
            f"workers died again and again over one task ({error.task}), most likely for want of "
            "memory; " + _MORE_MEMORY
        )
    elif isinstance(error, MemoryError):
        plain = ClusterError(f"a worker ran out of memory ({_in_words(error)}); {_MORE_MEMORY}")
    elif isinstance(error, OSError):
        plain = ClusterError(
            f"a worker cannot use a file ({_in_words(error)}); if that is one of its own, give it "
            f"room for what it spills. {_HINT}"
        )
    else:
        assert error is not None
        return error
    # Futures hold their error, and its traceback would hold them.
    error.__traceback__ = None
    return plain


def _in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")


@contextmanager
def _large_graphs() -> Iterator[None]:
    """Send data in graphs without a warning: lost workers' rows are made again from there."""
    threshold = {"distributed.admin.large-graph-warning-threshold": "1 PiB"}
    with _changing_config, dask.config.set(threshold):
        yield


# Placement: ranges of equal work, not of equal length

_GATHER = 40
"""What reading one factor costs, in multiplications: memory is that much slower."""


def work_of_rows(counts: np.ndarray, n_factors: int) -> np.ndarray:
    """Return what each row costs to solve, in multiplications.

    A row of n entries gathers ``n k`` factors and is solved in the cheaper of its two forms:
    ``n^2 k + n^3 / 3`` or ``n k^2 + k^3 / 3``. Whatever its length it takes part in changes of
    coordinates, ``k^2``.

    Parameters
    ----------
    counts : int64 array, shape (n_rows,)
    n_factors : int

    Returns
    -------
    float64 array, shape (n_rows,)
    """
    n, k = counts.astype(np.float64), float(n_factors)
    solve = np.minimum(n**2 * k + n**3 / 3, n * k**2 + k**3 / 3)
    return solve + _GATHER * n * k + k**2


def partition_by_work(work: np.ndarray, n_ranges: int) -> tuple[int, ...]:
    """Cut rows into at most ``n_ranges`` runs of about equal work.

    Parameters
    ----------
    work : float64 array, shape (n_rows,)
        Positive.
    n_ranges : int

    Returns
    -------
    tuple of int
        The first row of each run, and the number of rows. No run is empty.
    """
    before = np.append(0, np.cumsum(work))
    aims = before[-1] * np.arange(1, n_ranges) / n_ranges
    after = np.searchsorted(before, aims)
    nearest = np.where(aims - before[after - 1] < before[after] - aims, after - 1, after)
    return tuple(np.unique([0, *nearest.tolist(), len(work)]).tolist())


def place(former: Sequence[str | None], workers: Mapping[str, int]) -> list[str]:
    """Return the worker of each range, leaving ranges where they are as far as that is fair.

    Parameters
    ----------
    former : sequence of str or None
        The worker that each range was on last, if any.
    workers : mapping of str to int
        Address and number of threads of the workers there are; at least one.
    """
    most = -(-len(former) // len(workers))
    chosen: list[str | None] = []
    load = dict.fromkeys(sorted(workers), 0)
    for worker in former:
        stays = worker in load and load[worker] < most
        chosen.append(worker if stays else None)
        if stays:
            assert worker is not None
            load[worker] += 1
    placed = []
    for worker in chosen:
        if worker is None:
            worker = min(load, key=load.__getitem__)
            load[worker] += 1
        placed.append(worker)
    return placed
