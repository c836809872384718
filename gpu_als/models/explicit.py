"""ALS for explicit ratings, with biases."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Self

import numpy as np
import scipy.sparse as sp

from gpu_als.backends import Backend, BackendChoice
from gpu_als.core.objectives import Explicit
from gpu_als.core.problem import Array, SparseRows
from gpu_als.core.solvers import NonNegative, Solver, as_solver
from gpu_als.data.csr import as_csr, check_magnitude
from gpu_als.data.splits import check_random_state
from gpu_als.errors import InputError
from gpu_als.metrics import rmse
from gpu_als.models.explicit_file import StoredRatingModel
from gpu_als.models.params import (
    check_dtype,
    check_flag,
    check_integer,
    check_pair,
    check_precision,
)
from gpu_als.models.recommend import Recommends, requested_rows
from gpu_als.models.sides import aligned_weights, fold_in, weighted_sum
from gpu_als.models.snapshots import of_one_moment
from gpu_als.ranking.top_k import check_pairs, pair_scores
from gpu_als.train.checkpoint import begin
from gpu_als.train.engine import Model
from gpu_als.train.loop import Schedule, train
from gpu_als.train.report import FitReport
from gpu_als.train.row_blocks import hash_arrays
from gpu_als.train.training_data import TrainingData, as_training_data
from gpu_als.train.validation import validation_ratings
from gpu_als.train.warm_start import carry_over, former_rows

__all__ = ["ExplicitALS"]

_SIDES = ("users", "items")
_DRAWN_AT_ONCE = 1 << 14
"""Rows, since they are drawn in float64."""


class ExplicitALS(StoredRatingModel, Recommends):
    """Matrix factorisation of ratings by alternating least squares.

    Predicts ``mean + b_u + b_i + x_u . y_i`` and minimises

        sum_observed w_ui (r_ui - prediction_ui)^2
            + sum_u ridge_u (|x_u|^2 + b_u^2) + sum_i ridge_i (|y_i|^2 + b_i^2)

    Parameters
    ----------
    factors : int
        Number of factors.
    regularization : float or (float, float)
        lambda, or one for users and one for items.
    scale_regularization : {"count", None}
        "count": ``ridge_u = lambda * n_u`` with n_u the number of ratings of the row (ALS-WR; what
        Spark does). None: ``ridge_u = lambda`` (as in probabilistic matrix factorisation).
    bias : bool
        Learn the mean and a bias per user and item.
    nonnegative : bool, "users" or "items"
        Ask for non-negative factors on both sides or one; biases keep their sign.
    iterations : int
        Most sweeps over both sides.
    tol : float, optional
        Stop when an iteration lowers the objective by no more than this fraction.
    patience : int, optional
        Stop when the validation RMSE has not improved for this many iterations.
    solver : {"auto", "cholesky", "cg"} or an object of ``gpu_als.solvers``
        "auto" solves exactly.
    backend : {"auto", "numpy", "cupy"}
    num_threads : int
        Threads on the CPU; 0 means all processors.
    dtype : numpy.float32 or numpy.float64
    precision : {"float32", "tf32x3", "float16"}
        How a GPU multiplies float32 factors (docs/solvers.md); a CPU always in full precision.
    random_state : None, int, numpy.random.Generator or numpy.random.RandomState

    Attributes
    ----------
    user_factors : array, shape (n_users, factors)
    item_factors : array, shape (n_items, factors)
    user_biases : array, shape (n_users,)
    item_biases : array, shape (n_items,)
        Zero without ``bias``.
    global_mean : float
        Zero without ``bias``.
    user_ids, item_ids : array or None
        The ids of the rows and columns when trained on :class:`~gpu_als.Interactions` or
        :class:`~gpu_als.data.shards.ShardedMatrix` with ids.
    report_ : FitReport
        Of the last fit.

    References
    ----------
    Koren, Bell, Volinsky: Matrix factorization techniques for recommender systems, IEEE Computer
    42 (2009). Zhou, Wilkinson, Schreiber, Pan: Large-scale parallel collaborative filtering for
    the Netflix prize, AAIM 2008. Salakhutdinov, Mnih: Probabilistic matrix factorization, NIPS
    2007.
    """

    def __init__(
        self,
        factors: int = 64,
        regularization: float | tuple[float, float] = 0.1,
        *,
        scale_regularization: str | None = "count",
        bias: bool = True,
        nonnegative: bool | str = False,
        iterations: int = 15,
        tol: float | None = None,
        patience: int | None = None,
        solver: str | Solver = "auto",
        backend: str = "auto",
        num_threads: int = 0,
        dtype: Any = np.float32,
        precision: str = "float32",
        random_state: Any = None,
    ) -> None:
        self.factors = check_integer(factors, name="factors", at_least=1)
        check_pair(regularization, name="regularization")
        self.regularization = regularization
        if scale_regularization is not None and not _is_one_of(scale_regularization, "count"):
            raise InputError(
                f"scale_regularization must be 'count' or None, not {scale_regularization!r}"
            )
        self.scale_regularization = scale_regularization
        self.bias = check_flag(bias, name="bias")
        if not isinstance(nonnegative, bool | np.bool_) and not _is_one_of(nonnegative, *_SIDES):
            raise InputError(f"nonnegative must be a bool, 'users' or 'items', not {nonnegative!r}")
        self.nonnegative = nonnegative
        Schedule(check_integer(iterations, name="iterations", at_least=0), tol, patience)
        self.iterations, self.tol, self.patience = iterations, tol, patience
        as_solver(solver)
        self.solver = solver
        if not _is_one_of(backend, "auto", "numpy", "cupy"):
            raise InputError(f"backend must be 'auto', 'numpy' or 'cupy', not {backend!r}")
        self.backend = backend
        self.num_threads = check_integer(num_threads, name="num_threads", at_least=0)
        self.dtype = check_dtype(dtype)
        self.precision = check_precision(precision)
        self.random_state = random_state
        self.user_factors: Any = None
        self.item_factors: Any = None
        self.user_biases: Any = None
        self.item_biases: Any = None
        self.global_mean = 0.0
        self.report_: FitReport | None = None
        self._trained: tuple[int, bool] | None = None
        self._forget()

    def fit(
        self,
        ratings: Any,
        *,
        sample_weight: Any = None,
        validation: Any = None,
        callback: Callable[[int, float, float], Any] | None = None,
        show_progress: bool = False,
        warm_start: bool = False,
        checkpoint: Any = None,
        resume: Any = None,
    ) -> Self:
        """Train on ratings.

        Parameters
        ----------
        ratings : sparse matrix, array, Interactions or ShardedMatrix, shape (n_users, n_items)
            Stored entries are ratings, stored zeros too; in a dense array zero means "missing".
        sample_weight : optional
            Weight of each rating: a sparse matrix with the same stored entries, a dense array of
            the same shape, or a 1-D array aligned with ``ratings.data``. Weight 0 means "as if not
            rated".
        validation : optional
            Ratings to watch: a matrix of the same shape, Interactions, or a tuple
            ``(users, items, values)`` of row numbers and ratings. The factors with the lowest
            validation RMSE are kept.
        callback : callable, optional
            ``callback(iteration, seconds, loss)`` after each iteration; ``report_`` is up to date
            by then. May raise :class:`gpu_als.StopTraining`.
        show_progress : bool
        warm_start : bool
            Begin with the factors and biases that the model has. With ids in the model and in the
            ratings, known users and items keep theirs, new ones get drawn factors, and those that
            are gone are dropped. Without ids rows are known by their numbers: there may be more
            than before, not fewer.
        checkpoint : path or Checkpoint, optional
            Where, and how often, to save the state of the fit.
        resume : path or bool, optional
            Go on from a saved state, to the same factors as if the fit had not been interrupted:
            to the bit on the same kind of device. True: from the file of ``checkpoint`` where it
            is there, else afresh, so that a script that was killed can be run again as it is.
            ``iterations`` counts from the very start.

        Returns
        -------
        ExplicitALS
            The estimator itself.

        Raises
        ------
        InputError
            Ratings, a parameter or the factors to start from cannot be used; the message says why.
        NotFittedError
            With ``warm_start``: the model has no factors yet.
        CheckpointError
            The saved state is damaged, or of a fit with other parameters or data, or of more
            iterations.
        """
        former = self._former() if check_flag(warm_start, name="warm_start") else None
        weigh = None
        if sample_weight is not None:
            weigh = partial(aligned_weights, ratings, sample_weight)
        data = as_training_data(ratings, name="ratings", dtype=self.dtype, weigh=weigh)

        total, weight = map(sum, zip(*data.map_blocks(_checked_sum), strict=True))
        mean = total / weight if self.bias and weight else 0.0
        engine = data.engine(self._objective(mean), self._width, self._backend_choice())
        held_out, validate = None, None
        if validation is not None:
            held_out = validation_ratings(validation, data)
            validate = self._validator(*held_out, mean)
        start = begin(
            checkpoint,
            resume,
            FitReport(engine.device, entries=data.nnz),
            {"model": "explicit", **self.get_params()},
            {
                "ratings": data.fingerprint,
                "sample_weight": partial(hash_arrays, data.weights),
                "validation": partial(hash_arrays, *(held_out or ())),
            },
            tuple((size, self._width) for size in data.shape),
            bias=self.bias,
        )
        model = start.model or self._start(data, former)
        self.report_ = start.report
        schedule = Schedule(self.iterations, self.tol, self.patience)
        if self.patience is not None and validate is None:
            raise InputError("patience needs a validation set; pass fit(..., validation=...)")
        train(
            engine,
            (self._solver("users"), self._solver("items")),
            model,
            schedule,
            report=self.report_,
            validate=validate,
            callback=callback,
            progress=show_progress,
            best=start.best,
            checkpoints=start.checkpoints,
        )
        users, items = map(self._get_backend().to_host, model.factors)
        self._publish(**self._by_name(users, items), global_mean=mean, **self._ids_of(data))
        return self

    @of_one_moment
    def predict(self, users: Any, items: Any) -> np.ndarray:
        """Return predicted ratings of (user, item) pairs.

        Parameters
        ----------
        users, items : int or array of int, shape (n,)
            Row and column numbers; see :meth:`user_index` for ids.

        Returns
        -------
        array, shape (n,)
            Of the factors' dtype. A row without ratings contributes nothing but the mean.
        """
        self._check_fitted()
        rows, columns = check_pairs(users, items, len(self.user_factors), len(self.item_factors))
        return self._predict(
            np.column_stack([self.user_factors, self.user_biases]),
            np.column_stack([self.item_factors, self.item_biases]),
            rows,
            columns,
            self.global_mean,
        )

    @of_one_moment
    def fold_in_users(
        self, ratings: Any, *, sample_weight: Any = None, return_biases: bool = False
    ) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
        """Return factors of users that were not trained on, exactly as a half-sweep would.

        Parameters
        ----------
        ratings : sparse matrix or array, shape (n, n_items)
        sample_weight : optional
            Weight of each rating, as in :meth:`fit`.
        return_biases : bool
            Return ``(factors, biases)``.

        Returns
        -------
        array, shape (n, factors)
            Zero for rows without ratings. With ``return_biases`` also an array of shape (n,).
        """
        self._check_unchanged()
        matrix = as_csr(ratings, name="ratings", dtype=self.dtype)
        check_magnitude(matrix, dtype=self.dtype, name="ratings")
        weights = None
        if sample_weight is not None:
            matrix, weights = aligned_weights(ratings, sample_weight, matrix)
        matrix = requested_rows(
            matrix, matrix.shape[0], len(self.item_factors), "fold in", dtype=self.dtype
        )
        backend = self._get_backend()
        objective, entries = self._objective(self.global_mean), SparseRows.from_csr(matrix, weights)
        items = self._with_biases(self.item_factors, self.item_biases)
        how = self._solver("users")
        solved = fold_in(backend, objective, entries, "users", items, how, bias=self.bias)
        factors = solved[:, : self.factors]
        if not return_biases:
            return factors
        return factors, solved[:, -1] if self.bias else np.zeros(len(solved), self.dtype)

    @property
    def _width(self) -> int:
        """Columns of the factor matrices in training: the bias is one more factor."""
        return self.factors + self.bias

    def _backend_choice(self) -> BackendChoice:
        return BackendChoice(self.backend, self.num_threads, self.precision)

    def _get_backend(self) -> Backend:
        return self._backend_choice().get()

    def _objective(self, mean: float) -> Explicit:
        pair = self.regularization
        count = self.scale_regularization == "count"
        return Explicit(tuple(pair) if np.ndim(pair) else pair, count, mean)  # type: ignore[arg-type]

    def _queries(
        self, backend: Backend, ids: np.ndarray, rows: sp.csr_matrix | None
    ) -> tuple[Array, Array]:
        factors, biases = self.user_factors, self.user_biases
        if rows is None:
            factors, biases = factors[ids], biases[ids]
        else:
            factors, biases = self.fold_in_users(rows, return_biases=True)
        # the item's bias is one more factor whose partner is 1; so is what the user adds to all
        ones, base = np.ones(len(ids), self.dtype), biases + self.dtype.type(self.global_mean)
        users = np.column_stack([factors, ones, base])
        ones = np.ones(len(self.item_factors), self.dtype)
        items = np.column_stack([self.item_factors, self.item_biases, ones])
        return backend.from_host(users), backend.from_host(items)

    def _is_nonnegative(self, side: str) -> bool:
        return self.nonnegative is True or self.nonnegative == side

    def _solver(self, side: str) -> Solver:
        if self._is_nonnegative(side):
            return NonNegative(free_columns=int(self.bias))
        return as_solver(self.solver)

    def _former(self) -> Self:
        """Return the model as it is now, once checked, for a fit to start from."""
        former = self._snapshot()
        former._check_fitted()
        if former._trained != (self.factors, self.bias):
            raise InputError(
                "warm_start: factors or bias were changed by set_params after training; set them "
                "back, or fit with warm_start=False"
            )
        for side, factors in zip(_SIDES, (former.user_factors, former.item_factors), strict=True):
            if self._is_nonnegative(side) and factors.min(initial=0) < 0:
                raise InputError(
                    f"warm_start: the model's factors of {side} are negative in places, which "
                    f"nonnegative={self.nonnegative!r} forbids; fit with warm_start=False"
                )
        return former

    def _start(self, data: TrainingData, former: Self | None) -> Model:
        """Return the factors to start from: those of a former model, and drawn ones for the rest.

        Rows without ratings start, and stay, at zero.
        """
        before: tuple[Any, Any] = (None, None)
        rows = before
        if former is not None:
            rows = former_rows(
                (former.user_factors, former.item_factors),
                (former.user_ids, former.item_ids),
                data,
                self.factors,
                name="ratings",
                remedy="fit with warm_start=False",
            )
            before = (
                self._with_biases(former.user_factors, former.user_biases),
                self._with_biases(former.item_factors, former.item_biases),
            )
        rng = check_random_state(self.random_state)
        sides = [
            carry_over(factors, known, size, partial(self._draw, rng, side))
            for side, factors, known, size in zip(_SIDES, before, rows, data.shape, strict=True)
        ]
        for factors, counts in zip(sides, data.counts(), strict=True):
            factors[counts == 0] = 0
        return Model(sides[0], sides[1], self.bias)

    def _draw(self, rng: Any, side: str, n_rows: int) -> np.ndarray:
        """Draw initial factors of new rows, with a bias of zero."""
        drawn = np.empty((n_rows, self._width), self.dtype)
        for start in range(0, n_rows, _DRAWN_AT_ONCE):
            block = drawn[start : start + _DRAWN_AT_ONCE]
            block[:] = rng.standard_normal(block.shape) * (0.1 / np.sqrt(self.factors))
        if self._is_nonnegative(side):
            np.abs(drawn, out=drawn)
        if self.bias:
            drawn[:, -1] = 0
        return drawn

    def _by_name(self, users: np.ndarray, items: np.ndarray) -> dict[str, Any]:
        """Return what training found, as the attributes hold it."""
        found: dict[str, Any] = {"_trained": (self.factors, self.bias)}
        for side, extended in (("user", users), ("item", items)):
            biases = extended[:, -1].copy() if self.bias else np.zeros(len(extended), self.dtype)
            found[f"{side}_factors"] = np.ascontiguousarray(extended[:, : self.factors])
            found[f"{side}_biases"] = biases
        return found

    def _with_biases(self, factors: np.ndarray, biases: np.ndarray) -> np.ndarray:
        return np.column_stack([factors, biases]) if self.bias else factors

    def _predict(
        self,
        users: np.ndarray,
        items: np.ndarray,
        rows: np.ndarray,
        columns: np.ndarray,
        mean: float,
    ) -> np.ndarray:
        """Predict pairs from factors whose last column is the bias, in bounded memory."""
        scores = pair_scores(np, users[:, :-1], items[:, :-1], rows, columns)
        return scores + (users[rows, -1] + items[columns, -1] + self.dtype.type(mean))

    def _validator(
        self, rows: np.ndarray, columns: np.ndarray, values: np.ndarray, mean: float
    ) -> Callable[[np.ndarray, np.ndarray], dict[str, float]]:
        def validate(users: np.ndarray, items: np.ndarray) -> dict[str, float]:
            if not self.bias:  # a column of zeros in the place of the bias
                users, items = (np.pad(side, ((0, 0), (0, 1))) for side in (users, items))
            return {"rmse": rmse(values, self._predict(users, items, rows, columns, mean))}

        return validate


def _checked_sum(first_row: int, rows: SparseRows) -> tuple[float, float]:
    """Check how large ratings are; return their weighted sum and the sum of weights.

    A function of no estimator, since workers of a cluster get it.
    """
    check_magnitude(rows.to_csr(), dtype=rows.values.dtype, name="ratings", first_row=first_row)
    return weighted_sum(rows.values, rows.weights)


def _is_one_of(value: Any, *names: str) -> bool:
    return isinstance(value, str) and value in names
