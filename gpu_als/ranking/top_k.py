"""The N best items for many users, in bounded memory and without sorting the catalogue.

On a GPU kernels do it where they can. Everywhere else users come in blocks, one for each thread
at a time, and :mod:`gpu_als.ranking.scan` takes each over all items. A user alone is simpler:
:mod:`gpu_als.ranking.one_user`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import scipy.sparse as sp

from gpu_als.backends.ops import Backend
from gpu_als.ranking.filters import Filters
from gpu_als.ranking.one_user import scan_one
from gpu_als.ranking.scan import scan
from gpu_als.ranking.tiles import block_height
from gpu_als.row_problem import Array

__all__ = ["lowest_score", "top_k"]


def lowest_score(dtype: Any) -> float:
    """Return the finite score that filtered items get: the lowest of the dtype."""
    return float(np.finfo(dtype).min)


def top_k(
    backend: Backend,
    users: Array,
    items: Array,
    n_best: int,
    *,
    liked: sp.csr_matrix | None = None,
    filter_items: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ``n_best`` items with the largest inner product for each user.

    Parameters
    ----------
    backend : Backend
    users : array on the device, shape (n_users, k)
    items : array on the device, shape (n_items, k)
    n_best : int
        From 1 to n_items.
    liked : csr_matrix, shape (n_users, n_items), optional
        Stored entries are filtered out.
    filter_items : int array, optional
        Filtered out for every user.

    Returns
    -------
    ids : int32 array, shape (n_users, n_best)
    scores : array of the factors' dtype, shape (n_users, n_best)
        Largest first; ties by lowest id. NaN and minus infinity count as :func:`lowest_score`.
        Filtered items come last, by id, with that score.
    """
    with backend.session():
        fused = backend.top_k(users, items, n_best, liked, filter_items)
        if fused is not None:
            return fused
        everywhere = None if filter_items is None else np.unique(filter_items)
        filters = Filters(liked, everywhere)
        ids = np.empty((len(users), n_best), np.int32)
        scores = np.empty((len(users), n_best), users.dtype)
        height = block_height(len(users), len(items), n_best)

        def rank(start: int) -> None:
            stop = min(start + height, len(users))
            liked_here = filters.places(start, stop)
            # Factors that overflow or hold NaN give scores that are dealt with.
            with np.errstate(over="ignore", invalid="ignore"):
                if stop - start == 1:
                    best = scan_one(backend.xp, users[start], items, n_best, liked_here, everywhere)
                else:
                    best = scan(
                        backend,
                        users[start:stop],
                        items,
                        n_best,
                        filtered=liked_here,
                        filtered_everywhere=everywhere,
                    )
            counts, found, values = map(backend.to_host, best)
            width = found.shape[1]
            ids[start:stop, :width], scores[start:stop, :width] = found, values
            for user in map(int, start + (counts < n_best).nonzero()[0]):
                count = counts[user - start]
                missing = n_best - count
                ids[user, count:] = filters.followers(user, ids[user, :count], len(items), missing)
                scores[user, count:] = lowest_score(scores.dtype)

        for _ in _map(backend, rank, range(0, len(users), height)):
            pass
    return ids, scores


def _map(backend: Backend, function: Callable[[int], None], tasks: range) -> Iterable[None]:
    """Take a single task without the detour over another thread."""
    return map(function, tasks) if len(tasks) == 1 else backend.map(function, tasks)
