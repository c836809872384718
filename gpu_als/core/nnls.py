"""Non-negative least squares on many small systems at once, by block principal pivoting.

Each system asks for ``x >= 0`` and ``y = lhs x - rhs >= 0`` with ``x y = 0`` in every coordinate
(the Karush-Kuhn-Tucker conditions). A guess of the passive set, the coordinates that may be
positive, gives x by one Cholesky solve; every coordinate that violates its sign changes sets. If
that does not reduce the violations for three rounds, only the last violating coordinate changes
(Murty's rule), which cannot cycle but in rounding, and may take long. Systems that have not settled
by then are few: SciPy's active-set method solves them one by one in float64.

Sources: Kim, Park: Fast nonnegative matrix factorization, SIAM J. Sci. Comput. 33 (2011), sec. 3;
Lawson, Hanson: Solving least squares problems (1974), chapter 23.
"""

from __future__ import annotations

import numpy as np
import scipy.optimize

from gpu_als.core.ops import Ops
from gpu_als.core.problem import Array
from gpu_als.data.csr import to_host

__all__ = ["solve_nonnegative"]

_PATIENCE = 3
_ROUNDS_PER_FACTOR, _STEPS_PER_FACTOR = 5, 30


def solve_nonnegative(
    ops: Ops, lhs: Array, rhs: Array, free_columns: int = 0
) -> tuple[Array, Array]:
    """Minimise ``1/2 x^T lhs x - rhs^T x`` over ``x >= 0`` for every system of a batch.

    Parameters
    ----------
    lhs : array, shape (B, k, k)
        Symmetric positive definite.
    rhs : array, shape (B, k)
    free_columns : int
        The last ``free_columns`` coordinates may have any sign.

    Returns
    -------
    x : array, shape (B, k)
    failed : bool array, shape (B,)
        Systems that were not positive definite.
    """
    xp = ops.xp
    n_systems, k = rhs.shape
    constrained = xp.arange(k) < k - free_columns
    passive = xp.ones((n_systems, k), bool)  # start from the unconstrained solution
    fewest = xp.full(n_systems, k + 1)
    patience = xp.full(n_systems, _PATIENCE)
    x = xp.zeros_like(rhs)
    failed = xp.zeros(n_systems, bool)
    open_ = xp.arange(n_systems)
    for _ in range(_ROUNDS_PER_FACTOR * k + 10):
        trial, not_definite, violations = _try_passive_set(
            ops, lhs[open_], rhs[open_], passive[open_], constrained
        )
        failed[open_] = not_definite
        x[open_] = trial
        count = violations.sum(axis=1)
        going = (count > 0) & ~not_definite
        open_, violations, count = open_[going], violations[going], count[going]
        if len(open_) == 0:
            return xp.where(constrained, xp.maximum(x, 0), x), failed
        fewer = count < fewest[open_]
        fewest[open_] = xp.minimum(count, fewest[open_])
        patience[open_] = xp.where(fewer, _PATIENCE, patience[open_] - 1)
        last = k - 1 - xp.argmax(violations[:, ::-1], axis=1)
        only_last = xp.arange(k) == last[:, None]
        change = xp.where((patience[open_] >= 0)[:, None], violations, only_last)
        passive[open_] ^= change
    for number in to_host(open_).tolist():
        found = _active_set(to_host(lhs[number]), to_host(rhs[number]), k - free_columns)
        if found is None:
            failed[number] = True
        else:
            x[number] = xp.asarray(found, x.dtype)
    return xp.where(constrained, xp.maximum(x, 0), x), failed


def _active_set(lhs: np.ndarray, rhs: np.ndarray, n_constrained: int) -> np.ndarray | None:
    """Return the solution of one system, float64, or None where it is not positive definite.

    What is left once the free columns are eliminated, ``1/2 x^T S x - s^T x`` with ``S = L L^T``,
    is ``1/2 |L^T x - L^-1 s|^2`` but for a constant.
    """
    lhs, rhs = lhs.astype(np.float64), rhs.astype(np.float64)
    bound, free = slice(0, n_constrained), slice(n_constrained, None)
    try:
        eliminate = np.linalg.solve(lhs[free, free], np.column_stack([lhs[free, bound], rhs[free]]))
        reduced = lhs[bound, bound] - lhs[bound, free] @ eliminate[:, :-1]
        root = np.linalg.cholesky(reduced)
        target = np.linalg.solve(root, rhs[bound] - lhs[bound, free] @ eliminate[:, -1])
        x, _ = scipy.optimize.nnls(root.T, target, maxiter=_STEPS_PER_FACTOR * len(rhs))
    except (np.linalg.LinAlgError, RuntimeError):
        return None
    return np.concatenate([x, eliminate[:, -1] - eliminate[:, :-1] @ x])


def _try_passive_set(
    ops: Ops, lhs: Array, rhs: Array, passive: Array, constrained: Array
) -> tuple[Array, Array, Array]:
    """Solve on the passive set; return x, which systems failed, and the violating coordinates."""
    xp = ops.xp
    both = passive[:, :, None] & passive[:, None, :]
    restricted = xp.where(both, lhs, 0)
    k = rhs.shape[1]
    restricted.reshape(len(lhs), -1)[:, :: k + 1] += ~passive
    x, failed = ops.cholesky_solve(restricted, xp.where(passive, rhs, 0))
    x = xp.where(passive, x, 0)
    y = (lhs @ x[:, :, None])[:, :, 0] - rhs
    # Signs below the rounding error of the products are not violations.
    eps = 4 * k * xp.finfo(rhs.dtype).eps
    x_noise = eps * xp.abs(x).max(axis=1, keepdims=True)
    y_noise = eps * xp.abs(rhs).max(axis=1, keepdims=True)
    violations = xp.where(passive, x < -x_noise, y < -y_noise) & constrained
    return x, failed, violations
