"""Where rows are cut into runs that fit."""

from __future__ import annotations

import numpy as np

__all__ = ["cut_rows"]


def cut_rows(
    counts: np.ndarray, most_bytes: int, entry_bytes: int, row_bytes: int
) -> tuple[int, ...]:
    """Cut rows into runs of at most so many bytes, or of one row.

    Parameters
    ----------
    counts : ndarray of int, shape (n_rows,)
        Entries of each row.
    most_bytes, entry_bytes, row_bytes : int
        What a run may take; what an entry takes, and a row besides.

    Returns
    -------
    tuple of int, length runs + 1
        The first row of each run, and the number of rows.
    """
    before = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts.astype(np.int64) * entry_bytes + row_bytes, out=before[1:])
    bounds = [0]
    while bounds[-1] < len(counts):
        stop = int(np.searchsorted(before, before[bounds[-1]] + most_bytes, side="right")) - 1
        bounds.append(max(stop, bounds[-1] + 1))
    return tuple(bounds)
