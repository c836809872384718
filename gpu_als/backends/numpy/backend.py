"""The NumPy backend: batches over a pool of threads, BLAS held to one thread inside."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import scipy.sparse as sp

from gpu_als.backends.native import dense
from gpu_als.backends.native.library import library
from gpu_als.backends.native.rows import solve_rows
from gpu_als.backends.native.top_k import rank_items
from gpu_als.backends.numpy.blas_limit import single_threaded_blas
from gpu_als.backends.numpy.cholesky import cholesky_solve
from gpu_als.core.basis import FixedSide
from gpu_als.core.ops import R, T, blocked_gram, blocked_transform, prefetch
from gpu_als.core.problem import LoadedProblem, RowProblem, load_problem
from gpu_als.core.solvers import Solver
from gpu_als.core.stats import HalfSweepStats

__all__ = ["NumpyBackend"]

_BATCH_ELEMENTS = 1 << 21
"""8 MB of float32 per thread: half as much is slower, twice as much little faster
(benchmarks/DIARY.md)."""


def _usable_processors() -> int:
    if hasattr(os, "sched_getaffinity"):  # not on macOS and Windows
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class NumpyBackend:
    """The CPU.

    Parameters
    ----------
    num_threads : int
        Threads to work with; 0 means all the processors this process may use.
    batch_elements : int
        Array elements that one batch may use, per thread.
    fused : bool
        Solve rows and rank items by compiled code where it was built; without it everything takes
        the general path.
    """

    name = "numpy"
    xp: Any = np
    block_elements = 1 << 20
    stores_half = False

    def __init__(
        self, num_threads: int = 0, batch_elements: int = _BATCH_ELEMENTS, *, fused: bool = True
    ) -> None:
        self.fused = fused and library() is not None
        self._all_threads = _usable_processors()
        self.num_threads = num_threads or self._all_threads
        self.batch_elements = batch_elements
        self.device = f"CPU, {self.num_threads} thread" + "s" * (self.num_threads > 1)
        self._pool = ThreadPoolExecutor(self.num_threads)
        self._buffers = threading.local()
        self._held: dict[tuple[int, str], int] = {}

    def session(self, *, threads: bool = True) -> AbstractContextManager[Any]:
        """Hold BLAS to one thread while batches run in threads of ours."""
        if threads or self.num_threads < self._all_threads:
            return single_threaded_blas
        return nullcontext()

    def map(self, function: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
        """Apply the function in threads; a bounded number of tasks is in flight."""
        if self.num_threads == 1:
            yield from map(function, tasks)
            return
        running: deque[Future[R]] = deque()
        try:
            for task in tasks:
                running.append(self._pool.submit(function, task))
                if len(running) > 8 * self.num_threads:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()

    def workspace(self, name: str, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Return an uninitialised array, from one growing buffer per thread and name."""
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        buffers, key = self._buffers.__dict__, (threading.get_ident(), name)
        self._held[key] = max(size, self._held.get(key, 0))
        if name not in buffers or buffers[name].size < size:
            # As large as a batch may get: what is not written takes no memory, while a buffer that
            # grew would leave holes where it was.
            room = max(size, self.batch_elements * np.dtype(dtype).itemsize)
            buffers[name] = np.empty(room, np.uint8)
        array: np.ndarray = buffers[name][:size].view(dtype).reshape(shape)
        return array

    def take_rows(self, matrix: np.ndarray, indices: np.ndarray, out: np.ndarray) -> None:
        """Gather rows into ``out``."""
        # "clip" lets take write straight into out, where "raise" would buffer
        np.take(matrix, indices, axis=0, out=out, mode="clip")

    def rowwise_matmul(self, rows: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        """Multiply each row by itself."""
        # One product rounds a row in ways that follow from its place and the number of rows.
        product: np.ndarray = (rows[:, None] @ matrix)[:, 0]
        return product

    def gram(self, factors: np.ndarray) -> np.ndarray:
        """Add up by compiled code, where it was built."""
        return dense.gram(factors, self.num_threads) if self.fused else blocked_gram(self, factors)

    def transform(self, factors: np.ndarray, matrix: np.ndarray) -> np.ndarray:
        """Multiply by compiled code, where it was built."""
        if self.fused:
            return dense.transform(factors, matrix, self.num_threads)
        return blocked_transform(self, factors, matrix)

    def cholesky_solve(self, lhs: np.ndarray, rhs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Factor and substitute by compiled code, where it was built."""
        return dense.cholesky_solve(lhs, rhs) if self.fused else cholesky_solve(lhs, rhs)

    def solve_fused(
        self, problem: LoadedProblem, held: FixedSide, solved: np.ndarray, solver: Solver
    ) -> tuple[HalfSweepStats, LoadedProblem]:
        """Solve rows by compiled code, where it was built."""
        if self.fused:
            return solve_rows(self, problem, held, solved, solver, self._pool, self.num_threads)
        return HalfSweepStats(), problem

    def available_memory(self) -> None:
        """Return None: here the data is where it stays."""

    def load(self, problem: RowProblem) -> LoadedProblem:
        """Work out the entries' weights; nothing moves."""
        return load_problem(np, np.asarray, problem, problem.rhs_only)

    def prefetch(self, makers: Iterable[Callable[[], RowProblem]]) -> Iterator[LoadedProblem]:
        """Make one problem after another, the next one in a thread meanwhile."""

        def loader(make: Callable[[], RowProblem]) -> Callable[[], LoadedProblem]:
            return lambda: self.load(make())

        return prefetch(map(loader, makers))

    def top_k(
        self,
        users: np.ndarray,
        items: np.ndarray,
        n_best: int,
        liked: sp.csr_matrix | None,
        filter_items: np.ndarray | None,
    ) -> tuple[np.ndarray, np.ndarray] | None:
        """Rank items by compiled code, where it was built."""
        if not self.fused:
            return None
        return rank_items(users, items, n_best, liked, filter_items, self._pool, self.num_threads)

    def from_host(self, array: Any) -> np.ndarray:
        """Return a NumPy array; one that is there already is not copied."""
        return np.asarray(array)

    to_device = from_host

    def to_host(self, array: np.ndarray) -> np.ndarray:
        """Return the array as it is."""
        return array

    def workspace_bytes(self) -> int:
        """Return the bytes of all threads' buffers."""
        return sum(self._held.values())
