"""Rows solved on their own, and weights of ratings."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp

from gpu_als.core.backend import Backend
from gpu_als.core.basis import FixedSide
from gpu_als.core.half_sweep import solve_side
from gpu_als.core.objectives import Objective
from gpu_als.core.problem import SparseRows
from gpu_als.core.solvers import Solver
from gpu_als.data.csr import as_csr, check_magnitude, real_numbers
from gpu_als.errors import InputError

__all__ = ["aligned_weights", "fold_in", "weighted_sum"]


def fold_in(
    backend: Backend,
    objective: Objective,
    rows: SparseRows,
    side: str,
    fixed: Any,
    solver: Solver,
    *,
    bias: bool = False,
    held: FixedSide | None = None,
) -> np.ndarray:
    """Solve rows that training has not seen, exactly as a half-sweep would.

    Parameters
    ----------
    rows : SparseRows
        The new rows, on the host.
    fixed : array, shape (n_fixed, k)
        Trained factors of the other side, anywhere.
    side, bias, held
        As :func:`~gpu_als.core.half_sweep.solve_side` takes them.

    Returns
    -------
    array, shape (n_rows, k)
        Zero for rows without entries and for rows with a singular system.
    """
    with backend.session():
        on_device = backend.from_host(fixed)
        solved = backend.xp.zeros((rows.n_rows, on_device.shape[1]), on_device.dtype)
        solve_side(backend, objective, rows, side, on_device, solved, solver, bias=bias, held=held)
        return backend.to_host(solved)


def aligned_weights(
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


def weighted_sum(values: np.ndarray, weights: np.ndarray | None) -> tuple[float, float]:
    """Return the sum of values times weights, and that of the weights, added in float64."""
    if weights is None:
        return float(values.sum(dtype=np.float64)), float(len(values))
    wide = weights.astype(np.float64)
    return float(values @ wide), float(wide.sum())
