"""What both estimators do with what a fit has found."""

from __future__ import annotations

import contextlib
import copy
import os
import threading
from functools import partial
from typing import Any, BinaryIO, Literal, Self

import numpy as np
import scipy.sparse as sp

from gpu_als.backends import BackendChoice
from gpu_als.core.backend import Backend
from gpu_als.core.objectives import Objective
from gpu_als.core.problem import SparseRows
from gpu_als.core.solvers import Solver
from gpu_als.data.csr import as_csr, check_index_array
from gpu_als.data.splits import check_random_state
from gpu_als.errors import BackendError, InputError
from gpu_als.models import files
from gpu_als.models.explain import UserWeights, check_user_weights, contributions, factor_system
from gpu_als.models.fitted import Fitted, Side, norms
from gpu_als.models.fold_in import fold_in
from gpu_als.models.params import HasParameters, check_integer, requested_rows
from gpu_als.models.recommend import (
    Ranked,
    best_rows,
    clear_low_scores,
    own_rows_first,
    predictions,
    queries_of,
)
from gpu_als.ranking.to_file import recommendation_file
from gpu_als.ranking.top_k import check_pairs
from gpu_als.train.engine import Model
from gpu_als.train.report import FitReport
from gpu_als.train.training_data import TrainingData
from gpu_als.train.warm_start import carry_over, former_rows

__all__ = ["SIDES", "Estimator", "attribute"]

SIDES = "users", "items"
_USERS_AT_ONCE, _PLACES_AT_ONCE = 8192, 1 << 22
_MOST_ROWS = 2**31 - 1
"""Ids are int32."""
_ANY_NUMBER = int(np.iinfo(np.int64).max)


def attribute(side: str, name: str, doc: str) -> Any:
    """Return a property of one side of the fitted value; to set it makes another value."""

    def get(model: Estimator) -> Any:
        return getattr(getattr(model._fitted, side), name)

    def put(model: Estimator, value: Any) -> None:
        with model._writing:
            fitted = model._fitted
            changed = getattr(getattr(fitted, side), f"with_{name}")(value)
            model._fitted = fitted.replaced(**{side: changed})

    return property(get, put, doc=doc)


def _derived(side: str, name: str, doc: str) -> Any:
    """Return a property that follows from one side's factors, worked out once on the device."""

    def get(model: Estimator) -> np.ndarray:
        found, backend = getattr(model._fitted.checked(), side), model._get_backend()
        with backend.session():
            array: np.ndarray = getattr(found, name)(backend)
            return array

    return property(get, doc=doc)


