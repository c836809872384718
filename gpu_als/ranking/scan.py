"""One pass over all items for a block of users, keeping what may be among the best N.

Scores come in tiles of items x users, from one matrix product each. What follows the product is
little: one pass over the tile for maxima, and work on a few percent of it.

1. A tile is cut into *strips* of neighbouring items; the largest score of each is taken.
2. The N-th largest maximum of *groups* of strips, over the tiles so far, is the user's *floor*:
   N items are known to score as much, so nothing below it is among the best.
3. Strips that reach the floor are copied out of the tile: about N of the first tile and N / t of
   the t-th, for a user whose best items are spread evenly.

Equal scores go to the lowest id. Tiles come in the order of ids, so a later tile has to exceed the
floor that earlier tiles set: to reach it is to lose to N lower ids.

Filtered items get the lowest finite score in the tile, and what does not exceed that (filtered
items, NaN, minus infinity) is never taken for one of the best.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from gpu_als.backends.ops import Backend
from gpu_als.ranking.candidates import Best, Candidates
from gpu_als.ranking.tiles import cut
from gpu_als.row_problem import Array

__all__ = ["scan"]

_MOST_LEADERS = 64
"""Tiles whose maxima of groups are held, at most, before the floor is raised."""


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
        From 1 to 65536.
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
        fewer. NaN is no score.
    """
    xp = backend.xp
    n_users, n_items = len(users), len(items)
    lowest = np.finfo(users.dtype).min
    width, length, fold, group = cut(n_users, n_items, n_best)
    tile = backend.workspace("scores", (width, n_users), users.dtype)

    def largest() -> tuple[Array, Array]:
        """Return the maxima of strips and of groups."""
        maxima = tile.reshape(-1, length // fold, fold * n_users).max(axis=1)
        if fold > 1:
            maxima = maxima.reshape(-1, fold, n_users).max(axis=1)
        return maxima, maxima.reshape(-1, group, n_users).max(axis=1)

    candidates = Candidates(xp, n_users, n_best)
    leaders = [xp.full((n_best, n_users), lowest, users.dtype)]  # the largest maxima of groups
    floor = leaders[0][0]
    n_above = 0
    for first in range(0, n_items, width):
        last = min(first + width, n_items)
        xp.matmul(items[first:last], users.T, out=tile[: last - first])
        tile[last - first :] = lowest
        if filtered_everywhere is not None:
            here = _between(filtered_everywhere, first, last)
            tile[xp.asarray(here)] = lowest
        if filtered is not None:
            here = _between(filtered, first * n_users, last * n_users)
            tile.reshape(-1)[xp.asarray(here)] = lowest
        maxima, leading = largest()
        if xp.isnan(leading.max()):
            xp.fmax(tile, lowest, out=tile)
            maxima, leading = largest()

        wanted = maxima > floor
        leaders.append(leading)
        n_above += xp.count_nonzero(leading > floor)
        # To raise the floor costs as much as to copy two strips of each user.
        if n_above > 2 * n_users or len(leaders) == _MOST_LEADERS or last == n_items:
            leaders = [_largest(xp, leaders, n_best)]
            floor = leaders[0][0]
            n_above = 0
            wanted &= maxima >= floor
        candidates.add(tile.reshape(-1, length, n_users), first, maxima, wanted, floor)
    return candidates.best(xp.maximum(floor, np.nextafter(lowest, users.dtype.type(0))))


def _largest(xp: Any, arrays: list[Array], count: int) -> Array:
    """Return the largest of each column of some arrays, the smallest of them first."""
    columns = xp.concatenate(arrays)
    begin = len(columns) - count
    return xp.partition(columns, begin, axis=0)[begin:]


def _between(numbers: np.ndarray, first: int, last: int) -> np.ndarray:
    """Return those of rising numbers that lie from ``first`` to ``last``, counted from there."""
    begin, end = np.searchsorted(numbers, (first, last))
    return numbers[begin:end] - first
