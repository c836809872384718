"""How the scores of all users and items are cut into blocks, tiles and strips.

Pure functions of shapes. They decide where work goes; of results a cut changes the last bits of
scores at most. The numbers are measured (docs/performance.md).
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["Cut", "block_height", "cut"]

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
