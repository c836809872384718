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

import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from gpu_als.core.backend import Backend
from gpu_als.core.problem import Array

__all__ = ["Best", "Candidates", "Cut", "block_height", "cut", "scan", "scan_one"]

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
        fewer. NaN does not count as a score.
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


_TILE_ELEMENTS = 3 << 18
"""Scores in a tile: 3 MB of float32. Smaller tiles are more; with 6 MB the products alone take a
tenth longer at k = 128, and a fifth at k = 64."""
_MOST_USERS, _FEWEST_USERS = 480, 64
"""Of a block. Products and maxima are fast with many users, from about 256 on; a power of two
would put columns of a tile into few sets of a cache."""
_BLOCKS = 4
"""Blocks come in multiples of it, so that the usual numbers of threads end together."""
_LANES = 16
"""Heights are rounded up to it: rows of a tile are then whole cache lines."""
_WIDEST, _NARROWEST = 32, 4
"""Items of a tile for each of the best: where users are enough, and at least."""
_GROUPS, _STRIPS = 2, 4
"""Groups of a tile for each of the best, and strips of a group."""
_SHORTEST = 8
"""Shorter lists are cut like lists of so many."""
_RUN = 512
"""Scores in a row that maxima are fast with."""


class Cut(NamedTuple):
    """The cut of a block's scores.

    Attributes
    ----------
    width : int
        Items of a tile: a whole number of groups, so the last tile may be wider than what is left.
    length : int
        Items of a strip.
    fold : int
        Neighbouring items to take as one when maxima are taken; divides the length.
    group : int
        Strips of a group.
    """

    width: int
    length: int
    fold: int
    group: int


