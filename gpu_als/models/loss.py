"""The loss that ``implicit`` reports, from its own formula."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpu_als.data.csr import as_csr, to_host
from gpu_als.errors import InputError
from gpu_als.models.params import check_nonnegative
from gpu_als.ranking.top_k import pair_scores

__all__ = ["calculate_loss", "loss_scale", "sum_of_magnitudes"]


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
    users, items = (_factors(side, name) for side, name in ((X, "X"), (Y, "Y")))
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
    scale = loss_scale(matrix.shape, matrix.nnz, sum_of_magnitudes(matrix.data))
    return float((everywhere + stored + penalty) * scale)


def loss_scale(shape: tuple[int, int], nnz: int, confidences: float) -> float:
    """Return 1 over ``sum abs(alpha r) + cells - stored``, by which ``implicit`` divides.

    ``confidences`` is that sum.
    """
    total = confidences + float(shape[0]) * shape[1] - nnz
    return 1 / total if total > 0 else 1.0


def sum_of_magnitudes(values: np.ndarray) -> float:
    """Return ``sum abs(r)``, added in float64."""
    return float(np.abs(values).sum(dtype=np.float64))


def _factors(factors: Any, name: str) -> np.ndarray:
    array = np.asarray(to_host(factors))
    if array.ndim != 2 or array.dtype.kind != "f":
        raise InputError(f"{name} must be a 2-D array of floats")
    return array.astype(np.float64)
