"""Rows that the fast path could not solve in its precision: once more, in float64.

Documented treatment of systems that are not positive definite: the row's matrix is diagonalised
in float64. If its smallest eigenvalue is positive beyond rounding, the row is solved; otherwise
the system is singular, the row keeps its former value and is counted in the report.
"""

from __future__ import annotations

from gpu_als.core.nnls import solve_nonnegative
from gpu_als.core.ops import Ops
from gpu_als.core.problem import Array
from gpu_als.core.solvers import NonNegative, Solver

__all__ = ["solve_carefully"]


def solve_carefully(ops: Ops, lhs: Array, rhs: Array, solver: Solver) -> tuple[Array, Array]:
    """Solve systems by eigendecomposition.

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
    xp = ops.xp
    finite = xp.isfinite(lhs).all(axis=(1, 2)) & xp.isfinite(rhs).all(axis=1)
    lhs = xp.where(finite[:, None, None], lhs, 0)
    rhs = xp.where(finite[:, None], rhs, 0)
    eigenvalues, vectors = xp.linalg.eigh(lhs)
    smallest, largest = eigenvalues[:, 0], eigenvalues[:, -1]
    singular = smallest <= lhs.shape[1] * xp.finfo(xp.float64).eps * largest
    if isinstance(solver, NonNegative):
        x, failed = solve_nonnegative(ops, lhs, rhs, solver.free_columns)
        singular |= failed
    else:
        inverse = 1 / xp.where(singular[:, None], 1, eigenvalues)
        projected = (vectors.swapaxes(1, 2) @ rhs[:, :, None])[:, :, 0]
        x = (vectors @ (inverse * projected)[:, :, None])[:, :, 0]
    return xp.where(singular[:, None], 0, x), singular
