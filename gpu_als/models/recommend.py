"""The best items for users: what every estimator's ``recommend`` shares."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import scipy.sparse as sp

from gpu_als.core.backend import Backend
from gpu_als.core.problem import Array
from gpu_als.data.csr import as_csr, check_index_array
from gpu_als.errors import InputError
from gpu_als.models.external_ids import HasIds
from gpu_als.models.params import check_integer
from gpu_als.models.snapshots import of_one_moment
from gpu_als.ranking.to_file import recommendation_file
from gpu_als.ranking.top_k import lowest_score, top_k

__all__ = ["Recommends", "best_rows", "requested_rows"]

_USERS_AT_ONCE, _PLACES_AT_ONCE = 8192, 1 << 22


class Recommends(HasIds):
    """Mixin: recommendations by the inner products of rows that the estimator supplies."""

    dtype: np.dtype

    def _get_backend(self) -> Backend:
        raise NotImplementedError

    def _queries(
        self, backend: Backend, ids: np.ndarray, rows: sp.csr_matrix | None
    ) -> tuple[Array, Array]:
        """Return a row for each requested user and for each item, whose products are the scores.

        Parameters
        ----------
        ids : int64 array, shape (n,)
        rows : csr_matrix, shape (n, n_items), or None
            What to solve the users from, instead of taking those that were trained.
        """
        raise NotImplementedError

    @of_one_moment
    def recommend(
        self,
        userid: Any,
        user_items: Any = None,
        N: int = 10,
        filter_already_liked_items: bool = True,
        filter_items: Any = None,
        recalculate_user: bool = False,
        items: Any = None,
        *,
        min_score: float | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the best items for one user or for many.

        Parameters
        ----------
        userid : int or array of int, shape (n,)
        user_items : sparse matrix, shape (n, n_items)
            One row per requested user; needed to filter or to recalculate.
        N : int
            Number of items; cut down to the number of candidates.
        filter_already_liked_items : bool
            Put the stored items of ``user_items`` last, with the lowest finite score.
        filter_items : array of int or sparse matrix, optional
            Items to put last as well: for every user, or for each those stored in the row of a
            matrix of shape (n, n_items).
        recalculate_user : bool
            Use factors solved from ``user_items``, as :meth:`fold_in_users` does, instead of the
            trained ones; ``userid`` then only says how many users there are.
        items : array of int, optional
            The only candidates.
        min_score : float, optional
            Places with a lower score get the id -1 and the lowest finite score.

        Returns
        -------
        ids : int32 array, shape (N,) for one user, else (n, N)
        scores : array of the same shape, of the factors' dtype
            Falling; equal scores by rising id.

        Raises
        ------
        InputError
            An argument cannot be used; the message says why. For numbers out of range it is an
            IndexError too.
        """
        self._check_fitted()
        n_items = len(self.item_factors)
        if np.ndim(filter_already_liked_items):
            raise InputError(
                "filter_already_liked_items must be True or False; pass items to leave out as "
                "filter_items"
            )
        # With recalculation the users need not have been trained on.
        known = np.iinfo(np.int64).max if recalculate_user else len(self.user_factors)
        ids = check_index_array(userid, known, name="userid")
        rows = None
        if filter_already_liked_items or recalculate_user:
            why = "filter" if filter_already_liked_items else "recalculate"
            rows = requested_rows(user_items, len(ids), n_items, why, dtype=self.dtype)
        backend = self._get_backend()
        with backend.session():
            users, catalogue = self._queries(backend, ids, rows if recalculate_user else None)
            found, scores = best_rows(
                backend,
                users,
                catalogue,
                N,
                denied=rows if filter_already_liked_items else None,
                denied_to_all=filter_items,
                candidates=items,
            )
        if min_score is not None:
            low = scores < np.float64(_check_score(min_score))  # which may be beyond their range
            found[low], scores[low] = -1, lowest_score(scores.dtype)
        return (found[0], scores[0]) if np.ndim(userid) == 0 else (found, scores)

    @of_one_moment
    def recommend_to_file(
        self,
        file: str | os.PathLike[str],
        user_items: Any = None,
        N: int = 10,
        filter_already_liked_items: bool = True,
        filter_items: Any = None,
        items: Any = None,
        *,
        userids: Any = None,
        min_score: float | None = None,
        show_progress: bool = True,
    ) -> None:
        """Write the best items of every user, or of some, to a file, in bounded memory.

        The file appears under its name once it is complete.

        Parameters
        ----------
        file : path
            Ending in ``.npy``: an array of records ``user``, ``item`` (N,), ``score`` (N,), all
            numbers of rows and columns, one record for each user (``numpy.load(file,
            mmap_mode="r")``). Ending in ``.parquet`` (needs pyarrow): columns ``user``, ``rank``
            (from 1), ``item`` and ``score``, one row for each place that holds an item, with the
            ids of the training data where it had some.
        user_items : sparse matrix, shape (n_users, n_items)
            One row per user written, in the order of ``userids``; needed to filter.
        N, filter_already_liked_items, filter_items, items, min_score
            As in :meth:`recommend`.
        userids : array of int, shape (n_users,), optional
            Whom to write; everybody by default.
        show_progress : bool

        Raises
        ------
        InputError
            An argument cannot be used, or the ending of the file is neither of these.
        OSError
            The file cannot be written; what was there before is left as it was.
        """
        self._check_fitted()
        n_items = len(self.item_factors)
        everybody = np.arange(len(self.user_factors)) if userids is None else userids
        users = check_index_array(everybody, len(self.user_factors), name="userids")
        liked = None
        if filter_already_liked_items:
            liked = requested_rows(user_items, len(users), n_items, "filter", dtype=self.dtype)
        candidates = n_items
        if items is not None:
            candidates = len(np.unique(check_index_array(items, n_items, name="items")))
        n_best = min(check_integer(N, name="N", at_least=1), max(candidates, 1))
        if sp.issparse(filter_items):
            filter_items = requested_rows(
                filter_items, len(users), n_items, "filter", name="filter_items"
            )
        with recommendation_file(
            file,
            (len(users), n_best),
            dtype=self.user_factors.dtype,
            ids=(self.user_ids, self.item_ids),
            show_progress=show_progress,
        ) as write:
            height = max(1, min(_USERS_AT_ONCE, _PLACES_AT_ONCE // n_best))
            for start in range(0, len(users), height):
                part = slice(start, start + height)
                found = self.recommend(
                    users[part],
                    None if liked is None else liked[part],
                    n_best,
                    filter_already_liked_items,
                    filter_items[part] if sp.issparse(filter_items) else filter_items,
                    items=items,
                    min_score=min_score,
                )
                write(users[part], *found)


def requested_rows(
    user_items: Any,
    n_users: int,
    n_items: int,
    why: str,
    *,
    name: str = "user_items",
    dtype: Any = np.float32,
) -> sp.csr_matrix:
    """Return ``user_items`` as CSR after checking that it has one row per requested user.

    Parameters
    ----------
    why : str
        What the matrix is needed for; completes "user_items is needed to ...".
    name : str
        What the caller calls the matrix, in messages.
    dtype : dtype
        Of its values.
    """
    if user_items is None:
        raise InputError(f"{name} is needed to {why}; pass one row for every requested user")
    if n_users == 0:
        return sp.csr_matrix((0, n_items), dtype=dtype)
    rows = as_csr(user_items, name=name, dtype=dtype)
    if rows.shape[0] != n_users:
        raise InputError(
            f"{name} must contain 1 row for every requested user: it has {rows.shape[0]} rows "
            f"for {n_users} users; pass {name}[userid]"
        )
    if rows.shape[1] > n_items:
        raise InputError(f"{name} has {rows.shape[1]} columns, but the model {n_items} items")
    if rows.shape[1] < n_items:
        rows = sp.csr_matrix((rows.data, rows.indices, rows.indptr), shape=(n_users, n_items))
    return rows


def best_rows(
    backend: Backend,
    queries: Array,
    catalogue: Array,
    n_best: Any,
    *,
    denied: sp.csr_matrix | None = None,
    denied_to_all: Any = None,
    candidates: Any = None,
    names: tuple[str, str] = ("items", "filter_items"),
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows of the catalogue with the largest products with each query.

    Parameters
    ----------
    queries, catalogue : array on the device, shape (n, m) and (n_rows, m)
    n_best : int
        Cut down to the number of candidates.
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
    ids, scores = top_k(
        backend,
        queries,
        catalogue,
        min(n_best, len(catalogue)),
        liked=denied,
        filter_items=denied_to_all,
    )
    return (ids if chosen is None else chosen[ids].astype(np.int32)), scores


def _either(first: sp.csr_matrix, second: sp.csr_matrix) -> sp.csr_matrix:
    """Return a matrix with an entry wherever one of two has one, whatever its value."""
    parts = [
        sp.csr_matrix((np.ones(one.nnz, np.float32), one.indices, one.indptr), shape=one.shape)
        for one in (first, second)
    ]
    return sp.csr_matrix(parts[0] + parts[1])


def _check_score(score: Any) -> float:
    try:
        number = float(score)
    except (TypeError, ValueError):
        number = np.nan
    if np.isnan(number):
        raise InputError(f"min_score must be a number or None, not {score!r}")
    return number
