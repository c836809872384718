"""The classic ALS step: one half-sweep of ratings with an L2 penalty."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

from gpu_als.backends import get_backend
from gpu_als.data.matrix import as_csr, check_magnitude
from gpu_als.errors import InputError
from gpu_als.estimators.params import check_integer, check_nonnegative
from gpu_als.objectives import Explicit
from gpu_als.row_problem import SparseRows
from gpu_als.solvers import Cholesky
from gpu_als.solving import solve_side

__all__ = ["als_step"]


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
    if not isinstance(variable, str) or variable not in ("x", "y"):
        raise InputError(f"variable must be 'x' or 'y', not {variable!r}")
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
    problem = Explicit(lmbda, count_scaled=False).row_problem(rows, k, backend.batch_elements, side)
    with backend.session():
        # copies: dtype and layout of our own
        on_device = backend.from_host(solved.astype(dtype, order="C"))
        held = backend.from_host(fixed.astype(dtype, order="C"))
        solve_side(backend, backend.load(problem), held, on_device, Cholesky())
        solved[...] = backend.to_host(on_device)
    return solved
