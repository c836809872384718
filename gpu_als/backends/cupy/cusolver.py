"""Batched Cholesky solves through cuSOLVER, in place and with every system's status.

``cupyx.lapack.posv`` makes the same two calls, but copies its arguments and drops the status,
without which a system that is not positive definite cannot be told from a good one.
"""

from __future__ import annotations

from typing import Any

import cupy
from cupy.cuda import device
from cupy_backends.cuda.libs import cublas, cusolver

__all__ = ["cholesky_solve"]

Array = Any


def cholesky_solve(lhs: Array, rhs: Array) -> tuple[Array, Array]:
    """See :meth:`gpu_als.backends.ops.Ops.cholesky_solve`."""
    lhs, solution = cupy.ascontiguousarray(lhs), rhs.astype(lhs.dtype, order="C", copy=True)
    n_systems, m = solution.shape
    if lhs.dtype == cupy.float32:
        factor, solve = cusolver.spotrfBatched, cusolver.spotrsBatched
    else:
        factor, solve = cusolver.dpotrfBatched, cusolver.dpotrsBatched
    handle, triangle = device.get_cusolver_handle(), cublas.CUBLAS_FILL_MODE_LOWER
    status = cupy.zeros(n_systems, dtype=cupy.int32)
    status_solve = cupy.zeros(1, dtype=cupy.int32)
    before = cupy.einsum("bii->bi", lhs).copy()
    # cuSOLVER reads columns first: its lower triangle is the upper one here, which is as good,
    # since the matrices are symmetric.
    at_lhs, at_rhs = _addresses(lhs), _addresses(solution)
    factor(handle, triangle, m, at_lhs.data.ptr, m, status.data.ptr, n_systems)
    solve(
        handle, triangle, m, 1, at_lhs.data.ptr, m, at_rhs.data.ptr, m, status_solve.data.ptr,
        n_systems,
    )  # fmt: skip
    pivots = cupy.einsum("bii->bi", lhs)
    noise = m * cupy.finfo(lhs.dtype).eps
    return solution, (status != 0) | ~(pivots * pivots > noise * before).all(axis=1)


def _addresses(batch: Array) -> Array:
    """Return the device address of each member of a contiguous batch, uint64."""
    places = cupy.arange(len(batch), dtype=cupy.uint64)
    return places * cupy.uint64(batch.strides[0]) + cupy.uint64(batch.data.ptr)
