"""What half-sweeps, fits and rankings ask of a device."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp

from gpu_als.core.basis import FixedSide
from gpu_als.core.ops import Ops
from gpu_als.core.problem import Array, LoadedProblem, RowProblem
from gpu_als.core.solvers import Solver
from gpu_als.core.stats import HalfSweepStats

__all__ = ["Backend"]


class Backend(Ops, Protocol):
    """A device that holds arrays and solves rows."""

    name: str
    """"numpy" or "cupy"."""
    device: str
    """The device in words, for reports."""
    stores_half: bool
    """The fixed side is gathered as float16."""

    def session(self, *, threads: bool = True) -> AbstractContextManager[Any]:
        """Return a context in which work on the device is done.

        ``threads`` is False where no :meth:`map` will run in it, so that a library may have all
        threads for a product.
        """
        ...

    def available_memory(self) -> tuple[int, int] | None:
        """Return the bytes that are free and the bytes that batches use; None if data stays put."""
        ...

    def load(self, problem: RowProblem) -> LoadedProblem:
        """Return the problem with its arrays on the device, its weights worked out."""
        ...

    def prefetch(self, makers: Iterable[Callable[[], RowProblem]]) -> Iterator[LoadedProblem]:
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
        """Return an array on the device, given a NumPy array or what :meth:`to_device` returned."""
        ...

    def to_device(self, factors: Any) -> Any:
        """Return factors as a model keeps them: a NumPy array, or a matrix on the GPU.

        Parameters
        ----------
        factors : NumPy array, or what any backend's ``to_device`` returned
        """
        ...

    def to_host(self, array: Array) -> np.ndarray:
        """Return ``array`` as a NumPy array."""
        ...

    def workspace_bytes(self) -> int:
        """Return the largest workspace the device has held so far, in bytes."""
        ...

    def solve_fused(
        self, problem: LoadedProblem, held: FixedSide, solved: Array, solver: Solver
    ) -> tuple[HalfSweepStats, LoadedProblem]:
        """Solve the rows that the device has something faster for than batches, in place.

        Parameters
        ----------
        problem : LoadedProblem
        held : FixedSide
        solved : array, shape (n_rows, k)
        solver : Solver
            One that the device has no kernel for takes the general path.

        Returns
        -------
        stats : HalfSweepStats
            Of the rows that were solved.
        problem : LoadedProblem
            The rows that are left: those that were not tried, and those that failed, which keep
            their values.
        """
        ...
