"""Data, models and comparisons that the contract's tests share."""

from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import settings
from hypothesis import strategies as st
from powerlaw import powerlaw_interactions
from reference import objective_value, solve_row
from test_cupy_backend import needs_gpu

from gpu_als import AlternatingLeastSquares

FACTORS = 8
"""One number of factors nearly everywhere: the stand-in compiles its kernels for each."""

N_USERS, N_ITEMS = 150, 90
PLAYS = powerlaw_interactions(N_USERS, N_ITEMS, 2500, seed=5)
"""Numbers of plays from 1 to 5; some rows are empty, and one user has played everything."""


def mixed_feedback(seed=121, n_users=35, n_items=22):
    """Likes and dislikes of every strength: below 1, exactly 1, above, and stored zeros."""
    rng = np.random.default_rng(seed)
    values = rng.choice([1.0, 2.0, 5.0, 0.5, -1.0, -3.0, -0.25, 0.0], (n_users, n_items))
    rows, columns = np.nonzero(rng.random((n_users, n_items)) < 0.35)
    shape = n_users, n_items
    return sp.csr_matrix((values[rows, columns], (rows, columns)), shape, dtype=np.float32)


MIXED = mixed_feedback()
FEEDBACK = {"plays": PLAYS, "mixed": MIXED}

DEVICES = ["numpy", "stand-in", pytest.param("gpu", marks=needs_gpu)]
"""What the fixture ``use_gpu`` runs on."""

on_gpus = pytest.mark.parametrize("use_gpu", DEVICES[1:], indirect=True)
without_stand_in = pytest.mark.parametrize("use_gpu", DEVICES[::2], indirect=True)

any_feedback = settings(max_examples=30)  # fewer, since each fits models

# Within what the normal equations bear in float64: beyond, implicit loses its digits (see
# test_repaired_faults.py), and so does the reference.
any_alpha = st.sampled_from([1.0, 0.5, 3.0])
any_regularization = st.sampled_from([0.1, 1.0, 5.0])
KINDS_OF_VALUES = ([1.0], [1.0, 2.0, 5.0], [1.0, -1.0], [0.5, 1.0, 3.0, -2.0, -0.25], [0.3, 9.0])


@st.composite
def feedback(draw, largest=25):
    """Draw a matrix of feedback of any size and density, empty rows and dislikes included."""
    n_users, n_items = draw(st.integers(1, largest)), draw(st.integers(1, largest))
    density = draw(st.sampled_from([0.0, 0.1, 0.3, 0.7, 1.0]))
    values = draw(st.sampled_from(KINDS_OF_VALUES))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows, columns = np.nonzero(rng.random((n_users, n_items)) < density)
    data = rng.choice(values, len(rows))
    return sp.csr_matrix((data, (rows, columns)), (n_users, n_items), dtype=np.float32)


def with_defaults(params):
    """Return constructor parameters for a quick fit."""
    defaults = {"factors": FACTORS, "regularization": 0.05, "iterations": 4, "random_state": 9}
    return defaults | params


def make(**params):
    """Return an untrained model, on the CPU unless ``use_gpu`` says otherwise."""
    return AlternatingLeastSquares(**{"use_gpu": False} | with_defaults(params))


def fitted(user_items=PLAYS, callback=None, **params):
    model = make(**params)
    model.fit(user_items, show_progress=False, callback=callback)
    return model


@cache
def _trained(name, params):
    return fitted(FEEDBACK[name], **dict(params))


def trained(use_gpu, name="plays", **params):
    """Return a copy of a model trained on the CPU: for tests of what comes after training."""
    model = _trained(name, tuple(sorted(params.items())))
    return model.to_gpu() if use_gpu else model.to_cpu()


def on_host(model):
    """Return both matrices of factors as NumPy arrays, wherever they are."""
    return np.asarray(model.user_factors), np.asarray(model.item_factors)


def assert_agree(found, expected, rtol=1e-4):
    """Assert agreement in the sense of the norm."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    assert np.linalg.norm(found - expected) <= rtol * np.linalg.norm(expected)


def assert_same_ranking(found, expected, rtol=1e-5):
    """Assert that two answers ``(ids, scores)`` rank alike.

    Scores agree place by place; the lowest ones, of filtered items, only in being very low. Ids
    may differ where scores are equal to rounding: an id has to have that score in the other
    answer, or lie beyond its end.
    """
    assert found[0].shape == expected[0].shape
    assert found[1].shape == expected[1].shape
    ids, scores, other_ids, other_scores = (np.atleast_2d(part) for part in (*found, *expected))
    scores, other_scores = (np.maximum(s.astype(float), -1e30) for s in (scores, other_scores))
    usual = np.abs(other_scores[other_scores > -1e30]).max(initial=0)
    limit = rtol * usual + 1e-12
    np.testing.assert_allclose(scores, other_scores, rtol=0, atol=limit)
    for row, (these, those) in enumerate(zip(ids, other_ids, strict=True)):
        known = dict(zip(those.tolist(), other_scores[row], strict=True))
        for place in np.flatnonzero(these != those):
            there = known.get(int(these[place]), other_scores[row, -1])
            assert abs(there - scores[row, place]) <= 2 * limit, (row, place)


def observed_cells(user_items):
    """Return where entries are stored, zeros among them; bool, shape (n_users, n_items)."""
    ones = (np.ones(user_items.nnz), user_items.indices, user_items.indptr)
    return sp.csr_matrix(ones, shape=user_items.shape).toarray() > 0


def documented_loss(model, user_items):
    """Return the sum of the contract's formula over all cells, divided as it says."""
    confidence = model.alpha * user_items.toarray().astype(np.float64)
    observed = observed_cells(user_items)
    ridges = [np.full(n, model.regularization) for n in user_items.shape]
    total = objective_value(
        observed, np.abs(confidence), confidence > 0, 1, *on_host(model), *ridges
    )
    return total / (np.abs(confidence).sum() + (~observed).sum())


def exact_rows(fixed, rows, *, alpha, regularization):
    """Solve rows of feedback one by one in float64 against ``fixed``; empty ones are zero."""
    fixed = np.asarray(fixed, np.float64)
    base = fixed.T @ fixed
    solved = []
    for start, stop in pairwise(rows.indptr):
        c = alpha * rows.data[start:stop].astype(np.float64)
        weights = np.abs(c) - 1, np.maximum(c, 0)
        solved.append(solve_row(fixed, rows.indices[start:stop], *weights, regularization, base))
    return np.array(solved)
