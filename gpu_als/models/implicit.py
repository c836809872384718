"""ALS for implicit feedback, with the constructor and methods that ``implicit``'s users know."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import scipy.sparse as sp

from gpu_als.backends import PRECISIONS, BackendChoice
from gpu_als.core.objectives import IALS, Implicit
from gpu_als.core.problem import SparseRows
from gpu_als.core.solvers import Certified, ConjugateGradient, Solver
from gpu_als.data.csr import as_csr, check_magnitude, to_host
from gpu_als.errors import InputError, ParameterWarning, check_choice
from gpu_als.models import files
from gpu_als.models.compat import DeprecatedMethods
from gpu_als.models.estimator import Estimator
from gpu_als.models.params import (
    check_dtype,
    check_flag,
    check_integer,
    check_nonnegative,
)
from gpu_als.ranking.top_k import pair_scores
from gpu_als.train.checkpoint import begin
from gpu_als.train.loop import Schedule, train
from gpu_als.train.report import FitReport
from gpu_als.train.training_data import TrainingData, as_training_data

__all__ = ["AlternatingLeastSquares", "calculate_loss"]


class AlternatingLeastSquares(Estimator, DeprecatedMethods):
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
    solver_tol : float, optional
        How exact the exact solves are; see :class:`gpu_als.solvers.Certified`.

    Attributes
    ----------
    user_factors : array, shape (n_users, factors), or None
    item_factors : array, shape (n_items, factors), or None
    user_ids, item_ids : array or None
        The ids of the rows and columns when trained on :class:`~gpu_als.Interactions` or
        :class:`~gpu_als.data.shards.ShardedMatrix` with ids.
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

    _file = files.IMPLICIT

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
        solver_tol: float | None = None,
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
        self.precision = check_choice(precision, PRECISIONS, name="precision")
        self.solver_tol = Certified(solver_tol).tol
        self.cg_steps = 3
        self.fit_callback: Callable[[int, float, float | None], Any] | None = None
        self._forget()

    def fit(
        self,
        user_items: Any,
        show_progress: bool = True,
        callback: Callable[[int, float, float | None], Any] | None = None,
        *,
        checkpoint: Any = None,
        resume: Any = None,
    ) -> None:
        """Train on a matrix of interactions, from the present factors where there are some.

        With ids in the model and in the data, users and items that are known keep their factors,
        those that are new get drawn ones, and those that are gone are dropped. Without ids rows
        are known by their numbers: there may be more than before, not fewer.

        Parameters
        ----------
        user_items : sparse matrix, array, Interactions or ShardedMatrix, shape (n_users, n_items)
            CSR is best; other matrices in memory are converted. Negative values mean "disliked".
        show_progress : bool
        callback : callable, optional
            ``callback(iteration, seconds, loss)`` after each iteration; the loss is None unless
            ``calculate_training_loss``.
        checkpoint : path or Checkpoint, optional
            Where, and how often, to save the state of the fit.
        resume : path or bool, optional
            Continue from a saved state, to the same factors as if the fit had not been interrupted:
            to the bit on the same kind of device. True: from the file of ``checkpoint`` where it
            is there, else afresh, so that a script that was killed can be run again as it is.
            ``iterations`` counts from the very start.

        Raises
        ------
        InputError
            The matrix, a parameter or the factors to start from cannot be used; the message says
            why.
        ModelFitError
            The factors to start from hold NaN or inf.
        CheckpointError
            The saved state is damaged, or of a fit with other parameters or data, or of more
            iterations.
        """
        data = self._check_interactions(user_items)
        objective = self._objective()
        look = partial(_checked_sums, objective)
        (constant, magnitudes), summary = data.survey(look)
        engine = data.engine(objective, self.factors, self._backend_choice())
        start = begin(
            checkpoint,
            resume,
            FitReport(engine.device, entries=summary.entries),
            {"model": "implicit", **self.get_params(), "cg_steps": self.cg_steps},
            {"user_items": lambda: summary.fingerprint},
            tuple((size, self.factors) for size in data.shape),
        )
        model = start.model or self._first_factors(
            data, self._fitted, name="user_items", remedy="set it to None to start afresh"
        )
        self.report_ = start.report
        callback = callback or self.fit_callback
        exact = Certified(self.solver_tol)
        solver: Solver = ConjugateGradient(self.cg_steps) if self.use_cg else exact

        def keep() -> None:
            self._take_over(data, summary, *(factors.copy() for factors in model.factors))

        def watch(iteration: int, seconds: float, loss: float) -> None:
            assert callback is not None
            keep()  # callbacks look at the model
            callback(iteration, seconds, loss if self.calculate_training_loss else None)

        try:
            train(
                engine,
                (solver, solver),
                model,
                Schedule(self.iterations),
                report=start.report,
                best=start.best,
                checkpoints=start.checkpoints,
                constant=constant,
                loss_scale=_loss_scale(data.shape, summary.entries, self.alpha * magnitudes),
                callback=callback and watch,
                progress=show_progress,
            )
        except KeyboardInterrupt:
            keep()
            raise
        self._take_over(data, summary, *model.factors)

    def _backend_choice(self) -> BackendChoice:
        name = "auto" if self.use_gpu is None else "cupy" if self.use_gpu else "numpy"
        return BackendChoice(name, self.num_threads, self.precision)

    def _use(self, backend: str) -> None:
        self.use_gpu = backend == "cupy"

    def _objective(self, mean: float = 0.0) -> Implicit | IALS:
        if self.unobserved_weight is None and self.regularization_exponent is None:
            return Implicit(self.regularization, self.alpha)
        weight = 1.0 if self.unobserved_weight is None else self.unobserved_weight
        return IALS(self.regularization, self.alpha, weight, self.regularization_exponent or 0.0)

    def _exact_solver(self, side: str, *, bias: bool) -> Solver:
        return Certified(self.solver_tol)

    def _check_values(self, rows: sp.csr_matrix, name: str) -> None:
        _check_confidences(rows, self.alpha, name)

    @classmethod
    def _from_stored(cls, values: dict[str, Any]) -> AlternatingLeastSquares:
        for name in ("use_native", "calculate_training_loss"):
            check_flag(values.get(name, False), name=name)
        steps = check_integer(values.get("cg_steps", 3), name="cg_steps", at_least=1)
        if values.get("dtype") == "float16":  # of a GPU model of implicit
            values["dtype"] = "float32"
        names = cls._parameters()
        model = cls(**{name: value for name, value in values.items() if name in names})
        model.cg_steps = steps
        return model

    def _check_interactions(self, user_items: Any) -> TrainingData:
        if sp.issparse(user_items) and user_items.format != "csr":
            warnings.warn(
                f"user_items is converted from {user_items.format.upper()} to CSR; pass CSR to "
                "save the time",
                ParameterWarning,
                stacklevel=3,
            )
        return as_training_data(user_items, name="user_items", dtype=self.dtype)

    def _draw(self, rng: Any, side: str, n_rows: int) -> np.ndarray:
        drawn: np.ndarray = rng.random((n_rows, self.factors), dtype=self.dtype.type)
        return drawn * self.dtype.type(0.01)


def _checked_sums(
    objective: Implicit | IALS, first_row: int, rows: SparseRows
) -> tuple[float, float]:
    """Check how large values are; return what they add to the loss, and the sum of magnitudes.

    A function of no estimator, since workers of a cluster get it.
    """
    _check_confidences(rows.to_csr(), objective.alpha, "user_items", first_row)
    return objective.constant(rows), _sum_of_magnitudes(rows.values)


def _check_confidences(matrix: sp.csr_matrix, alpha: float, name: str, first_row: int = 0) -> None:
    """Refuse values whose confidence, or its square, leaves the range of their dtype."""
    check_magnitude(matrix, dtype=matrix.dtype, name=name, first_row=first_row)
    data = matrix.data
    largest = alpha * float(max(data.max(initial=0), -data.min(initial=0)))
    if largest > float(np.finfo(matrix.dtype).max) ** (1 / 3):
        raise InputError(
            f"alpha * {name} reaches {largest:g}, whose square overflows {matrix.dtype}; "
            "lower alpha or rescale the values"
        )


def calculate_loss(Cui: Any, X: Any, Y: Any, regularization: float, num_threads: int = 0) -> float:
    """Return the loss of factors on a matrix of confidences, as ``implicit`` defines it.

    ``[sum over all cells of c (p - x . y)^2 + regularization (|X|^2 + |Y|^2)] / (sum abs(c) +
    cells - stored)``, where stored confidences count with their absolute value, ``p`` is 1 for
    those above zero and 0 elsewhere, and cells that are not stored have ``c = 1``. Everything is
    added in float64.

    Parameters
    ----------
    Cui : sparse matrix, shape (n_users, n_items)
        Confidences: ``alpha`` times the values that a model is trained on.
    X : array, shape (n_users, k)
    Y : array, shape (n_items, k)
    regularization : float
    num_threads : int
        Accepted so that existing calls work.

    Returns
    -------
    float
    """
    matrix = as_csr(Cui, name="Cui", dtype=np.float64)
    users, items = (_as_factors(side, name) for side, name in ((X, "X"), (Y, "Y")))
    if (len(users), len(items)) != matrix.shape or users.shape[1] != items.shape[1]:
        raise InputError(
            f"X of shape {users.shape} and Y of shape {items.shape} do not fit a matrix of shape "
            f"{matrix.shape}"
        )
    ridge = check_nonnegative(regularization, name="regularization")
    rows = np.repeat(np.arange(len(users)), np.diff(matrix.indptr))
    score = pair_scores(np, users, items, rows, matrix.indices)
    confidence, liked = np.abs(matrix.data), matrix.data > 0
    everywhere = np.sum((users.T @ users) * (items.T @ items))
    stored = np.sum(confidence * (liked - score) ** 2 - score**2)
    penalty = ridge * (np.sum(users**2) + np.sum(items**2))
    scale = _loss_scale(matrix.shape, matrix.nnz, _sum_of_magnitudes(matrix.data))
    return float((everywhere + stored + penalty) * scale)


def _loss_scale(shape: tuple[int, int], nnz: int, confidences: float) -> float:
    """Return 1 over ``sum abs(alpha r) + cells - stored``, by which ``implicit`` divides.

    ``confidences`` is that sum.
    """
    total = confidences + float(shape[0]) * shape[1] - nnz
    return 1 / total if total > 0 else 1.0


def _sum_of_magnitudes(values: np.ndarray) -> float:
    """Return ``sum abs(r)``, added in float64."""
    return float(np.abs(values).sum(dtype=np.float64))


def _as_factors(factors: Any, name: str) -> np.ndarray:
    array = np.asarray(to_host(factors))
    if array.ndim != 2 or array.dtype.kind != "f":
        raise InputError(f"{name} must be a 2-D array of floats")
    return array.astype(np.float64)
