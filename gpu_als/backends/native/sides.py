"""What a half-sweep needs of the whole fixed side, by compiled code: sides.cpp."""

from __future__ import annotations

import ctypes

import numpy as np

from gpu_als.backends.native.library import empty_rows, library

__all__ = ["MOST_GRAMS", "gram", "transform"]

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


def _at(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _call(name: str, dtype: np.dtype, *arguments: ctypes.c_void_p | int) -> None:
    function = getattr(library(), f"{name}_{ {4: 'float', 8: 'double'}[dtype.itemsize] }")
    numbers = (ctypes.c_int64(a) if isinstance(a, int) else a for a in arguments)
    if function(*numbers):
        raise MemoryError("there is too little memory to change the coordinates of factors")
