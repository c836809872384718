"""The N best items for many users, in bounded memory and without sorting the catalogue.

Scores are computed in tiles of users x items. In each tile the items are cut into strips of 64;
the N strips with the largest maxima contain the N best items of the tile, so only those are
sorted. Equal scores are ordered by item id, lowest first, in every step, which makes the result
independent of the tiling.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

from gpu_als.backends.ops import Backend
from gpu_als.row_problem import Array

__all__ = ["lowest_score", "top_k"]

_STRIP = 64
_TILE_ITEMS = 1 << 15
_TILE_ELEMENTS = 1 << 21


def lowest_score(dtype: Any) -> float:
    """Return the finite score that filtered items get: the lowest of the dtype."""
    return float(np.finfo(dtype).min)


def top_k(
    backend: Backend,
    users: Array,
    items: Array,
    n_best: int,
    *,
    liked: sp.csr_matrix | None = None,
    filter_items: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ``n_best`` items with the largest inner product for each user.

    Parameters
    ----------
    backend : Backend
    users : array on the device, shape (n_users, k)
    items : array on the device, shape (n_items, k)
    n_best : int
        At most n_items.
    liked : csr_matrix, shape (n_users, n_items), optional
        Stored entries are filtered out.
    filter_items : int array, optional
        Filtered out for every user.

    Returns
    -------
    ids : int32 array, shape (n_users, n_best)
    scores : array of the factors' dtype, shape (n_users, n_best)
        Largest first; ties by lowest id. Filtered items come last with :func:`lowest_score`.
    """
    with backend.session():
        fused = backend.top_k(users, items, n_best, liked, filter_items)
    if fused is not None:
        return fused
    xp = backend.xp
    ids = np.empty((len(users), n_best), np.int32)
    scores = np.empty((len(users), n_best), users.dtype)
    width = min(len(items), max(_TILE_ITEMS, n_best))
    height = max(1, _TILE_ELEMENTS // width)

    def block(start: int) -> tuple[int, np.ndarray, np.ndarray]:
        stop = min(start + height, len(users))
        found_ids, found = [], []
        for first in range(0, len(items), width):
            last = min(first + width, len(items))
            tile = xp.matmul(users[start:stop], items[first:last].T)
            _filter_tile(xp, tile, first, start, liked, filter_items)
            tile_ids, tile_scores = _best_of_tile(xp, tile, min(n_best, last - first))
            found_ids.append(tile_ids + first)
            found.append(tile_scores)
        if len(found) == 1:
            merged_ids, merged = found_ids[0], found[0]
        else:
            merged_ids, merged = xp.concatenate(found_ids, axis=1), xp.concatenate(found, axis=1)
            merged_ids, merged = _sort(xp, merged_ids, merged, n_best)
        return start, backend.to_host(merged_ids), backend.to_host(merged)

    with backend.session():
        for start, block_ids, block_scores in backend.map(block, range(0, len(users), height)):
            ids[start : start + height] = block_ids
            scores[start : start + height] = block_scores
    return ids, scores


def _filter_tile(
    xp: Any,
    tile: Array,
    first: int,
    start: int,
    liked: sp.csr_matrix | None,
    filter_items: np.ndarray | None,
) -> None:
    """Give the filtered items of a tile the lowest score."""
    lowest = lowest_score(tile.dtype)
    height, width = tile.shape
    if filter_items is not None:
        here = filter_items[(filter_items >= first) & (filter_items < first + width)] - first
        tile[:, xp.asarray(here)] = lowest
    if liked is not None:
        ends = liked.indptr[start : start + height + 1].astype(np.int64)
        columns = liked.indices[ends[0] : ends[-1]].astype(np.int64) - first
        rows = np.repeat(np.arange(height), np.diff(ends))
        if width < liked.shape[1]:
            here = (columns >= 0) & (columns < width)
            rows, columns = rows[here], columns[here]
        tile.reshape(-1)[xp.asarray(rows * width + columns)] = lowest


def _best_of_tile(xp: Any, tile: Array, n_best: int) -> tuple[Array, Array]:
    """Return the places and scores of the best of each row, sorted."""
    height, width = tile.shape
    n_strips = width // _STRIP
    if n_best >= n_strips:
        places = xp.broadcast_to(xp.arange(width), tile.shape)
        return _sort(xp, places, tile, n_best)
    even = n_strips * _STRIP
    strips = tile[:, :even].reshape(height, n_strips, _STRIP)
    order = xp.argsort(-strips.max(axis=2), axis=1, kind="stable")[:, :n_best]
    order = xp.sort(order, axis=1)  # candidates in order of id, so that a stable sort breaks ties
    candidates = strips[xp.arange(height)[:, None], order].reshape(height, -1)
    places = (order[:, :, None] * _STRIP + xp.arange(_STRIP)).reshape(height, -1)
    if even < width:
        rest = xp.broadcast_to(xp.arange(even, width), (height, width - even))
        candidates = xp.concatenate([candidates, tile[:, even:]], axis=1)
        places = xp.concatenate([places, rest], axis=1)
    return _sort(xp, places, candidates, n_best)


def _sort(xp: Any, ids: Array, scores: Array, n_best: int) -> tuple[Array, Array]:
    """Sort each row by falling score; ``ids`` rise along rows wherever scores are equal."""
    order = xp.argsort(-scores, axis=1, kind="stable")[:, :n_best]
    return xp.take_along_axis(ids, order, axis=1), xp.take_along_axis(scores, order, axis=1)
