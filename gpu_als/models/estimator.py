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
from gpu_als.data.interactions import Interactions
from gpu_als.data.splits import check_random_state
from gpu_als.errors import BackendError, InputError
from gpu_als.models import files
from gpu_als.models.about import about, card
from gpu_als.models.explain import UserWeights, check_user_weights, contributions, factor_system
from gpu_als.models.fitted import Fitted, Side, norms
from gpu_als.models.fold_in import fold_in
from gpu_als.models.params import HasParameters, check_integer, requested_rows
from gpu_als.models.recommend import (
    Ranked,
    best_rows,
    clear_low_scores,
    clear_rows,
    own_rows_first,
    predictions,
    queries_of,
)
from gpu_als.ranking.to_file import recommendation_file
from gpu_als.ranking.top_k import check_pairs
from gpu_als.train.engine import Model
from gpu_als.train.report import FitReport
from gpu_als.train.training_data import Summary, TrainingData
from gpu_als.train.warm_start import carry_over, former_rows

__all__ = ["SIDES", "Estimator", "attribute", "load_as"]

SIDES = "users", "items"
_USERS_AT_ONCE, _PLACES_AT_ONCE = 8192, 1 << 22
_ANY_NUMBER = int(np.iinfo(np.int64).max)
Unknown = Literal["raise", "skip"]


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

    def _take_over(
        self, data: TrainingData, summary: Summary, users: Any, items: Any, mean: float = 0.0
    ) -> None:
        """Begin to serve what a fit has found."""
        users, items = Side(users, self.bias, data.user_ids), Side(items, self.bias, data.item_ids)
        counts = data.items.counts().astype(np.int64)
        assert self.report_ is not None
        self._fitted = self._placed(
            Fitted(users, items, mean, item_counts=counts, about=about(data, summary, self.report_))
        )

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
        moved._fitted = moved._placed(self._fitted.replaced(users=users, items=items))
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
    def load(
        cls,
        file: str | os.PathLike[str] | BinaryIO,
        *,
        mmap_mode: Literal["r"] | None = None,
    ) -> Self:
        """Read a model that :meth:`save` wrote, or ``implicit``.

        Nothing is unpickled, and no more memory is taken than the file accounts for.

        Parameters
        ----------
        file : path or binary file object
        mmap_mode : {"r"}, optional
            Map large arrays of a path into memory in place of reading them, so that a model is
            there at once and processes share its pages. Factors are then trusted: neither their
            checksums nor their values are looked at. Those with biases are copied into memory, and
            on a GPU all are copied there.

        Raises
        ------
        ModelFileError
            The file is damaged or holds something else; the message says what.
        """
        model: Self = load_as((cls,), file, mmap_mode=mmap_mode)
        return model

    @property
    def about_(self) -> dict[str, Any] | None:
        """Where the model comes from, or None: versions, date, data in a few numbers, report."""
        return self._fitted.about

    @property
    def item_counts(self) -> np.ndarray | None:
        """How many interactions each item had in training, int64, (n_items,), or None."""
        return self._fitted.item_counts

    def __str__(self) -> str:
        """Say what the model is, what it was fitted on and how that went."""
        return card(self)

    # --- ids ---------------------------------------------------------------------------------

    def user_index(self, ids: Any, *, unknown: Unknown = "raise") -> np.ndarray:
        """Return the rows of factors of users given by id.

        Parameters
        ----------
        ids : id or array-like of ids, shape (n,)
            Integers or strings, whichever the training data had. The ids of a model that was
            trained on a plain matrix are its row numbers.
        unknown : {"raise", "skip"}
            Whether an unknown id is an error or gets row -1.

        Returns
        -------
        ndarray of int64, shape (n,)

        Raises
        ------
        InputError
            For unknown ids; an :class:`~gpu_als.errors.IdRangeError` where row numbers are ids.
        """
        known = self._fitted.checked().users.id_map
        return known.rows(ids, name="user ids", unknown=unknown)

    def item_index(self, ids: Any, *, unknown: Unknown = "raise") -> np.ndarray:
        """Return the rows of factors of items given by id, as :meth:`user_index` does for users."""
        known = self._fitted.checked().items.id_map
        return known.rows(ids, name="item ids", unknown=unknown)

    def without_ids(self) -> Self:
        """Return the same model with row numbers for ids, as if trained on a plain matrix."""
        model = copy.copy(self)
        model._fitted = self._fitted.without_ids()
        return model

    @property
    def seen_items(self) -> sp.csr_matrix | None:
        """What :meth:`recommend` filters without ``user_items``; (n_users, n_items), or None.

        A matrix or Interactions to set, of which the stored entries count. Partial fits bring them
        up to date, and :meth:`save` keeps them; a fit forgets them.
        """
        return self._fitted.seen

    @seen_items.setter
    def seen_items(self, seen: Any) -> None:
        with self._writing:
            fitted = self._fitted.checked()
            if seen is not None:
                users, items = fitted.users, fitted.items
                seen = _rows_for(fitted, "users", seen, users.ids_of(np.arange(len(users))))
                seen = requested_rows(
                    seen, len(users), len(items), "filter", name="seen_items", dtype=self.dtype
                )
                seen = sp.csr_matrix(
                    (np.ones(seen.nnz, np.bool_), seen.indices, seen.indptr), shape=seen.shape
                )
            self._fitted = fitted.replaced(seen=seen)

    # --- scores -----------------------------------------------------------------------------------

    def predict(self, users: Any, items: Any, *, unknown: Unknown = "raise") -> np.ndarray:
        """Return the scores of (user, item) pairs.

        Parameters
        ----------
        users, items : id or array of ids, shape (n,)
            A single id goes with every one on the other side.
        unknown : {"raise", "skip"}
            Whether an unknown id is an error, or counts as one whose factors and bias are zero.

        Returns
        -------
        array, shape (n,)
            Of the factors' dtype.

        Raises
        ------
        InputError
            For unknown ids; an :class:`~gpu_als.errors.IdRangeError` where row numbers are ids.
        """
        fitted, backend = self._fitted.checked(), self._get_backend()
        rows, columns = check_pairs(
            fitted.users.rows_of(users, "users", unknown),
            fitted.items.rows_of(items, "items", unknown),
        )
        known = (rows >= 0) & (columns >= 0)
        with backend.session(threads=False):
            scores = backend.to_host(
                predictions(
                    backend.xp, fitted.users.on(backend), fitted.items.on(backend),
                    backend.from_host(np.maximum(rows, 0)),
                    backend.from_host(np.maximum(columns, 0)),
                    bias=fitted.users.bias, mean=fitted.mean,
                )
            )  # fmt: skip
        if not known.all():
            scores[~known] = fitted.mean
            for side, numbers in ((fitted.users, rows), (fitted.items, columns)):
                alone = ~known & (numbers >= 0)
                if side.bias:
                    scores[alone] += np.asarray(side.matrix)[numbers[alone], -1]
        return scores

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
        unknown: Unknown = "raise",
    ) -> Ranked:
        """Return the best items for one user or for many.

        Parameters
        ----------
        userid : id or array of ids, shape (n,)
        user_items : sparse matrix, shape (n, n_items), or Interactions
            One row per requested user, in the model's columns; of Interactions those rows and
            columns are found by id. Needed to recalculate, and to filter in a model without
            :attr:`seen_items`.
        N : int
            Number of items; cut down to the number of candidates.
        filter_already_liked_items : bool
            Put the stored items of ``user_items`` last, with the lowest finite score.
        filter_items : array of ids or sparse matrix, optional
            Items to put last as well: for every user, or for each those stored in the row of a
            matrix of shape (n, n_items).
        recalculate_user : bool
            Use factors solved from ``user_items``, as :meth:`fold_in_users` does, instead of the
            trained ones. Without ids ``userid`` then only says how many users there are.
        items : array of ids, optional
            The only candidates.
        min_score : float, optional
            Places with a lower score are empty.
        unknown : {"raise", "skip"}
            Whether an unknown user is an error, or gets a list of empty places.

        Returns
        -------
        ids : array, shape (N,) for one user, else (n, N)
            Of the items; int32 row numbers in a model without ids. -1, or an empty text, in empty
            places, whose score is the lowest finite one.
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
        numbers = _row_numbers(fitted.users, userid, "userid", unknown, solved=recalculate_user)
        rows = None
        if filter_already_liked_items or recalculate_user:
            why = "filter" if filter_already_liked_items else "recalculate"
            if user_items is None and fitted.seen is not None and not recalculate_user:
                rows = fitted.seen[np.maximum(numbers, 0)]
            else:
                rows = requested_rows(
                    _rows_for(fitted, "users", user_items, userid), len(numbers),
                    len(fitted.items), why, dtype=self.dtype,
                )  # fmt: skip
        filter_items = _candidates(fitted.items, filter_items, "filter_items")
        items = _candidates(fitted.items, items, "items")
        with backend.session(threads=len(numbers) > 1 or recalculate_user):
            if recalculate_user:
                assert rows is not None
                self._check_values(rows, "user_items")
                users = backend.from_host(self._solve(fitted, "users", rows))
            else:
                users = fitted.users.on(backend)[backend.from_host(np.maximum(numbers, 0))]
            queries, base = queries_of(users, bias=fitted.items.bias, mean=fitted.mean)
            ranked = best_rows(
                backend, queries, fitted.items.on(backend), N, base=base,
                denied=rows if filter_already_liked_items else None, denied_to_all=filter_items,
                candidates=items,
            )  # fmt: skip
        if min_score is not None:
            ranked = clear_low_scores(ranked, min_score)
        if not recalculate_user and numbers.min(initial=0) < 0:
            clear_rows(ranked, numbers < 0)
        return _named(fitted.items, ranked, userid)

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
            Ending in ``.csv``, ``.csv.gz`` or ``.parquet`` (needs pyarrow): columns ``user``,
            ``rank`` (from 1), ``item`` and ``score``, one row for each place that holds an item.
            In ``.json``: an array of objects ``user``, ``items``, ``scores``. In ``.npy``: an array
            of records ``user``, ``item`` (N,), ``score`` (N,), one for each user, with row numbers
            in place of ids (``numpy.load(file, mmap_mode="r")``).
        user_items : sparse matrix, shape (n_users, n_items), or Interactions
            One row per user written, in the order of ``userids``; needed to filter in a model
            without :attr:`seen_items`.
        N, filter_already_liked_items, filter_items, items, min_score
            As in :meth:`recommend`.
        userids : array of ids, shape (n_users,), optional
            Whom to write; all users by default.
        show_progress : bool

        Raises
        ------
        InputError
            An argument cannot be used, or the ending of the file is none of these.
        OSError
            The file cannot be written; what was there before is left as it was.
        """
        fitted = self._fitted.checked()
        model = self.without_ids()  # of one moment, whatever happens between two blocks
        n_items = len(fitted.items)
        if userids is None:
            users = np.arange(len(fitted.users))
        else:
            users = fitted.users.rows_of(userids, "userids")
        liked = None
        if filter_already_liked_items and (user_items is not None or fitted.seen is None):
            liked = requested_rows(
                _rows_for(fitted, "users", user_items, fitted.users.ids_of(users)),
                len(users), n_items, "filter", dtype=self.dtype,
            )  # fmt: skip
        candidates = n_items
        filter_items = _candidates(fitted.items, filter_items, "filter_items")
        items = _candidates(fitted.items, items, "items")
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
            ids=(fitted.users.ids, fitted.items.ids, None),
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
        side = self._fitted.checked().users
        numbers = side.rows_of(userid, "userid")
        ranked = self._similar(
            side, numbers, None, N, filter_users, users, ("users", "filter_users")
        )
        return _named(side, ranked, userid)

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
        itemid : id or array of ids, shape (n,)
        N : int
            Number of items; cut down to the number of candidates.
        recalculate_item : bool
            Use factors solved from ``item_users`` instead of the trained ones. Without ids
            ``itemid`` then only says how many items there are.
        item_users : sparse matrix, shape (n, n_users), or Interactions, optional
            One row per requested item, or the interactions of users with items, where rows are
            found by id; needed to recalculate.
        filter_items : array of ids, optional
            Items to put last, with the lowest finite score.
        items : array of ids, optional
            The only candidates.

        Returns
        -------
        ids : array, shape (N,) for one item, else (n, N)
            int32 row numbers in a model without ids.
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
        side = fitted.items
        numbers = _row_numbers(side, itemid, "itemid", solved=recalculate_item)
        solved = None
        if recalculate_item:
            rows = self._rows(fitted, "items", item_users, itemid, "item_users")
            solved = self._solve(fitted, "items", rows)[:, : side.factors.shape[1]]
        ranked = self._similar(
            side, numbers, solved, N, filter_items, items, ("items", "filter_items")
        )
        return _named(side, ranked, itemid)

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
        candidates = _candidates(side, candidates, names[0])
        denied = _candidates(side, denied, names[1])
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
        userid: Any,
        user_items: Any,
        itemid: Any,
        user_weights: UserWeights | None = None,
        N: int = 10,
    ) -> tuple[float, list[tuple[Any, float]], UserWeights]:
        """Say why an item gets its score: the share of each item that the user has rated.

        The score is that of exactly solved factors of the user. It is the sum of all shares, and
        in a model with biases of the mean and the item's bias besides.

        Parameters
        ----------
        userid : id
        user_items : sparse matrix, shape (n_users, n_items), or Interactions
            The interactions of all users. In a model without ids the user is a row of it.
        itemid : id
        user_weights : optional
            What an earlier call returned for this user; saves time.
        N : int
            Number of items to show.

        Returns
        -------
        score : float
        contributions : list of (id, float)
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
        matrix = user_items
        if not isinstance(user_items, Interactions):
            matrix = as_csr(user_items, name="user_items", dtype=self.dtype)
            users = fitted.users
            if users.ids is None:  # the matrix may have more
                users = Side(np.empty((matrix.shape[0], 0)))
            matrix = matrix[_check_one(users, userid, "userid")]
        row = SparseRows.from_csr(self._rows(fitted, "users", matrix, [userid], "user_items"))
        item = _check_one(items, itemid, "itemid")
        n_best = check_integer(N, name="N", at_least=1)
        objective = self._objective(fitted.mean)
        with backend.session():
            if user_weights is None:
                solver = self._exact_solver("users", bias=items.bias)
                weights = factor_system(backend, objective, solver, items, row)
            else:
                weights = check_user_weights(user_weights, items.matrix.shape[1])
            score, best = contributions(backend, objective, fitted, row, item, weights, n_best)
        names = items.ids_of(np.array([number for number, _ in best], np.int64)).tolist()
        return score, [(name, share) for name, (_, share) in zip(names, best, strict=True)], weights

    # --- rows solved after training ---------------------------------------------------------------

    def recalculate_user(self, userid: Any, user_items: Any) -> np.ndarray:
        """Return user factors solved exactly from ``user_items``; nothing is stored.

        Parameters
        ----------
        userid : id or array of ids, shape (n,)
            Finds the rows in Interactions; else it only says how many users there are, and
            whether one is meant.
        user_items : sparse matrix, shape (n, n_items), or Interactions

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
        user_items : sparse matrix or array, shape (n, n_items), or Interactions
            Interactions are solved for in their own order of users; items unknown to the model
            are left out.
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

        Unknown ids, and in a model without ids numbers beyond the last user, make the model grow;
        users in between get factors of zero.
        The matrix of all users is copied, so that whoever reads the model meanwhile never sees
        half of the change: better many users in one call than one in each of many.

        Parameters
        ----------
        userids : id or array of ids, shape (n,)
        user_items : sparse matrix, shape (n, n_items), or Interactions
            All interactions of each of these users.

        Raises
        ------
        InputError
            An argument cannot be used.
        """
        self._replace_rows("users", userids, user_items, ("userids", "user_items"))

    def partial_fit_items(self, itemids: Any, item_users: Any) -> None:
        """Solve some items exactly and store them, as :meth:`partial_fit_users` does users."""
        self._replace_rows("items", itemids, item_users, ("itemids", "item_users"))

    def _rows(self, fitted: Fitted, side: str, matrix: Any, ids: Any, name: str) -> sp.csr_matrix:
        """Return rows to solve for one side, after checking them."""
        n_rows = _how_many(ids)
        rows = requested_rows(
            _rows_for(fitted, side, matrix, ids), 1 if n_rows is None else n_rows,
            len(fitted.held(side)), "solve for their factors", name=name, dtype=self.dtype,
        )  # fmt: skip
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
        fitted = self._fitted.checked()
        rows = self._rows(fitted, side, matrix, ids, name)
        solved = Side(self._solve(fitted, side, rows), fitted.items.bias).factors
        return solved[0] if _how_many(ids) is None else solved

    def _fold_in(
        self, side: str, entries: Any, name: str, sample_weight: Any
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return factors and biases."""
        fitted, weights = self._fitted.checked(), None
        if isinstance(entries, Interactions):
            if sample_weight is not None:
                raise InputError(f"sample_weight goes with a matrix; pass one as {name}")
            ids = entries.user_map if side == "users" else entries.item_map
            wanted = np.arange(ids.size) if ids.ids is None else ids.ids
            entries = _rows_for(fitted, side, entries, wanted)
        matrix = as_csr(entries, name=name, dtype=self.dtype)
        if sample_weight is not None:
            matrix, weights = self._weighed(entries, sample_weight, matrix, name)
        rows = self._rows(fitted, side, matrix, range(matrix.shape[0]), name)
        solved = Side(self._solve(fitted, side, rows, weights), fitted.items.bias)
        return solved.factors, solved.biases

    def _replace_rows(self, name: str, ids: Any, matrix: Any, names: tuple[str, str]) -> None:
        with self._writing:
            fitted = self._fitted.checked()
            side: Side = getattr(fitted, name)
            numbers, all_ids = side.rows_to_be(ids, name=names[0])
            rows = self._rows(fitted, name, matrix, np.atleast_1d(ids), names[1])
            size = max(len(side), int(numbers.max(initial=-1)) + 1)
            backend, solved = self._get_backend(), self._solve(fitted, name, rows)
            with backend.session():
                grown = backend.xp.zeros((size, side.matrix.shape[1]), side.matrix.dtype)
                grown[: len(side)] = side.on(backend)
                grown[backend.from_host(numbers)] = backend.from_host(solved)
                changed = Side(self._keep(grown), side.bias, all_ids)
            change = numbers, rows, size
            self._fitted = fitted.replaced(
                **{name: changed},
                seen=fitted.seen_with(name, *change),
                item_counts=fitted.counts_with(name, *change),
            )


