"""Ratings left out of training, by which a fit watches how well it predicts."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpu_als.data.csr import as_csr, check_index_array
from gpu_als.data.interactions import Interactions
from gpu_als.errors import InputError
from gpu_als.train.training_data import TrainingData

__all__ = ["validation_ratings"]


def validation_ratings(
    validation: Any, data: TrainingData
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a validation set as row numbers, column numbers and ratings.

    Parameters
    ----------
    validation : matrix, Interactions, or tuple (users, items, ratings)
        As :meth:`gpu_als.ExplicitALS.fit` takes it.
    data : TrainingData
        What is trained on; its rows, columns and ids are meant.

    Returns
    -------
    users, items : int array, shape (n,)
    ratings : float64 array, shape (n,)

    Raises
    ------
    InputError
        The set is empty, not finite, or does not go with the data.
    """
    if isinstance(validation, tuple):
        rows, columns, values = _of_tuple(validation, data.shape)
    else:
        if isinstance(validation, Interactions):
            _check_ids(validation, data)
        entries = as_csr(validation, name="validation", dtype=np.float64).tocoo()
        if entries.shape != data.shape:
            raise InputError(f"validation has shape {entries.shape}; ratings has {data.shape}")
        rows, columns, values = entries.row, entries.col, entries.data
    if len(values) == 0 or not np.isfinite(values).all():
        raise InputError("validation must hold at least one rating, and no NaN or inf")
    return rows, columns, values


def _of_tuple(
    validation: tuple[Any, ...], shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    if len(validation) != 3:
        raise InputError("validation must be a matrix or a tuple (users, items, ratings)")
    rows = check_index_array(validation[0], shape[0], name="validation users")
    columns = check_index_array(validation[1], shape[1], name="validation items")
    try:
        values = np.atleast_1d(np.asarray(validation[2], np.float64))
    except (TypeError, ValueError):
        raise InputError("validation: its ratings are not numbers") from None
    if not len(rows) == len(columns) == len(values):
        raise InputError("validation: users, items and ratings must have one length")
    return rows, columns, values


def _check_ids(validation: Interactions, data: TrainingData) -> None:
    """Refuse a set whose row 0 is another user than row 0 of the data."""
    for ids in ("user_ids", "item_ids"):
        if not np.array_equal(getattr(validation, ids), getattr(data, ids)):
            raise InputError(
                f"validation: its {ids} are not those of ratings; express it in their rows and "
                "columns with encode(users, items, values, unknown='drop') of the Interactions or "
                "shards that are trained on, and pass that tuple"
            )
