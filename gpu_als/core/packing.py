"""Grouping rows of similar length into padded batches. Changes the order of work, never results.

A row is padded to the next of some widths that are the same for all data, and a batch has rows of
one width: what a row's system rounds to then depends on that row alone, and the row comes out the
same to the bit whatever rows are solved beside it, here or on another machine.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

__all__ = ["Batch", "Packing", "Span", "pack_rows"]

_PADDING = 12
"""A row is padded by less than this part of it: rows of up to 24 entries not at all."""
_MOST_ROWS = 65535
"""Of a batch: as many products of matrices as cuBLAS is sure to take at once."""


@dataclass(frozen=True)
class Batch:
    """Rows ``order[start:stop]``, each padded to ``width`` entries.

    ``elements`` is what they need in all; ``definite``: no row has a negative gram weight.
    """

    start: int
    stop: int
    width: int
    definite: bool
    elements: int


@dataclass(frozen=True)
class Span:
    """Rows of one kind, a run of places ordered by length.

    Attributes
    ----------
    start, stop : int
        Places in ``order`` followed by ``long_rows``.
    definite : bool
        No row has a negative gram weight.
    lengths : int64 array
        The lengths that occur, rising.
    first : int64 array
        The place where each length begins.
    """

    start: int
    stop: int
    definite: bool
    lengths: np.ndarray
    first: np.ndarray

    def place_above(self, length: int) -> int:
        """Return the place of the first row longer than ``length``."""
        number = int(np.searchsorted(self.lengths, length, side="right"))
        return int(self.first[number]) if number < len(self.first) else self.stop

    @classmethod
    def of(cls, lengths: np.ndarray, start: int, *, definite: bool) -> Span:
        """Describe rows of rising ``lengths`` that begin at place ``start``."""
        distinct, first = np.unique(lengths, return_index=True)
        return cls(start, start + len(lengths), definite, distinct, start + first)


@dataclass(frozen=True)
class Packing:
    """The batches of one side.

    Attributes
    ----------
    order : int64 array, shape (n_rows,)
        Row numbers in the order of the batches.
    batches : tuple of Batch
        Longest rows first, so that threads finish together.
    long_rows : tuple of int
        Rows too long for one batch; they are processed in segments of ``segment`` entries.
    segment : int
    spans : tuple of Span
        The rows by kind and length, ``order`` followed by ``long_rows``.
    """

    order: np.ndarray
    batches: tuple[Batch, ...]
    long_rows: tuple[int, ...]
    segment: int
    spans: tuple[Span, ...]

    @cached_property
    def places(self) -> np.ndarray:
        """``order`` followed by ``long_rows``, int64, shape (n_rows,)."""
        return np.append(self.order, self.long_rows).astype(np.int64)


def row_elements(width: int, n_factors: int) -> int:
    """Array elements one row of a batch needs: gathered rows, system and a few vectors."""
    side = min(width, n_factors)
    return width * n_factors + 2 * side * side + 8 * (width + n_factors)


def pack_rows(
    counts: np.ndarray,
    n_factors: int,
    batch_elements: int,
    *,
    indefinite: np.ndarray | None = None,
    row_overhead: int = 0,
) -> Packing:
    """Plan the batches of one side.

    Parameters
    ----------
    counts : int64 array, shape (n_rows,)
        Number of entries of each row.
    n_factors : int
    batch_elements : int
        Array elements that one batch may use; a batch has at least one row.
    indefinite : bool array, shape (n_rows,), or None
        Rows with a negative gram weight; they never share a batch with the others, since
        only the primal form serves them.
    row_overhead : int
        Elements that each row needs besides (a row of a dense X).
    """
    definite = np.ones(len(counts), bool) if indefinite is None else ~indefinite
    segment = max(batch_elements // n_factors, n_factors, 1)
    long_rows = np.flatnonzero(counts > segment)
    long_rows = long_rows[np.argsort(counts[long_rows], kind="stable")]
    packed = np.flatnonzero(counts <= segment)
    sort = np.lexsort((counts[packed], definite[packed]))  # stable: equal rows keep their order
    order = packed[sort]
    lengths = counts[order]
    widths = _padded_widths(lengths, n_factors, segment)
    batches: list[Batch] = []
    middle = int(np.count_nonzero(~definite[order]))
    for begin, end, kind in ((0, middle, False), (middle, len(order), True)):
        same = begin + np.flatnonzero(np.diff(widths[begin:end], prepend=-1))
        for first, stop in pairwise([*same.tolist(), end]):
            width = int(widths[first])
            cost = row_elements(width, n_factors) + row_overhead
            n_batches = -(-(stop - first) // max(1, min(batch_elements // cost, _MOST_ROWS)))
            height = -(-(stop - first) // n_batches)  # equal shares leave no small rest
            for start in range(first, stop, height):
                n_rows = min(height, stop - start)
                batches.append(Batch(start, start + n_rows, width, kind, n_rows * cost))
    batches.sort(key=lambda batch: -batch.width)
    spans = (
        Span.of(lengths[:middle], 0, definite=False),
        Span.of(lengths[middle:], middle, definite=True),
        Span.of(counts[long_rows], len(order), definite=bool(definite[long_rows].all())),
    )
    return Packing(order, tuple(batches), tuple(int(row) for row in long_rows), segment, spans)


def _padded_widths(lengths: np.ndarray, n_factors: int, segment: int) -> np.ndarray:
    """Return the width that each row is padded to: the next step of a ladder.

    Rows shorter than ``n_factors`` are never padded up to it: their dual form is the more accurate
    one. None is wider than ``segment``.
    """
    steps = [0]
    while steps[-1] < lengths.max(initial=0):
        steps.append(steps[-1] + max(1, steps[-1] // _PADDING))
    ladder = np.union1d(steps, [n_factors - 1, segment])
    return ladder[np.searchsorted(ladder, lengths)]
