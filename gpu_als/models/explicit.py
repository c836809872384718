"""ALS for explicit ratings, with biases."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Self

import numpy as np
import scipy.sparse as sp

from gpu_als.backends import BACKENDS, PRECISIONS, BackendChoice
from gpu_als.core.objectives import Explicit
from gpu_als.core.problem import SparseRows
from gpu_als.core.solvers import Certified, NonNegative, Solver, as_solver
from gpu_als.data.csr import as_csr, check_magnitude, real_numbers
from gpu_als.errors import InputError, check_choice
from gpu_als.metrics import rmse
from gpu_als.models import files
from gpu_als.models.estimator import SIDES, Estimator, attribute
from gpu_als.models.fitted import Fitted
from gpu_als.models.params import (
    check_dtype,
    check_flag,
    check_integer,
    check_pair,
)
from gpu_als.models.recommend import predictions
from gpu_als.train.checkpoint import begin
from gpu_als.train.engine import Model
from gpu_als.train.loop import Schedule, train
from gpu_als.train.report import FitReport
from gpu_als.train.row_blocks import hash_arrays
from gpu_als.train.training_data import TrainingData, as_training_data, validation_ratings

__all__ = ["ExplicitALS"]

_DRAWN_AT_ONCE = 1 << 14
"""Rows, since they are drawn in float64."""


class ExplicitALS(Estimator):
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
        "auto" solves exactly, in the way that costs a row least.
    solver_tol : float, optional
        How exact "auto" is; see :class:`gpu_als.solvers.Certified`.
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

    _file = files.EXPLICIT
    bias: bool

    user_biases = attribute("users", "biases", "Array of shape (n_users,), zero without ``bias``.")
    item_biases = attribute("items", "biases", "Array of shape (n_items,), zero without ``bias``.")

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
        solver_tol: float | None = None,
    ) -> None:
        self.factors = check_integer(factors, name="factors", at_least=1)
        check_pair(regularization, name="regularization")
        self.regularization = regularization
        self.scale_regularization = check_choice(
            scale_regularization, ("count", None), name="scale_regularization"
        )
        self.bias = check_flag(bias, name="bias")
        if not isinstance(nonnegative, np.bool_):
            check_choice(nonnegative, (True, False, *SIDES), name="nonnegative")
        self.nonnegative = nonnegative
        Schedule(check_integer(iterations, name="iterations", at_least=0), tol, patience)
        self.iterations, self.tol, self.patience = iterations, tol, patience
        as_solver(solver)
        self.solver = solver
        self.solver_tol = Certified(solver_tol).tol
        self.backend = check_choice(backend, BACKENDS, name="backend")
        self.num_threads = check_integer(num_threads, name="num_threads", at_least=0)
        self.dtype = check_dtype(dtype)
        self.precision = check_choice(precision, PRECISIONS, name="precision")
        self.random_state = random_state
        self._forget()

    @property
    def global_mean(self) -> float:
        """What is added to every prediction; zero without ``bias``."""
        return self._fitted.mean

    @global_mean.setter
    def global_mean(self, mean: float) -> None:
        with self._writing:
            self._fitted = self._fitted.replaced(mean=float(mean))

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
            Continue from a saved state, to the same factors as if the fit had not been interrupted:
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
            weigh = partial(_aligned_weights, ratings, sample_weight)
        data = as_training_data(ratings, name="ratings", dtype=self.dtype, weigh=weigh)
        (total, weight), summary = data.survey(_checked_sum)
        mean = total / weight if self.bias and weight else 0.0
        engine = data.engine(self._objective(mean), self._width, self._backend_choice())
        held_out, validate = None, None
        if validation is not None:
            held_out = validation_ratings(validation, data)
            validate = self._validator(*held_out, mean)
        start = begin(
            checkpoint,
            resume,
            FitReport(engine.device, entries=summary.entries),
            {"model": "explicit", **self.get_params()},
            {
                "ratings": lambda: summary.fingerprint,
                "sample_weight": partial(hash_arrays, data.weights),
                "validation": partial(hash_arrays, *(held_out or ())),
            },
            tuple((size, self._width) for size in data.shape),
            bias=self.bias,
        )
        model = start.model or self._start(data, former or Fitted())
        self.report_ = start.report
        schedule = Schedule(self.iterations, self.tol, self.patience)
        if self.patience is not None and validate is None:
            raise InputError("patience needs a validation set; pass fit(..., validation=...)")
        train(
            engine,
            (self._solver("users", bias=self.bias), self._solver("items", bias=self.bias)),
            model,
            schedule,
            report=self.report_,
            validate=validate,
            callback=callback,
            progress=show_progress,
            best=start.best,
            checkpoints=start.checkpoints,
        )
        self._take_over(data, summary, *model.factors, mean)
        return self

    @property
    def _width(self) -> int:
        """Columns of the factor matrices in training: the bias is one more factor."""
        return self.factors + self.bias

    def _backend_choice(self) -> BackendChoice:
        return BackendChoice(self.backend, self.num_threads, self.precision)

    def _use(self, backend: str) -> None:
        self.backend = backend

    def _keep(self, matrix: Any) -> np.ndarray:
        """Return factors as a NumPy array, wherever the model works."""
        return self._get_backend().to_host(matrix)

    def _objective(self, mean: float) -> Explicit:
        pair = self.regularization
        count = self.scale_regularization == "count"
        return Explicit(tuple(pair) if np.ndim(pair) else pair, count, mean)  # type: ignore[arg-type]

    def _is_nonnegative(self, side: str) -> bool:
        return self.nonnegative in (True, side)

    def _solver(self, side: str, *, bias: bool) -> Solver:
        if self._is_nonnegative(side):
            return NonNegative(free_columns=int(bias))
        return as_solver(self.solver, self.solver_tol)

    def _exact_solver(self, side: str, *, bias: bool) -> Solver:
        own = self._solver(side, bias=bias)
        return own if own.exact else Certified(self.solver_tol)

    def _check_values(self, rows: sp.csr_matrix, name: str) -> None:
        check_magnitude(rows, dtype=rows.dtype, name=name)

    def _weighed(
        self, entries: Any, sample_weight: Any, matrix: sp.csr_matrix, name: str
    ) -> tuple[sp.csr_matrix, np.ndarray]:
        return _aligned_weights(entries, sample_weight, matrix)

    @classmethod
    def _from_stored(cls, values: dict[str, Any]) -> Self:
        if isinstance(values.get("regularization"), list):
            values["regularization"] = tuple(values["regularization"])
        values.setdefault("scale_regularization", None)
        names = cls._parameters()
        return cls(**{name: value for name, value in values.items() if name in names})

    def _former(self) -> Fitted:
        """Return what the model has, once checked, for a fit to start from."""
        former = self._fitted.checked()
        if (former.users.factors.shape[1], former.users.bias) != (self.factors, self.bias):
            raise InputError(
                "warm_start: factors or bias were changed by set_params after training; set them "
                "back, or fit with warm_start=False"
            )
        for side, factors in zip(SIDES, (former.users.factors, former.items.factors), strict=True):
            if self._is_nonnegative(side) and factors.min(initial=0) < 0:
                raise InputError(
                    f"warm_start: the model's factors of {side} are negative in places, which "
                    f"nonnegative={self.nonnegative!r} forbids; fit with warm_start=False"
                )
        return former

    def _start(self, data: TrainingData, former: Fitted) -> Model:
        """Return the factors to start from; rows without ratings start, and stay, at zero."""
        model = self._first_factors(
            data, former, name="ratings", remedy="fit with warm_start=False"
        )
        for factors, counts in zip(model.factors, data.counts(), strict=True):
            factors[counts == 0] = 0
        return model

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

    def _validator(
        self, rows: np.ndarray, columns: np.ndarray, values: np.ndarray, mean: float
    ) -> Callable[[np.ndarray, np.ndarray], dict[str, float]]:
        def validate(users: np.ndarray, items: np.ndarray) -> dict[str, float]:
            found = predictions(np, users, items, rows, columns, bias=self.bias, mean=mean)
            return {"rmse": rmse(values, found)}

        return validate


def _checked_sum(first_row: int, rows: SparseRows) -> tuple[float, float]:
    """Check how large ratings are; return their weighted sum and the sum of weights.

    A function of no estimator, since workers of a cluster get it.
    """
    check_magnitude(rows.to_csr(), dtype=rows.values.dtype, name="ratings", first_row=first_row)
    return _weighted_sum(rows.values, rows.weights)


def _aligned_weights(
    ratings: Any, sample_weight: Any, user_items: sp.csr_matrix
) -> tuple[sp.csr_matrix, np.ndarray]:
    """Return the ratings that have a weight above zero, and those weights.

    Parameters
    ----------
    ratings : matrix
        As the user passed it.
    sample_weight : array-like
        A sparse matrix with the same stored entries (or Interactions, whose ids are not looked
        at), a dense one of the same shape, or a 1-D array aligned with ``ratings.data``. Weight 0
        means "as if not observed".
    user_items : csr_matrix
        ``ratings`` in validated form.
    """
    shape, dtype = user_items.shape, user_items.dtype
    sample_weight = getattr(sample_weight, "user_items", sample_weight)  # of Interactions
    if not sp.issparse(sample_weight):
        sample_weight = real_numbers(sample_weight, name="sample_weight")
    if sp.issparse(sample_weight):
        weights = as_csr(sample_weight, name="sample_weight", dtype=dtype)
    elif sample_weight.ndim == 2:
        dense = sample_weight
        rows = np.repeat(np.arange(shape[0]), np.diff(user_items.indptr))
        if dense.shape != shape:
            raise InputError(f"sample_weight has shape {dense.shape}; ratings has {shape}")
        pattern = dense[rows, user_items.indices], user_items.indices, user_items.indptr
        weights = as_csr(sp.csr_matrix(pattern, shape=shape), name="sample_weight", dtype=dtype)
    else:
        entries = getattr(ratings, "user_items", ratings)
        by_entry = sp.issparse(entries) and entries.format in ("csr", "csc", "coo")
        if not by_entry or np.shape(sample_weight) != entries.data.shape:
            raise InputError(
                "sample_weight must be an array of the shape of ratings, or have one value for "
                "each entry of the data of a CSR, CSC or COO matrix; found shape "
                f"{np.shape(sample_weight)}"
            )
        replaced = entries.copy()
        replaced.data = sample_weight
        weights = as_csr(replaced, name="sample_weight", dtype=dtype)
    same = (
        weights.shape == shape
        and np.array_equal(weights.indptr, user_items.indptr)
        and np.array_equal(weights.indices, user_items.indices)
    )
    if not same or (sp.issparse(ratings) and ratings.nnz != user_items.nnz):
        raise InputError(
            "sample_weight must have the shape and the stored entries of ratings, once each; "
            "build both from the same rows and columns"
        )
    check_magnitude(weights, dtype=dtype, name="sample_weight")
    if weights.data.min(initial=0) < 0:
        raise InputError("sample_weight holds negative values; weights must be 0 or more")
    kept = weights.data > 0
    if kept.all():
        return user_items, weights.data
    before = np.concatenate([[0], np.cumsum(kept, dtype=np.int64)])[user_items.indptr]
    some = user_items.data[kept], user_items.indices[kept], before
    return sp.csr_matrix(some, shape=shape), weights.data[kept]


def _weighted_sum(values: np.ndarray, weights: np.ndarray | None) -> tuple[float, float]:
    """Return the sum of values times weights, and that of the weights, added in float64."""
    if weights is None:
        return float(values.sum(dtype=np.float64)), float(len(values))
    wide = weights.astype(np.float64)
    return float(values @ wide), float(wide.sum())
