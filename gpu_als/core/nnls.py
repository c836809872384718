"""Non-negative least squares on many small systems at once, by block principal pivoting.

Each system asks for ``x >= 0`` and ``y = lhs x - rhs >= 0`` with ``x y = 0`` in every coordinate
(the Karush-Kuhn-Tucker conditions). A guess of the passive set, the coordinates that may be
positive, gives x by one Cholesky solve; every coordinate that violates its sign changes sets. If
that does not reduce the violations for three rounds, only the last violating coordinate changes
(Murty's rule), which cannot cycle.

Source: Kim, Park: Fast nonnegative matrix factorization, SIAM J. Sci. Comput. 33 (2011), sec. 3.
"""

from __future__ import annotations

from gpu_als.core.ops import Ops
from gpu_als.core.problem import Array

__all__ = ["solve_nonnegative"]

_PATIENCE = 3
_ROUNDS_PER_FACTOR = 5


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
        Systems that were not positive definite or did not settle.
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
    failed[open_] = True
    return xp.where(constrained, xp.maximum(x, 0), x), failed


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
