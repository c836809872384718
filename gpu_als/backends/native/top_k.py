"""The best items of users by compiled code on the CPU: top_k.cpp, tile by tile in cache."""

from __future__ import annotations

import ctypes
from concurrent.futures import Executor

import numpy as np
import scipy.sparse as sp

from gpu_als.backends.native.library import call, library

__all__ = ["rank_items"]

_QUICK = 1 << 28
"""Products that take so little time that Ctrl-C can wait."""


class _Ranking(ctypes.Structure):
    """``struct Ranking`` of top_k.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in ("n_users", "n_items", "k", "n_best")),
        *(
            (name, ctypes.c_void_p)
            for name in (
                "users", "items", "indptr", "indices", "everywhere", "ids", "scores", "stop",
            )
        ),
        *((name, ctypes.c_int32) for name in ("wide_indices", "n_threads")),
    ]  # fmt: skip


def rank_items(
    users: np.ndarray,
    items: np.ndarray,
    n_best: int,
    liked: sp.csr_matrix | None,
    filter_items: np.ndarray | None,
    pool: Executor,
    num_threads: int,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Rank items, as :meth:`~gpu_als.core.backend.Backend.top_k` says.

    A score depends on the two rows of factors alone.
    """
    if users.dtype != items.dtype:
        return None
    (n_users, k), n_items = users.shape, len(items)
    ids, scores = np.empty((n_users, n_best), np.int32), np.empty((n_users, n_best), users.dtype)
    if n_users == 0:
        return ids, scores
    arrays = {
        "users": np.ascontiguousarray(users),
        "items": np.ascontiguousarray(items),
        "ids": ids,
        "scores": scores,
    }
    ranking = _Ranking(n_users, n_items, k, n_best, n_threads=num_threads)
    if liked is not None:
        if not liked.has_sorted_indices:
            liked = liked.sorted_indices()
        arrays["indptr"] = liked.indptr.astype(np.int64, copy=False)
        arrays["indices"] = liked.indices
        ranking.wide_indices = liked.indices.dtype == np.int64
    if filter_items is not None:
        arrays["everywhere"] = np.zeros(n_items, bool)
        arrays["everywhere"][filter_items] = True
    for name, array in arrays.items():
        setattr(ranking, name, array.ctypes.data)
    function = getattr(library(), {4: "top_k_float", 8: "top_k_double"}[users.itemsize])
    quick = n_users * n_items * k < _QUICK
    if not (function(ctypes.byref(ranking)) if quick else call(function, ranking, pool)):
        raise MemoryError(f"no room to rank items in {num_threads} threads")
    return ids, scores
