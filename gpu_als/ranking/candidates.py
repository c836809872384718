"""Strips of scores that may hold some of the best items, and the best items found in them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from gpu_als.row_problem import Array

__all__ = ["Best", "Candidates"]

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
