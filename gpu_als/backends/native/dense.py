"""Dense work by compiled code: the fixed side as a whole (sides.cpp), and small systems."""

from __future__ import annotations

import ctypes

import numpy as np

from gpu_als.backends.native.library import empty_rows, library

__all__ = ["MOST_GRAMS", "cholesky_solve", "gram", "transform"]

MOST_GRAMS = 32
"""As in sides.cpp: float64 matrices (k, k) whose sum is the Gram matrix."""


def gram(factors: np.ndarray, num_threads: int) -> np.ndarray:
    """Return ``factors^T factors`` in float64, shape (k, k); threads change no bit."""
    factors = np.ascontiguousarray(factors)
    n, k = factors.shape
    out = np.zeros((k, k))
    if n and k:
        _call("gram", factors.dtype, _at(factors), n, k, _at(out), num_threads)
    return out


def transform(factors: np.ndarray, matrix: np.ndarray, num_threads: int) -> np.ndarray:
    """Return ``factors @ matrix`` in the factors' dtype, computed in the wider one.

    Parameters
    ----------
    factors : array, shape (n, k)
    matrix : array, shape (k, k)
    """
    factors, matrix = np.ascontiguousarray(factors), np.ascontiguousarray(matrix)
    n, k = factors.shape
    out = empty_rows(n, k, factors.dtype)
    wide = matrix.dtype == np.float64
    pieces = _at(matrix), int(wide), _at(out), num_threads
    _call("transform", factors.dtype, _at(factors), n, k, *pieces)
    return out


def cholesky_solve(lhs: np.ndarray, rhs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return :meth:`~gpu_als.core.ops.Ops.cholesky_solve`, in the thread that asks."""
    lhs, solution = np.ascontiguousarray(lhs), np.array(rhs, lhs.dtype, order="C")
    failed = np.zeros(len(rhs), bool)
    _call("solve", lhs.dtype, _at(lhs), _at(solution), *rhs.shape, _at(failed))
    return solution, failed


def _at(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _call(name: str, dtype: np.dtype, *arguments: ctypes.c_void_p | int) -> None:
    function = getattr(library(), f"{name}_{ {4: 'float', 8: 'double'}[dtype.itemsize] }")
    numbers = (ctypes.c_int64(a) if isinstance(a, int) else a for a in arguments)
    if function(*numbers):
        raise MemoryError("there is too little memory to work on factors")
