"""Grouping rows of similar length into padded batches. Changes the order of work, never results.

Rows are ordered by length and cut into batches, each padded to its longest row. No row is padded
by more than 6 %, and rows of up to 32 entries not at all, unless so few rows are left that a batch
of their own would cost more to start than to compute.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Batch", "Packing", "Span", "pack_rows"]

_EXACT_WIDTHS = 32
_PADDING = 1.06
_SMALL_BATCH = 1 << 16
"""Elements below which a batch costs more to start than to compute."""


@dataclass(frozen=True)
class Batch:
    """Rows ``order[start:stop]``, each padded to ``width`` entries."""

    start: int
    stop: int
    width: int
    definite: bool


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

    order: Any
    batches: tuple[Batch, ...]
    long_rows: tuple[int, ...]
    segment: int
    spans: tuple[Span, ...]


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
    batches: list[Batch] = []
    begin = 0
    for kind in (False, True):
        stop = end = begin + int(np.count_nonzero(definite[order] == kind))
        while stop > begin:
            width = int(lengths[stop - 1])
            cost = row_elements(width, n_factors) + row_overhead
            # Rows shorter than n_factors keep to themselves: their dual form is the more accurate
            # one. So do empty rows, which have no system.
            kin = begin + int(np.searchsorted(lengths[begin:stop], _shortest(width, n_factors)))
            least = width if width <= _EXACT_WIDTHS else int(np.ceil(width / _PADDING))
            alike = begin + int(np.searchsorted(lengths[begin:stop], least))
            start = max(kin, min(alike, stop - _SMALL_BATCH // cost))
            start = max(start, stop - max(1, batch_elements // cost))
            batches.append(Batch(start, stop, width, kind))
            stop = start
        begin = end
    batches.sort(key=lambda batch: -batch.width)
    middle = int(np.count_nonzero(~definite[order]))
    spans = (
        Span.of(lengths[:middle], 0, definite=False),
        Span.of(lengths[middle:], middle, definite=True),
        Span.of(counts[long_rows], len(order), definite=bool(definite[long_rows].all())),
    )
    return Packing(order, tuple(batches), tuple(int(row) for row in long_rows), segment, spans)


def _shortest(width: int, n_factors: int) -> int:
    """Return the length of the shortest row that may share a batch with one of ``width``."""
    if width >= n_factors:
        return n_factors
    return min(width, 1)
