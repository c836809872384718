"""Random divisions of ratings into a training and a test part."""

from __future__ import annotations

import numbers
import operator
from typing import Any

import numpy as np
import scipy.sparse as sp

from gpu_als.data.csr import as_csr
from gpu_als.errors import InputError

__all__ = ["check_random_state", "leave_k_out_split", "train_test_split"]


def train_test_split(
    ratings: Any, train_percentage: float = 0.8, random_state: Any = None
) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """Assign every rating to the training or the test matrix at random.

    Parameters
    ----------
    ratings : matrix, shape (users, items)
        As :func:`~gpu_als.data.csr.as_csr` takes it.
    train_percentage : float
        Probability, from 0 to 1, that a rating goes to the training matrix.
    random_state : None, int, numpy.random.RandomState or numpy.random.Generator

    Returns
    -------
    train, test : csr_matrix, shape (users, items)
        Every stored rating, zeros and negative ones included, is in exactly one of them. float64
        where ``ratings`` is, float32 otherwise.

    Raises
    ------
    InputError
        If an argument is out of range or ``ratings`` cannot be used.
    """
    matrix = _as_csr(ratings)
    if not (_is_real(train_percentage) and 0 <= train_percentage <= 1):
        raise InputError(
            f"train_percentage: found {train_percentage!r}; pass a fraction from 0 to 1, such as "
            "0.8"
        )
    in_train = check_random_state(random_state).random(matrix.nnz) < train_percentage
    return _where(matrix, in_train), _where(matrix, ~in_train)


def leave_k_out_split(
    ratings: Any, K: int = 1, train_only_size: float = 0.0, random_state: Any = None
) -> tuple[sp.csr_matrix, sp.csr_matrix]:
    """Move K ratings of every user who has more than K + 1 to the test matrix.

    Parameters
    ----------
    ratings : matrix, shape (users, items)
        As :func:`~gpu_als.data.csr.as_csr` takes it.
    K : int
        Number of ratings held out for each such user; at least 1.
    train_only_size : float
        Fraction of all users, in [0, 1), chosen at random to keep all their ratings in training.
    random_state : None, int, numpy.random.RandomState or numpy.random.Generator

    Returns
    -------
    train, test : csr_matrix, shape (users, items)
        Every stored rating is in exactly one of them. float64 where ``ratings`` is, float32
        otherwise.

    Raises
    ------
    InputError
        If an argument is out of range or ``ratings`` cannot be used.
    """
    matrix = _as_csr(ratings)
    n_held_out = _check_k(K)
    if not (_is_real(train_only_size) and 0 <= train_only_size < 1):
        raise InputError(
            f"train_only_size: found {train_only_size!r}; pass a fraction of at least 0 and below 1"
        )
    rng = check_random_state(random_state)
    n_users = matrix.shape[0]
    counts = np.diff(matrix.indptr)
    eligible = counts > n_held_out + 1
    eligible[rng.permutation(n_users)[: int(train_only_size * n_users)]] = False
    in_test = _rank_within_rows(matrix, rng) < n_held_out
    in_test &= np.repeat(eligible, counts)
    return _where(matrix, ~in_test), _where(matrix, in_test)


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


def _check_k(k: Any) -> int:
    try:
        count = operator.index(k)
    except TypeError:
        count = 0
    if count < 1:
        raise InputError(f"K: found {k!r}; pass an integer of at least 1")
    return count


def _rank_within_rows(matrix: sp.csr_matrix, rng: np.random.Generator) -> np.ndarray:
    """Give the entries of each row the numbers 0, 1, ... in random order; int64, shape (nnz,)."""
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    order = np.lexsort((rng.random(matrix.nnz), rows))  # row by row, shuffled inside each
    ranks = np.empty(matrix.nnz, np.int64)
    ranks[order] = np.arange(matrix.nnz) - matrix.indptr[rows]
    return ranks


def _where(matrix: sp.csr_matrix, kept: np.ndarray) -> sp.csr_matrix:
    """Return the stored entries that ``kept`` marks, in their places."""
    kept_before = np.concatenate([[0], np.cumsum(kept, dtype=np.int64)])
    arrays = (matrix.data[kept], matrix.indices[kept], kept_before[matrix.indptr])
    return sp.csr_matrix(arrays, shape=matrix.shape)
