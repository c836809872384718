"""Cholesky solves of many small systems at once, by NumPy.

The factors come from NumPy's batched ``cholesky``; the substitutions run over the whole batch.
"""

from __future__ import annotations

import numpy as np

__all__ = ["cholesky_solve"]


def cholesky_solve(lhs: np.ndarray, rhs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return :meth:`gpu_als.core.ops.Ops.cholesky_solve`."""
    before = np.einsum("bii->bi", lhs)
    factor = _factor(lhs)
    return _substitute(factor, rhs), _broken(np.einsum("bii->bi", factor), before)


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
