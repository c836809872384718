"""Ratings that cannot be used, some that can, and fits after a fit."""

from contextlib import nullcontext

import numpy as np
import pytest
import scipy.sparse as sp
from helpers import random_ratings

from explicit.common import EXACT, RATINGS, fit, loss_of
from gpu_als import ExplicitALS, Interactions
from gpu_als.errors import InputError, ModelFitError, SingularRowsWarning


@pytest.mark.parametrize(
    ("ratings", "message"),
    [
        (np.array([[1.0, np.nan]]), r"ratings.*NaN.*\(0, 1\).*remove"),
        (np.array([[1.0, np.inf]]), "ratings.*infinite.*remove"),
        (sp.csr_matrix(np.array([[1.0, -np.inf]])), "ratings.*infinite"),
        (np.zeros((0, 3)), r"ratings.*shape \(0, 3\).*at least one user and one item"),
        (np.zeros((3, 0)), "ratings"),
        (np.ones(4), "ratings.*1 dimension"),
        (np.ones((2, 2, 2)), "ratings.*3 dimension"),
        (np.array([["a", "b"]]), "ratings.*real numbers"),
        (np.array([[1j, 2]]), "ratings.*real numbers"),
        (None, "ratings.*NoneType"),
        ("ratings.csv", "ratings.*str"),
        (np.array([[1e30, 1.0]]), "ratings.*1e[+]30.*float64"),
    ],
)
def test_bad_ratings(ratings, message):
    with pytest.raises(InputError, match=message):
        ExplicitALS(2).fit(ratings)


def test_indices_out_of_range():
    matrix = RATINGS.copy()
    matrix.indices[3] = 20
    with pytest.raises(InputError, match=r"ratings.*indices.*0 to 19.*rebuild"):
        fit(matrix)
    matrix = RATINGS.copy()
    matrix.indices[0] = -1
    with pytest.raises(InputError, match=r"ratings.*indices"):
        fit(matrix)


def test_huge_ratings_in_float64():
    """1e30 times the ratings, with 1e60 times the loss: nothing else may change."""
    small = fit(bias=False, scale_regularization=None, regularization=0.1)
    large = ExplicitALS(4, 0.1, bias=False, scale_regularization=None, **EXACT).fit(RATINGS * 1e30)
    assert np.isfinite(large.report_.losses).all()
    predicted = [m.predict(*np.divmod(np.arange(600), 20)) for m in (small, large)]
    assert np.isfinite(predicted[1]).all()
    observed = RATINGS.toarray() > 0
    misfit = np.abs(predicted[1].reshape(30, 20) - RATINGS.toarray() * 1e30)[observed]
    assert misfit.max() < 5e30


@pytest.mark.parametrize("size", [1e11, 1e-12])
def test_large_and_small_ratings_in_float32(size):
    model = fit(RATINGS * size, dtype=np.float32, regularization=1e-3)
    wide = fit(RATINGS * size, regularization=1e-3)
    everything = np.divmod(np.arange(600), 20)
    np.testing.assert_allclose(
        model.predict(*everything), wide.predict(*everything), rtol=0, atol=1e-3 * size
    )


def test_an_empty_matrix():
    for bias in (True, False):
        model = fit(sp.csr_matrix((3, 2)), bias=bias)
        assert model.report_.losses == [0.0] * 4
        np.testing.assert_array_equal(model.user_factors, np.zeros((3, 4)))
        np.testing.assert_array_equal(model.predict([0, 2], [1, 1]), [0, 0])


def test_empty_rows_and_columns_predict_the_mean():
    dense = RATINGS.toarray()
    dense[[0, 7]] = 0
    dense[:, 4] = 0
    model = fit(sp.csr_matrix(dense))
    np.testing.assert_array_equal(model.user_factors[[0, 7]], np.zeros((2, 4)))
    np.testing.assert_array_equal(model.item_factors[4], np.zeros(4))
    assert model.predict(0, 4)[0] == model.global_mean


@pytest.mark.parametrize("how", [{"iterations": 0}, {"regularization": 0.0, "iterations": 2}])
def test_empty_rows_and_columns_predict_the_mean_even_where_nothing_solves_them(how):
    """Before the first iteration, and without a penalty, which leaves their systems singular."""
    dense = RATINGS.toarray()
    dense[[2, 9]] = 0
    dense[:, 11] = 0
    ratings = sp.csr_matrix(dense)
    warns = pytest.warns(SingularRowsWarning) if how["iterations"] else nullcontext()
    with warns:
        model = fit(ratings, factors=2, **how)
    assert not model.user_factors[[2, 9]].any()
    assert not model.item_factors[11].any()
    np.testing.assert_array_equal(model.predict([2, 9], 11), model.global_mean)


