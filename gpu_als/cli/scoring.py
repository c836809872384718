"""What ``recommend`` and ``evaluate`` ask of a model, for many users at a time."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp

from gpu_als import metrics
from gpu_als.cli.models import AnyModel
from gpu_als.cli.options import reading_arguments
from gpu_als.data.ids import IdMap
from gpu_als.data.readers import read_triples
from gpu_als.data.shards import ShardedMatrix
from gpu_als.errors import InputError
from gpu_als.models import AlternatingLeastSquares, ExplicitALS

__all__ = [
    "Seen",
    "SeenInShards",
    "best_lists",
    "frequent_items",
    "pairs_matrix",
    "popular_items",
    "popularity",
    "ranking_metrics",
    "rating_metrics",
    "rows_of",
    "seen_items",
]  # fmt: skip

_USERS_AT_ONCE = 1000
_MIN_RATINGS = 5
"""Of items of explicit models, which rank those with one good rating first."""


class Seen(Protocol):
    """What users are not to be shown: a CSR matrix, or what gives its rows."""

    def __getitem__(self, users: np.ndarray) -> sp.csr_matrix:
        """Return the rows of some users, shape (n, items)."""
        ...


def rows_of(model: AnyModel, users: Any, items: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return row numbers, column numbers and a mask of the pairs that the model knows."""
    rows = model.user_index(users, unknown="skip")
    columns = model.item_index(items, unknown="skip")
    if len(rows) != len(columns):
        raise InputError(f"found {len(rows)} users and {len(columns)} items; pass one per rating")
    known = (rows >= 0) & (columns >= 0)
    return rows, columns, known


def pairs_matrix(model: AnyModel, rows: np.ndarray, columns: np.ndarray) -> sp.csr_matrix:
    """Return a matrix of the model's shape with a 1 in each of these places."""
    shape = len(model.user_factors), len(model.item_factors)
    return sp.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=shape)


def best_lists(
    model: AnyModel,
    users: np.ndarray,
    seen: Seen | None,
    n_best: int,
    candidates: np.ndarray | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield users (n,), their best items (n, n_best), -1 in empty places, and the scores.

    Parameters
    ----------
    users : array of int
        Row numbers; for -1 there are lists that mean nothing.
    seen : Seen, or None
        What each user is not to be shown, by row number.
    candidates : array of int, optional
        The only items to be shown, by row number.
    """
    model = model.without_ids()
    for start in range(0, len(users), _USERS_AT_ONCE):
        batch = users[start : start + _USERS_AT_ONCE]
        rows = np.maximum(batch, 0)
        if seen is None:
            found, scores = model.recommend(rows, None, n_best, False, items=candidates)
        else:
            found, scores = model.recommend(rows, seen[rows], n_best, items=candidates)
            # what is filtered comes last, with the lowest score there is
            found = np.where(scores > np.finfo(scores.dtype).min, found, -1)
        yield batch, found, scores


def frequent_items(args: argparse.Namespace, model: AnyModel) -> np.ndarray | None:
    """Return the rows of the items that ``--min-ratings`` leaves, or None for all."""
    least, counts = args.min_ratings, model.item_counts
    if least is None:
        least = _MIN_RATINGS if isinstance(model, ExplicitALS) and counts is not None else 0
    if least <= 0:
        return None
    if counts is None:
        raise InputError(
            "--min-ratings: the model does not say how many ratings items have; fit it again"
        )
    found = np.flatnonzero(counts >= least)
    if len(found) == 0:
        raise InputError(f"--min-ratings: no item has {least} ratings; pass a lower number")
    return found


def popularity(model: AnyModel) -> AlternatingLeastSquares | None:
    """Return a model that gives every user the items with the most ratings in training."""
    if model.item_counts is None:
        return None
    baseline = AlternatingLeastSquares(1, dtype=np.float64)
    baseline.user_factors = np.ones((len(model.user_factors), 1))
    baseline.item_factors = model.item_counts.astype(np.float64)[:, None]
    return baseline


def popular_items(
    model: AnyModel, n_best: int, candidates: np.ndarray | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the items with the most ratings, the first of equals first, and their numbers."""
    counts = model.item_counts
    if counts is None:
        raise InputError(
            "--unknown popular: the model does not say how many ratings items have; fit it again"
        )
    items = np.arange(len(counts)) if candidates is None else candidates
    best = items[np.argsort(-counts[items], kind="stable")[:n_best]]
    return best, counts[best]


def rating_metrics(
    model: ExplicitALS, rows: np.ndarray, columns: np.ndarray, ratings: np.ndarray
) -> dict[str, float]:
    """Return the errors of predicted ratings."""
    predicted = model.without_ids().predict(rows, columns)
    return {"RMSE": metrics.rmse(ratings, predicted), "MAE": metrics.mae(ratings, predicted)}


def ranking_metrics(
    model: AnyModel,
    test: sp.csr_matrix,
    seen: Seen | None,
    k: int,
    candidates: np.ndarray | None = None,
) -> tuple[dict[str, float], int]:
    """Return textbook metrics of the lists of the users with test items, and their number."""
    users = np.flatnonzero(np.diff(test.indptr))
    if len(users) == 0:
        raise InputError("no test item is left to rank; check the ids and --min-rating")
    ranked = np.concatenate(
        [found for _, found, _ in best_lists(model, users, seen, k, candidates)]
    )
    measures = {
        "precision": metrics.precision_at_k,
        "recall": metrics.recall_at_k,
        "hit rate": metrics.hit_rate_at_k,
        "NDCG": metrics.ndcg_at_k,
        "MAP": metrics.average_precision_at_k,
    }
    relevant = test[users]
    found = {f"{name}@{k}": measure(ranked, relevant, k) for name, measure in measures.items()}
    return found, len(users)


def seen_items(args: argparse.Namespace, model: AnyModel, source: str) -> Seen:
    """Return what the model's users have in a file or folder."""
    if os.path.isdir(source):
        return SeenInShards(ShardedMatrix.open(source), model)
    pairs = read_triples(source, **reading_arguments(args))[:2]
    rows, columns, known = rows_of(model, *pairs)
    return pairs_matrix(model, rows[known], columns[known])


class SeenInShards:
    """The items of users in shards, in the rows and columns of a model.

    Only the rows of the users asked for are read.

    Parameters
    ----------
    matrix : ShardedMatrix
        Its users and items are found by their ids; they may be others than those of the model.
    model : AlternatingLeastSquares or ExplicitALS
    """

    def __init__(self, matrix: ShardedMatrix, model: AnyModel) -> None:
        self._matrix, self._n_items = matrix, len(model.item_factors)
        users, items = model.user_ids, matrix.item_ids
        if users is None:
            users = np.arange(len(model.user_factors))
        if items is None:
            items = np.arange(matrix.shape[1])
        known = IdMap(matrix.user_ids, matrix.shape[0])
        self._rows = known.rows(users, name="users", unknown="skip")
        self._columns = model.item_index(items, unknown="skip")

    def __getitem__(self, users: np.ndarray) -> sp.csr_matrix:
        """Return a matrix of shape (n, items of the model) with a 1 for each item a user has."""
        rows = self._rows[users]
        known = np.flatnonzero(rows >= 0)
        entries = self._matrix.rows(rows[known])
        places = np.repeat(known, np.diff(entries.indptr)), self._columns[entries.indices]
        kept = places[1] >= 0
        ones = np.ones(int(np.count_nonzero(kept)), np.float32)
        pairs = places[0][kept], places[1][kept]
        return sp.csr_matrix((ones, pairs), shape=(len(users), self._n_items))
