"""Weights of ratings: what they mean, their forms, and those that are refused."""

import numpy as np
import pytest
import scipy.sparse as sp
from reference import solve_row

from explicit.common import RATINGS, fit, loss_of
from gpu_als.errors import InputError


@pytest.fixture
def weights():
    drawn = np.random.default_rng(73).integers(1, 4, RATINGS.nnz).astype(float)
    return sp.csr_matrix((drawn, RATINGS.indices, RATINGS.indptr), shape=RATINGS.shape)


@pytest.mark.parametrize("scale", ["count", None])
@pytest.mark.parametrize("bias", [False, True])
def test_weights_multiply_the_squared_errors(weights, bias, scale):
    model = fit(weights=weights, bias=bias, scale_regularization=scale)
    expected = loss_of(model, RATINGS, weights.toarray())
    assert model.report_.losses[-1] == pytest.approx(expected, rel=1e-12)
    if bias:
        mean = np.average(RATINGS.data, weights=weights.data)
        assert model.global_mean == pytest.approx(mean, rel=1e-13)


def test_weight_two_is_the_rating_seen_twice(weights):
    """Each item solves the equations in which a rating stands as often as it weighs."""
    model = fit(weights=weights, scale_regularization=None)
    by_item, times = RATINGS.tocsc(), weights.tocsc()
    users = np.column_stack([model.user_factors, np.ones(30)])
    for i in range(20):
        part = slice(by_item.indptr[i], by_item.indptr[i + 1])
        often = times.data[part].astype(int)
        rows = np.repeat(by_item.indices[part], often)
        target = np.repeat(by_item.data[part], often)
        target = target - model.global_mean - model.user_biases[rows]
        expected = solve_row(users, rows, np.ones(len(rows)), target, 0.1)
        found = np.append(model.item_factors[i], model.item_biases[i])
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_every_form_of_weights_is_the_same(weights):
    expected = fit(weights=weights)
    dense = np.where(weights.toarray() > 0, weights.toarray(), 99)  # unobserved cells do not count
    shuffled = weights.tocoo()
    order = np.random.default_rng(74).permutation(weights.nnz)
    shuffled = sp.coo_matrix(
        (shuffled.data[order], (shuffled.row[order], shuffled.col[order])), shape=weights.shape
    )
    for form in (dense, dense.tolist(), weights.data, weights.data.tolist(), shuffled,
                 weights.tocsc()):  # fmt: skip
        model = fit(weights=form)
        np.testing.assert_array_equal(model.user_factors, expected.user_factors)
        np.testing.assert_array_equal(model.item_factors, expected.item_factors)
    by_column = RATINGS.tocsc()
    np.testing.assert_allclose(
        fit(by_column, weights=weights.tocsc().data).user_factors, expected.user_factors
    )
    model = fit(RATINGS.toarray(), weights=dense)
    np.testing.assert_array_equal(model.user_factors, expected.user_factors)


def test_weight_one_changes_nothing():
    expected, model = fit(), fit(weights=np.ones(RATINGS.nnz))
    np.testing.assert_allclose(model.user_factors, expected.user_factors, rtol=1e-10)
    assert model.report_.losses[-1] == pytest.approx(expected.report_.losses[-1], rel=1e-13)


def test_weight_zero_is_not_rated(weights):
    kept = np.random.default_rng(75).random(RATINGS.nnz) < 0.7
    weights.data[~kept] = 0
    model = fit(weights=weights)
    dense = RATINGS.toarray()
    dense[weights.toarray() == 0] = 0
    fewer = sp.csr_matrix(dense)
    expected = fit(fewer, weights=weights.toarray())
    np.testing.assert_array_equal(model.user_factors, expected.user_factors)
    assert model.global_mean == expected.global_mean
    assert model.report_.entries == kept.sum()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda w: w[:-1], "shape"),
        (lambda w: w.data[:-1], "shape"),
        (lambda w: w.toarray()[:, :-1], "shape"),
        (lambda w: -w, "negative"),
        (lambda w: w * np.nan, "NaN"),
        (lambda w: w.multiply(RATINGS > 3).tocsr(), "stored entries of ratings"),
        (lambda w: "heavy", "values of type <U5; convert them to real numbers"),
        (lambda w: w.toarray().astype(str), "convert them to real numbers"),
        (lambda w: w.toarray() + 1j, "convert them to real numbers"),
        (lambda w: [[1.0], [1.0, 2.0]], "lists of different lengths"),
        (lambda w: w.toarray() * 1e300, r"above 1e\+100"),
        (lambda w: 2.0, "must be an array"),
    ],
)
def test_bad_weights(weights, spoil, message):
    with pytest.raises(InputError, match=f"sample_weight.*{message}"):
        fit(weights=spoil(weights))


@pytest.mark.parametrize("container", [sp.csr_matrix, sp.csc_matrix, sp.coo_matrix])
def test_weights_need_every_entry_once(container):
    """Of two ratings of one cell, which are added up, neither weight would be the sum's."""
    ratings = container(sp.coo_matrix(([2.0, 1, 4, 3], ([0, 0, 1, 2], [0, 1, 0, 1]))))
    fit(ratings, weights=np.ones(4))
    ratings.data, places = np.append(ratings.data, 5.0), ratings.tocoo()
    rows, columns = np.append(places.row, 0), np.append(places.col, 0)
    if container is sp.coo_matrix:
        twice = sp.coo_matrix((ratings.data, (rows, columns)))
    else:
        major, minor = (rows, columns) if container is sp.csr_matrix else (columns, rows)
        order = np.argsort(major, kind="stable")
        starts = np.append(0, np.cumsum(np.bincount(major)))
        twice = container((ratings.data[order], minor[order], starts), shape=(3, 2))
    assert twice.nnz == 5
    with pytest.raises(InputError, match=r"sample_weight.*once each"):
        fit(twice, weights=np.ones(5))


@pytest.mark.parametrize("form", ["lil", "dok", "dia", "dense"])
def test_weights_by_entry_need_entries_in_order(form):
    ratings = RATINGS.toarray() if form == "dense" else RATINGS.asformat(form)
    for size in (30, RATINGS.nnz):
        with pytest.raises(InputError, match=r"sample_weight.*CSR, CSC or COO"):
            fit(ratings, weights=np.ones(size))
