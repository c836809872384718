"""Evaluation of a fitted model against withheld interactions.

`precision_at_k`, `mean_average_precision_at_k`, `ndcg_at_k`, `AUC_at_k` and `ranking_metrics_at_k`
have the names, the arguments and the definitions of ``implicit.evaluation``, so numbers stay
comparable with numbers measured there. `true_precision_at_k`, `recall_at_k` and `hit_rate_at_k` are
the textbook metrics of :mod:`gpu_als.metrics`.

All of them ask the model for the K best items of each user that has at least one entry in the test
matrix; other users are left out. What they read of a list:

- every stored entry of the test matrix is a liked item, whatever its value;
- scores are not read: an item of the training matrix, which a model puts at the end of the list
  with a very low score when fewer than K others exist, is a hit or a miss like any other item;
- the id -1, with which some models fill a list, and a place that a list does not have are misses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse

from gpu_als import metrics
from gpu_als.data.csr import as_csr
from gpu_als.data.splits import leave_k_out_split, train_test_split
from gpu_als.errors import InputError
from gpu_als.progress import ProgressBar

__all__ = [
    "AUC_at_k",
    "hit_rate_at_k",
    "leave_k_out_split",
    "mean_average_precision_at_k",
    "ndcg_at_k",
    "precision_at_k",
    "ranking_metrics_at_k",
    "recall_at_k",
    "train_test_split",
    "true_precision_at_k",
]

# Users per call of the model, as in implicit; fewer when a huge K makes the lists too large.
_USERS_PER_BATCH = 1000
_PLACES_PER_BATCH = 2**24


class Recommender(Protocol):
    """What the functions here need of a model."""

    def recommend(self, userids: Any, user_items: Any, /, *, N: int) -> tuple[Any, Any]:
        """Return item ids (n_users, N), best first, and their scores, for an array of users.

        ``user_items`` has one row per requested user; its items are to be left out of the lists.
        """


def ranking_metrics_at_k(
    model: Recommender,
    train_user_items: sparse.spmatrix,
    test_user_items: sparse.spmatrix,
    K: int = 10,
    show_progress: bool = True,
    num_threads: int = 1,
) -> dict[str, float]:
    """Measure precision, MAP, NDCG and limited AUC of the first K recommendations at once.

    With ``hit_i`` = 1 if the i-th of the K items listed for user u is liked, ``L`` the number of
    items u likes in the test matrix, ``M = n_items - L`` the number of the others, ``h`` and ``m``
    the number of hits and of misses in the list, the values are those of ``implicit.evaluation``:

    - ``precision``: ``sum_u h / sum_u min(K, L)``. One quotient of two sums, not a mean over users,
      and the divisor is the largest number of hits possible, not K.
    - ``map``: ``mean_u (1 / min(K, L)) sum_i hit_i (hit_1 + ... + hit_i) / i``
    - ``ndcg``: ``mean_u sum_i hit_i / log2(i + 1) / sum_{i <= min(K, L)} 1 / log2(i + 1)``
    - ``auc``: ``mean_u [sum over misses of (hits before it) + (M - m) (h + L) / 2] / (L M)``. The
      area under the ROC curve when only the list is ordered: past its end the curve goes straight
      to the corner (1, 1). A user who likes the whole catalogue has no such curve and is left out
      of this mean; if no other user is left it is NaN.

    Items that repeat in a list count each time, and empty places as items of the curve. So from a
    model that fills lists longer than the catalogue with a real item or with -1 these values can
    leave [0, 1]. Those of :mod:`gpu_als.metrics` cannot.

    Parameters
    ----------
    model : Recommender
        Any fitted model with ``recommend(userids, user_items, N=K) -> (ids, scores)``.
    train_user_items : matrix, shape (n_users, n_items)
        The interactions the model was trained on, which it filters from its lists. In any form that
        :func:`~gpu_als.data.csr.as_csr` takes; more rows than in the test matrix may follow.
    test_user_items : matrix, shape (n_users, n_items)
        The withheld interactions, in any of those forms.
    K : int
        Length of the lists, at least 1.
    show_progress : bool
        Show a progress bar.
    num_threads : int
        Accepted so that existing calls work; the model decides how many threads it scores with.

    Returns
    -------
    dict of str to float
        The keys are "precision", "map", "ndcg" and "auc".

    Raises
    ------
    InputError
        If an argument has the wrong shape or type, or if the test matrix has no entry.

    References
    ----------
    NDCG: K. Järvelin and J. Kekäläinen, "Cumulated gain-based evaluation of IR techniques", ACM
    Transactions on Information Systems 20(4), 2002. Limited AUC: G. Schröder, M. Thiele and
    W. Lehner, "Setting goals and choosing metrics for recommender system evaluations", UCERSTI
    workshop at RecSys 2011.
    """
    n_places = metrics.check_k(K)
    discount = 1 / np.log2(np.arange(2, n_places + 2))
    ideal_gain = np.cumsum(discount)
    rank = np.arange(1, n_places + 1)

    n_users = n_curves = 0
    found = findable = average_precision = gain = area = 0.0
    for ids, test in _batches(model, train_user_items, test_user_items, n_places, show_progress):
        hits, n_liked = metrics.hit_matrix(ids, test, n_places, count_repeats=True)
        reachable = np.minimum(n_liked, n_places)
        hits_so_far = np.cumsum(hits, axis=1)
        n_hits = hits_so_far[:, -1]

        n_users += len(hits)
        found += n_hits.sum()
        findable += reachable.sum()
        average_precision += ((hits * hits_so_far / rank).sum(axis=1) / reachable).sum()
        gain += (hits @ discount / ideal_gain[reachable - 1]).sum()

        n_others = test.shape[1] - n_liked
        inside = (~hits * hits_so_far).sum(axis=1)
        after = (n_others - (n_places - n_hits)) * (n_hits + n_liked) / 2
        has_curve = n_others > 0
        n_curves += int(has_curve.sum())
        area += ((inside + after)[has_curve] / (n_liked * n_others)[has_curve]).sum()

    return {
        "precision": float(found / findable),
        "map": float(average_precision / n_users),
        "ndcg": float(gain / n_users),
        "auc": float(area / n_curves) if n_curves else float("nan"),
    }


def precision_at_k(
    model: Recommender,
    train_user_items: sparse.spmatrix,
    test_user_items: sparse.spmatrix,
    K: int = 10,
    show_progress: bool = True,
    num_threads: int = 1,
) -> float:
    """Hits per possible hit, ``sum_u h / sum_u min(K, L)``: the "precision" of ``implicit``.

    Arguments, notation and errors are those of :func:`ranking_metrics_at_k`. The textbook's
    precision is :func:`true_precision_at_k`.
    """
    return ranking_metrics_at_k(
        model, train_user_items, test_user_items, K, show_progress, num_threads
    )["precision"]


def mean_average_precision_at_k(
    model: Recommender,
    train_user_items: sparse.spmatrix,
    test_user_items: sparse.spmatrix,
    K: int = 10,
    show_progress: bool = True,
    num_threads: int = 1,
) -> float:
    """Mean over users of the average precision of the first K places.

    Arguments, definition and errors are those of :func:`ranking_metrics_at_k`, key "map".
    """
    return ranking_metrics_at_k(
        model, train_user_items, test_user_items, K, show_progress, num_threads
    )["map"]


def ndcg_at_k(
    model: Recommender,
    train_user_items: sparse.spmatrix,
    test_user_items: sparse.spmatrix,
    K: int = 10,
    show_progress: bool = True,
    num_threads: int = 1,
) -> float:
    """Mean over users of the normalised discounted cumulative gain of the first K places.

    Arguments, definition and errors are those of :func:`ranking_metrics_at_k`, key "ndcg".
    """
    return ranking_metrics_at_k(
        model, train_user_items, test_user_items, K, show_progress, num_threads
    )["ndcg"]


def AUC_at_k(
    model: Recommender,
    train_user_items: sparse.spmatrix,
    test_user_items: sparse.spmatrix,
    K: int = 10,
    show_progress: bool = True,
    num_threads: int = 1,
) -> float:
    """Mean over users of the area under the ROC curve when only the first K places are ordered.

    Arguments, definition and errors are those of :func:`ranking_metrics_at_k`, key "auc".
    """
    return ranking_metrics_at_k(
        model, train_user_items, test_user_items, K, show_progress, num_threads
    )["auc"]


def true_precision_at_k(
    model: Recommender,
    train_user_items: sparse.spmatrix,
    test_user_items: sparse.spmatrix,
    K: int = 10,
    show_progress: bool = True,
    num_threads: int = 1,
) -> float:
    """Share of K places that hold a liked item, as :func:`gpu_als.metrics.precision_at_k`.

    Arguments and errors are those of :func:`ranking_metrics_at_k`.
    """
    return _mean_over_users(
        metrics.precision_at_k, model, train_user_items, test_user_items, K, show_progress
    )


def recall_at_k(
    model: Recommender,
    train_user_items: sparse.spmatrix,
    test_user_items: sparse.spmatrix,
    K: int = 10,
    show_progress: bool = True,
    num_threads: int = 1,
) -> float:
    """Share of liked items that K places hold, as :func:`gpu_als.metrics.recall_at_k`.

    Arguments and errors are those of :func:`ranking_metrics_at_k`.
    """
    return _mean_over_users(
        metrics.recall_at_k, model, train_user_items, test_user_items, K, show_progress
    )


def hit_rate_at_k(
    model: Recommender,
    train_user_items: sparse.spmatrix,
    test_user_items: sparse.spmatrix,
    K: int = 10,
    show_progress: bool = True,
    num_threads: int = 1,
) -> float:
    """Share of users with a liked item in K places, as :func:`gpu_als.metrics.hit_rate_at_k`.

    Arguments and errors are those of :func:`ranking_metrics_at_k`.
    """
    return _mean_over_users(
        metrics.hit_rate_at_k, model, train_user_items, test_user_items, K, show_progress
    )


def _mean_over_users(
    metric: Callable[[NDArray[Any], Any, int], float],
    model: Recommender,
    train_user_items: Any,
    test_user_items: Any,
    K: int,
    show_progress: bool,
) -> float:
    n_places = metrics.check_k(K)
    n_users = 0
    total = 0.0
    for ids, test in _batches(model, train_user_items, test_user_items, n_places, show_progress):
        # Every user in a batch has a test item, so the metric's own mean is over all of them.
        total += metric(ids, test, n_places) * len(ids)
        n_users += len(ids)
    return total / n_users


def _batches(
    model: Recommender,
    train_user_items: Any,
    test_user_items: Any,
    n_places: int,
    show_progress: bool,
) -> Iterator[tuple[NDArray[Any], sparse.csr_matrix]]:
    """Yield recommended ids (batch, N) and test rows (batch, n_items) of users with test items."""
    if not hasattr(model, "recommend"):
        raise InputError(f"model: found {type(model).__name__}; pass a model with recommend()")
    model = getattr(model, "without_ids", lambda: model)()  # rows of the matrices are meant
    train = _csr("train_user_items", train_user_items)
    test = _csr("test_user_items", test_user_items)
    if train.shape[0] < test.shape[0]:
        raise InputError(
            f"train_user_items: found {train.shape[0]} rows; pass one for each of the "
            f"{test.shape[0]} rows of test_user_items"
        )
    users = np.flatnonzero(np.diff(test.indptr))
    if len(users) == 0:
        raise InputError("test_user_items: found no entry; pass at least one withheld interaction")

    size = max(1, min(_USERS_PER_BATCH, _PLACES_PER_BATCH // n_places))
    with ProgressBar(show=show_progress, total=len(users)) as bar:
        for start in range(0, len(users), size):
            batch = users[start : start + size]
            ids = np.asarray(model.recommend(batch, train[batch], N=n_places)[0])
            if ids.ndim != 2 or len(ids) != len(batch):
                raise InputError(
                    f"model: found ids of shape {ids.shape} from recommend for {len(batch)} users; "
                    "pass a model that returns one row of ids per user"
                )
            yield ids, test[batch]
            bar.update(len(batch))


def _csr(name: str, matrix: Any) -> sparse.csr_matrix:
    matrix = getattr(matrix, "user_items", matrix)
    # Some models score with the values: float64 stays what it is. Nothing here reads them, so they
    # may be anything.
    wide = getattr(matrix, "dtype", None) == np.float64
    return as_csr(matrix, name=name, dtype=np.float64 if wide else np.float32, require_finite=False)
