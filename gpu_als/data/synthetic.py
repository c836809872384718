"""Made-up ratings with known properties, for the demo, examples and tests."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gpu_als.data.splits import check_random_state
from gpu_als.errors import InputError

__all__ = ["PlantedRatings", "planted_ratings"]

_ACTIVITY_EXPONENT = 0.6
_BIAS_SPREAD = 0.3
_TASTE_SPREAD = 0.7
_ENTRIES_AT_ONCE = 1 << 20
_DENSE = 8  # above one pair in eight, drawing again whenever a pair repeats becomes slow


@dataclass(frozen=True, eq=False)
class PlantedRatings:
    """Ratings made from known factors.

    Attributes
    ----------
    rows, cols : ndarray of int64, shape (nnz,)
        User and item of each rating, in random order, no pair twice.
    values : ndarray of float32, shape (nnz,)
    noise : float
        Standard deviation of what no model can predict: the best possible held-out RMSE.
    """

    rows: np.ndarray
    cols: np.ndarray
    values: np.ndarray
    noise: float


def planted_ratings(
    n_users: int,
    n_items: int,
    nnz: int,
    *,
    rank: int = 8,
    noise: float = 0.5,
    mean: float = 3.5,
    random_state: Any = None,
) -> PlantedRatings:
    """Draw ratings as mean + user bias + item bias + user factors . item factors + noise.

    Users differ in activity and items in popularity by power laws.

    Parameters
    ----------
    n_users, n_items, nnz : int
        Exactly ``nnz`` different pairs are drawn.
    rank : int
        Width of the planted factors.
    noise : float
        Standard deviation of the normal noise.
    mean : float
    random_state : None, int, numpy.random.RandomState or numpy.random.Generator

    Returns
    -------
    PlantedRatings

    Raises
    ------
    InputError
        If there are fewer than ``nnz`` pairs.
    """
    if not 0 < nnz <= n_users * n_items:
        raise InputError(
            f"nnz: found {nnz}; pass 1 to n_users * n_items = {n_users * n_items} ratings"
        )
    rng = check_random_state(random_state)
    pairs = _draw_pairs(rng, _power_law(rng, n_users), _power_law(rng, n_items), nnz)
    rows, cols = np.divmod(pairs, n_items)
    user_factors = rng.standard_normal((n_users, rank)) * np.sqrt(_TASTE_SPREAD / max(rank, 1))
    item_factors = rng.standard_normal((n_items, rank)) * np.sqrt(_TASTE_SPREAD)
    values = mean + noise * rng.standard_normal(nnz)
    values += _BIAS_SPREAD * rng.standard_normal(n_users)[rows]
    values += _BIAS_SPREAD * rng.standard_normal(n_items)[cols]
    for start in range(0, nnz, _ENTRIES_AT_ONCE):
        part = slice(start, start + _ENTRIES_AT_ONCE)
        values[part] += np.einsum("ef,ef->e", user_factors[rows[part]], item_factors[cols[part]])
    return PlantedRatings(rows, cols, values.astype(np.float32), noise)


def _power_law(rng: np.random.Generator, size: int) -> np.ndarray:
    weights = rng.permutation((np.arange(size) + 1.0) ** -_ACTIVITY_EXPONENT)
    return weights / weights.sum()


def _draw_pairs(
    rng: np.random.Generator, activity: np.ndarray, popularity: np.ndarray, nnz: int
) -> np.ndarray:
    """Return ``nnz`` different ``row * n_items + column``, in random order."""
    n_items = len(popularity)
    if nnz * _DENSE > len(activity) * n_items:
        # The pairs with the smallest Exp(1) / weight are a sample without replacement (Efraimidis
        # and Spirakis, Weighted random sampling with a reservoir, 2006).
        weights = np.outer(activity, popularity).ravel()
        return rng.permutation(np.argsort(rng.standard_exponential(len(weights)) / weights)[:nnz])
    pairs = np.empty(0, np.int64)
    while len(pairs) < nnz:
        n_draws = (nnz - len(pairs)) * 5 // 4 + 16
        users = rng.choice(len(activity), n_draws, p=activity)
        drawn = users * n_items + rng.choice(n_items, n_draws, p=popularity)
        pairs = np.unique(np.concatenate([pairs, drawn]))
    return rng.permutation(pairs)[:nnz]
