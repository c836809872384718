"""Whole fits in float32 beside exact ones in float64: rounding and tolerances do not add up.

A fit is a sequence of minimisations, each from where the last one ended, so that an error in one
half-sweep is carried into all that follow.
"""

import numpy as np
import pytest
import scipy.sparse as sp
from powerlaw import powerlaw_interactions
from reference import objective_value

from gpu_als import AlternatingLeastSquares, ExplicitALS, calculate_loss

N_USERS, N_ITEMS, FACTORS, ITERATIONS = 1200, 500, 32, 6


def data(rated):
    matrix = powerlaw_interactions(N_USERS, N_ITEMS, 60_000, seed=23)
    if rated:
        rng = np.random.default_rng(29)
        users, items = rng.standard_normal((N_USERS, 8)), rng.standard_normal((N_ITEMS, 8))
        rows = np.repeat(np.arange(N_USERS), np.diff(matrix.indptr))
        scores = 3 + np.sum(users[rows] * items[matrix.indices], axis=1) / 3
        noisy = scores + rng.normal(0, 0.5, matrix.nnz)
        matrix.data = np.clip(np.round(noisy), 1, 5).astype(np.float32)
    return matrix


def start():
    rng = np.random.default_rng(31)
    return [(rng.standard_normal((n, FACTORS)) * 0.02).astype("f4") for n in (N_USERS, N_ITEMS)]


def found_losses(model, matrix, rated):
    model.user_factors, model.item_factors = start()
    model.fit(matrix, **({"warm_start": True} if rated else {"show_progress": False}))
    return np.array(model.report_.losses)


def exact_losses(matrix, weight, target, unobserved, ridges):
    """Return the objective after each iteration of an exact fit, row by row in float64."""
    sides = [factors.astype(float) for factors in start()]
    cells = [sp.csr_matrix((np.ones(matrix.nnz), matrix.indices, matrix.indptr), matrix.shape)]
    observed = cells[0].toarray() > 0
    found = []
    for _ in range(ITERATIONS):
        for side in (0, 1):
            held, w, t = sides[1 - side], weight, np.where(observed, target, 0)
            seen = observed
            if side == 1:
                w, t, seen = w.T, t.T, seen.T
            base = unobserved * held.T @ held
            for u, ridge in enumerate(ridges[side]):
                rows = held[seen[u]]
                extra = (w[u, seen[u]] - unobserved)[:, None]
                lhs = base + rows.T @ (extra * rows) + ridge * np.eye(FACTORS)
                sides[side][u] = np.linalg.solve(lhs, rows.T @ (w[u] * t[u])[seen[u]])
        found.append(objective_value(observed, weight, target, unobserved, *sides, *ridges))
    return np.array(found)


def counts(matrix):
    return np.diff(matrix.indptr), np.diff(matrix.tocsc().indptr)


@pytest.mark.parametrize(("alpha", "limit"), [(1.0, 1e-7), (40.0, 1e-7), (1000.0, 5e-7)])
def test_implicit_feedback(alpha, limit):
    regularization = 0.01
    matrix = data(rated=False)
    weight = alpha * matrix.toarray().astype(float)
    ridges = [np.full(n, regularization) for n in matrix.shape]
    exact = exact_losses(matrix, weight, np.ones(matrix.shape), 1.0, ridges)
    scale = weight.sum() + matrix.shape[0] * matrix.shape[1] - matrix.nnz
    model = AlternatingLeastSquares(
        FACTORS, regularization, alpha, use_cg=False, iterations=ITERATIONS
    )
    found = found_losses(model, matrix, rated=False)
    np.testing.assert_allclose(found * scale, exact, rtol=limit)


def test_ials():
    matrix = data(rated=False)
    matrix.data[:] = 1
    alpha0, ridge = 0.3, 0.003
    ridges = [
        ridge * (n + alpha0 * other)
        for n, other in zip(counts(matrix), matrix.shape[::-1], strict=True)
    ]
    # w of what is observed comes on top of the weight of every cell
    weight, target = np.full(matrix.shape, 1 + alpha0), np.full(matrix.shape, 1 / (1 + alpha0))
    exact = exact_losses(matrix, weight, target, alpha0, ridges)
    exact += matrix.nnz * (1 - 1 / (1 + alpha0))  # (1 - s)^2 + alpha0 s^2, its square completed
    model = AlternatingLeastSquares(
        FACTORS, ridge, use_cg=False, iterations=ITERATIONS,
        unobserved_weight=alpha0, regularization_exponent=1.0,
    )  # fmt: skip
    found = found_losses(model, matrix, rated=False)
    np.testing.assert_allclose(found / found[0], exact / exact[0], rtol=1e-7)


@pytest.mark.parametrize(("regularization", "limit"), [(0.05, 1e-7), (0.002, 5e-7)])
def test_ratings(regularization, limit):
    matrix = data(rated=True)
    ridges = [regularization * n for n in counts(matrix)]
    ridges = [np.where(ridge == 0, 1, ridge) for ridge in ridges]  # of rows without ratings
    exact = exact_losses(matrix, np.ones(matrix.shape), matrix.toarray().astype(float), 0.0, ridges)
    model = ExplicitALS(FACTORS, regularization, bias=False, iterations=ITERATIONS)
    found = found_losses(model, matrix, rated=True)
    np.testing.assert_allclose(found, exact, rtol=limit)


def test_the_loss_is_that_of_the_factors_where_confidences_are_large():
    """Rounded weights of 5e7 in all are not to be seen in a loss of 6e4."""
    matrix = data(rated=False)
    model = AlternatingLeastSquares(FACTORS, alpha=1000.0, use_cg=False, iterations=ITERATIONS)
    reported = found_losses(model, matrix, rated=False)[-1]
    loss = calculate_loss(1000.0 * matrix, model.user_factors, model.item_factors, 0.01)
    assert reported == pytest.approx(loss, rel=3e-7)
