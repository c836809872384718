"""Factorising a dense matrix, complete or with missing entries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp

from gpu_als.backends import BackendChoice, get_backend
from gpu_als.core.half_sweep import solve_side
from gpu_als.core.objectives import Dense, Explicit
from gpu_als.core.problem import SparseRows
from gpu_als.core.solvers import Certified, NonNegative, as_solver
from gpu_als.data.csr import as_csr, check_magnitude, to_host
from gpu_als.data.splits import check_random_state
from gpu_als.errors import InputError, check_choice
from gpu_als.models.params import (
    check_dtype,
    check_flag,
    check_integer,
    check_nonnegative,
    check_pair,
)
from gpu_als.train.engine import Model
from gpu_als.train.loop import Schedule, train
from gpu_als.train.report import FitReport
from gpu_als.train.row_blocks import MemoryRows
from gpu_als.train.training_data import TrainingData

__all__ = ["als_step", "factorize", "loss_and_gradient"]

Missing = None | float | str | np.ndarray


def factorize(
    X: Any,
    factors: int,
    *,
    regularization: float | tuple[float, float],
    missing: Missing = None,
    nonnegative: bool = False,
    iterations: int = 50,
    tol: float | None = 1e-6,
    solver: str = "auto",
    backend: str = "auto",
    num_threads: int = 0,
    dtype: Any = None,
    random_state: Any = None,
    callback: Callable[[int, float, float], Any] | None = None,
    show_progress: bool = False,
) -> tuple[np.ndarray, np.ndarray, FitReport]:
    """Approximate ``X`` by ``W Z^T``.

    Minimises, by alternating exact solves,

        1/2 |M * (X - W Z^T)|_F^2 + lambda_w/2 |W|_F^2 + lambda_z/2 |Z|_F^2

    where M is 1 at observed and 0 at missing entries.

    Parameters
    ----------
    X : array, shape (m, n)
    factors : int
        k, the number of columns of W and Z.
    regularization : float or (float, float)
        lambda, or (lambda_w, lambda_z).
    missing : None, nan or bool array of shape (m, n)
        None: every entry is observed. ``numpy.nan`` (or "nan"): NaN entries are missing. An
        array: entries where it is True are missing, whatever X holds there.
    nonnegative : bool
        Ask for W >= 0 and Z >= 0 (non-negative matrix factorisation).
    iterations : int
        Most iterations.
    tol : float or None
        Stop when an iteration lowers the objective by no more than this fraction.
    solver : {"auto", "cholesky", "cg"}
    backend : {"auto", "numpy", "cupy"}
    num_threads : int
        Threads of the NumPy backend; 0 means all processors.
    dtype : numpy.float32 or numpy.float64, optional
        Default: float32 for float32 input, float64 for everything else.
    random_state : None, int, numpy.random.Generator or numpy.random.RandomState
    callback : callable, optional
        ``callback(iteration, seconds, loss)`` after each iteration.
    show_progress : bool

    Returns
    -------
    W : array, shape (m, k)
    Z : array, shape (n, k)
    report : FitReport
        ``report.losses`` holds the objective above, the factor 1/2 included.

    Raises
    ------
    InputError
        For values or shapes that cannot be used; the message names the argument.
    """
    matrix, observed = _check_matrix(X, missing, dtype)
    k = check_integer(factors, name="factors", at_least=1)
    penalties = check_pair(regularization, name="regularization")
    check_flag(nonnegative, name="nonnegative")
    rng = check_random_state(random_state)
    # Entries of W Z^T start at the scale of X's entries.
    size = np.sqrt(np.mean(np.square(matrix, where=observed, out=np.zeros_like(matrix))) or 1)
    start = [rng.standard_normal((n, k)) * np.sqrt(size / np.sqrt(k)) for n in matrix.shape]
    if nonnegative:
        start = [np.abs(side) for side in start]
    model = Model(*(side.astype(matrix.dtype) for side in start))
    choice = BackendChoice(backend, num_threads)
    if observed.all():
        objective: Dense | Explicit = Dense(penalties)
        both = matrix, np.ascontiguousarray(matrix.T)
        users, items = (MemoryRows.of(SparseRows.from_dense(each)) for each in both)
        data = TrainingData(users, items)
    else:
        objective = Explicit(penalties, count_scaled=False)
        entries = sp.csr_matrix(
            (matrix[observed], np.nonzero(observed)[1], np.append(0, observed.sum(1).cumsum())),
            shape=matrix.shape,
        )
        data = TrainingData.of_matrix(entries)
    engine = data.engine(objective, k, choice)
    report = FitReport(engine.device, entries=int(observed.sum()))
    how = NonNegative() if nonnegative else as_solver(solver)
    train(
        engine,
        (how, how),
        model,
        Schedule(check_integer(iterations, name="iterations", at_least=0), tol),
        report=report,
        loss_scale=0.5,
        callback=callback,
        progress=show_progress,
    )
    w, z = map(choice.get().to_host, model.factors)
    return w, z, report


def loss_and_gradient(
    X: Any,
    W: np.ndarray,
    Z: np.ndarray,
    *,
    regularization: float | tuple[float, float] = 0.0,
    missing: Missing = None,
) -> tuple[float, np.ndarray, np.ndarray]:
    """Return the objective of :func:`factorize` and its gradients, in float64.

    With ``E = M * (W Z^T - X)`` the gradients are ``E Z + lambda_w W`` and ``E^T W + lambda_z Z``
    (derived in docs/mathematics.md); a half-sweep makes one of them vanish.

    Parameters
    ----------
    X : array, shape (m, n)
    W : array, shape (m, k)
    Z : array, shape (n, k)
    regularization : float or (float, float)
    missing : None, nan or bool array of shape (m, n)
        As in :func:`factorize`.

    Returns
    -------
    loss : float
    gradient_W : float64 array, shape (m, k)
    gradient_Z : float64 array, shape (n, k)
    """
    matrix, observed = _check_matrix(X, missing, np.float64)
    w, z = _check_side(W, "W"), _check_side(Z, "Z")
    for name, side, rows in (("W", w, matrix.shape[0]), ("Z", z, matrix.shape[1])):
        if side.ndim != 2 or len(side) != rows:
            raise InputError(f"{name} must have shape ({rows}, k) for this X, not {side.shape}")
    if w.shape[1] != z.shape[1]:
        raise InputError(f"W has {w.shape[1]} columns and Z has {z.shape[1]}; they must agree")
    lambda_w, lambda_z = check_pair(regularization, name="regularization")
    error = np.where(observed, w @ z.T - matrix, 0)
    loss = np.sum(error**2) + lambda_w * np.sum(w**2) + lambda_z * np.sum(z**2)
    return float(loss) / 2, error @ z + lambda_w * w, error.T @ w + lambda_z * z


def _check_side(side: Any, name: str) -> np.ndarray:
    """Return factors given by the user in float64."""
    try:
        array = np.asarray(to_host(side), dtype=np.float64)
    except (TypeError, ValueError):
        array = np.full(1, np.nan)
    if not np.isfinite(array).all():
        raise InputError(f"{name} must be a 2-D array of finite numbers")
    return array


def _check_matrix(matrix: Any, missing: Missing, dtype: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return X with zeros where missing, and the mask of observed entries."""
    if sp.issparse(matrix):
        raise InputError(
            "X is sparse; pass X.toarray(), or use ExplicitALS for ratings that are mostly missing"
        )
    if isinstance(matrix, np.ma.MaskedArray):
        raise InputError("X is a masked array; pass X.data and missing=numpy.ma.getmaskarray(X)")
    try:
        array = np.asarray(to_host(matrix))
    except ValueError:  # rows of different lengths
        array = np.empty(0, object)
    if array.ndim != 2 or 0 in array.shape or array.dtype.kind not in "biuf":
        raise InputError(
            f"X must be a 2-D array of real numbers with at least one row and one column, not "
            f"shape {array.shape} of type {array.dtype}"
        )
    if dtype is None:
        dtype = np.float32 if array.dtype == np.float32 else np.float64
    array = array.astype(check_dtype(dtype), order="C")
    if missing is None:
        observed = np.ones(array.shape, bool)
    elif isinstance(missing, np.ndarray) and not isinstance(missing, np.ma.MaskedArray):
        if missing.shape != array.shape or missing.dtype != bool:
            raise InputError(f"missing must be a bool array of X's shape {array.shape}")
        observed = ~missing
    elif (isinstance(missing, str) and missing == "nan") or (
        isinstance(missing, float | np.floating) and np.isnan(missing)
    ):
        observed = ~np.isnan(array)
    else:
        raise InputError(f"missing must be None, numpy.nan or a bool array, not {missing!r}")
    if not np.isfinite(array[observed]).all():
        raise InputError("X holds NaN or inf; pass missing=numpy.nan to treat NaN as missing")
    if not observed.any():
        raise InputError("missing marks every entry of X; at least one must be observed")
    array[~observed] = 0
    check_magnitude(sp.csr_matrix(array), dtype=array.dtype, name="X")
    return array, observed


