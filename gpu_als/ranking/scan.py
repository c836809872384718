"""One pass over all items for a block of users, keeping the best so far.

Scores come in tiles of users x items, from one matrix product each. Those that exceed a user's
*floor*, the last of its best so far, join the best; the rest are not looked at again. Equal scores
go to the lowest id: tiles come in the order of ids, so what no more than reaches the floor loses.

Filtered items get the lowest finite score in the tile, and what does not exceed that (filtered
items, NaN, minus infinity) is never taken for one of the best.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from gpu_als.core.backend import Backend
from gpu_als.core.problem import Array

__all__ = ["Best", "block_height", "scan"]

_TILE_ELEMENTS = 3 << 18
"""Scores in a tile: 3 MB of float32."""
_MOST_USERS = 480
"""Of a block. A power of two would put columns of a tile into few sets of a cache."""
_BLOCKS = 4
"""Blocks of a few users at least, for threads to share."""


class Best(NamedTuple):
    """The best items of each user.

    Attributes
    ----------
    counts : int array, shape (n_users,)
        How many there are.
    ids : int array, shape (n_users, n_best)
        Best first, equal ones by id; without meaning beyond their count.
    scores : array, shape (n_users, n_best)
    """

    counts: Array
    ids: Array
    scores: Array


def block_height(n_users: int, n_items: int, n_best: int) -> int:
    """Return how many users to take over all items at a time."""
    narrow = _TILE_ELEMENTS // min(n_items, 4 * n_best)
    return max(1, min(_MOST_USERS, narrow, -(-n_users // _BLOCKS)))


def scan(
    backend: Backend,
    users: Array,
    items: Array,
    n_best: int,
    *,
    filtered: np.ndarray | None = None,
    filtered_everywhere: np.ndarray | None = None,
) -> Best:
    """Return the best items of each user, filtered items left out.

    Parameters
    ----------
    backend : Backend
    users : array on the device, shape (n_users, k)
    items : array on the device, shape (n_items, k)
    n_best : int
        From 1 to n_items.
    filtered : int64 array, optional
        Rising numbers ``item * n_users + user`` of filtered scores.
    filtered_everywhere : int64 array, optional
        Rising numbers of items filtered for every user.

    Returns
    -------
    Best
        ``n_best`` for each user, or all that score above the lowest finite number where they are
        fewer. NaN does not count as a score.
    """
    xp = backend.xp
    n_users, n_items = len(users), len(items)
    lowest = np.finfo(users.dtype).min
    floor = xp.full(n_users, lowest, users.dtype)
    # The best so far, user by user, best first.
    owners, ids = xp.zeros(0, np.int64), xp.zeros(0, np.int64)
    scores = xp.zeros(0, users.dtype)
    width = max(n_best, _TILE_ELEMENTS // n_users)
    for first in range(0, n_items, width):
        last = min(first + width, n_items)
        tile = backend.workspace("scores", (n_users, last - first), users.dtype)
        xp.matmul(users, items[first:last].T, out=tile)
        if filtered_everywhere is not None:
            tile[:, xp.asarray(_between(filtered_everywhere, first, last))] = lowest
        if filtered is not None:
            here = _between(filtered, first * n_users, last * n_users)
            tile[xp.asarray(here % n_users), xp.asarray(here // n_users)] = lowest
        above = tile > floor[:, None]
        if first == 0:  # most exceed the floor as it is
            xp.fmax(tile, lowest, out=tile)  # NaN would pass for the largest
            above &= tile >= xp.partition(tile, last - n_best, axis=1)[:, last - n_best, None]
        rows, columns = xp.nonzero(above)
        owners = xp.concatenate([owners, rows])
        ids = xp.concatenate([ids, columns + first])
        scores = xp.concatenate([scores, tile[rows, columns]])
        # Stable: equal scores of a user keep the order of their ids.
        order = xp.argsort(-scores, kind="stable")
        order = order[xp.argsort(owners[order], kind="stable")]
        counts = xp.bincount(owners, minlength=n_users)
        ranks = xp.arange(len(owners)) - (xp.cumsum(counts) - counts)[owners[order]]
        order, ranks = order[ranks < n_best], ranks[ranks < n_best]
        owners, ids, scores = owners[order], ids[order], scores[order]
        is_last = ranks == n_best - 1
        floor[owners[is_last]] = scores[is_last]
    table = xp.zeros((n_users, n_best), users.dtype)
    table_ids = xp.zeros((n_users, n_best), np.int32)
    table[owners, ranks], table_ids[owners, ranks] = scores, ids
    return Best(xp.minimum(counts, n_best), table_ids, table)


def _between(numbers: np.ndarray, first: int, last: int) -> np.ndarray:
    """Return those of rising numbers that lie from ``first`` to ``last``, counted from there."""
    begin, end = np.searchsorted(numbers, (first, last))
    return numbers[begin:end] - first