class Estimator(HasParameters):
    """Parameters, an objective, and the fitted value that serves.

    Every method reads ``_fitted`` once, so that it sees one model while other threads change it.
    """

    dtype: np.dtype
    factors: int
    random_state: Any
    bias: bool = False
    report_: FitReport | None
    _file: files.Format
    _fitted: Fitted

    user_factors = attribute("users", "factors", "Array or GPU matrix, (n_users, factors), or None")
    item_factors = attribute("items", "factors", "Array or GPU matrix, (n_items, factors), or None")
    user_ids = attribute("users", "ids", "Array of shape (n_users,), or None without ids.")
    item_ids = attribute("items", "ids", "Array of shape (n_items,), or None without ids.")
    user_norms = _derived("users", "norms", "Euclidean norms, (n_users,); 1e-10 for those of zero.")
    item_norms = _derived("items", "norms", "Euclidean norms, (n_items,); 1e-10 for those of zero.")
    XtX = _derived("users", "rounded_gram", "``X^T X`` of the user factors, (factors, factors).")
    YtY = _derived("items", "rounded_gram", "``Y^T Y`` of the item factors, (factors, factors).")

    # --- what an estimator adds -------------------------------------------------------------------

    def _backend_choice(self) -> BackendChoice:
        raise NotImplementedError

    def _use(self, backend: str) -> None:
        """Set the parameter that says where the model works to "numpy" or "cupy"."""
        raise NotImplementedError

    def _keep(self, matrix: Any) -> Any:
        """Return factors as this model holds them."""
        return self._get_backend().to_device(matrix)

    def _draw(self, rng: Any, side: str, n_rows: int) -> np.ndarray:
        """Draw initial factors, with a bias of zero."""
        raise NotImplementedError

    def _objective(self, mean: float) -> Objective:
        raise NotImplementedError

    def _exact_solver(self, side: str, *, bias: bool) -> Solver:
        """Return what solves rows after training."""
        raise NotImplementedError

    def _check_values(self, rows: sp.csr_matrix, name: str) -> None:
        """Refuse values that are too large to be solved with."""
        raise NotImplementedError

    def _weighed(
        self, entries: Any, sample_weight: Any, matrix: sp.csr_matrix, name: str
    ) -> tuple[sp.csr_matrix, np.ndarray]:
        """Return the entries with a weight above zero, and their weights."""
        raise InputError(f"sample_weight is for ratings; scale the values of {name} in its place")

    # --- the fitted value -------------------------------------------------------------------------

    def _forget(self) -> None:
        """Begin without factors."""
        self._fitted = Fitted(Side(bias=self.bias), Side(bias=self.bias))
        self._writing = threading.RLock()
        self.report_ = None

    def _first_factors(
        self, data: TrainingData, former: Fitted, *, name: str, remedy: str
    ) -> Model:
        """Return the factors that a fit starts from: former ones, and drawn ones for new rows."""
        sides = former.users, former.items
        before = [None if side.matrix is None else np.asarray(side.matrix) for side in sides]
        for which, matrix in zip(("user", "item"), before, strict=True):
            if matrix is not None and matrix.dtype.kind not in "fiu":
                raise InputError(f"{which}_factors must be an array of numbers, not {matrix.dtype}")
        rows = former_rows(
            (former.users.factors, former.items.factors), (former.users.ids, former.items.ids),
            data, self.factors, name=name, remedy=remedy,
        )  # fmt: skip
        rng = check_random_state(self.random_state)
        users, items = (
            carry_over(matrix, known, size, partial(self._draw, rng, which))
            for which, matrix, known, size in zip(SIDES, before, rows, data.shape, strict=True)
        )
        return Model(users, items, self.bias)

    def _take_over(self, data: TrainingData, users: Any, items: Any, mean: float = 0.0) -> None:
        """Begin to serve what a fit has found."""
        users, items = Side(users, self.bias, data.user_ids), Side(items, self.bias, data.item_ids)
        self._fitted = self._placed(Fitted(users, items, mean))

    def _get_backend(self) -> Backend:
        return self._backend_choice().get()

    def _placed(self, fitted: Fitted) -> Fitted:
        """Return a value whose factors are where this model works."""

        def placed(side: Side) -> Side:
            matrix = None if side.matrix is None else self._keep(side.matrix)
            return side if matrix is side.matrix else Side(matrix, side.bias, side.ids)

        self._get_backend()
        return fitted.replaced(users=placed(fitted.users), items=placed(fitted.items))

    def _moved(self, backend: str) -> Self:
        moved = copy.copy(self)
        moved._use(backend)
        users, items = (
            side if side.matrix is None else Side(np.array(side.matrix), side.bias, side.ids)
            for side in (self._fitted.users, self._fitted.items)
        )
        moved._fitted = moved._placed(Fitted(users, items, self._fitted.mean))
        return moved

    def __getstate__(self) -> dict[str, Any]:
        """Return what to pickle or copy."""
        state = vars(self).copy()
        del state["_writing"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._writing = threading.RLock()
        # Unpickled where there is no GPU: whatever needs one says so, and to_cpu() helps.
        with contextlib.suppress(BackendError):
            self._fitted = self._placed(self._fitted)

    def to_cpu(self) -> Self:
        """Return a copy of the model that works on the CPU."""
        return self._moved("numpy")

    def to_gpu(self) -> Self:
        """Return a copy of the model that works on the GPU.

        Raises
        ------
        BackendError
            There is no GPU, or no CuPy; the message says what to install.
        """
        return self._moved("cupy")

    def save(self, file: str | os.PathLike[str] | BinaryIO) -> None:
        """Write the model to an npz file, atomically; ``.npz`` is appended to a bare name.

        What other threads do to the model meanwhile changes nothing of what is written.

        Raises
        ------
        InputError
            The factors hold NaN or inf.
        OSError
            The file cannot be written; what was there before is left as it was. (A file object is
            left as far as it got.)
        """
        files.save(file, self._file, self, self._fitted)

    @classmethod
    def load(cls, file: str | os.PathLike[str] | BinaryIO) -> Self:
        """Read a model that :meth:`save` wrote, or ``implicit``.

        Nothing is unpickled, and no more memory is taken than the file accounts for.

        Raises
        ------
        ModelFileError
            The file is damaged or holds something else; the message says what.
        """
        model, fitted = files.load(file, cls._file, cls)
        model._fitted = model._placed(fitted)
        return model

    # --- ids ---------------------------------------------------------------------------------

    def user_index(self, ids: Any, *, unknown: Literal["raise", "drop"] = "raise") -> np.ndarray:
        """Return the row numbers of users given by id.

        Parameters
        ----------
        ids : id or array-like of ids, shape (n,)
            Integers or strings, whichever the training data had. A model without ids takes row
            numbers.
        unknown : {"raise", "drop"}
            Whether an unknown id is an error or gets row -1.

        Returns
        -------
        ndarray of int64, shape (n,)

        Raises
        ------
        InputError
            For unknown ids; an :class:`~gpu_als.errors.IdRangeError` where row numbers are ids.
        """
        return self._fitted.checked().users.rows_of(ids, "user ids", unknown)

    def item_index(self, ids: Any, *, unknown: Literal["raise", "drop"] = "raise") -> np.ndarray:
        """Return the column numbers of items given by id, as :meth:`user_index` does for users."""
        return self._fitted.checked().items.rows_of(ids, "item ids", unknown)

    # --- scores -----------------------------------------------------------------------------------

    def predict(self, users: Any, items: Any) -> np.ndarray:
        """Return the scores of (user, item) pairs.

        Parameters
        ----------
        users, items : int or array of int, shape (n,)
            Row and column numbers; see :meth:`user_index` for ids.

        Returns
        -------
        array, shape (n,)
            Of the factors' dtype.
        """
        fitted, backend = self._fitted.checked(), self._get_backend()
        pairs = check_pairs(users, items, len(fitted.users), len(fitted.items))
        with backend.session(threads=False):
            rows, columns = map(backend.from_host, pairs)
            on_device = fitted.users.on(backend), fitted.items.on(backend)
            bias, mean = fitted.users.bias, fitted.mean
            scores = predictions(backend.xp, *on_device, rows, columns, bias=bias, mean=mean)
            return backend.to_host(scores)

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
    ) -> Ranked:
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
        fitted, backend = self._fitted.checked(), self._get_backend()
        if np.ndim(filter_already_liked_items):
            raise InputError(
                "filter_already_liked_items must be True or False; pass items to leave out as "
                "filter_items"
            )
        # With recalculation the users need not have been trained on.
        n_users = _ANY_NUMBER if recalculate_user else len(fitted.users)
        ids = check_index_array(userid, n_users, name="userid")
        rows = None
        if filter_already_liked_items or recalculate_user:
            why = "filter" if filter_already_liked_items else "recalculate"
            rows = requested_rows(user_items, len(ids), len(fitted.items), why, dtype=self.dtype)
        with backend.session(threads=len(ids) > 1 or recalculate_user):
            if recalculate_user:
                assert rows is not None
                self._check_values(rows, "user_items")
                users = backend.from_host(self._solve(fitted, "users", rows))
            else:
                users = fitted.users.on(backend)[backend.from_host(ids)]
            queries, base = queries_of(users, bias=fitted.items.bias, mean=fitted.mean)
            ranked = best_rows(
                backend, queries, fitted.items.on(backend), N, base=base,
                denied=rows if filter_already_liked_items else None, denied_to_all=filter_items,
                candidates=items,
            )  # fmt: skip
        if min_score is not None:
            ranked = clear_low_scores(ranked, min_score)
        return ranked if np.ndim(userid) else (ranked[0][0], ranked[1][0])

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
            Whom to write; all users by default.
        show_progress : bool

        Raises
        ------
        InputError
            An argument cannot be used, or the ending of the file is neither of these.
        OSError
            The file cannot be written; what was there before is left as it was.
        """
        model = copy.copy(self)  # of one moment, whatever happens between two blocks
        fitted = model._fitted.checked()
        n_items = len(fitted.items)
        wanted = np.arange(len(fitted.users)) if userids is None else userids
        users = check_index_array(wanted, len(fitted.users), name="userids")
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
            dtype=fitted.users.matrix.dtype,
            ids=(fitted.users.ids, fitted.items.ids),
            show_progress=show_progress,
        ) as write:
            height = max(1, min(_USERS_AT_ONCE, _PLACES_AT_ONCE // n_best))
            for start in range(0, len(users), height):
                part = slice(start, start + height)
                found = model.recommend(
                    users[part],
                    None if liked is None else liked[part],
                    n_best,
                    filter_already_liked_items,
                    filter_items[part] if sp.issparse(filter_items) else filter_items,
                    items=items,
                    min_score=min_score,
                )
                write(users[part], *found)

    def similar_users(
        self, userid: Any, N: int = 10, filter_users: Any = None, users: Any = None
    ) -> Ranked:
        """Return the users most similar to one user, or to each of many.

        As :meth:`similar_items` returns items; ``filter_users`` come last, and ``users`` are the
        only candidates.
        """
        fitted = self._fitted.checked()
        ids = check_index_array(userid, len(fitted.users), name="userid")
        ranked = self._similar(
            fitted.users, ids, None, N, filter_users, users, ("users", "filter_users")
        )
        return ranked if np.ndim(userid) else (ranked[0][0], ranked[1][0])

    def similar_items(
        self,
        itemid: Any,
        N: int = 10,
        recalculate_item: bool = False,
        item_users: Any = None,
        filter_items: Any = None,
        items: Any = None,
    ) -> Ranked:
        """Return the items most similar to one item, or to each of many.

        Parameters
        ----------
        itemid : int or array of int, shape (n,)
        N : int
            Number of items; cut down to the number of candidates.
        recalculate_item : bool
            Use factors solved from ``item_users`` instead of the trained ones; ``itemid`` then
            only says how many items there are.
        item_users : sparse matrix, shape (n, n_users), optional
            One row per requested item; needed to recalculate.
        filter_items : array of int, optional
            Items to put last, with the lowest finite score.
        items : array of int, optional
            The only candidates.

        Returns
        -------
        ids : int32 array, shape (N,) for one item, else (n, N)
            The item itself comes first, with score 1, unless it was recalculated. One whose
            factors are zero is similar to none: all scores are 0.
        scores : array of the same shape
            Cosines of the factors without biases, falling; equal ones by rising id.

        Raises
        ------
        InputError
            An argument cannot be used; for numbers out of range it is an IndexError too.
        """
        fitted = self._fitted.checked()
        n_items = _ANY_NUMBER if recalculate_item else len(fitted.items)
        ids = check_index_array(itemid, n_items, name="itemid")
        solved = None
        if recalculate_item:
            rows = self._rows(fitted, "items", item_users, len(ids), "item_users")
            solved = self._solve(fitted, "items", rows)[:, : fitted.items.factors.shape[1]]
        ranked = self._similar(
            fitted.items, ids, solved, N, filter_items, items, ("items", "filter_items")
        )
        return ranked if np.ndim(itemid) else (ranked[0][0], ranked[1][0])

    def _similar(
        self,
        side: Side,
        ids: np.ndarray,
        solved: np.ndarray | None,
        n_best: Any,
        denied: Any,
        candidates: Any,
        names: tuple[str, str],
    ) -> Ranked:
        backend = self._get_backend()
        with backend.session(threads=len(ids) > 1):
            xp, catalogue = backend.xp, side.unit(backend)
            if solved is None:
                queries = catalogue[backend.from_host(ids)]
                own = np.where(backend.to_host((queries != 0).any(axis=1)), ids, -1)
            else:
                factors = backend.from_host(solved)
                queries = factors / norms(xp, factors)[:, None]
                own = np.full(len(ids), -1)
            ranked = best_rows(
                backend, queries, catalogue, n_best,
                denied_to_all=denied, candidates=candidates, names=names,
            )  # fmt: skip
        return own_rows_first(ranked, own, denied, candidates)

    def explain(
        self,
        userid: int,
        user_items: Any,
        itemid: int,
        user_weights: UserWeights | None = None,
        N: int = 10,
    ) -> tuple[float, list[tuple[int, float]], UserWeights]:
        """Say why an item gets its score: the share of each item that the user has rated.

        The score is that of exactly solved factors of the user. It is the sum of all shares, and
        in a model with biases of the mean and the item's bias besides.

        Parameters
        ----------
        userid : int
            A row of ``user_items``.
        user_items : sparse matrix, shape (n_users, n_items)
            The interactions of all users.
        itemid : int
        user_weights : optional
            What an earlier call returned for this user; saves time.
        N : int
            Number of items to show.

        Returns
        -------
        score : float
        contributions : list of (int, float)
            The N items that add most, and how much: the largest first. What was disliked in
            implicit feedback is left out; its influence is in ``user_weights``.
        user_weights : (array, bool)
            For further calls about this user.

        References
        ----------
        Hu, Koren, Volinsky: Collaborative filtering for implicit feedback datasets, ICDM 2008,
        section 5.
        """
        fitted, backend = self._fitted.checked(), self._get_backend()
        items = fitted.items
        if not items.derive("finite", lambda: np.isfinite(np.asarray(items.matrix)).all()):
            raise InputError("item_factors hold NaN or inf, so no score can be explained")
        matrix = as_csr(user_items, name="user_items", dtype=self.dtype)
        user = _check_one(userid, matrix.shape[0], "userid")
        item = _check_one(itemid, len(items), "itemid")
        row = SparseRows.from_csr(self._rows(fitted, "users", matrix[user], 1, "user_items"))
        n_best = check_integer(N, name="N", at_least=1)
        objective = self._objective(fitted.mean)
        with backend.session():
            if user_weights is None:
                solver = self._exact_solver("users", bias=items.bias)
                weights = factor_system(backend, objective, solver, items, row)
            else:
                weights = check_user_weights(user_weights, items.matrix.shape[1])
            score, best = contributions(backend, objective, fitted, row, item, weights, n_best)
        return score, best, weights

    # --- rows solved after training ---------------------------------------------------------------

    def recalculate_user(self, userid: Any, user_items: Any) -> np.ndarray:
        """Return user factors solved exactly from ``user_items``; nothing is stored.

        Parameters
        ----------
        userid : int or array of int, shape (n,)
            Only says how many users there are, and whether one is meant.
        user_items : sparse matrix, shape (n, n_items)

        Returns
        -------
        array, shape (factors,) for one user, else (n, factors)
        """
        return self._recalculate("users", userid, user_items, "user_items")

    def recalculate_item(self, itemid: Any, item_users: Any) -> np.ndarray:
        """Return item factors solved exactly from rows of ``item_users``; nothing is stored."""
        return self._recalculate("items", itemid, item_users, "item_users")

    def fold_in_users(
        self, user_items: Any, *, sample_weight: Any = None, return_biases: bool = False
    ) -> Any:
        """Return factors of users that were not trained on, solved exactly.

        Parameters
        ----------
        user_items : sparse matrix or array, shape (n, n_items)
        sample_weight : optional
            Weight of each rating, as in :meth:`ExplicitALS.fit`; of ratings only.
        return_biases : bool
            Return ``(factors, biases)``.

        Returns
        -------
        array, shape (n, factors)
            Zero for rows without entries. With ``return_biases`` also an array of shape (n,).
        """
        found = self._fold_in("users", user_items, "user_items", sample_weight)
        return found if return_biases else found[0]

    def fold_in_items(
        self, item_users: Any, *, sample_weight: Any = None, return_biases: bool = False
    ) -> Any:
        """Return factors of items that were not trained on, as :meth:`fold_in_users` does users."""
        found = self._fold_in("items", item_users, "item_users", sample_weight)
        return found if return_biases else found[0]

    def partial_fit_users(self, userids: Any, user_items: Any) -> None:
        """Solve some users exactly and store them; the items stay as they are.

        Numbers beyond the last user make the model grow; users in between get factors of zero.
        The matrix of all users is copied, so that whoever reads the model meanwhile never sees
        half of the change: better many users in one call than one in each of many.

        Parameters
        ----------
        userids : int or array of int, shape (n,)
        user_items : sparse matrix, shape (n, n_items)
            All interactions of each of these users.

        Raises
        ------
        InputError
            An argument cannot be used, or a model with ids would grow.
        """
        self._replace_rows("users", userids, user_items, ("userids", "user_items"))

    def partial_fit_items(self, itemids: Any, item_users: Any) -> None:
        """Solve some items exactly and store them, as :meth:`partial_fit_users` does users."""
        self._replace_rows("items", itemids, item_users, ("itemids", "item_users"))

    def _rows(
        self, fitted: Fitted, side: str, matrix: Any, n_rows: int, name: str
    ) -> sp.csr_matrix:
        """Return rows to solve for one side, after checking them."""
        n_fixed, why = len(fitted.held(side)), "solve for their factors"
        rows = requested_rows(matrix, n_rows, n_fixed, why, name=name, dtype=self.dtype)
        self._check_values(rows, name)
        return rows

    def _solve(
        self, fitted: Fitted, side: str, rows: sp.csr_matrix, weights: np.ndarray | None = None
    ) -> np.ndarray:
        """Return the factors of rows of one side, and with a bias that in the last column."""
        fixed = fitted.held(side)
        if rows.shape[0] == 0:
            return np.zeros((0, fixed.matrix.shape[1]), fixed.matrix.dtype)
        solver = self._exact_solver(side, bias=fixed.bias)
        objective = self._objective(fitted.mean)
        entries = SparseRows.from_csr(rows, weights)
        return fold_in(self._get_backend(), objective, solver, side, fixed, entries)

    def _recalculate(self, side: str, ids: Any, matrix: Any, name: str) -> np.ndarray:
        fitted, n_rows = self._fitted.checked(), _how_many(ids)
        rows = self._rows(fitted, side, matrix, 1 if n_rows is None else n_rows, name)
        solved = Side(self._solve(fitted, side, rows), fitted.items.bias).factors
        return solved[0] if n_rows is None else solved

    def _fold_in(
        self, side: str, entries: Any, name: str, sample_weight: Any
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return factors and biases."""
        fitted, weights = self._fitted.checked(), None
        matrix = as_csr(entries, name=name, dtype=self.dtype)
        if sample_weight is not None:
            matrix, weights = self._weighed(entries, sample_weight, matrix, name)
        rows = self._rows(fitted, side, matrix, matrix.shape[0], name)
        solved = Side(self._solve(fitted, side, rows, weights), fitted.items.bias)
        return solved.factors, solved.biases

    def _replace_rows(self, name: str, ids: Any, matrix: Any, names: tuple[str, str]) -> None:
        with self._writing:
            fitted = self._fitted.checked()
            numbers = check_index_array(ids, _MOST_ROWS, name=names[0])
            rows = self._rows(fitted, name, matrix, len(numbers), names[1])
            side: Side = getattr(fitted, name)
            size = max(len(side), int(numbers.max(initial=-1)) + 1)
            if size > len(side) and side.ids is not None:
                raise InputError(
                    f"{names[0]}: {size - 1} is beyond the {len(side)} {name} whose ids the model "
                    f"knows; train it on all of them, or use fold_in_{name}"
                )
            backend, solved = self._get_backend(), self._solve(fitted, name, rows)
            with backend.session():
                grown = backend.xp.zeros((size, side.matrix.shape[1]), side.matrix.dtype)
                grown[: len(side)] = side.on(backend)
                grown[backend.from_host(numbers)] = backend.from_host(solved)
                self._fitted = fitted.replaced(**{name: side.with_matrix(self._keep(grown))})


def _check_one(number: Any, size: int, name: str) -> int:
    found = check_index_array(number, size, name=name)
    if len(found) != 1:
        raise InputError(f"{name}: found {len(found)} numbers; pass one")
    return int(found[0])


def _how_many(ids: Any) -> int | None:
    """Return the number of ids, whatever they are; None for one that is not in a list."""
    try:
        return None if isinstance(ids, str) else len(ids)
    except TypeError:
        return None
