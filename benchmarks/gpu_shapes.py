"""Matrices of the sizes that GPU figures are quoted for, drawn from a seed within seconds.

User degrees are log-normal with the shape's median, and wide enough for its number of entries; the
popularity of the item of rank r is proportional to ``(r + 10) ** -0.9``: the laws of
``powerlaw.py``, drawn by a method made for 100 million entries.
Items are drawn with replacement, each user's as often as leaves the wanted number of different
ones on average, and what comes twice is dropped. So the number of entries is met to about 0.1%.
Values are whole numbers from 1 to 5, all equally likely: no model can learn them, and none has to.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import scipy.sparse as sp
from scipy.special import ndtri

from gpu_als.core.problem import SparseRows

SEED = 20
MEAN_VALUE = 3.0
_TABLE = 1 << 22
"""Slots of the table that items are drawn from: one look-up each, where a search would take ten."""


@dataclass(frozen=True)
class Matrix:
    """One matrix in both orientations: int32 indices that rise in every row, float32 values."""

    users: SparseRows
    items: SparseRows

    @property
    def sides(self) -> tuple[SparseRows, SparseRows]:
        """The users' rows and the items' rows."""
        return self.users, self.items

    def csr(self, scale: float = 1.0) -> sp.csr_matrix:
        """Return users x items with all values multiplied by ``scale``."""
        rows = self.users
        arrays = rows.values * np.float32(scale), rows.indices, rows.indptr.astype(np.int32)
        return sp.csr_matrix(arrays, shape=(rows.n_rows, rows.n_fixed))


@dataclass(frozen=True)
class Shape:
    """The size of a data set, and how active its median user is.

    Attributes
    ----------
    users, items, entries : int
    median_user : float
        Below the mean. Where none is known to us it is 0.6 of the mean.
    """

    users: int
    items: int
    entries: int
    median_user: float

    def scaled(self, divisor: int) -> Shape:
        """Return a shape with fewer users and items, which are as active as before."""
        users, items, entries = (n // divisor for n in (self.users, self.items, self.entries))
        return replace(self, users=users, items=items, entries=entries)

    def device_bytes(self, k: int) -> int:
        """Return about how much device memory an iteration takes, before anything is drawn.

        Index, value and weight of each entry for both sides, a third while weights are worked
        out, and the factors: as they are, in the basis, as solutions to be checked, and twice more
        to compare their bits.
        """
        return 3 * 12 * self.entries + 5 * 4 * k * (self.users + self.items)

    def draw(self, seed: int = SEED) -> Matrix:
        """Return the matrix of this shape and seed."""
        rng = np.random.default_rng(seed)
        table = _popularity_table(rng, self.items)
        draws = _draws(table, self.items, rng.permutation(_degrees(self)))
        draws = (draws + rng.random(len(draws))).astype(np.int64)
        drawn = table[rng.integers(len(table), size=draws.sum(), dtype=np.uint32)]
        starts = np.concatenate([[0], np.cumsum(draws)])
        shape = self.users, self.items
        by_user = sp.csr_matrix((np.empty(len(drawn), np.int8), drawn, starts), shape=shape)
        by_item = _without_repeats(by_user.tocsc())
        by_item.data = rng.integers(1, 6, by_item.nnz, dtype=np.int8).astype(np.float32)
        return Matrix(_rows(by_item.tocsr(), self.items), _rows(by_item, self.users))


SHAPES = {
    "ml20m": Shape(138_493, 26_744, 20_000_000, 68),
    "lastfm": Shape(358_868, 292_385, 17_500_000, 48),  # its users' favourites: some 50 of each
    "netflix": Shape(480_189, 17_770, 99_100_000, 124),
    "msd": Shape(571_355, 41_140, 33_600_000, 35),
}


def _degrees(shape: Shape) -> np.ndarray:
    """Return rising degrees with the wanted median and sum; nobody has more than half the items."""
    quantiles = ndtri((np.arange(shape.users) + 0.5) / shape.users)

    def degrees(sigma: float) -> np.ndarray:
        return np.clip(shape.median_user * np.exp(sigma * quantiles), 1, shape.items / 2)

    low, high = 0.0, 10.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if degrees(middle).sum() <= shape.entries else (low, middle)
    return degrees(low)


def _popularity_table(rng: np.random.Generator, n_items: int) -> np.ndarray:
    """Return item numbers, each in as many slots as it is popular."""
    popularity = rng.permutation((np.arange(n_items) + 10.0) ** -0.9)
    slots = np.maximum(np.rint(popularity * (_TABLE / popularity.sum())), 1).astype(np.int64)
    return np.repeat(np.arange(n_items, dtype=np.int32), slots)


def _draws(table: np.ndarray, n_items: int, degrees: np.ndarray) -> np.ndarray:
    """Return how often to draw, so that ``degrees`` different items are expected.

    Item i is among d draws with probability ``1 - (1 - p_i)^d``.
    """
    absent = np.log1p(-np.bincount(table, minlength=n_items) / len(table))
    draws, distinct = [1.0], [1.0]
    while distinct[-1] < degrees.max():
        draws.append(draws[-1] * 1.1)
        distinct.append(float(-np.expm1(draws[-1] * absent).sum()))
    return np.interp(degrees, distinct, draws)


def _without_repeats(by_item: sp.csc_matrix) -> sp.csc_matrix:
    """Drop repeated users of an item; they lie side by side, for a transpose sorts them."""
    rows, starts = by_item.indices, by_item.indptr
    kept = np.ones(len(rows), bool)
    np.not_equal(rows[1:], rows[:-1], out=kept[1:])
    kept[starts[:-1][np.diff(starts) > 0]] = True
    starts = starts - np.searchsorted(np.flatnonzero(~kept), starts)
    rows = rows[kept]
    return sp.csc_matrix((np.empty(len(rows), np.int8), rows, starts), shape=by_item.shape)


def _rows(matrix: sp.csr_matrix | sp.csc_matrix, n_fixed: int) -> SparseRows:
    indices = matrix.indices.astype(np.int32, copy=False)
    return SparseRows(matrix.indptr.astype(np.int64), indices, matrix.data, None, n_fixed)
