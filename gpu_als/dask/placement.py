"""Which rows each worker solves: ranges of equal work, not of equal length."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

__all__ = ["cut_by_work", "homes", "work_of_rows"]

_GATHER = 40
"""What reading one factor costs, in multiplications: memory is that much slower."""


def work_of_rows(counts: np.ndarray, n_factors: int) -> np.ndarray:
    """Return what each row costs to solve, in multiplications.

    A row of n entries gathers ``n k`` factors and is solved in the cheaper of its two forms:
    ``n^2 k + n^3 / 3`` or ``n k^2 + k^3 / 3``. Whatever its length it takes part in changes of
    coordinates, ``k^2``.

    Parameters
    ----------
    counts : int64 array, shape (n_rows,)
    n_factors : int

    Returns
    -------
    float64 array, shape (n_rows,)
    """
    n, k = counts.astype(np.float64), float(n_factors)
    solve = np.minimum(n**2 * k + n**3 / 3, n * k**2 + k**3 / 3)
    return solve + _GATHER * n * k + k**2


def cut_by_work(work: np.ndarray, n_parts: int) -> tuple[int, ...]:
    """Cut rows into at most ``n_parts`` runs of about equal work.

    Parameters
    ----------
    work : float64 array, shape (n_rows,)
        Positive.
    n_parts : int

    Returns
    -------
    tuple of int
        The first row of each run, and the number of rows. No run is empty.
    """
    before = np.append(0, np.cumsum(work))
    aims = before[-1] * np.arange(1, n_parts) / n_parts
    after = np.searchsorted(before, aims)
    nearest = np.where(aims - before[after - 1] < before[after] - aims, after - 1, after)
    return tuple(np.unique([0, *nearest.tolist(), len(work)]).tolist())


def homes(former: Sequence[str | None], workers: Mapping[str, int]) -> list[str]:
    """Return the worker of each part, leaving parts where they are as far as that is fair.

    Parameters
    ----------
    former : sequence of str or None
        The worker that each part was on last, if any.
    workers : mapping of str to int
        Address and number of threads of the workers there are; at least one.
    """
    most = -(-len(former) // len(workers))
    chosen: list[str | None] = []
    load = dict.fromkeys(sorted(workers), 0)
    for worker in former:
        stays = worker in load and load[worker] < most
        chosen.append(worker if stays else None)
        if stays:
            assert worker is not None
            load[worker] += 1
    placed = []
    for worker in chosen:
        if worker is None:
            worker = min(load, key=load.__getitem__)
            load[worker] += 1
        placed.append(worker)
    return placed
