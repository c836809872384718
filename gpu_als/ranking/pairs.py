"""Scores of (user, item) pairs."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpu_als.backends.row_dots import row_dots
from gpu_als.data.matrix import check_index_array
from gpu_als.errors import InputError
from gpu_als.row_problem import Array

__all__ = ["check_pairs", "pair_scores"]

_PAIRS_AT_ONCE = 1 << 16


def check_pairs(
    users: Any, items: Any, n_users: int, n_items: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return row and column numbers of pairs, of one length, after checking them.

    Parameters
    ----------
    users, items : int or array of int, shape (n,)
        A single number goes with every one on the other side.
    """
    rows = check_index_array(users, n_users, name="users")
    columns = check_index_array(items, n_items, name="items")
    if len(rows) != len(columns) and 1 not in (len(rows), len(columns)):
        raise InputError(
            f"users has {len(rows)} numbers and items {len(columns)}; pass as many of both"
        )
    rows, columns = np.broadcast_arrays(rows, columns)
    return rows, columns


def pair_scores(xp: Any, users: Array, items: Array, rows: Array, columns: Array) -> Array:
    """Return ``users[rows] . items[columns]``, pair by pair, in bounded memory; shape (n,).

    Parameters
    ----------
    xp : module
        NumPy or CuPy, whichever the arrays are of.
    users : array, shape (n_users, k)
    items : array, shape (n_items, k)
    rows, columns : int array, shape (n,)
    """
    scores = xp.empty(len(rows), users.dtype)
    for start in range(0, len(rows), _PAIRS_AT_ONCE):
        part = slice(start, start + _PAIRS_AT_ONCE)
        scores[part] = row_dots(xp, users[rows[part]], items[columns[part]])
    return scores
