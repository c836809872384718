"""Why an item is recommended to a user: its score as a sum over what the user has rated."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.linalg

from gpu_als.core.backend import Backend
from gpu_als.core.objectives import Objective
from gpu_als.core.problem import SparseRows
from gpu_als.core.solvers import Solver
from gpu_als.errors import InputError
from gpu_als.models.fitted import Fitted, Side
from gpu_als.models.fold_in import fold_in

__all__ = ["UserWeights", "check_user_weights", "contributions", "factor_system"]

UserWeights = tuple[np.ndarray, bool]
"""A Cholesky factor of a user's system, as :func:`scipy.linalg.cho_factor` returns it."""

_WALL = 1e150
"""Square root of the ridge that holds a factor at zero."""


def factor_system(
    backend: Backend, objective: Objective, solver: Solver, items: Side, row: SparseRows
) -> UserWeights:
    """Factor ``base + sum_j g_j y_j y_j^T + ridge I``, the system of one user, in float64.

    With biases every ``y_j`` ends with a 1, the partner of the user's bias. Factors that a
    non-negative solution has at zero get a ridge beyond all numbers, which keeps them there.

    Parameters
    ----------
    row : SparseRows
        One row.
    """
    rated = _partners(backend, items, row.indices)
    ridge = objective.ridge(row.counts, len(items), "users")
    lhs = float(np.max(ridge)) * np.eye(rated.shape[1])
    if objective.base_weight:
        lhs += objective.base_weight * items.gram(backend)
    lhs += rated.T @ (_entry_weights(objective, row)[0][:, None] * rated)
    if not solver.rotates:
        at_zero = fold_in(backend, objective, solver, "users", items, row)[0] == 0
        lhs[at_zero], lhs[:, at_zero] = 0, 0
        lhs[at_zero, at_zero] = _WALL**2
    try:
        factor, lower = scipy.linalg.cho_factor(lhs)
    except np.linalg.LinAlgError as error:
        raise InputError(
            f"user_items: this user's system is singular ({error}); raise regularization"
        ) from error
    return factor, lower


def contributions(
    backend: Backend,
    objective: Objective,
    fitted: Fitted,
    row: SparseRows,
    item: int,
    weights: UserWeights,
    n_best: int,
) -> tuple[float, list[tuple[int, float]]]:
    """Split the score of an item, ``mean + b_i + y_i^T lhs^-1 sum_j t_j y_j``, over the items j.

    Returns
    -------
    score : float
    best : list of (int, float)
        The ``n_best`` largest contributions, falling; equal ones by rising id.

    References
    ----------
    Hu, Koren, Volinsky: Collaborative filtering for implicit feedback datasets, ICDM 2008,
    section 5.
    """
    items = fitted.items
    biases = items.biases
    assert biases is not None
    gram, target = _entry_weights(objective, row)
    target = target - gram * biases[row.indices] if items.bias else target
    pulls = np.flatnonzero(target)  # what was disliked pulls towards 0, not towards an item
    rated = row.indices[pulls]
    partner = scipy.linalg.cho_solve(weights, _partners(backend, items, np.array([item]))[0])
    shares = (_partners(backend, items, rated) @ partner) * target[pulls]
    order = np.argsort(-shares, kind="stable")[:n_best]
    best = [(int(rated[place]), float(shares[place])) for place in order]
    return fitted.mean + float(biases[item]) + float(shares.sum()), best


def check_user_weights(weights: Any, k: int) -> UserWeights:
    """Return what an earlier call gave back, after checking that it fits ``k`` factors."""
    if isinstance(weights, tuple | list) and len(weights) == 2:
        factor = np.asarray(weights[0])
        if factor.shape == (k, k) and factor.dtype.kind == "f":
            return factor, bool(weights[1])
    raise InputError(
        f"user_weights must be what an earlier call of explain returned for a model of {k} "
        "factors, or None"
    )


def _partners(backend: Backend, items: Side, rows: np.ndarray) -> np.ndarray:
    """Return what the user's factors are multiplied with, float64, shape (len(rows), k [+ 1])."""
    found = backend.to_host(items.on(backend)[backend.from_host(rows)]).astype(np.float64)
    if items.bias:
        found[:, -1] = 1
    return found


def _entry_weights(objective: Objective, row: SparseRows) -> tuple[np.ndarray, np.ndarray]:
    """Return gram weights and target weights of a row's entries, float64."""
    gram, target = objective.entry_weights(np, row.values.astype(np.float64), None)
    return np.ones_like(target) if gram is None else gram, target
