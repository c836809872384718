"""Recommending, and folding in users who were not there."""

import numpy as np
import pytest
import scipy.sparse as sp
from helpers import nonnegative_minimiser, random_ratings
from reference import row_system

from explicit.common import RATINGS, fit
from gpu_als.errors import IdRangeError, InputError


@pytest.mark.parametrize("bias", [False, True])
def test_recommend_ranks_predicted_ratings(bias):
    model = fit(bias=bias)
    everything = model.predict(*np.divmod(np.arange(600), 20)).reshape(30, 20)
    ids, ratings = model.recommend([4, 9], filter_already_liked_items=False, N=6)
    assert ids.dtype == np.int32
    for row, user in enumerate((4, 9)):
        order = np.argsort(-everything[user], kind="stable")[:6]
        np.testing.assert_array_equal(ids[row], order)
        np.testing.assert_allclose(ratings[row], everything[user, order], rtol=1e-12)
    one, _ = model.recommend(9, filter_already_liked_items=False, N=6)
    np.testing.assert_array_equal(one, ids[1])


def test_recommend_filters():
    model = fit()
    everything = model.predict(*np.divmod(np.arange(600), 20)).reshape(30, 20)
    liked = RATINGS[5].indices
    ids, ratings = model.recommend(5, RATINGS[5], N=20)
    open_items = np.setdiff1d(np.arange(20), liked)
    order = open_items[np.argsort(-everything[5, open_items], kind="stable")]
    np.testing.assert_array_equal(ids[: len(order)], order)
    assert set(ids[len(order) :]) == set(liked)
    assert (ratings[len(order) :] == np.finfo(np.float64).min).all()
    ids, _ = model.recommend(5, RATINGS[5], N=3, filter_items=order[:2])
    np.testing.assert_array_equal(ids, order[2:5])
    ids, _ = model.recommend(5, RATINGS[5], N=99, items=order[[4, 2, 2]])
    np.testing.assert_array_equal(ids, order[[2, 4]])
    assert model.recommend(5, RATINGS[5], N=1000)[0].shape == (20,)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"userid": 30}, IdRangeError, "userid.*0 to 29"),
        ({"userid": -1}, IdRangeError, "userid"),
        ({"userid": 1.5}, InputError, "userid.*integer"),
        ({"userid": 0, "N": 0}, InputError, "N must be"),
        ({"userid": 0, "user_items": None}, InputError, "user_items is needed"),
        ({"userid": [0, 1], "user_items": RATINGS[:1]}, InputError, "1 row for every"),
        ({"userid": 0, "user_items": sp.csr_matrix((1, 21))}, InputError, "21 columns"),
        ({"userid": 0, "items": [3], "filter_items": [4]}, InputError, "both"),
        ({"userid": 0, "items": []}, InputError, "items is empty"),
        ({"userid": 0, "items": [20]}, IdRangeError, "items.*0 to 19"),
        ({"userid": 0, "filter_items": [-1]}, IdRangeError, "filter_items"),
    ],
)
def test_bad_recommend(arguments, error, message):
    with pytest.raises(error, match=message):
        fit().recommend(**{"user_items": RATINGS[0]} | arguments)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"bias": False},
        {"scale_regularization": None},
        {"nonnegative": True},
        {"regularization": (0.3, 0.1)},
    ],
)
def test_folding_in_is_a_half_sweep(params):
    model = fit(**params)
    new = random_ratings(6, 20, 0.5, 77)
    new = sp.vstack([new, sp.csr_matrix((1, 20))]).tocsr()
    factors, biases = model.fold_in_users(new, return_biases=True)
    np.testing.assert_array_equal(model.fold_in_users(new), factors)
    penalty = np.broadcast_to(model.regularization, 2)[0]
    items = model.item_factors
    if model.bias:
        items = np.column_stack([items, np.ones(20)])
    for u in range(7):
        rows, ratings = new[u].indices, new[u].data
        ridge = penalty * max(len(rows), 1) if model.scale_regularization else penalty
        target = ratings - model.global_mean - model.item_biases[rows]
        system = row_system(items, rows, np.ones(len(rows)), target, ridge)
        if model.nonnegative:
            expected = nonnegative_minimiser(*system, free_columns=1)
        else:
            expected = np.linalg.solve(*system)
        found = np.append(factors[u], biases[u]) if model.bias else factors[u]
        np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)
    assert (factors[6] == 0).all()
    assert biases[6] == 0


def test_folding_in_weighs_ratings():
    model = fit(bias=False)
    new = random_ratings(6, 20, 0.5, 77)
    weights = np.random.default_rng(78).uniform(0.2, 3, new.nnz)
    factors = model.fold_in_users(new, sample_weight=weights)
    for u in range(6):
        part = slice(*new.indptr[u : u + 2])
        rows, weight = new.indices[part], weights[part]
        system = row_system(
            model.item_factors, rows, weight, weight * new.data[part], 0.1 * len(rows)
        )
        np.testing.assert_allclose(factors[u], np.linalg.solve(*system), rtol=1e-8)


def test_folding_in_the_training_data_gives_the_next_users():
    """After the items settled, the users' half-sweep returns the users there are."""
    model = fit(iterations=3000, tol=1e-15, regularization=0.2)
    factors, biases = model.fold_in_users(RATINGS, return_biases=True)
    np.testing.assert_allclose(factors, model.user_factors, atol=1e-4)
    np.testing.assert_allclose(biases, model.user_biases, atol=1e-4)


def test_recommendations_to_new_users_follow_from_their_folded_in_factors():
    """To the rounding of float64: their ratings are read in the dtype of the model."""
    model = fit()
    new = RATINGS * (1 + 1e-9)
    ids, scores = model.recommend(np.arange(new.shape[0]), new, N=5, recalculate_user=True)
    factors, biases = model.fold_in_users(new, return_biases=True)
    exact = model.global_mean + biases[:, None] + model.item_biases + factors @ model.item_factors.T
    listed = np.where(ids < 0, 0, ids)
    found = np.where(ids < 0, 0, scores), np.where(ids < 0, 0, np.take_along_axis(exact, listed, 1))
    np.testing.assert_allclose(*found, rtol=1e-12)


def test_fold_in_wants_the_items_it_knows():
    with pytest.raises(InputError, match="21 columns"):
        fit().fold_in_users(sp.csr_matrix((2, 21)))
    with pytest.raises(InputError, match=r"user_items.*NaN"):
        fit().fold_in_users(np.full((1, 20), np.nan))