def block_height(n_users: int, n_items: int, n_best: int) -> int:
    """Return how many users to take over all items at a time."""
    wide = max(_FEWEST_USERS, _TILE_ELEMENTS // (_WIDEST * n_best))
    narrow = max(1, _TILE_ELEMENTS // min(n_items, _NARROWEST * n_best))
    most = min(_MOST_USERS, wide, narrow)
    blocks = -(-n_users // (_BLOCKS * most)) * _BLOCKS
    height = max(min(most, _FEWEST_USERS), -(-n_users // max(blocks, 1)))
    return height if height < _LANES else -(-height // _LANES) * _LANES


def cut(n_users: int, n_items: int, n_best: int) -> Cut:
    """Return how to cut the scores of a block of users."""
    n_best = max(n_best, _SHORTEST)
    width = min(n_items, max(_NARROWEST * n_best, _TILE_ELEMENTS // n_users))
    width = -(-n_items // -(-n_items // width))  # tiles of equal width
    step = -(-width // (_GROUPS * n_best))
    length = -(-step // _STRIPS)
    fold = max(1, min(length // 4, _RUN // n_users))
    length -= length % fold
    group = -(-step // length)
    return Cut(-(-width // (length * group)) * length * group, length, fold, group)


_KEPT = 16
"""Strips to hold for each of the best of a user before those that fell behind are let go."""


class Best(NamedTuple):
    """The best items of each user.

    Attributes
    ----------
    counts : int array, shape (n_users,)
        How many there are.
    ids : int array, shape (n_users, n)
        Best first, equal ones by id; without meaning beyond their count.
    scores : array, shape (n_users, n)
    """

    counts: Array
    ids: Array
    scores: Array


class _Strips(NamedTuple):
    """Strips: the user, first item and largest score of each, and its scores, (n, length)."""

    users: Array
    items: Array
    maxima: Array
    scores: Array


class Candidates:
    """Copies of strips, which for every user come in the order of their items.

    Parameters
    ----------
    xp : module
        Array module.
    n_users : int
        At most 65536.
    n_best : int
    """

    def __init__(self, xp: Any, n_users: int, n_best: int) -> None:
        self._xp = xp
        self._n_users = n_users
        self._n_best = n_best
        self._strips: list[_Strips] = []
        self._size = 0

    def add(self, strips: Array, first: int, maxima: Array, wanted: Array, floor: Array) -> None:
        """Copy the wanted strips of a tile.

        Parameters
        ----------
        strips : array, shape (n_strips, length, n_users)
        first : int
            The item the tile begins with.
        maxima : array, shape (n_strips, n_users)
        wanted : bool array, shape (n_strips, n_users)
        floor : array, shape (n_users,)
            A score that n_best items are known to reach.
        """
        xp = self._xp
        found = xp.flatnonzero(wanted)
        numbers = found // self._n_users
        users = found - numbers * self._n_users
        tops = maxima.reshape(-1)[found]
        # Of strips that no more than reach the floor, a user needs the first n_best. There can be
        # many: all scores of a user without interactions are 0.
        equal = xp.flatnonzero(tops == floor[users])
        if len(equal) > self._n_users:
            needed = xp.ones(len(found), bool)
            needed[equal] = self._rank(users[equal])[0] < self._n_best
            numbers, users, tops = numbers[needed], users[needed], tops[needed]
        items = first + numbers * strips.shape[1]
        self._strips.append(_Strips(users, items, tops, strips[numbers, :, users]))
        self._size += len(users)
        if self._size > _KEPT * self._n_best * self._n_users:
            self._drop(floor)

    def best(self, floor: Array) -> Best:
        """Return the best of the scores that reach the floor."""
        xp = self._xp
        found = [self._reaching(strips, floor) for strips in self._strips]
        users, ids, scores = map(xp.concatenate, zip(*found, strict=True))
        ranks, counts = self._rank(users)
        shape = self._n_users, max(self._n_best, int(counts.max()))
        table, table_ids = xp.full(shape, -np.inf, scores.dtype), xp.zeros(shape, np.int32)
        table[users, ranks], table_ids[users, ranks] = scores, ids
        order = xp.argsort(-table, axis=1, kind="stable")[:, : self._n_best]
        best = (xp.take_along_axis(array, order, axis=1) for array in (table_ids, table))
        return Best(xp.minimum(counts, self._n_best), *best)

    def _drop(self, floor: Array) -> None:
        """Let go the strips that do not reach the floor."""
        xp = self._xp
        rows = [xp.flatnonzero(strips.maxima >= floor[strips.users]) for strips in self._strips]
        left = [[array[r] for array in s] for s, r in zip(self._strips, rows, strict=True)]
        self._strips = [_Strips(*map(xp.concatenate, zip(*left, strict=True)))]
        self._size = len(self._strips[0].users)

    def _reaching(self, strips: _Strips, floor: Array) -> tuple[Array, Array, Array]:
        """Return user, item and value of the scores that reach the floor, in order."""
        xp = self._xp
        length = strips.scores.shape[1]
        rows = xp.flatnonzero(strips.maxima >= floor[strips.users])
        users, scores = strips.users[rows], strips.scores[rows]
        found = xp.flatnonzero(scores >= floor[users][:, None])
        numbers = found // length
        ids = strips.items[rows][numbers] + (found - numbers * length)
        return users[numbers], ids, scores.reshape(-1)[found]

    def _rank(self, users: Array) -> tuple[Array, Array]:
        """Return how many elements of the same user precede each, and how many each user has."""
        xp = self._xp
        counts = xp.bincount(users, minlength=self._n_users)
        begins = xp.cumsum(counts) - counts
        order = xp.argsort(users.astype(np.uint16), kind="stable")  # 16 bits: in linear time
        ranks = xp.empty(len(users), np.int64)
        ranks[order] = xp.arange(len(users)) - begins[users[order]]
        return ranks, counts


def scan_one(
    xp: Any, user: Array, items: Array, n_best: int, *filtered: np.ndarray | None
) -> tuple[Array, Array]:
    """Return the best items of one user, filtered items left out.

    Parameters
    ----------
    xp : module
        Array module.
    user : array, shape (k,)
    items : array, shape (n_items, k)
    n_best : int
        From 1 to n_items.
    *filtered : int array or None
        Numbers of items.

    Returns
    -------
    ids, scores : array, shape (n,)
        Best first, equal ones by id: ``n_best``, or all that score above the lowest finite number
        where they are fewer.
    """
    n_items = len(items)
    lowest, above_lowest = _lowest_two(user.dtype)
    n_strips = max(n_best, math.isqrt(n_items * n_best))
    strips = xp.empty((-(-n_items // n_strips), n_strips), user.dtype)
    scores = strips.reshape(-1)
    xp.matmul(items, user, out=scores[:n_items])
    scores[n_items:] = lowest
    for some in filtered:
        if some is not None:
            scores[xp.asarray(some)] = lowest
    maxima = strips.max(axis=0)
    if xp.isnan(maxima.max()):
        xp.fmax(strips, lowest, out=strips)
        maxima = strips.max(axis=0)
    # So many strips hold a score as large as that; only what exceeds the lowest is a score.
    floor = xp.maximum(xp.partition(maxima, n_strips - n_best)[n_strips - n_best], above_lowest)
    columns = xp.flatnonzero(maxima >= floor)
    rows, places = xp.nonzero(strips[:, columns] >= floor)
    ids = rows * n_strips + columns[places]  # rising
    found = scores[ids]
    order = xp.argsort(-found, kind="stable")[:n_best]
    return ids[order], found[order]


@cache
def _lowest_two(dtype: np.dtype) -> tuple[Any, Any]:
    """Return the lowest finite number, and the one above it."""
    lowest = np.finfo(dtype).min
    return lowest, np.nextafter(lowest, dtype.type(0))
