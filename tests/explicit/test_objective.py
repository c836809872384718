"""What a fit minimises: the documented objective, its mean, biases and constraints."""

import numpy as np
import pytest
import scipy.sparse as sp
from helpers import nonnegative_minimiser
from reference import row_system, solve_row

from explicit.common import RATINGS, VARIANTS, fit, loss_of

every_variant = pytest.mark.parametrize("params", VARIANTS.values(), ids=VARIANTS.keys())


@every_variant
def test_the_reported_loss_is_the_documented_objective(params):
    model = fit(**params)
    report = model.report_
    assert len(report.losses) == report.iterations == report.best_iteration == 4
    assert report.losses[-1] == pytest.approx(loss_of(model, RATINGS), rel=1e-12)
    assert report.losses[-1] < report.losses[0]
    assert report.stopped == "iterations"
    assert report.entries == RATINGS.nnz
    assert report.max_residual < 1e-12
    assert report.singular_rows == 0


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("scale", ["count", None])
def test_the_items_solve_their_equations(scale, bias):
    """The last half-sweep is over items: each is the oracle's answer to the final users."""
    model = fit(regularization=(0.3, 0.2), scale_regularization=scale, bias=bias)
    by_item = RATINGS.tocsc()
    users = model.user_factors
    if bias:
        users = np.column_stack([users, np.ones(30)])
    for i in range(20):
        part = slice(by_item.indptr[i], by_item.indptr[i + 1])
        rows, ratings = by_item.indices[part], by_item.data[part]
        ridge = 0.2 * len(rows) if scale else 0.2
        target = ratings - model.global_mean - model.user_biases[rows]
        expected = solve_row(users, rows, np.ones(len(rows)), target, ridge)
        found = model.item_factors[i]
        found = np.append(found, model.item_biases[i]) if bias else found
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_the_mean_and_biases():
    model = fit()
    assert model.global_mean == pytest.approx(RATINGS.data.mean(), rel=1e-14)
    assert model.user_biases.shape == (30,)
    assert model.item_biases.shape == (20,)
    assert (model.user_biases != 0).all()
    model = fit(bias=False)
    assert model.global_mean == 0
    np.testing.assert_array_equal(model.user_biases, np.zeros(30))
    np.testing.assert_array_equal(model.item_biases, np.zeros(20))


@pytest.mark.parametrize("weighted", [False, True])
def test_the_mean_of_float32_ratings_is_added_up_in_float64(weighted):
    """Whole numbers whose sums float64 holds to the last unit and float32 does not."""
    rng = np.random.default_rng(79)
    whole = rng.integers(1, 1000 if weighted else 2**20, (30, 40))
    often = rng.integers(1, 1000, whole.shape) if weighted else np.ones_like(whole)
    weights = often.astype(np.float32) if weighted else None
    model = fit(whole.astype(np.float32), weights=weights, dtype=np.float32, iterations=1)
    assert model.global_mean == int((whole * often).sum()) / int(often.sum())


def test_predict_is_the_formula():
    for bias in (True, False):
        model = fit(bias=bias)
        users, items = np.array([0, 29, 3, 3]), np.array([19, 0, 5, 6])
        expected = [
            model.global_mean
            + model.user_biases[u]
            + model.item_biases[i]
            + model.user_factors[u] @ model.item_factors[i]
            for u, i in zip(users, items, strict=True)
        ]
        np.testing.assert_allclose(model.predict(users, items), expected, rtol=1e-12)
        np.testing.assert_allclose(model.predict(0, 19), expected[:1], rtol=1e-12)
        np.testing.assert_allclose(model.predict([3], [5, 6]), expected[2:], rtol=1e-12)


def test_float32_agrees_with_float64():
    wide, narrow = fit(), fit(dtype=np.float32)
    assert narrow.user_factors.dtype == narrow.item_biases.dtype == np.float32
    assert narrow.predict(0, 0).dtype == np.float32
    everything = np.divmod(np.arange(600), 20)
    np.testing.assert_allclose(narrow.predict(*everything), wide.predict(*everything), atol=1e-4)


def test_a_planted_model_is_found_again():
    """Ratings of rank 2 plus biases, without noise, all held-out ones predicted."""
    rng = np.random.default_rng(72)
    users, items = rng.standard_normal((60, 2)), rng.standard_normal((40, 2))
    truth = 3 + rng.standard_normal((60, 1)) + rng.standard_normal(40) + users @ items.T
    seen = rng.random(truth.shape) < 0.6
    model = fit(sp.csr_matrix(np.where(seen, truth, 0)), factors=2, regularization=1e-7,
                iterations=200)  # fmt: skip
    everything = np.divmod(np.arange(truth.size), 40)
    assert np.abs(model.predict(*everything).reshape(60, 40) - truth)[~seen].max() < 0.02


# --- non-negative --------------------------------------------------------------------------------


def test_nonnegative_items_are_the_constrained_minimisers():
    model = fit(nonnegative=True, regularization=0.05)
    by_item = RATINGS.tocsc()
    assert (model.user_factors >= 0).all()
    assert (model.item_factors >= 0).all()
    assert (model.item_factors == 0).any()
    assert (model.item_biases < 0).any()  # biases keep their sign
    users = np.column_stack([model.user_factors, np.ones(30)])
    for i in range(20):
        part = slice(by_item.indptr[i], by_item.indptr[i + 1])
        rows = by_item.indices[part]
        target = by_item.data[part] - model.global_mean - model.user_biases[rows]
        system = row_system(users, rows, np.ones(len(rows)), target, 0.05 * len(rows))
        expected = nonnegative_minimiser(*system, free_columns=1)
        found = np.append(model.item_factors[i], model.item_biases[i])
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)


def test_one_side_only():
    model = fit(nonnegative="users")
    assert (model.user_factors >= 0).all()
    assert (model.item_factors < 0).any()
