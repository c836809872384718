"""Counts with the skew of real implicit feedback, for benchmarks and tests."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from scipy.special import ndtri

_ENTRIES_AT_ONCE = 1 << 20
_DENSE = 8  # above one pair in eight, drawing again whenever a pair repeats becomes slow


def powerlaw_interactions(
    n_users: int,
    n_items: int,
    nnz: int,
    *,
    median_user: float = 27,
    seed: int,
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
    seed : int

    Returns
    -------
    csr_matrix of float32, shape (n_users, n_items)
        Sorted indices, no duplicates.
    """
    rng = np.random.default_rng(seed)
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
        drawn = rows * n_items + rng.choice(n_items, len(rows), p=popularity)
        keys = np.unique(np.concatenate([open_keys, drawn]))
        rows = keys // n_items
        present = np.bincount(rows, minlength=len(degrees))
        missing = np.where(missing > 0, degrees - present, 0)
        is_open = missing[rows] > 0
        done.append(keys[~is_open])
        open_keys = keys[is_open]
    return np.sort(np.concatenate(done))
