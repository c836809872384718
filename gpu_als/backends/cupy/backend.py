"""The CuPy backend: the shared row solver on a CUDA GPU, one batch after another.

This is the general path: gather, batched matrix products for the Grams, cuSOLVER for the systems.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.sparse as sp

from gpu_als.backends.ops import R, T
from gpu_als.errors import BackendError
from gpu_als.row_problem import RowProblem, SparseRows

__all__ = ["CupyBackend"]

Array = Any

_INSTALL = "install it with pip install 'gpu-als[cuda13]' (or [cuda12] for a CUDA 12 driver)"
_SMALLEST_BATCH, _LARGEST_BATCH = 1 << 22, 1 << 28
_BYTES_PER_ELEMENT = 64
"""A batch keeps a handful of arrays of its size; this leaves most of the memory for data."""


class CupyBackend:
    """The current CUDA device.

    Raises
    ------
    BackendError
        CuPy is not installed, or there is no GPU it can use.
    """

    name = "cupy"

    def __init__(self) -> None:
        try:
            import cupy
        except ImportError as error:
            raise BackendError(
                f"backend 'cupy' needs CuPy, which cannot be imported ({error}); {_INSTALL}, or "
                "use backend='numpy'"
            ) from error
        try:
            properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.runtime.getDevice())
            free, _ = cupy.cuda.runtime.memGetInfo()
        except cupy.cuda.runtime.CUDARuntimeError as error:
            raise BackendError(
                f"backend 'cupy' found no usable GPU ({error}); check that nvidia-smi lists one "
                "and that its driver supports the installed CuPy's CUDA version, or use "
                "backend='numpy'"
            ) from error
        self.xp: Any = cupy
        self.device = properties["name"].decode()
        wanted = free // _BYTES_PER_ELEMENT
        self.batch_elements = int(min(max(wanted, _SMALLEST_BATCH), _LARGEST_BATCH))
        self._held: dict[str, int] = {}

    def session(self) -> AbstractContextManager[Any]:
        """Work on the device that was current when the backend was made."""
        current: AbstractContextManager[Any] = self.xp.cuda.Device()
        return current

    def map(self, function: Callable[[T], R], tasks: Iterable[T]) -> Iterator[R]:
        """See :class:`gpu_als.backends.ops.Ops`; one after another."""
        return map(function, tasks)

    def workspace(self, name: str, shape: tuple[int, ...], dtype: Any) -> Array:
        """See :class:`gpu_als.backends.ops.Ops`; CuPy's memory pool recycles them."""
        array = self.xp.empty(shape, dtype)
        self._held[name] = max(self._held.get(name, 0), array.nbytes)
        return array

    def take_rows(self, matrix: Array, indices: Array, out: Array) -> None:
        """See :class:`gpu_als.backends.ops.Ops`."""
        self.xp.take(matrix, indices, axis=0, out=out)

    def cholesky_solve(self, lhs: Array, rhs: Array) -> tuple[Array, Array]:
        """See :class:`gpu_als.backends.ops.Ops`."""
        from gpu_als.backends.cupy.cusolver import cholesky_solve

        return cholesky_solve(lhs, rhs)

    def load(self, problem: RowProblem) -> RowProblem:
        """Return the problem with its arrays on the device."""
        rows, move = problem.rows, self.xp.asarray
        return replace(
            problem,
            rows=SparseRows(
                move(rows.indptr),
                move(rows.indices),
                move(rows.values),
                None if rows.weights is None else move(rows.weights),
                rows.n_fixed,
            ),
            packing=replace(problem.packing, order=move(problem.packing.order)),
            ridge=problem.ridge if isinstance(problem.ridge, float) else move(problem.ridge),
            linear=self._load_linear(problem.linear),
        )

    def _load_linear(self, linear: Any) -> Any:
        if not sp.issparse(linear):
            return None if linear is None else self.xp.asarray(linear)
        if linear.nnz >= 2**31:
            raise BackendError(
                f"{linear.nnz} entries of confidence 1 exceed what CuPy's sparse matrices hold "
                "(2^31); use backend='numpy' or an alpha other than 1"
            )
        import cupyx.scipy.sparse

        return cupyx.scipy.sparse.csr_matrix(linear)

    def from_host(self, array: np.ndarray) -> Array:
        """Return a NumPy array on the device."""
        return self.xp.asarray(array)

    def to_host(self, array: Array) -> np.ndarray:
        """Return an array of the device as a NumPy array."""
        host: np.ndarray = self.xp.asnumpy(array)
        return host

    def workspace_bytes(self) -> int:
        """Return the largest workspace asked for so far."""
        return sum(self._held.values())
