"""Divisions of ratings into a training and a test part, at random or by time."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Iterator
from typing import Any

import numpy as np
import scipy.sparse as sp

from gpu_als.data.csr import as_csr
from gpu_als.data.interactions import Interactions
from gpu_als.errors import InputError

__all__ = [
    "check_random_state", "k_fold_splits", "leave_k_out_split", "temporal_split",
    "train_test_split",
]  # fmt: skip


def train_test_split(
    ratings: Any, train_percentage: float = 0.8, random_state: Any = None
) -> tuple[Any, Any]:
    """Assign every rating to the training or the test matrix at random.

    Parameters
    ----------
    ratings : matrix or Interactions, shape (users, items)
    train_percentage : float
        Probability, from 0 to 1, that a rating goes to the training matrix.
    random_state : None, int, numpy.random.RandomState or numpy.random.Generator

    Returns
    -------
    train, test : csr_matrix or Interactions, shape (users, items)
        With the ids of ``ratings``, where that is Interactions. Every stored rating, zeros and
        negative ones included, is in exactly one of them. float64 where ``ratings`` is, float32
        otherwise.

    Raises
    ------
    InputError
        If an argument is out of range or ``ratings`` cannot be used.
    """
    matrix = _as_csr(ratings)
    share = _check_share(train_percentage)
    in_train = check_random_state(random_state).random(matrix.nnz) < share
    return _parts(ratings, matrix, ~in_train)


def k_fold_splits(
    ratings: Any, n_folds: int = 5, random_state: Any = None
) -> Iterator[tuple[Any, Any]]:
    """Yield as many splits as there are folds; every rating is in the test part of one.

    Parameters
    ----------
    ratings : matrix or Interactions, shape (users, items)
    n_folds : int
        At least 2. The sizes of the folds differ by one rating at most.
    random_state : None, int, numpy.random.RandomState or numpy.random.Generator

    Yields
    ------
    train, test : csr_matrix or Interactions, shape (users, items)
        As :func:`train_test_split` returns them.

    Raises
    ------
    InputError
        If an argument is out of range or ``ratings`` cannot be used.
    """
    matrix, n_folds = _as_csr(ratings), _check_count(n_folds, "n_folds", 2)
    folds = check_random_state(random_state).permutation(matrix.nnz) % n_folds
    return (_parts(ratings, matrix, folds == fold) for fold in range(n_folds))


def temporal_split(
    ratings: Any, times: Any, train_percentage: float = 0.8, *, by_user: bool = False
) -> tuple[Any, Any]:
    """Train on what came first, and test on what came later.

    Parameters
    ----------
    ratings : matrix or Interactions, shape (users, items)
    times : matrix or Interactions, shape (users, items)
        The same stored entries, with times for values. A file gives them with
        ``read_interactions(file, rating="timestamp", dtype=numpy.float64, duplicates="last")``.
    train_percentage : float
        Share, from 0 to 1, of ratings to train on: at least that, since ratings of one moment
        stay together.
    by_user : bool
        Divide the ratings of each user, in place of all at one moment. Then the last
        ``floor((1 - train_percentage) * n)`` of n ratings are tested on; of one moment those of
        the later columns.

    Returns
    -------
    train, test : csr_matrix or Interactions, shape (users, items)
        As :func:`train_test_split` returns them.

    Raises
    ------
    InputError
        If an argument is out of range, or ``times`` has other entries than ``ratings``.
    """
    matrix, moments = _as_csr(ratings), as_csr(times, name="times", dtype=np.float64)
    share = _check_share(train_percentage)
    if moments.shape != matrix.shape or not (
        np.array_equal(moments.indptr, matrix.indptr)
        and np.array_equal(moments.indices, matrix.indices)
    ):
        raise InputError(
            "times must have the shape and the stored entries of ratings; build both from the same "
            "rows and columns"
        )
    if by_user:
        counts = np.diff(matrix.indptr)
        n_tested = np.floor((1 - share) * counts * (1 + 1e-12)).astype(np.int64)
        ranks = _rank_within_rows(matrix, moments.data)
        return _parts(ratings, matrix, ranks >= np.repeat(counts - n_tested, counts))
    n_trained = math.ceil(share * matrix.nnz * (1 - 1e-12))
    if n_trained == 0:
        return _parts(ratings, matrix, np.ones(matrix.nnz, bool))
    last = np.partition(moments.data, n_trained - 1)[n_trained - 1]
    return _parts(ratings, matrix, moments.data > last)


def leave_k_out_split(
    ratings: Any, K: int = 1, train_only_size: float = 0.0, random_state: Any = None
) -> tuple[Any, Any]:
    """Move K ratings of every user who has more than K + 1 to the test matrix.

    Parameters
    ----------
    ratings : matrix or Interactions, shape (users, items)
    K : int
        Number of ratings held out for each such user; at least 1.
    train_only_size : float
        Fraction of all users, in [0, 1), chosen at random to keep all their ratings in training.
    random_state : None, int, numpy.random.RandomState or numpy.random.Generator

    Returns
    -------
    train, test : csr_matrix or Interactions, shape (users, items)
        As :func:`train_test_split` returns them.

    Raises
    ------
    InputError
        If an argument is out of range or ``ratings`` cannot be used.
    """
    matrix = _as_csr(ratings)
    n_held_out = _check_count(K, "K", 1)
    if not (_is_real(train_only_size) and 0 <= train_only_size < 1):
        raise InputError(
            f"train_only_size: found {train_only_size!r}; pass a fraction of at least 0 and below 1"
        )
    rng = check_random_state(random_state)
    n_users = matrix.shape[0]
    counts = np.diff(matrix.indptr)
    eligible = counts > n_held_out + 1
    eligible[rng.permutation(n_users)[: int(train_only_size * n_users)]] = False
    in_test = _rank_within_rows(matrix, rng.random(matrix.nnz)) < n_held_out
    in_test &= np.repeat(eligible, counts)
    return _parts(ratings, matrix, in_test)


def check_random_state(random_state: Any) -> np.random.Generator:
    """Return the generator that a ``random_state`` argument stands for.

    Parameters
    ----------
    random_state : None, int, numpy.random.RandomState or numpy.random.Generator
        None: fresh entropy. A Generator is used as it is, so that it advances. A RandomState
        advances too: it supplies the seed of a Generator.

    Returns
    -------
    numpy.random.Generator

    Raises
    ------
    InputError
        For anything else, and for negative integers.
    """
    if isinstance(random_state, np.random.Generator):
        return random_state
    if isinstance(random_state, np.random.RandomState):
        seed = random_state.randint(0, 2**32, size=4, dtype=np.uint32)
        return np.random.default_rng(seed)
    is_integer = isinstance(random_state, int | np.integer) and not isinstance(random_state, bool)
    if random_state is None or (is_integer and random_state >= 0):
        return np.random.default_rng(random_state)
    raise InputError(
        f"random_state: found {random_state!r}; pass None, an integer of at least 0, a "
        "numpy.random.RandomState or a numpy.random.Generator"
    )


def _as_csr(ratings: Any) -> sp.csr_matrix:
    ratings = getattr(ratings, "user_items", ratings)
    wide = getattr(ratings, "dtype", None) == np.float64
    return as_csr(ratings, dtype=np.float64 if wide else np.float32)


def _is_real(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _check_share(value: Any) -> float:
    if not (_is_real(value) and 0 <= value <= 1):
        raise InputError(
            f"train_percentage: found {value!r}; pass a fraction from 0 to 1, such as 0.8"
        )
    return float(value)


def _check_count(value: Any, name: str, at_least: int) -> int:
    try:
        count = operator.index(value)
    except TypeError:
        count = 0
    if count < at_least:
        raise InputError(f"{name}: found {value!r}; pass an integer of at least {at_least}")
    return count


def _rank_within_rows(matrix: sp.csr_matrix, keys: np.ndarray) -> np.ndarray:
    """Give the entries of each row the numbers 0, 1, ... by their keys; int64, shape (nnz,)."""
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    order = np.lexsort((keys, rows))
    ranks = np.empty(matrix.nnz, np.int64)
    ranks[order] = np.arange(matrix.nnz) - matrix.indptr[rows]
    return ranks


def _parts(ratings: Any, matrix: sp.csr_matrix, in_test: np.ndarray) -> tuple[Any, Any]:
    """Return both parts, with the ids that the ratings have."""
    train, test = _where(matrix, ~in_test), _where(matrix, in_test)
    if not isinstance(ratings, Interactions):
        return train, test
    ids = ratings.user_ids, ratings.item_ids
    return Interactions(train, *ids), Interactions(test, *ids)


def _where(matrix: sp.csr_matrix, kept: np.ndarray) -> sp.csr_matrix:
    """Return the stored entries that ``kept`` marks, in their places."""
    kept_before = np.concatenate([[0], np.cumsum(kept, dtype=np.int64)])
    arrays = (matrix.data[kept], matrix.indices[kept], kept_before[matrix.indptr])
    return sp.csr_matrix(arrays, shape=matrix.shape)
