"""Cholesky solves of many small systems on the CPU, without holding Python's lock.

Small systems go through NumPy's batched ``cholesky`` and substitutions that run over the whole
batch; larger ones through LAPACK's ``posv`` as SciPy exports it to compiled code
(``scipy.linalg.cython_lapack``), one call per system. Calls through ctypes release the lock, which
the wrappers in ``scipy.linalg.lapack`` do not, and work in place. Measured in
docs/performance.md.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache

import numpy as np
from scipy.linalg import cython_lapack

__all__ = ["cholesky_solve"]

_BATCHED_UP_TO = 16
"""Follows from the size alone, lest a row depend on how many are solved beside it."""


def cholesky_solve(lhs: np.ndarray, rhs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """See :meth:`gpu_als.core.ops.Ops.cholesky_solve`."""
    m = rhs.shape[1]
    if m == 1:
        pivots = lhs[:, 0]
        return rhs / np.where(pivots > 0, pivots, 1), ~(pivots[:, 0] > 0)
    before = np.einsum("bii->bi", lhs).copy()
    if m <= _BATCHED_UP_TO:
        factor = _factor(lhs)
        return _substitute(factor, rhs), _broken(np.einsum("bii->bi", factor), before)
    lhs = np.ascontiguousarray(lhs)
    solution = np.array(rhs, lhs.dtype, order="C")
    not_definite = _posv_each(lhs, solution)
    return solution, not_definite | _broken(np.einsum("bii->bi", lhs), before)


def _factor(lhs: np.ndarray) -> np.ndarray:
    """Return lower Cholesky factors, NaN for what is not positive definite."""
    try:
        return np.linalg.cholesky(lhs)
    except np.linalg.LinAlgError:  # does not tell which
        if len(lhs) == 1:
            return np.full_like(lhs, np.nan)
    middle = len(lhs) // 2
    return np.concatenate([_factor(lhs[:middle]), _factor(lhs[middle:])])


def _broken(pivots: np.ndarray, diagonal: np.ndarray) -> np.ndarray:
    """Tell where a squared pivot has sunk to the rounding error of its diagonal entry."""
    noise = pivots.shape[1] * np.finfo(pivots.dtype).eps
    return ~(pivots * pivots > noise * diagonal).all(axis=1)


def _substitute(factor: np.ndarray, rhs: np.ndarray) -> np.ndarray:
    """Solve ``L L^T x = rhs`` for all systems at once; both loops read rows of L."""
    x = rhs.copy()
    inverse = 1 / np.einsum("bii->bi", factor)
    m = x.shape[1]
    for j in range(m):
        if j:
            x[:, j] -= np.einsum("bm,bm->b", factor[:, j, :j], x[:, :j])
        x[:, j] *= inverse[:, j]
    for j in range(m - 1, -1, -1):
        x[:, j] *= inverse[:, j]
        if j:
            x[:, :j] -= factor[:, j, :j] * x[:, j, None]
    return x


def _posv_each(lhs: np.ndarray, rhs: np.ndarray) -> np.ndarray:
    """Factor and solve in place; return which systems are not positive definite."""
    n_systems, m = rhs.shape
    info = np.zeros(n_systems, np.int32)
    posv = _posv(lhs.dtype.char)
    # LAPACK takes every argument by address and reads columns first: its lower triangle is the
    # upper one here, which is as good, since the matrices are symmetric.
    order, one, lower = ctypes.c_int(m), ctypes.c_int(1), ctypes.c_char(b"L")
    at_order, at_one, at_lower = (ctypes.addressof(c) for c in (order, one, lower))
    a, b, status = lhs.ctypes.data, rhs.ctypes.data, info.ctypes.data
    step_a, step_b, step_status = lhs.strides[0], rhs.strides[0], info.strides[0]
    for _ in range(n_systems):
        posv(at_lower, at_order, at_one, a, at_order, b, at_order, status)
        a += step_a
        b += step_b
        status += step_status
    return info != 0


@cache
def _posv(type_char: str) -> Callable[..., None]:
    """Return LAPACK's sposv or dposv as a ctypes function."""
    capsule = cython_lapack.__pyx_capi__[{"f": "sposv", "d": "dposv"}[type_char]]
    api = ctypes.pythonapi
    api.PyCapsule_GetName.restype = ctypes.c_char_p
    api.PyCapsule_GetName.argtypes = [ctypes.py_object]
    api.PyCapsule_GetPointer.restype = ctypes.c_void_p
    api.PyCapsule_GetPointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
    address = api.PyCapsule_GetPointer(capsule, api.PyCapsule_GetName(capsule))
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * 8)(address)