def load_as(classes: tuple[type[Estimator], ...], file: Any, *, mmap_mode: Any = None) -> Any:
    """Read a model of one of these classes; see :meth:`Estimator.load`."""
    model, fitted = files.load(file, classes, mmap_mode=mmap_mode)
    model._fitted = model._placed(fitted)
    return model


def _row_numbers(
    side: Side, ids: Any, name: str, unknown: Unknown = "raise", *, solved: bool = False
) -> np.ndarray:
    """Return the rows of ids; of those to be solved for, whose rows are not looked at, any."""
    if not solved:
        return side.rows_of(ids, name, unknown)
    if side.ids is None:
        return check_index_array(ids, _ANY_NUMBER, name=name)
    return np.zeros(_how_many(ids) or 1, np.int64)


def _candidates(side: Side, ids: Any, name: str) -> Any:
    """Return ids as row numbers; whatever else may be passed in their place as it is."""
    given = ids is not None and not sp.issparse(ids)
    return side.rows_of(ids, name) if given and side.ids is not None else ids


def _rows_for(fitted: Fitted, side: str, entries: Any, ids: Any) -> Any:
    """Return the rows of these ids out of Interactions; a matrix, which has them already, as is."""
    if not isinstance(entries, Interactions):
        return entries
    entries = entries if side == "users" else entries.T
    return entries.select(ids, fitted.held(side).id_map)


def _named(side: Side, ranked: Ranked, asked: Any) -> Ranked:
    """Return ids in place of rows, and one list where one id was asked for."""
    ids, scores = side.ids_of(ranked[0]), ranked[1]
    return (ids, scores) if np.ndim(asked) else (ids[0], scores[0])


def _check_one(side: Side, ids: Any, name: str) -> int:
    found = side.rows_of(ids, name)
    if len(found) != 1:
        raise InputError(f"{name}: found {len(found)} ids; pass one")
    return int(found[0])


def _how_many(ids: Any) -> int | None:
    """Return the number of ids, whatever they are; None for one that is not in a list."""
    try:
        return None if isinstance(ids, str) else len(ids)
    except TypeError:
        return None
