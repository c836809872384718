"""The best items of one user: one product, and two passes over its scores.

The rules, and the results, are those of :mod:`gpu_als.ranking.scan`, whose tiles pay for many users
only. Here a *strip* is a column of the scores in rows: items a fixed number apart.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from gpu_als.ranking.candidates import Best
from gpu_als.row_problem import Array

__all__ = ["scan_one"]


def scan_one(xp: Any, user: Array, items: Array, n_best: int, *filtered: np.ndarray | None) -> Best:
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
    Best
        Of one user; as :func:`gpu_als.ranking.scan.scan` returns it.
    """
    lowest = np.finfo(user.dtype).min
    n_items = len(items)
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
    floor = xp.partition(maxima, n_strips - n_best)[n_strips - n_best]
    floor = xp.maximum(floor, np.nextafter(lowest, user.dtype.type(0)))
    columns = xp.flatnonzero(maxima >= floor)
    rows, places = xp.nonzero(strips[:, columns] >= floor)
    ids = rows * n_strips + columns[places]  # rising
    found = scores[ids]
    order = xp.argsort(-found, kind="stable")[:n_best]
    return Best(xp.full(1, len(order)), ids[order][None], found[order][None])