def als_step(
    train_matrix: Any, x: np.ndarray, y: np.ndarray, variable: str, k: int, lmbda: float
) -> np.ndarray:
    """Solve one side of ``sum_observed (r_ui - x_u . y_i)^2 + lmbda (|X|^2 + |Y|^2)`` exactly.

    Every user's row becomes ``x_u = (sum_i y_i y_i^T + lmbda I)^-1 sum_i r_ui y_i`` over the items
    i that the user rated, and likewise for items.

    Parameters
    ----------
    train_matrix : array or sparse matrix, shape (n_users, n_items)
        In a dense array zero means "missing"; in a sparse matrix every stored entry is a rating.
    x : float array, shape (n_users, k)
        User factors.
    y : float array, shape (n_items, k)
        Item factors.
    variable : {"x", "y"}
        The side to solve; the other is held.
    k : int
        Number of factors.
    lmbda : float
        The L2 penalty, at least 0.

    Returns
    -------
    numpy.ndarray
        ``x`` or ``y`` itself, updated in place. A row whose system is singular (``lmbda = 0`` and
        fewer independent ratings than factors) keeps its former value.

    Raises
    ------
    InputError
        (a ValueError) ``variable`` is neither "x" nor "y", a shape does not fit, or numbers are
        too large for their dtype; the message says which.

    References
    ----------
    Koren, Bell, Volinsky: Matrix factorization techniques for recommender systems, IEEE Computer
    42 (2009).
    """
    check_choice(variable, ("x", "y"), name="variable")
    k = check_integer(k, name="k", at_least=1)
    lmbda = check_nonnegative(lmbda, name="lmbda")
    for name, factors in (("x", x), ("y", y)):
        if not isinstance(factors, np.ndarray) or factors.dtype not in (np.float32, np.float64):
            raise InputError(f"{name} must be a NumPy array of float32 or float64")
        if not np.isfinite(factors).all():
            raise InputError(f"{name} holds NaN or inf; replace them by finite values")
        if name == variable and not factors.flags.writeable:
            raise InputError(f"{name} is read-only, but is to be updated in place; pass a copy")
    dtype = np.result_type(x, y)
    ratings = as_csr(train_matrix, name="train_matrix", dtype=dtype)
    check_magnitude(ratings, dtype=dtype, name="train_matrix")
    if lmbda > (largest := float(np.sqrt(np.finfo(dtype).max))):
        raise InputError(f"lmbda exceeds {largest:.0e}, what {dtype} can work with; lower it")
    for name, factors, size in (("x", x, ratings.shape[0]), ("y", y, ratings.shape[1])):
        if factors.shape != (size, k):
            hint = ""
            if ratings.shape[::-1] == (len(x), len(y)):
                hint = "; train_matrix seems to be transposed, it must be users x items"
            raise InputError(
                f"{name} has shape {factors.shape}, but train_matrix of shape {ratings.shape} and "
                f"k = {k} need {(size, k)}{hint}"
            )
    solved, fixed = (x, y) if variable == "x" else (y, x)
    side = "users" if variable == "x" else "items"
    rows = SparseRows.from_csr(ratings if variable == "x" else sp.csr_matrix(ratings.T))
    backend = get_backend()
    objective = Explicit(lmbda, count_scaled=False)
    with backend.session():
        # copies: dtype and layout of our own
        on_device = backend.from_host(solved.astype(dtype, order="C"))
        held = backend.from_host(fixed.astype(dtype, order="C"))
        solve_side(backend, objective, rows, side, held, on_device, Certified())
        solved[...] = backend.to_host(on_device)
    return solved
