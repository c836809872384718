"""What ``recommend`` and ``evaluate`` ask of a model, for many users at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp

from gpu_als import metrics
from gpu_als.cli.models import AnyModel
from gpu_als.errors import InputError
from gpu_als.models import ExplicitALS

__all__ = ["Seen", "best_lists", "pairs_matrix", "ranking_metrics", "rating_metrics", "rows_of"]

_USERS_AT_ONCE = 1000


class Seen(Protocol):
    """What users are not to be shown: a CSR matrix, or what gives its rows."""

    def __getitem__(self, users: np.ndarray) -> sp.csr_matrix:
        """Return the rows of some users, shape (n, items)."""
        ...


def rows_of(model: AnyModel, users: Any, items: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return row numbers, column numbers and a mask of the pairs that the model knows."""
    rows = model.user_index(users, unknown="drop")
    columns = model.item_index(items, unknown="drop")
    if len(rows) != len(columns):
        raise InputError(f"found {len(rows)} users and {len(columns)} items; pass one per rating")
    known = (rows >= 0) & (columns >= 0)
    return rows, columns, known


def pairs_matrix(model: AnyModel, rows: np.ndarray, columns: np.ndarray) -> sp.csr_matrix:
    """Return a matrix of the model's shape with a 1 in each of these places."""
    shape = len(model.user_factors), len(model.item_factors)
    return sp.csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=shape)


def best_lists(
    model: AnyModel, users: np.ndarray, seen: Seen | None, n_best: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield users (n,), their best items (n, n_best), -1 in empty places, and the scores.

    Parameters
    ----------
    seen : Seen, or None
        What each user is not to be shown, by row number.
    """
    for start in range(0, len(users), _USERS_AT_ONCE):
        batch = users[start : start + _USERS_AT_ONCE]
        if seen is None:
            found, scores = model.recommend(batch, N=n_best, filter_already_liked_items=False)
        else:
            found, scores = model.recommend(batch, seen[batch], N=n_best)
            # what is filtered comes last, with the lowest score there is
            found = np.where(scores > np.finfo(scores.dtype).min, found, -1)
        yield batch, found, scores


def rating_metrics(
    model: ExplicitALS, rows: np.ndarray, columns: np.ndarray, ratings: np.ndarray
) -> dict[str, float]:
    """Return the errors of predicted ratings."""
    predicted = model.predict(rows, columns)
    return {"RMSE": metrics.rmse(ratings, predicted), "MAE": metrics.mae(ratings, predicted)}


def ranking_metrics(
    model: AnyModel, test: sp.csr_matrix, seen: Seen | None, k: int
) -> tuple[dict[str, float], int]:
    """Return textbook metrics of the lists of the users with test items, and their number."""
    users = np.flatnonzero(np.diff(test.indptr))
    if len(users) == 0:
        raise InputError("no test item is left to rank; check the ids and --min-rating")
    ranked = np.concatenate([found for _, found, _ in best_lists(model, users, seen, k)])
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
