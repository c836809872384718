"""What the shared row solver asks of a device: an array module and a handful of operations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

import numpy as np
import scipy.sparse as sp

from gpu_als.core.problem import Array, RowProblem
from gpu_als.core.solvers import Solver
from gpu_als.core.stats import HalfSweepStats

__all__ = ["Backend", "Ops", "R", "T", "one_ahead"]

T = TypeVar("T")
R = TypeVar("R")


class Ops(Protocol):
    """Primitive operations of a backend. All arrays are of the array module ``xp``."""

    batch_elements: int
    """Array elements that one batch may use."""
    block_elements: int
    """Factors that one step of a pass over all rows takes; constant, since sums follow it."""

    @property
    def xp(self) -> Any:
        """The array module: numpy or cupy."""
        ...

    def map(self, function: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
        """Apply ``function`` to every task, perhaps in parallel; results in the tasks' order."""
        ...

    def workspace(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        """Return an uninitialised array, valid until ``name`` is asked for again by this thread."""
        ...

    def take_rows(self, matrix: Array, indices: Array, out: Array) -> None:
        """``out[...] = matrix[indices]``; the indices are known to be in range."""
        ...

    def multiply_each(self, rows: Array, matrix: Array) -> Array:
        """``rows @ matrix``, in which no row depends on how many there are, to the last bit."""
        ...

    def cholesky_solve(self, lhs: Array, rhs: Array) -> tuple[Array, Array]:
        """Solve a batch of symmetric positive definite systems.

        Parameters
        ----------
        lhs : array, shape (B, m, m)
            Both triangles filled; overwritten.
        rhs : array, shape (B, m)

        Returns
        -------
        solution : array, shape (B, m)
            Unspecified where failed.
        failed : bool array, shape (B,)
            Systems that are not positive definite in this precision.
        """
        ...

    def solve_fused(
        self, problem: RowProblem, frame: Any, solved: Array, solver: Solver
    ) -> tuple[HalfSweepStats, RowProblem]:
        """Solve the rows that the device has something faster for than batches, in place.

        Parameters
        ----------
        problem : RowProblem
            With its arrays on the device.
        frame : Frame
            The coordinates of this half-sweep.
        solved : array, shape (n_rows, k)
        solver : Solver

        Returns
        -------
        stats : HalfSweepStats
            Of the rows that were solved.
        problem : RowProblem
            The rows that are left: those that were not tried, and those that failed, which keep
            their values.
        """
        ...


class Backend(Ops, Protocol):
    """A device that holds arrays and solves rows."""

    name: str
    """"numpy" or "cupy"."""
    device: str
    """The device in words, for reports."""
    stores_half: bool
    """The fixed side is gathered as float16."""

    def session(self) -> AbstractContextManager[Any]:
        """Return a context in which work on the device is done."""
        ...

    def room(self) -> tuple[int, int] | None:
        """Return the bytes that are free and the bytes that batches use; None if data stays put."""
        ...

    def load(self, problem: RowProblem) -> RowProblem:
        """Return the problem with its arrays on the device."""
        ...

    def load_ahead(self, makers: Iterable[Callable[[], RowProblem]]) -> Iterator[RowProblem]:
        """Yield one problem after another on the device, the next on its way meanwhile.

        A problem's memory is used again once the next but one is asked for.
        """
        ...

    def top_k(
        self,
        users: Array,
        items: Array,
        n_best: int,
        liked: sp.csr_matrix | None,
        filter_items: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Rank items as :func:`gpu_als.ranking.top_k.top_k` does, if the device can do it faster.

        Returns None where it cannot.
        """
        ...

    def from_host(self, array: Any) -> Array:
        """Return an array on the device, given a NumPy array or what :meth:`hold` returned."""
        ...

    def hold(self, factors: Any) -> Any:
        """Return factors as a model keeps them: a NumPy array, or a matrix on the GPU.

        Parameters
        ----------
        factors : NumPy array, or what any backend's ``hold`` returned
        """
        ...

    def to_host(self, array: Array) -> np.ndarray:
        """Return ``array`` as a NumPy array."""
        ...

    def workspace_bytes(self) -> int:
        """Return the largest workspace the device has held so far, in bytes."""
        ...


def one_ahead(makers: Iterable[Callable[[], T]]) -> Iterator[T]:
    """Yield what each function returns; the next one runs in a thread in the meantime.

    Nothing is kept: while one result is in use, one more is in memory or being made.
    """
    with ThreadPoolExecutor(1) as thread:
        pending: Future[T] | None = None
        for make in makers:
            following = thread.submit(make)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()
