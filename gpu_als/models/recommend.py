"""The best rows of one side for rows of either, and predictions for pairs."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

from gpu_als.core.backend import Backend
from gpu_als.core.problem import Array
from gpu_als.data.csr import check_index_array
from gpu_als.errors import InputError
from gpu_als.models.params import check_integer, requested_rows
from gpu_als.ranking.top_k import lowest_score, pair_scores, top_k

__all__ = [
    "Ranked",
    "best_rows",
    "clear_low_scores",
    "clear_rows",
    "own_rows_first",
    "predictions",
    "queries_of",
]

Ranked = tuple[np.ndarray, np.ndarray]
"""Ids and scores, of shape (n, N) each."""


def predictions(
    xp: Any, users: Array, items: Array, rows: Array, columns: Array, *, bias: bool, mean: float
) -> Array:
    """Return the scores of pairs in bounded memory, shape (n,).

    Parameters
    ----------
    users : array, shape (n_users, k), or (n_users, k + 1) with ``bias``
    items : array, shape (n_items, k), or (n_items, k + 1) with ``bias``
    rows, columns : int array, shape (n,)
    """
    if not bias:
        scores = pair_scores(xp, users, items, rows, columns)
        return scores + users.dtype.type(mean) if mean else scores
    scores = pair_scores(xp, users[:, :-1], items[:, :-1], rows, columns)
    return scores + (users[rows, -1] + items[columns, -1] + users.dtype.type(mean))


def queries_of(users: Array, *, bias: bool, mean: float) -> tuple[Array, Array | None]:
    """Return rows whose products with the items' rank them, and what to add to each user's scores.

    The item's bias is one more factor whose partner is 1.

    Parameters
    ----------
    users : array, shape (n, k), or (n, k + 1) with ``bias``
    """
    if not bias:
        return users, users[:, 0] * 0 + users.dtype.type(mean) if mean else None
    base = users[:, -1] + users.dtype.type(mean)
    users = users.copy()
    users[:, -1] = 1
    return users, base


def best_rows(
    backend: Backend,
    queries: Array,
    catalogue: Array,
    n_best: Any,
    *,
    base: Array | None = None,
    denied: sp.csr_matrix | None = None,
    denied_to_all: Any = None,
    candidates: Any = None,
    names: tuple[str, str] = ("items", "filter_items"),
) -> Ranked:
    """Return the rows of the catalogue with the largest products with each query.

    Parameters
    ----------
    queries, catalogue : array on the device, shape (n, m) and (n_rows, m)
    n_best : int
        Cut down to the number of candidates.
    base : array on the device, shape (n,), optional
        Added to each query's scores.
    denied : csr_matrix, shape (n, n_rows), optional
        What to put last for each query.
    denied_to_all : int array, or matrix of shape (n, n_rows), optional
        What to put last for every query; a matrix is added to ``denied``.
    candidates : int array, optional
        The only rows to choose from.
    names : (str, str)
        What the caller calls ``candidates`` and ``denied_to_all``.

    Returns
    -------
    ids : int32 array, shape (n, N)
    scores : array, shape (n, N)
    """
    n_rows = len(catalogue)
    if n_rows == 0:
        raise InputError(f"the model has no {names[0]} to choose from; train it first")
    n_best = check_integer(n_best, name="N", at_least=1)
    if sp.issparse(denied_to_all):
        some = requested_rows(denied_to_all, len(queries), n_rows, "filter", name=names[1])
        denied, denied_to_all = some if denied is None else _either(denied, some), None
    elif denied_to_all is not None:
        denied_to_all = check_index_array(denied_to_all, n_rows, name=names[1])
    chosen = None
    if candidates is not None:
        if denied_to_all is not None and len(denied_to_all):
            raise InputError(
                f"{names[0]} and {names[1]} cannot both be given; leave out of {names[0]} what "
                "is not wanted"
            )
        chosen = np.unique(check_index_array(candidates, n_rows, name=names[0]))
        if len(chosen) == 0:
            raise InputError(f"{names[0]} is empty; pass at least one, or None for all")
        catalogue = catalogue[backend.from_host(chosen)]
        denied = None if denied is None else denied[:, chosen]
    n_best = min(n_best, len(catalogue))
    ids, scores = top_k(
        backend, queries, catalogue, n_best, liked=denied, filter_items=denied_to_all
    )
    if base is not None:
        kept = scores > lowest_score(scores.dtype)
        with np.errstate(over="ignore"):
            scores = np.where(kept, scores + backend.to_host(base)[:, None], scores)
    return (ids if chosen is None else chosen[ids].astype(np.int32)), scores


def own_rows_first(
    ranked: Ranked, own: np.ndarray, denied: np.ndarray | None, candidates: np.ndarray | None
) -> Ranked:
    """Put the row that was asked about first in its list, with score 1, wherever it may stand.

    Rounding, and rows that point the same way, leave it anywhere. A row of zeros is like no row,
    not even itself.

    Parameters
    ----------
    own : int array, shape (n,)
        -1 for rows of zeros.
    denied, candidates : int array, or None
        As :func:`best_rows` takes them.
    """
    ids, scores = ranked
    is_listed = own >= 0
    if denied is not None:
        is_listed &= ~np.isin(own, denied)
    if candidates is not None:
        is_listed &= np.isin(own, candidates)
    np.minimum(scores, 1, out=scores)
    some = ids[is_listed]
    others = some != own[is_listed, None]
    others[others.all(axis=1), -1] = False  # it did not make it into the list
    shape = len(some), some.shape[1] - 1
    ids[is_listed, 1:] = some[others].reshape(shape)
    scores[is_listed, 1:] = scores[is_listed][others].reshape(shape)
    ids[is_listed, 0], scores[is_listed, 0] = own[is_listed], 1
    return ids, scores


def clear_low_scores(ranked: Ranked, min_score: Any) -> Ranked:
    """Give places below a score the id -1 and the lowest finite score."""
    ids, scores = ranked
    try:
        least = np.float64(min_score)  # which may be beyond the range of the scores
    except (TypeError, ValueError):
        least = np.float64(np.nan)
    if np.isnan(least):
        raise InputError(f"min_score must be a number or None, not {min_score!r}")
    clear_rows(ranked, scores < least)
    return ids, scores


def clear_rows(ranked: Ranked, where: np.ndarray) -> None:
    """Empty some places, or the whole lists of some rows."""
    ids, scores = ranked
    ids[where], scores[where] = -1, lowest_score(scores.dtype)


def _either(first: sp.csr_matrix, second: sp.csr_matrix) -> sp.csr_matrix:
    """Return a matrix with an entry wherever one of two has one, whatever its value."""
    parts = [
        sp.csr_matrix((np.ones(one.nnz, np.float32), one.indices, one.indptr), shape=one.shape)
        for one in (first, second)
    ]
    return sp.csr_matrix(parts[0] + parts[1])
