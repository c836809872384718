"""Metrics over plain arrays: errors of predicted values, quality of ranked lists.

The ranking metrics take ranked lists and the items that were in truth relevant, and use the
definitions found in textbooks. For the definitions of the `implicit` package,
taken straight from a model, see :mod:`gpu_als.evaluation`.

Notation: user ``u`` is shown the list ``l_1, l_2, ..., l_K`` and has the set of relevant items
``R_u``; ``hit_i`` is 1 when ``l_i`` is in ``R_u`` and did not stand earlier in the list, and 0
otherwise. Every ranking metric is the mean over the users with at least one relevant item: for the
others none of them is defined.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import sparse

from gpu_als.errors import InputError

__all__ = [
    "average_precision_at_k",
    "hit_matrix",
    "hit_rate_at_k",
    "mae",
    "ndcg_at_k",
    "precision_at_k",
    "recall_at_k",
    "rmse",
]

Relevant: TypeAlias = "sparse.spmatrix | Sequence[ArrayLike]"
"""Relevant items: a sparse matrix (n_users x n_items) or one array of item ids per user."""

_LONGEST = 1 << 24
"""Places of a list that metrics make arrays of."""
_RELEVANT_REMEDY = "pass a sparse matrix (users x items) or one array of integer item ids per user"


def rmse(truth: ArrayLike, predicted: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
    """Root of the mean squared error, ``sqrt(sum_i w_i (t_i - p_i)^2 / sum_i w_i)``.

    Parameters
    ----------
    truth, predicted : array_like
        Real numbers, both of the same shape (any number of dimensions).
    sample_weight : array_like, optional
        Weights ``w`` >= 0 of that same shape, not all zero. The default weighs every value alike.

    Returns
    -------
    float
        The error, summed in float64 whatever the precision of the inputs.

    Raises
    ------
    InputError
        If a shape differs, an array is empty, or a value is NaN, infinite or (weights) negative.
    """
    error = _errors(truth, predicted)
    return float(np.sqrt(_mean(error * error, sample_weight)))


def mae(truth: ArrayLike, predicted: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
    """Mean absolute error, ``sum_i w_i |t_i - p_i| / sum_i w_i``.

    Parameters, result and errors are those of :func:`rmse`.
    """
    return _mean(np.abs(_errors(truth, predicted)), sample_weight)


def precision_at_k(ranked: ArrayLike, relevant: Relevant, K: int = 10) -> float:
    """Share of the first K places that hold a relevant item, ``mean_u (1/K) sum_i hit_i``.

    The divisor is always K, for a shorter list and for fewer than K relevant items too.

    Parameters
    ----------
    ranked : array_like of int, shape (n_users, N)
        Item ids, best first; -1 where nothing was recommended. Places after the K-th are not read,
        places a list does not have (N < K) count as empty, an item that repeats counts once.
    relevant : sparse matrix (n_users x n_items) or sequence of n_users arrays of item ids
        The relevant items of each user. Every stored entry of a matrix is one, whatever its value.
    K : int
        Length of the list that is judged, at least 1.

    Returns
    -------
    float
        In [0, 1]; 1 is best.

    Raises
    ------
    InputError
        If an argument has the wrong shape or type, or if no user has a relevant item.
    """
    hits, _ = _judged_users(ranked, relevant, K)
    return float(hits.mean(axis=1).mean())


def recall_at_k(ranked: ArrayLike, relevant: Relevant, K: int = 10) -> float:
    """Share of the relevant items that the first K places hold, ``mean_u sum_i hit_i / |R_u|``.

    Parameters, result and errors are those of :func:`precision_at_k`.
    """
    hits, n_relevant = _judged_users(ranked, relevant, K)
    return float((hits.sum(axis=1) / n_relevant).mean())


def hit_rate_at_k(ranked: ArrayLike, relevant: Relevant, K: int = 10) -> float:
    """Share of the users whose first K places hold a relevant item, ``mean_u max_i hit_i``.

    Parameters, result and errors are those of :func:`precision_at_k`.
    """
    hits, _ = _judged_users(ranked, relevant, K)
    return float(hits.any(axis=1).mean())


def ndcg_at_k(ranked: ArrayLike, relevant: Relevant, K: int = 10) -> float:
    """Normalised discounted cumulative gain with binary relevance.

    ``mean_u DCG_u / IDCG_u`` with ``DCG_u = sum_{i=1..K} hit_i / log2(i + 1)`` and, for a list that
    opens with relevant items, the ideal ``IDCG_u = sum_{i=1..min(K, |R_u|)} 1 / log2(i + 1)``.

    Parameters, result and errors are those of :func:`precision_at_k`.

    References
    ----------
    K. Järvelin and J. Kekäläinen, "Cumulated gain-based evaluation of IR techniques", ACM
    Transactions on Information Systems 20(4), 2002. The discount ``1 / log2(i + 1)`` follows C.
    Burges et al., "Learning to rank using gradient descent", ICML 2005.
    """
    hits, n_relevant = _judged_users(ranked, relevant, K)
    discount = 1 / np.log2(np.arange(2, hits.shape[1] + 2))
    ideal = np.cumsum(discount)[np.minimum(n_relevant, hits.shape[1]) - 1]
    # Both sums are cumsums, which add from left to right. Rounding is monotone, so term by term the
    # gain cannot exceed the ideal, and a perfect list gives exactly 1.
    gain = np.cumsum(hits * discount, axis=1)[:, -1]
    return float((gain / ideal).mean())


def average_precision_at_k(ranked: ArrayLike, relevant: Relevant, K: int = 10) -> float:
    """Mean over users of the average precision of the first K places (MAP@K).

    ``mean_u sum_{i=1..K} hit_i P_i / min(K, |R_u|)`` where ``P_i = (1/i) sum_{j<=i} hit_j`` is the
    precision at place i. The divisor is the largest number of hits possible, so a perfect list
    scores 1; with ``|R_u|`` instead, as in trec_eval, a user with more items than K could not.

    Parameters, result and errors are those of :func:`precision_at_k`.

    References
    ----------
    C. Manning, P. Raghavan and H. Schütze, "Introduction to Information Retrieval", section 8.4,
    2008.
    """
    hits, n_relevant = _judged_users(ranked, relevant, K)
    n_places = hits.shape[1]
    precision = np.cumsum(hits, axis=1) / np.arange(1, n_places + 1)
    return float(((hits * precision).sum(axis=1) / np.minimum(n_relevant, n_places)).mean())


def hit_matrix(
    ranked: ArrayLike, relevant: Relevant, K: int = 10, *, count_repeats: bool = False
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Mark the places of every list that hold a relevant item.

    Parameters
    ----------
    ranked, relevant, K
        As in :func:`precision_at_k`.
    count_repeats : bool
        Mark every place of an item that repeats in a list, and not only its first.

    Returns
    -------
    hits : bool array, shape (n_users, K)
        ``hit_i`` of each user.
    n_relevant : int64 array, shape (n_users,)
        ``|R_u|``, the number of different relevant items. No user is left out.

    Raises
    ------
    InputError
        If an argument has the wrong shape or type.
    """
    n_places = check_k(K)
    lists = _ranked_lists(ranked, n_places)
    n_users = lists.shape[0]
    per_user, items, n_items = _relevant_items(relevant)
    if len(per_user) != n_users:
        raise InputError(
            f"relevant: found {len(per_user)} users and {n_users} in ranked; pass one row per user "
            "in both"
        )
    if n_users * n_items > np.iinfo(np.int64).max:
        lists, items, n_items = _renumber(lists, items)

    # One sorted array of keys (user, item) answers all users' lookups in one binary search.
    users = np.arange(n_users, dtype=np.int64)
    keys = np.sort(np.repeat(users * n_items, per_user) + items)
    hits = np.zeros((n_users, n_places), dtype=bool)
    if len(keys) == 0:
        return hits, np.zeros(n_users, dtype=np.int64)
    # Not np.unique: NumPy 2.3 and later hash before they sort, which takes fifty times as long.
    keys = keys[np.append(True, keys[1:] != keys[:-1])]
    n_relevant = np.bincount(keys // n_items, minlength=n_users).astype(np.int64)
    # An id outside the catalogue is not a hit, but its key would be that of another user's item.
    asked = np.where((lists >= 0) & (lists < n_items), lists + users[:, None] * n_items, -1)
    place = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    hits[:, : lists.shape[1]] = keys[place] == asked
    if not count_repeats:
        where = np.flatnonzero(hits[:, : lists.shape[1]])
        _, first = np.unique(asked.ravel()[where], return_index=True)
        rows, columns = np.divmod(where[first], lists.shape[1])
        hits[:] = False
        hits[rows, columns] = True
    return hits, n_relevant


def check_k(K: int) -> int:
    """Return K as a built-in int, or raise :class:`InputError` where no list is that long."""
    try:
        n_places = operator.index(K)
    except TypeError:
        n_places = 0
    if not 1 <= n_places <= _LONGEST:
        raise InputError(f"K: found {K!r}; pass an integer from 1 to {_LONGEST}")
    return n_places


def _judged_users(
    ranked: ArrayLike, relevant: Relevant, K: int
) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Hits (n_judged, K) and relevant counts (n_judged,) of the users with a relevant item."""
    hits, n_relevant = hit_matrix(ranked, relevant, K)
    judged = n_relevant > 0
    if not judged.any():
        raise InputError("relevant: found no item for any user; pass at least one")
    return hits[judged], n_relevant[judged]


def _ranked_lists(ranked: ArrayLike, n_places: int) -> NDArray[np.int64]:
    """Check ranked and return its first places as int64, shape (n_users, min(N, n_places))."""
    lists = np.asarray(ranked)
    if lists.ndim != 2:
        raise InputError(
            f"ranked: found {lists.ndim} dimension(s); pass one row of item ids per user"
        )
    if lists.size and lists.dtype.kind not in "iu":
        raise InputError(f"ranked: found values of type {lists.dtype}; pass integer item ids")
    lists = lists[:, :n_places].astype(np.int64)
    if lists.size and lists.min() < -1:
        raise InputError(
            f"ranked: found the item id {lists.min()}; pass ids from 0, and -1 for an empty place"
        )
    return lists


def _relevant_items(relevant: Any) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Entries per user (n_users,), their item ids one user after another (nnz,), catalogue size."""
    if sparse.issparse(relevant):
        matrix = relevant.tocsr()
        if matrix.ndim != 2:
            raise InputError(f"relevant: found {matrix.ndim} dimension(s); pass one row per user")
        return np.diff(matrix.indptr).astype(np.int64), _ids(matrix.indices), matrix.shape[1]
    if isinstance(relevant, np.ndarray) and relevant.ndim != 1:
        # Rows of ids or rows of zeros and ones: a wrong guess would go unnoticed.
        raise InputError(
            f"relevant: found a dense array, which can be read in two ways; {_RELEVANT_REMEDY}"
        )
    try:
        lists = list(relevant)
        per_user = np.fromiter(map(len, lists), dtype=np.int64, count=len(lists))
        # Without the empty ones, because np.asarray([]) is an array of floats.
        parts = [_ids(np.asarray(ids)) for ids in lists if len(ids)]
    except (TypeError, ValueError) as error:
        raise InputError(
            f"relevant: found {type(relevant).__name__} ({error}); {_RELEVANT_REMEDY}"
        ) from None
    if not parts:
        return per_user, np.empty(0, dtype=np.int64), 0
    items = np.concatenate(parts)
    if items.min() < 0:
        raise InputError(f"relevant: found the item id {items.min()}; pass ids from 0")
    return per_user, items, int(items.max()) + 1


def _ids(ids: NDArray[Any]) -> NDArray[np.int64]:
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise TypeError(f"found ids of type {ids.dtype} and shape {ids.shape}")
    return ids.astype(np.int64, copy=False)


def _renumber(
    lists: NDArray[np.int64], items: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Renumber the relevant items 0, 1, ... so that keys (user, item) fit in 64 bits.

    Hashed ids need this: they are few and far apart. Ids that are relevant to no user become -1.
    """
    catalogue, items = np.unique(items, return_inverse=True)
    place = np.minimum(np.searchsorted(catalogue, lists), len(catalogue) - 1)
    return np.where(catalogue[place] == lists, place, -1), items, len(catalogue)


def _errors(truth: ArrayLike, predicted: ArrayLike) -> NDArray[np.float64]:
    """Return truth - predicted in float64."""
    target = _finite("truth", truth)
    estimate = _finite("predicted", predicted)
    if target.shape != estimate.shape:
        raise InputError(
            f"predicted: found shape {estimate.shape}; pass that of truth, {target.shape}"
        )
    return target - estimate


def _mean(values: NDArray[np.float64], sample_weight: ArrayLike | None) -> float:
    """Weighted mean of values, of any shape."""
    if sample_weight is None:
        return float(values.mean())
    weight = _finite("sample_weight", sample_weight)
    if weight.shape != values.shape:
        raise InputError(
            f"sample_weight: found shape {weight.shape}; pass that of truth, {values.shape}"
        )
    if weight.min() < 0:
        raise InputError(f"sample_weight: found {weight.min():g}; pass weights of at least 0")
    # Divided by the largest, no sum of weights overflows or vanishes.
    largest = weight.max()
    if largest == 0:
        raise InputError("sample_weight: found only zeros; pass at least one positive weight")
    weight = weight / largest
    return float((weight * values).sum() / weight.sum())


def _finite(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """Return values as a float64 array; NaN, infinities, emptiness and non-numbers are refused."""
    array = np.asarray(values)
    if array.dtype.kind not in "fiub":
        raise InputError(f"{name}: found values of type {array.dtype}; pass real numbers")
    if array.size == 0:
        raise InputError(f"{name}: found an empty array; pass at least one value")
    array = array.astype(np.float64, copy=False)
    if not np.isfinite(array).all():
        raise InputError(f"{name}: found NaN or infinite values; remove or replace them first")
    return array
