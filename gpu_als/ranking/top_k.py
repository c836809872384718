"""The N best items for many users, in bounded memory and without sorting the catalogue.

Compiled code does it where it can: kernels on a GPU, a library on the CPU. Everywhere else users
come in blocks, one for each thread at a time, and :mod:`gpu_als.ranking.scan` takes each over all
items.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp

from gpu_als.core.backend import Backend
from gpu_als.core.linalg import row_dots
from gpu_als.core.problem import Array
from gpu_als.errors import InputError
from gpu_als.ranking.scan import block_height, scan

__all__ = ["Filters", "check_pairs", "lowest_score", "pair_scores", "top_k"]


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
    with backend.session(threads=len(users) > 1):
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
            # Factors that overflow or hold NaN give scores that are dealt with.
            with np.errstate(over="ignore", invalid="ignore"):
                block = scan(
                    backend,
                    users[start:stop],
                    items,
                    n_best,
                    filtered=filters.places(start, stop),
                    filtered_everywhere=everywhere,
                )
            counts, ids[start:stop], scores[start:stop] = map(backend.to_host, block)
            for user in (start + np.flatnonzero(counts < n_best)).tolist():
                count = counts[user - start]
                missing = n_best - count
                ids[user, count:] = filters.followers(user, ids[user, :count], len(items), missing)
                scores[user, count:] = lowest_score(scores.dtype)

        blocks = range(0, len(users), height)
        for _ in map(rank, blocks) if len(blocks) == 1 else backend.map(rank, blocks):
            pass
    return ids, scores


@dataclass(frozen=True)
class Filters:
    """Filtered items.

    Attributes
    ----------
    liked : csr_matrix, shape (n_users, n_items), or None
        The items filtered for each user: stored entries, in any order.
    everywhere : int64 array or None
        Items filtered for every user; rising, each once.
    """

    liked: sp.csr_matrix | None
    everywhere: np.ndarray | None

    def liked_by(self, user: int) -> np.ndarray | None:
        """Return the items filtered for one user, in any order."""
        if self.liked is None:
            return None
        begin, end = self.liked.indptr[user : user + 2]
        return self.liked.indices[begin:end]

    def places(self, start: int, stop: int) -> np.ndarray | None:
        """Return rising numbers ``item * (stop - start) + user - start`` of what users like."""
        if self.liked is None:
            return None
        ends = self.liked.indptr[start : stop + 1]
        places = self.liked.indices[ends[0] : ends[-1]].astype(np.int64)
        places *= stop - start
        places += np.repeat(np.arange(stop - start), np.diff(ends))
        places.sort()
        return places

    def followers(self, user: int, best: np.ndarray, n_items: int, count: int) -> np.ndarray:
        """Return the ``count`` items that follow the best: others by id, then filtered by id.

        Parameters
        ----------
        user : int
        best : int array
            Not filtered.
        n_items : int
        count : int
            At most ``n_items - len(best)``.
        """
        filtered = [some for some in (self.everywhere, self.liked_by(user)) if some is not None]
        # So many items hold count others, wherever the rest lie.
        n_seen = min(n_items, count + len(best) + sum(map(len, filtered)))
        is_filtered, is_best = np.zeros((2, n_seen), bool)
        for some in filtered:
            is_filtered[some[some < n_seen]] = True
        is_best[best[best < n_seen]] = True
        others = np.flatnonzero(~(is_filtered | is_best))[:count]
        return np.append(others, np.flatnonzero(is_filtered)[: count - len(others)])


_PAIRS_AT_ONCE = 1 << 16


def check_pairs(rows: np.ndarray, columns: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return row and column numbers of pairs, of one length.

    Parameters
    ----------
    rows, columns : int64 array, shape (n,)
        A single number goes with every one on the other side.
    """
    if len(rows) != len(columns) and 1 not in (len(rows), len(columns)):
        raise InputError(
            f"users has {len(rows)} ids and items {len(columns)}; pass as many of both"
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
