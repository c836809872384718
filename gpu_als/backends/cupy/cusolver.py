"""Cholesky solves through cuSOLVER, in place and with every system's status.

Small systems go all at once; its batched routine is made for those, so large ones go one by one.
``cupyx.lapack.posv`` makes the same two calls, but copies its arguments and drops the status,
without which a system that is not positive definite cannot be told from a good one.
"""

from __future__ import annotations

import cupy
from cupy.cuda import device
from cupy_backends.cuda.libs import cublas, cusolver

from gpu_als.core.problem import Array

__all__ = ["cholesky_solve"]

_LARGEST_BATCHED = 512


def cholesky_solve(lhs: Array, rhs: Array) -> tuple[Array, Array]:
    """Solve a batch of symmetric positive definite systems, and say which of them failed.

    Shapes are those of :meth:`gpu_als.core.ops.Ops.cholesky_solve`.
    """
    lhs, solution = cupy.ascontiguousarray(lhs), rhs.astype(lhs.dtype, order="C", copy=True)
    before = cupy.einsum("bii->bi", lhs).copy()
    solve = _solve_one_by_one if solution.shape[1] > _LARGEST_BATCHED else _solve_batched
    status = solve(lhs, solution)
    pivots = cupy.einsum("bii->bi", lhs)
    noise = solution.shape[1] * cupy.finfo(lhs.dtype).eps
    return solution, (status != 0) | ~(pivots * pivots > noise * before).all(axis=1)


# cuSOLVER reads columns first: its lower triangle is the upper one here, which is as good, since
# the matrices are symmetric.


def _solve_batched(lhs: Array, solution: Array) -> Array:
    """Factor ``lhs`` and solve in place; return the status of each factorisation."""
    n_systems, m = solution.shape
    single = lhs.dtype == cupy.float32
    factor = cusolver.spotrfBatched if single else cusolver.dpotrfBatched
    solve = cusolver.spotrsBatched if single else cusolver.dpotrsBatched
    handle, triangle = device.get_cusolver_handle(), cublas.CUBLAS_FILL_MODE_LOWER
    status = cupy.zeros(n_systems, dtype=cupy.int32)
    status_solve = cupy.zeros(1, dtype=cupy.int32)
    at_lhs, at_rhs = _addresses(lhs), _addresses(solution)
    factor(handle, triangle, m, at_lhs.data.ptr, m, status.data.ptr, n_systems)
    solve(
        handle, triangle, m, 1, at_lhs.data.ptr, m, at_rhs.data.ptr, m, status_solve.data.ptr,
        n_systems,
    )  # fmt: skip
    return status


def _solve_one_by_one(lhs: Array, solution: Array) -> Array:
    """As :func:`_solve_batched`."""
    n_systems, m = solution.shape
    single = lhs.dtype == cupy.float32
    size_of = cusolver.spotrf_bufferSize if single else cusolver.dpotrf_bufferSize
    factor = cusolver.spotrf if single else cusolver.dpotrf
    solve = cusolver.spotrs if single else cusolver.dpotrs
    handle, triangle = device.get_cusolver_handle(), cublas.CUBLAS_FILL_MODE_LOWER
    status = cupy.zeros(n_systems, dtype=cupy.int32)
    status_solve = cupy.zeros(1, dtype=cupy.int32)
    size = size_of(handle, triangle, m, lhs.data.ptr, m)
    work = cupy.empty(size, dtype=lhs.dtype)
    for number in range(n_systems):
        at_lhs, at_rhs = lhs[number].data.ptr, solution[number].data.ptr
        at_status = status[number:].data.ptr
        factor(handle, triangle, m, at_lhs, m, work.data.ptr, size, at_status)
        solve(handle, triangle, m, 1, at_lhs, m, at_rhs, m, status_solve.data.ptr)
    return status


def _addresses(batch: Array) -> Array:
    """Return the device address of each member of a contiguous batch, uint64."""
    places = cupy.arange(len(batch), dtype=cupy.uint64)
    return places * cupy.uint64(batch.strides[0]) + cupy.uint64(batch.data.ptr)
