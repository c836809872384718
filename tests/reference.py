"""The oracle: one row at a time, in float64, straight from the equations.

Nobody optimises this. It shares no code with the fast paths: every objective is written out here
from its own definition, and tests hold every other path to it.
"""

from __future__ import annotations

import numpy as np

__all__ = ["objective_value", "row_system", "solve_row"]


def row_system(
    fixed: np.ndarray,
    indices: np.ndarray,
    gram_weight: np.ndarray,
    target_weight: np.ndarray,
    ridge: float,
    base: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return ``lhs = base + sum_i g_i y_i y_i^T + ridge I`` and ``rhs = sum_i t_i y_i``.

    Parameters
    ----------
    fixed : array, shape (n_fixed, k)
    indices : int array, shape (n,)
    gram_weight, target_weight : array, shape (n,)
    ridge : float
    base : array, shape (k, k), optional

    Returns
    -------
    lhs : float64 array, shape (k, k)
    rhs : float64 array, shape (k,)
    """
    k = fixed.shape[1]
    lhs = ridge * np.eye(k)
    if base is not None:
        lhs = lhs + base
    rhs = np.zeros(k)
    for i, g, t in zip(indices, gram_weight, target_weight, strict=True):
        y = fixed[i].astype(np.float64)
        lhs += float(g) * np.outer(y, y)
        rhs += float(t) * y
    return lhs, rhs


def solve_row(
    fixed: np.ndarray,
    indices: np.ndarray,
    gram_weight: np.ndarray,
    target_weight: np.ndarray,
    ridge: float,
    base: np.ndarray | None = None,
) -> np.ndarray:
    """Solve the system of :func:`row_system`; see there. Returns a float64 array, shape (k,)."""
    lhs, rhs = row_system(fixed, indices, gram_weight, target_weight, ridge, base)
    x: np.ndarray = np.linalg.solve(lhs, rhs)
    return x


def objective_value(
    observed: np.ndarray,
    weight: np.ndarray,
    target: np.ndarray,
    unobserved_weight: float,
    users: np.ndarray,
    items: np.ndarray,
    user_ridge: np.ndarray,
    item_ridge: np.ndarray,
) -> float:
    """Return a weighted squared loss over all cells plus the ridges, in float64.

    ``sum_observed weight (target - s)^2 + unobserved_weight sum_unobserved s^2 + sum_u ridge_u
    |x_u|^2 + sum_i ridge_i |y_i|^2`` with ``s = x_u . y_i``.

    Parameters
    ----------
    observed : bool array, shape (n_users, n_items)
    weight, target : array, shape (n_users, n_items)
    unobserved_weight : float
    users, items : array, shapes (n_users, k) and (n_items, k)
    user_ridge, item_ridge : array, shapes (n_users,) and (n_items,)
    """
    s = users.astype(np.float64) @ items.astype(np.float64).T
    cells = np.where(observed, weight * (target - s) ** 2, unobserved_weight * s**2)
    ridges = (user_ridge[:, None] * users.astype(np.float64) ** 2).sum()
    ridges += (item_ridge[:, None] * items.astype(np.float64) ** 2).sum()
    return float(cells.sum() + ridges)
