"""ALS for implicit feedback, with the constructor and methods that ``implicit``'s users know."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any, BinaryIO, Self

import numpy as np
import scipy.sparse as sp

from gpu_als.backends import get_backend
from gpu_als.backends.ops import Backend
from gpu_als.data.matrix import as_csr, check_index_array, check_magnitude
from gpu_als.data.model_file import read_arrays, write_arrays
from gpu_als.data.splits import check_random_state
from gpu_als.errors import InputError, ModelFileError, ParameterWarning
from gpu_als.estimators.external_ids import HasIds
from gpu_als.estimators.params import (
    HasParameters,
    check_dtype,
    check_flag,
    check_integer,
    check_nonnegative,
    check_precision,
)
from gpu_als.estimators.recommending import best_items, requested_rows
from gpu_als.estimators.sides import both_sides, fold_in
from gpu_als.objectives import IALS, Implicit
from gpu_als.report import FitReport
from gpu_als.row_problem import SparseRows
from gpu_als.solvers import Cholesky, ConjugateGradient, Solver
from gpu_als.training import Model, Schedule, train

__all__ = ["AlternatingLeastSquares"]

_SAVED = (
    "regularization", "factors", "num_threads", "iterations", "use_native", "use_cg", "cg_steps",
    "calculate_training_loss", "random_state", "alpha", "unobserved_weight",
    "regularization_exponent",
)  # fmt: skip


class AlternatingLeastSquares(HasParameters, HasIds):
    """Matrix factorisation of implicit feedback by alternating least squares.

    Minimises ``sum_all c_ui (p_ui - x_u . y_i)^2 + regularization (|X|^2 + |Y|^2)`` with the
    conventions of ``implicit``: an observed value r means confidence ``c = abs(alpha * r)`` in
    ``p = 1``, or in ``p = 0`` where r is negative; every other cell has ``c = 1, p = 0``. (LensKit
    uses ``c = 1 + weight * r``.)

    With ``unobserved_weight`` or ``regularization_exponent`` the objective is that of iALS:
    ``sum_observed w_ui (1 - x_u . y_i)^2 + unobserved_weight sum_all (x_u . y_i)^2`` with
    ``w = alpha * abs(r)`` and ridges ``regularization * (n_u + unobserved_weight * n_items) **
    regularization_exponent``.

    Parameters
    ----------
    factors : int
        Number of factors.
    regularization : float
        Ridge, at least 0.
    alpha : float
        Scales the values to confidences.
    dtype : numpy.float32 or numpy.float64
        Type of the factors.
    use_native : bool
        Accepted for compatibility; changes nothing.
    use_cg : bool
        True: ``cg_steps`` (an attribute, 3) warm-started conjugate-gradient steps per row. False:
        exact solves.
    use_gpu : bool or None
        None takes the GPU where there is one.
    iterations : int
        Sweeps over both sides.
    calculate_training_loss : bool
        Whether callbacks get the training loss. (It costs nothing; ``report_`` always has it.)
    num_threads : int
        Threads on the CPU; 0 means all processors.
    random_state : None, int, numpy.random.Generator or numpy.random.RandomState
        Seeds the initial factors, which are the same on every device.
    unobserved_weight : float, optional
        alpha0 of iALS: the weight of every cell. 1 when only the exponent is given.
    regularization_exponent : float, optional
        nu of iALS. 0 when only the weight is given.
    precision : {"float32", "tf32x3", "float16"}
        How a GPU multiplies float32 factors (docs/solvers.md); a CPU always in full precision.

    Attributes
    ----------
    user_factors : array, shape (n_users, factors), or None
    item_factors : array, shape (n_items, factors), or None
    user_ids, item_ids : array or None
        The ids of the rows and columns when trained on :class:`~gpu_als.Interactions` with ids.
    cg_steps : int
    fit_callback : callable or None
        Called like ``fit``'s callback when that is not given.
    report_ : FitReport or None
        Of the last fit.

    References
    ----------
    Hu, Koren, Volinsky: Collaborative filtering for implicit feedback datasets, ICDM 2008.
    Rendle, Krichene, Zhang, Koren: Revisiting the performance of iALS on item recommendation
    benchmarks, RecSys 2022.
    """

    def __init__(
        self,
        factors: int = 100,
        regularization: float = 0.01,
        alpha: float = 1.0,
        dtype: Any = np.float32,
        use_native: bool = True,
        use_cg: bool = True,
        use_gpu: bool | None = None,
        iterations: int = 15,
        calculate_training_loss: bool = False,
        num_threads: int = 0,
        random_state: Any = None,
        *,
        unobserved_weight: float | None = None,
        regularization_exponent: float | None = None,
        precision: str = "float32",
    ) -> None:
        self.factors = check_integer(factors, name="factors", at_least=1)
        self.regularization = check_nonnegative(regularization, name="regularization")
        self.alpha = check_nonnegative(alpha, name="alpha", above_zero=True)
        self.dtype = check_dtype(dtype)
        self.use_native = use_native
        self.use_cg = check_flag(use_cg, name="use_cg")
        if use_gpu is not None:
            check_flag(use_gpu, name="use_gpu")
        self.use_gpu = use_gpu
        self.iterations = check_integer(iterations, name="iterations", at_least=0)
        self.calculate_training_loss = calculate_training_loss
        self.num_threads = check_integer(num_threads, name="num_threads", at_least=0)
        self.random_state = random_state
        self.unobserved_weight = unobserved_weight
        if unobserved_weight is not None:
            check_nonnegative(unobserved_weight, name="unobserved_weight")
        self.regularization_exponent = regularization_exponent
        if regularization_exponent is not None:
            check_nonnegative(regularization_exponent, name="regularization_exponent")
        self.precision = check_precision(precision)
        self.cg_steps = 3
        self.fit_callback: Callable[[int, float, float | None], Any] | None = None
        self.user_factors: Any = None
        self.item_factors: Any = None
        self.report_: FitReport | None = None

    def fit(
        self,
        user_items: Any,
        show_progress: bool = True,
        callback: Callable[[int, float, float | None], Any] | None = None,
    ) -> None:
        """Train on a matrix of interactions, from the present factors where there are some.

        Parameters
        ----------
        user_items : sparse matrix, array or Interactions, shape (n_users, n_items)
            CSR is best; anything else is converted. Negative values mean "disliked".
        show_progress : bool
        callback : callable, optional
            ``callback(iteration, seconds, loss)`` after each iteration; the loss is None unless
            ``calculate_training_loss``.

        Raises
        ------
        InputError
            The matrix or a parameter cannot be used; the message says why.
        ModelFitError
            The factors to start from hold NaN or inf.
        """
        matrix = self._check_interactions(user_items)
        self._start(*matrix.shape)
        backend = self._backend()
        objective = self._objective()
        problems = both_sides(objective, matrix, None, self.factors, backend)
        rows = SparseRows.from_csr(matrix)
        report = FitReport(backend.device, entries=matrix.nnz)
        self.report_ = report
        callback = callback or self.fit_callback
        shown = self.calculate_training_loss
        model = Model(self.user_factors, self.item_factors)
        solver: Solver = ConjugateGradient(self.cg_steps) if self.use_cg else Cholesky()
        train(
            backend,
            problems,
            (solver, solver),
            model,
            Schedule(self.iterations),
            report=report,
            constant=objective.constant(rows),
            loss_scale=self._loss_scale(matrix),
            callback=callback and (lambda i, s, loss: callback(i, s, loss if shown else None)),
            progress=show_progress,
        )
        self.user_factors, self.item_factors = model.user_factors, model.item_factors
        self._take_ids(user_items)

    def recommend(
        self,
        userid: Any,
        user_items: Any = None,
        N: int = 10,
        filter_already_liked_items: bool = True,
        filter_items: Any = None,
        recalculate_user: bool = False,
        items: Any = None,
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
        filter_items : array of int, optional
            Items to put last for every user.
        recalculate_user : bool
            Use factors solved from ``user_items`` instead of the trained ones.
        items : array of int, optional
            The only candidates.

        Returns
        -------
        ids : int32 array, shape (N,) for one user, else (n, N)
        scores : array of the same shape, of the factors' dtype
            Falling; equal scores by rising id.
        """
        self._check_fitted()
        n_items = len(self.item_factors)
        # With recalculation the users need not have been trained on: userid only says how many.
        known = np.iinfo(np.int64).max if recalculate_user else len(self.user_factors)
        ids = check_index_array(userid, known, name="userid")
        rows = None
        if filter_already_liked_items or recalculate_user:
            why = "filter" if filter_already_liked_items else "recalculate"
            rows = requested_rows(user_items, len(ids), n_items, why)
        if recalculate_user:
            users = np.atleast_2d(self.recalculate_user(ids, rows))
        else:
            users = self.user_factors[ids]
        found, scores = best_items(
            self._backend(), users, self.item_factors, N,
            liked=rows if filter_already_liked_items else None,
            filter_items=filter_items, items=items,
        )  # fmt: skip
        return (found[0], scores[0]) if np.ndim(userid) == 0 else (found, scores)

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
        self._check_fitted()
        return self._recalculate(userid, user_items, self.item_factors, "users")

    def recalculate_item(self, itemid: Any, item_users: Any) -> np.ndarray:
        """Return item factors solved exactly from ``item_users``; nothing is stored.

        Parameters
        ----------
        itemid : int or array of int, shape (n,)
        item_users : sparse matrix, shape (n, n_users)

        Returns
        -------
        array, shape (factors,) for one item, else (n, factors)
        """
        self._check_fitted()
        return self._recalculate(itemid, item_users, self.user_factors, "items")

    def save(self, file: str | os.PathLike[str] | BinaryIO) -> None:
        """Write the model to an npz file, atomically; ``.npz`` is appended to a bare name."""
        self._check_fitted()
        arrays = {"user_factors": self.user_factors, "item_factors": self.item_factors}
        for name, factors in arrays.items():
            if not np.isfinite(factors).all():
                raise InputError(f"{name} holds NaN or inf; such a model is not worth keeping")
        plain = {name: getattr(self, name) for name in _SAVED}
        plain["factors"] = self.user_factors.shape[1]  # set_params may have changed it since
        seed = plain["random_state"]
        if not isinstance(seed, int | np.integer):
            plain["random_state"] = None
        plain["dtype"] = self.dtype.name
        plain = {name: value for name, value in plain.items() if value is not None}
        write_arrays(file, arrays | self._ids_to_store() | plain)

    @classmethod
    def load(cls, file: str | os.PathLike[str] | BinaryIO) -> Self:
        """Read a model that :meth:`save` or ``implicit`` wrote.

        Raises
        ------
        ModelFileError
            The file is damaged or holds something else; the message says what.
        """
        stored = read_arrays(file)
        users, items = (
            _stored_factors(stored.pop(name, None), f"{file}: {name}")
            for name in ("user_factors", "item_factors")
        )
        ids = {name: array for name, array in stored.items() if name in ("user_ids", "item_ids")}
        try:
            values = {name: array.item() for name, array in stored.items() if name not in ids}
            lost = {"factors", "regularization", "iterations"} - values.keys()
            if lost:
                raise ModelFileError(f"{file}: the parameters {sorted(lost)} are missing")
            steps = values.pop("cg_steps", 3)
            known = {name: values[name] for name in cls._parameter_names() if name in values}
            model = cls(**known)
            model.cg_steps = check_integer(steps, name="cg_steps", at_least=1)
        except (ValueError, TypeError) as error:
            raise ModelFileError(f"{file}: a stored parameter cannot be used: {error}") from error
        if not users.shape[1] == items.shape[1] == model.factors:
            raise ModelFileError(
                f"{file}: factors of shapes {users.shape} and {items.shape} do not fit "
                f"factors={model.factors}"
            )
        model.user_factors = users.astype(model.dtype)
        model.item_factors = items.astype(model.dtype)
        model._restore_ids(ids, file)
        return model

    def _backend(self) -> Backend:
        name = "auto" if self.use_gpu is None else "cupy" if self.use_gpu else "numpy"
        return get_backend(name, num_threads=self.num_threads, precision=self.precision)

    def _objective(self) -> Implicit | IALS:
        if self.unobserved_weight is None and self.regularization_exponent is None:
            return Implicit(self.regularization, self.alpha)
        weight = 1.0 if self.unobserved_weight is None else self.unobserved_weight
        return IALS(self.regularization, self.alpha, weight, self.regularization_exponent or 0.0)

    def _check_interactions(self, user_items: Any) -> sp.csr_matrix:
        if sp.issparse(user_items) and user_items.format != "csr":
            warnings.warn(
                f"user_items is converted from {user_items.format.upper()} to CSR; pass CSR to "
                "save the time",
                ParameterWarning,
                stacklevel=3,
            )
        matrix = as_csr(user_items, name="user_items", dtype=self.dtype)
        self._check_confidences(matrix)
        return matrix

    def _check_confidences(self, matrix: sp.csr_matrix) -> None:
        check_magnitude(matrix, dtype=self.dtype, name="user_items")
        data = matrix.data
        largest = self.alpha * float(max(data.max(initial=0), -data.min(initial=0)))
        if largest > float(np.finfo(self.dtype).max) ** (1 / 3):
            raise InputError(
                f"alpha * user_items reaches {largest:g}, whose square overflows {self.dtype}; "
                "lower alpha or rescale the values"
            )

    def _start(self, n_users: int, n_items: int) -> None:
        """Draw the factors that are missing, and check the shapes of those that are there."""
        rng = check_random_state(self.random_state)
        for name, size in (("user_factors", n_users), ("item_factors", n_items)):
            factors = getattr(self, name)
            if factors is None:
                drawn = rng.random((size, self.factors), dtype=self.dtype.type)
                setattr(self, name, drawn * self.dtype.type(0.01))
                continue
            factors = np.asarray(factors)
            if factors.dtype.kind not in "fiu":
                raise InputError(f"{name} must be an array of numbers, not of {factors.dtype}")
            if factors.shape != (size, self.factors):
                hint = ""
                if np.shape(self.user_factors)[:1] == (n_items,):
                    hint = " (the matrix seems to be transposed: it must be users x items)"
                raise InputError(
                    f"{name} has shape {factors.shape}, but user_items of shape "
                    f"{(n_users, n_items)} and factors={self.factors} need "
                    f"{(size, self.factors)}{hint}; set it to None to start afresh"
                )
            # a copy: training works in place, and the caller may hold the former factors
            setattr(self, name, np.array(factors, self.dtype, order="C"))

    def _loss_scale(self, matrix: sp.csr_matrix) -> float:
        """1 over ``sum abs(c) + cells - nnz``, by which ``implicit`` divides its loss."""
        confidence = self.alpha * float(np.abs(matrix.data).sum(dtype=np.float64))
        total = confidence + float(matrix.shape[0]) * matrix.shape[1] - matrix.nnz
        return 1 / total if total > 0 else 1.0

    def _recalculate(self, ids: Any, matrix: Any, fixed: np.ndarray, side: str) -> np.ndarray:
        scalar = np.ndim(ids) == 0
        rows = requested_rows(matrix, np.size(ids), len(fixed), "recalculate")
        rows = as_csr(rows, name="user_items", dtype=self.dtype)
        self._check_confidences(rows)
        solved = fold_in(
            self._backend(), self._objective(), SparseRows.from_csr(rows), fixed, Cholesky(), side
        )
        return solved[0] if scalar else solved


def _stored_factors(array: np.ndarray | None, where: str) -> np.ndarray:
    """Return factors read from a file after checking that they are a finite matrix."""
    if array is None or array.ndim != 2 or array.dtype.kind != "f":
        raise ModelFileError(
            f"{where} is missing or no matrix of floats; this is no AlternatingLeastSquares model"
        )
    if not np.isfinite(array).all():
        raise ModelFileError(f"{where} holds NaN or inf")
    return array
