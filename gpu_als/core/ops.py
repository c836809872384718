"""What the shared row solver asks of a device: an array module and a handful of operations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from gpu_als.core.problem import Array

__all__ = ["Ops", "R", "T", "blocked_gram", "blocked_transform", "prefetch"]

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

    def rowwise_matmul(self, rows: Array, matrix: Array) -> Array:
        """``rows @ matrix``, in which no row depends on how many there are, to the last bit."""
        ...

    def gram(self, factors: Array) -> Array:
        """``factors^T factors`` in float64, shape (k, k), added in a fixed order."""
        ...

    def transform(self, factors: Array, matrix: Array) -> Array:
        """``factors @ matrix``, computed in the wider of their dtypes and rounded once."""
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


def blocked_gram(ops: Ops, factors: Array) -> Array:
    """Return :meth:`Ops.gram` by the array module, block by block."""
    xp = ops.xp
    total = xp.zeros((factors.shape[1],) * 2)

    def partial(start: int) -> Array:
        block = factors[start : start + height].astype(xp.float64)
        return block.T @ block

    height = _height(ops, factors)
    for part in ops.map(partial, range(0, len(factors), height)):
        total += part
    return total


def blocked_transform(ops: Ops, factors: Array, matrix: Array) -> Array:
    """Return :meth:`Ops.transform` by the array module, block by block."""
    out = ops.xp.empty_like(factors)

    def block(start: int) -> None:
        rows = slice(start, start + height)
        out[rows] = factors[rows].astype(matrix.dtype, copy=False) @ matrix

    height = _height(ops, factors)
    for _ in ops.map(block, range(0, len(factors), height)):
        pass
    return out


def _height(ops: Ops, factors: Array) -> int:
    """Return how many rows to take at a time: always the same, since sums follow it."""
    return max(1, ops.block_elements // factors.shape[1])


def prefetch(makers: Iterable[Callable[[], T]]) -> Iterator[T]:
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
