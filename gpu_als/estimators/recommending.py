"""Checks and filters that every ``recommend`` shares."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

from gpu_als.backends.ops import Backend
from gpu_als.data.matrix import as_csr, check_index_array
from gpu_als.errors import InputError
from gpu_als.estimators.params import check_integer
from gpu_als.ranking.top_k import top_k

__all__ = ["best_items", "requested_rows"]


def requested_rows(user_items: Any, n_users: int, n_items: int, why: str) -> sp.csr_matrix:
    """Return ``user_items`` as CSR after checking that it has one row per requested user.

    Parameters
    ----------
    why : str
        What the matrix is needed for; completes "user_items is needed to ...".
    """
    if user_items is None:
        raise InputError(f"user_items is needed to {why}; pass one row for every requested user")
    if n_users == 0:
        return sp.csr_matrix((0, n_items), dtype=np.float32)
    rows = as_csr(user_items, name="user_items")
    if rows.shape[0] != n_users:
        raise InputError(
            f"user_items must contain 1 row for every requested user: it has {rows.shape[0]} rows "
            f"for {n_users} users; pass user_items[userid]"
        )
    if rows.shape[1] > n_items:
        raise InputError(f"user_items has {rows.shape[1]} columns, but the model {n_items} items")
    if rows.shape[1] < n_items:
        rows = sp.csr_matrix((rows.data, rows.indices, rows.indptr), shape=(n_users, n_items))
    return rows


def best_items(
    backend: Backend,
    users: np.ndarray,
    item_factors: np.ndarray,
    n_best: Any,
    *,
    liked: sp.csr_matrix | None,
    filter_items: Any,
    items: Any,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the best items for each row of ``users``; see ``recommend`` for the arguments.

    ``n_best`` beyond the number of candidates is cut down to it.
    """
    n_items = len(item_factors)
    n_best = check_integer(n_best, name="N", at_least=1)
    if items is not None and filter_items is not None:
        raise InputError("items and filter_items cannot both be given; filter the items yourself")
    candidates = None
    if items is not None:
        candidates = np.unique(check_index_array(items, n_items, name="items"))
        if len(candidates) == 0:
            raise InputError("items is empty; pass at least one item, or None for all")
        item_factors = item_factors[candidates]
        liked = None if liked is None else liked[:, candidates]
    if filter_items is not None:
        filter_items = check_index_array(filter_items, n_items, name="filter_items")
    ids, scores = top_k(
        backend,
        backend.from_host(users),
        backend.from_host(item_factors),
        min(n_best, len(item_factors)),
        liked=liked,
        filter_items=filter_items,
    )
    return (ids if candidates is None else candidates[ids].astype(np.int32)), scores
