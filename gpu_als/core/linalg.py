"""Sizes and inner products row by row, and symmetric systems solved by diagonalising them."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpu_als.core.problem import Array

__all__ = ["eigh_solve", "finite_systems", "magnitudes", "row_dots", "row_norms"]

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


def magnitudes(xp: Any, rows: Array) -> Array:
    """Return the largest power of two not above the elements of each row, shape (n, 1).

    It is 1 where there is none; dividing by it changes no digit.
    """
    largest = xp.abs(rows).max(axis=1, keepdims=True)
    usable = (largest >= xp.finfo(largest.dtype).tiny) & xp.isfinite(largest)
    exponent = xp.frexp(xp.where(usable, largest, 1))[1]
    return xp.ldexp(xp.ones_like(largest), exponent - 1)


def row_norms(xp: Any, rows: Array) -> Array:
    """Return the norm of each row, shape (n,), of which no square overflows or vanishes."""
    size = magnitudes(xp, rows)
    scaled = rows / size
    return size[:, 0] * xp.sqrt(row_dots(xp, scaled, scaled))


def finite_systems(xp: Any, lhs: Array, rhs: Array) -> tuple[Array, Array]:
    """Return systems (B, k, k) and (B, k) with zeros in the place of those that are not finite."""
    finite = xp.isfinite(lhs).all(axis=(1, 2)) & xp.isfinite(rhs).all(axis=1)
    return xp.where(finite[:, None, None], lhs, 0), xp.where(finite[:, None], rhs, 0)


def eigh_solve(xp: Any, lhs: Array, rhs: Array) -> tuple[Array, Array]:
    """Solve symmetric systems in float64 by diagonalising them.

    The documented treatment of rows whose system is not positive definite in their precision: if
    the smallest eigenvalue is positive beyond rounding, the row is solved; otherwise its system is
    singular.

    Parameters
    ----------
    lhs : float64 array, shape (B, k, k)
    rhs : float64 array, shape (B, k)

    Returns
    -------
    x : float64 array, shape (B, k)
        Zero where singular.
    singular : bool array, shape (B,)
    """
    lhs, rhs = finite_systems(xp, lhs, rhs)
    eigenvalues, vectors = xp.linalg.eigh(lhs)
    smallest, largest = eigenvalues[:, 0], eigenvalues[:, -1]
    singular = smallest <= lhs.shape[1] * xp.finfo(xp.float64).eps * largest
    inverse = 1 / xp.where(singular[:, None], 1, eigenvalues)
    projected = (vectors.swapaxes(1, 2) @ rhs[:, :, None])[:, :, 0]
    x = (vectors @ (inverse * projected)[:, :, None])[:, :, 0]
    return xp.where(singular[:, None], 0, x), singular
