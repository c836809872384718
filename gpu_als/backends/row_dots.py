"""Inner products row by row."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpu_als.row_problem import Array

__all__ = ["row_dots"]

_ELEMENTS = 1 << 24


def row_dots(xp: Any, a: Array, b: Array) -> Array:
    """Return ``a[n] . b[n]`` for arrays of shape (n, k), shape (n,).

    For CuPy's ``einsum`` each row is a matrix of its own in one batched product: slow, and more
    of them than cuBLAS is sure to take.
    """
    if xp is np:
        return np.einsum("nk,nk->n", a, b)
    out = xp.empty(len(a), a.dtype)
    height = max(1, _ELEMENTS // max(1, a.shape[1]))
    for start in range(0, len(a), height):
        part = slice(start, start + height)
        out[part] = (a[part] * b[part]).sum(axis=1)
    return out
