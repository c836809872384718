"""Made-up ratings with known properties, for tests, examples and benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
from scipy.special import ndtri

from gpu_als.data.splits import check_random_state
from gpu_als.errors import InputError

__all__ = ["PlantedRatings", "planted_ratings", "powerlaw_interactions"]

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


def powerlaw_interactions(
    n_users: int,
    n_items: int,
    nnz: int,
    *,
    median_user: float = 27,
    random_state: Any = None,
) -> sp.csr_matrix:
    """Draw counts from 1 to 5 with the skew of real implicit feedback.

    User degrees are log-normal with the given median, and wide enough to sum to ``nnz``. The
    popularity of the item of rank r is proportional to ``(r + 10) ** -0.9``. Memory is that of the
    result and a fixed workspace.

    Parameters
    ----------
    n_users, n_items : int
    nnz : int
        Number of entries wanted, at most half of all pairs. The result never has more; it may have
        up to 10% fewer, because degrees are whole numbers and end at ``n_items``.
    median_user : float
        Median degree. Where ``nnz`` is too small for it, half of the mean degree is used.
    random_state : None, int, numpy.random.RandomState or numpy.random.Generator

    Returns
    -------
    csr_matrix of float32, shape (n_users, n_items)
        Sorted indices, no duplicates.

    Raises
    ------
    InputError
        If ``nnz`` is not positive or above half of all pairs, or ``median_user`` is not positive.
    """
    if not 0 < nnz <= n_users * n_items // 2:
        raise InputError(
            f"nnz: found {nnz}; pass 1 to n_users * n_items / 2 = {n_users * n_items // 2} entries"
        )
    if not median_user > 0:
        raise InputError(f"median_user: found {median_user}; pass a positive number")
    rng = check_random_state(random_state)
    degrees = rng.permutation(_log_normal_degrees(n_users, n_items, nnz, median_user))
    popularity = rng.permutation((np.arange(n_items) + 10.0) ** -0.9)
    popularity /= popularity.sum()
    keys = [
        start * n_items + _draw_rows(rng, degrees[start:stop], popularity)
        for start, stop in _blocks(degrees, n_items)
    ]
    indices = np.concatenate([block % n_items for block in keys])
    indptr = np.concatenate([[0], np.cumsum(degrees)])
    counts = rng.integers(1, 6, len(indices)).astype(np.float32)
    return sp.csr_matrix((counts, indices, indptr), shape=(n_users, n_items))


def _power_law(rng: np.random.Generator, size: int) -> np.ndarray:
    weights = rng.permutation((np.arange(size) + 1.0) ** -_ACTIVITY_EXPONENT)
    return weights / weights.sum()


def _draw_pairs(
    rng: np.random.Generator, activity: np.ndarray, popularity: np.ndarray, nnz: int
) -> np.ndarray:
    """Return ``nnz`` different ``row * n_items + column``, in random order."""
    n_items = len(popularity)
    if nnz * _DENSE > len(activity) * n_items:
        weights = np.outer(activity, popularity)
        return rng.permutation(_smallest_keys(rng, weights.reshape(1, -1), np.array([nnz])))
    pairs = np.empty(0, np.int64)
    while len(pairs) < nnz:
        n_draws = (nnz - len(pairs)) * 5 // 4 + 16
        drawn = _draw(rng, activity, n_draws) * n_items + _draw(rng, popularity, n_draws)
        pairs = np.unique(np.concatenate([pairs, drawn]))
    return rng.permutation(pairs)[:nnz]


def _draw(rng: np.random.Generator, weights: np.ndarray, size: int) -> np.ndarray:
    """Draw int64 positions with replacement, with probabilities ``weights``."""
    upper = np.cumsum(weights)
    position = np.searchsorted(upper, rng.random(size) * upper[-1], side="right")
    return np.minimum(position, len(weights) - 1)


def _smallest_keys(
    rng: np.random.Generator, weights: np.ndarray, degrees: np.ndarray
) -> np.ndarray:
    """Draw without replacement ``degrees[row]`` columns of each row, as row * n_columns + column.

    The columns with the smallest Exp(1) / weight are such a sample (Efraimidis and Spirakis).
    """
    n_rows, n_columns = len(degrees), weights.shape[1]
    order = np.argsort(rng.standard_exponential((n_rows, n_columns)) / weights, axis=1)
    chosen = np.arange(n_columns) < degrees[:, None]
    return (np.arange(n_rows)[:, None] * n_columns + order)[chosen]


def _log_normal_degrees(n_users: int, n_items: int, nnz: int, median: float) -> np.ndarray:
    """Return ascending int64 degrees with the wanted median and a sum just below ``nnz``."""
    mean = nnz / n_users
    median = median if median < mean else mean / 2
    quantiles = ndtri((np.arange(n_users) + 0.5) / n_users)

    def degrees(sigma: float) -> np.ndarray:
        return np.minimum(median * np.exp(sigma * quantiles), n_items).astype(np.int64)

    low, high = 0.0, 10.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if degrees(middle).sum() <= nnz else (low, middle)
    return degrees(low)


def _blocks(degrees: np.ndarray, n_items: int) -> list[tuple[int, int]]:
    """Divide the users so that the workspace of each block is about the same."""
    dense = degrees * _DENSE > n_items
    work = np.cumsum(np.where(dense, n_items, degrees))
    bounds = np.searchsorted(work, np.arange(_ENTRIES_AT_ONCE, work[-1], _ENTRIES_AT_ONCE))
    bounds = np.unique(np.concatenate([[0], bounds, [len(degrees)]]))
    return list(zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True))


def _draw_rows(rng: np.random.Generator, degrees: np.ndarray, popularity: np.ndarray) -> np.ndarray:
    """Return, ascending, ``row * n_items + column`` of ``degrees[row]`` columns for each row."""
    n_items = len(popularity)
    dense = np.flatnonzero(degrees * _DENSE > n_items)
    local = _smallest_keys(rng, popularity[None, :], degrees[dense])
    done = [dense[local // n_items] * n_items + local % n_items]
    missing = degrees.copy()
    missing[dense] = 0
    open_keys = np.empty(0, np.int64)
    while missing.any():
        rows = np.repeat(np.arange(len(degrees)), missing)
        drawn = rows * n_items + _draw(rng, popularity, len(rows))
        keys = np.unique(np.concatenate([open_keys, drawn]))
        rows = keys // n_items
        present = np.bincount(rows, minlength=len(degrees))
        missing = np.where(missing > 0, degrees - present, 0)
        is_open = missing[rows] > 0
        done.append(keys[~is_open])
        open_keys = keys[is_open]
    return np.sort(np.concatenate(done))
