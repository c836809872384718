"""Fits that begin with a former one's factors, for users and items that may have changed since."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from gpu_als.data.ids import IdMap
from gpu_als.errors import InputError
from gpu_als.train.training_data import TrainingData

__all__ = ["carry_over", "former_rows"]

_SIDES = "user", "item"
Rows = np.ndarray | None


def former_rows(
    before: tuple[Any, Any],
    ids: tuple[np.ndarray | None, np.ndarray | None],
    data: TrainingData,
    n_factors: int,
    *,
    name: str,
    remedy: str,
) -> tuple[Rows, Rows]:
    """Return which former row each user and each item of new data had.

    Rows are matched by id where the model and the data have ids. Without ids they stay where they
    are, and new ones come behind.

    Parameters
    ----------
    before : pair of array of shape (n_before, n_factors), or None
        Former factors of users and items.
    ids : pair of array of shape (n_before,), or None
        Their ids.
    data : TrainingData
    n_factors : int
        Columns that the factors must have.
    name : str
        What the caller calls the data; used in messages.
    remedy : str
        How to start afresh; used in messages.

    Returns
    -------
    users, items : int64 array, shape (n_rows,), or None
        Former row numbers, -1 for new rows; None where there are no former factors.

    Raises
    ------
    InputError
        The factors do not fit the data, or no id is known; the message says what to do.
    """
    by_id = []
    found: list[Rows] = [None, None]
    for axis, (side, factors, old) in enumerate(zip(_SIDES, before, ids, strict=True)):
        if factors is None:
            continue
        size, new = data.shape[axis], getattr(data, f"{side}_ids")
        if old is not None and len(old) != len(factors):
            old = None  # of other factors, which were replaced by hand
        matched = old is not None and new is not None
        if factors.shape[1:] != (n_factors,) or (size < len(factors) and not matched):
            raise _misfit(before, axis, data, n_factors, name, remedy)
        if matched:
            by_id.append(axis)
            found[axis] = IdMap(old).rows(new, name=f"{side}_ids", unknown="skip")
            continue
        if size > len(factors) and (old is not None or new is not None):
            has, lacks = ("the model", name) if new is None else (name, "the model")
            raise InputError(
                f"{name} has {size} {side}s and the model {len(factors)}, and which are new cannot "
                f"be told: {has} has {side}_ids, {lacks} has none. Fit both with ids, or {remedy}"
            )
        numbers = np.arange(size)
        found[axis] = np.where(numbers < len(factors), numbers, -1)
    users, items = found
    if len(by_id) == 2 and not any((rows >= 0).any() for rows in found if rows is not None):
        raise InputError(
            f"the model knows no user and no item of {name} by id; pass data with the ids it was "
            f"trained with, or {remedy}"
        )
    return users, items


def carry_over(
    factors: Any, rows: Rows, size: int, draw: Callable[[int], np.ndarray]
) -> np.ndarray:
    """Return the factors that a fit begins with: former rows at their places, others drawn.

    Parameters
    ----------
    factors : array, shape (n_before, k), or None
        Former factors, on the host; they are not changed.
    rows : int64 array, shape (size,), or None
        From :func:`former_rows`; None draws all rows.
    size : int
        Number of rows.
    draw : callable
        ``draw(n)`` returns new rows, shape (n, k), of the type that is wanted.

    Returns
    -------
    array, shape (size, k)
        A new one.
    """
    if rows is None or not (rows >= 0).any():
        return draw(size)
    new = rows < 0
    drawn = draw(int(np.count_nonzero(new)))
    start = np.empty((size, drawn.shape[1]), drawn.dtype)
    # "clip" lets take write straight into start; where it puts row 0, drawn ones follow
    np.take(factors.astype(drawn.dtype, copy=False), rows, axis=0, out=start, mode="clip")
    start[new] = drawn
    return start


def _misfit(
    before: tuple[Any, Any],
    axis: int,
    data: TrainingData,
    n_factors: int,
    name: str,
    remedy: str,
) -> InputError:
    side, size, found = _SIDES[axis], data.shape[axis], before[axis].shape
    hint = ""
    if np.shape(before[0])[:1] == (data.shape[1],):
        hint = " (the matrix seems to be transposed: it must be users x items)"
    elif found[:1] > (size,):
        hint = f" (fewer {side}s than before: without ids it cannot be told which are gone)"
    return InputError(
        f"{side}_factors has shape {found}, but {name} of shape {data.shape} and "
        f"factors={n_factors} need {(size, n_factors)}{hint}; {remedy}"
    )
