"""Grouping rows of similar length into padded batches. Changes the order of work, never results.

Rows are ordered by length and cut into batches whose rows share one padded width. Widths come
from a ladder: every length up to 32, then steps of 6 %, so that padding wastes 3 % on average
where it is paid for with cubic work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Batch", "Packing", "pack_rows"]

_EXACT_WIDTHS = 32
_LADDER_STEP = 1.06
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
    """

    order: Any
    batches: tuple[Batch, ...]
    long_rows: tuple[int, ...]
    segment: int


def ladder_widths(counts: np.ndarray) -> np.ndarray:
    """Round row lengths up to the ladder: exact to 32, then geometric with ratio 1.06."""
    steps = [*range(_EXACT_WIDTHS + 1)]
    longest = int(counts.max(initial=0))
    while steps[-1] < longest:
        steps.append(max(steps[-1] + 1, int(steps[-1] * _LADDER_STEP)))
    ladder = np.asarray(steps, dtype=np.int64)
    return ladder[np.searchsorted(ladder, counts)]


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
    packed = np.flatnonzero(counts <= segment)
    widths = ladder_widths(counts[packed])
    sort = np.lexsort((widths, definite[packed]))  # stable: equal widths keep their row order
    order, widths = packed[sort], np.minimum(widths[sort], segment)
    widths = _merge_small_groups(widths, definite[order], n_factors)
    batches: list[Batch] = []
    edges = np.flatnonzero(np.diff(widths) | np.diff(definite[order])) + 1
    for first, last in zip([0, *edges], [*edges, len(order)], strict=True):
        if first == last:
            continue
        width = int(widths[first])
        height = max(1, batch_elements // (row_elements(width, n_factors) + row_overhead))
        height = -(-(last - first) // -(-(last - first) // height))  # batches of equal height
        batches += [
            Batch(start, min(start + height, int(last)), width, bool(definite[order[first]]))
            for start in range(int(first), int(last), height)
        ]
    batches.sort(key=lambda batch: -batch.width)
    return Packing(order, tuple(batches), tuple(int(row) for row in long_rows), segment)


def _merge_small_groups(widths: np.ndarray, definite: np.ndarray, n_factors: int) -> np.ndarray:
    """Pad groups too small to be worth a batch of their own up to the next larger width.

    Rows shorter than ``n_factors`` keep to themselves: their dual form is the more accurate one.
    """
    merged = widths.copy()
    edges = np.flatnonzero(np.diff(widths) | np.diff(definite)) + 1
    groups = list(zip([0, *edges], [*edges, len(widths)], strict=True))
    upper = elements = 0
    for first, last in reversed(groups):
        if first == last:
            continue
        width = int(widths[first])
        joins = (
            last < len(widths)
            and width > 0
            and definite[last] == definite[first]
            and (width < n_factors) == (upper < n_factors)
        )
        if joins and elements + (last - first) * row_elements(upper, n_factors) <= _SMALL_BATCH:
            merged[first:last] = upper
        else:
            upper, elements = width, 0
        elements += (last - first) * row_elements(upper, n_factors)
    return merged