@pytest.mark.parametrize("shape", [(1, 8), (8, 1), (1, 1)])
@pytest.mark.parametrize("factors", [1, 3, 12])
def test_one_row_and_one_column(shape, factors):
    ratings = np.random.default_rng(78).integers(1, 6, shape).astype(float)
    for dtype in (np.float32, np.float64):
        model = fit(ratings, factors=factors, dtype=dtype, regularization=1e-3, iterations=30)
        assert np.isfinite(model.report_.losses).all()
        predicted = model.predict(*(a.ravel() for a in np.indices(shape)))
        assert np.abs(predicted - ratings.ravel()).max() < 0.1


def test_more_factors_than_users_and_items():
    ratings = random_ratings(5, 4, 0.7, 79)
    for dtype in (np.float32, np.float64):
        model = fit(ratings, factors=40, regularization=0.02, iterations=20, dtype=dtype)
        assert model.report_.losses[-1] == pytest.approx(loss_of(model, ratings), rel=1e-5)
        assert (np.diff(model.report_.losses) <= 1e-6 * model.report_.losses[0]).all()


@pytest.mark.parametrize("dtype", [bool, np.int8, np.uint8, np.int32, np.int64, np.uint64])
def test_integer_and_bool_ratings(dtype):
    ratings = RATINGS.toarray().astype(dtype)
    expected = fit(sp.csr_matrix(ratings.astype(np.float64)))
    for form in (ratings, sp.csr_matrix(ratings)):
        model = fit(form)
        np.testing.assert_array_equal(model.user_factors, expected.user_factors)


def test_stored_zeros_are_ratings():
    stored = RATINGS.copy()
    stored.data[::3] = 0
    model = fit(stored)
    assert model.report_.entries == RATINGS.nnz
    assert model.global_mean == pytest.approx(stored.data.mean())


def test_unsorted_and_repeated_indices():
    """Repeats are summed, and the caller's matrix stays as it is."""
    rng = np.random.default_rng(80)
    triples = RATINGS.tocoo()
    order = rng.permutation(2 * RATINGS.nnz)
    rows, columns, halves = (
        np.tile(a, 2)[order] for a in (triples.row, triples.col, triples.data / 2)
    )
    by_row = np.argsort(rows, kind="stable")
    indptr = np.searchsorted(rows[by_row], np.arange(31))
    messy = sp.csr_matrix((halves[by_row], columns[by_row], indptr), shape=(30, 20))
    assert not messy.has_sorted_indices
    before = messy.data.copy(), messy.indices.copy(), messy.indptr.copy()
    model, expected = fit(messy), fit()
    np.testing.assert_array_equal(model.user_factors, expected.user_factors)
    for array, kept in zip((messy.data, messy.indices, messy.indptr), before, strict=True):
        np.testing.assert_array_equal(array, kept)


def test_every_container_gives_the_same(tmp_path):
    expected = fit()
    interactions = Interactions.from_matrix(RATINGS, dtype=np.float64)
    for form in (RATINGS.toarray(), RATINGS.toarray().tolist(), RATINGS.tocsc(), RATINGS.tocoo(),
                 RATINGS.tolil(), sp.csr_array(RATINGS), interactions):  # fmt: skip
        np.testing.assert_array_equal(fit(form).user_factors, expected.user_factors)


def test_a_second_fit_starts_afresh():
    model = fit()
    first = model.user_factors
    np.testing.assert_array_equal(model.fit(RATINGS).user_factors, first)
    model.fit(RATINGS.T.tocsr())
    assert model.user_factors.shape == (20, 4)


def test_a_failed_fit_leaves_the_model_usable():
    model = fit()
    before = model.predict(0, 0)
    with pytest.raises(InputError):
        model.fit(np.array([[np.nan]]))
    np.testing.assert_array_equal(model.predict(0, 0), before)


def test_a_fit_that_starts_from_nothing_finite_is_refused():
    model = ExplicitALS(2, random_state=3).fit(RATINGS)
    model.user_factors[0] = np.nan
    with pytest.raises(ModelFitError, match="user_factors"):
        model.fit(RATINGS, warm_start=True)
