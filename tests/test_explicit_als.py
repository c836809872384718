"""ExplicitALS as a user meets it."""

import io
import zipfile
from contextlib import nullcontext

import numpy as np
import pytest
import scipy.sparse as sp
from helpers import nonnegative_minimiser, random_ratings

from gpu_als import ExplicitALS, Interactions, StopTraining, engine, solvers
from gpu_als.backends.numpy.reference import objective_value, row_system, solve_row
from gpu_als.data.ids import IdMap
from gpu_als.errors import (
    IdRangeError,
    InputError,
    ModelFileError,
    ModelFitError,
    NotFittedError,
    SingularRowsWarning,
)
from gpu_als.estimators import external_ids

RATINGS = random_ratings(30, 20, 0.4, 71)
EXACT = {"dtype": np.float64, "random_state": 7, "iterations": 4}


def fit(ratings=RATINGS, *, weights=None, validation=None, callback=None, **params):
    return ExplicitALS(**{"factors": 4, "regularization": 0.1} | EXACT | params).fit(
        ratings, sample_weight=weights, validation=validation, callback=callback
    )


def loss_of(model, ratings, weights=None):
    """Return the objective as documented, from the model's public attributes."""
    dense = ratings.toarray()
    observed = np.zeros(dense.shape, bool)
    observed[ratings.nonzero()] = True
    weight = np.ones(dense.shape) if weights is None else weights
    lambdas = np.broadcast_to(model.regularization, 2)
    ridges = []
    for axis, penalty in zip((1, 0), lambdas, strict=True):
        counts = np.maximum(observed.sum(axis), 1)
        scaled = model.scale_regularization == "count"
        ridges.append(penalty * counts if scaled else np.full(len(counts), penalty))
    ones = [np.ones((n, 1)) for n in dense.shape]
    users = np.hstack([model.user_factors, model.user_biases[:, None], ones[0]])
    items = np.hstack([model.item_factors, ones[1], model.item_biases[:, None]])
    zeros = [np.zeros(n) for n in dense.shape]
    target = dense - model.global_mean
    loss = objective_value(observed, weight, target, 0, users, items, *zeros)
    for ridge, factors, biases in (
        (ridges[0], model.user_factors, model.user_biases),
        (ridges[1], model.item_factors, model.item_biases),
    ):
        loss += ridge @ ((factors**2).sum(axis=1) + biases**2)
    return loss


VARIANTS = {
    "default": {},
    "one ridge": {"scale_regularization": None},
    "no bias": {"bias": False},
    "per side": {"regularization": (0.05, 0.4), "scale_regularization": None},
    "per side, scaled": {"regularization": (0.02, 0.1)},
    "non-negative": {"nonnegative": True},
    "non-negative items": {"nonnegative": "items", "bias": False},
    "cg": {"solver": "cg"},
    "solver object": {"solver": solvers.ConjugateGradient(steps=8)},
}
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


# --- weights -------------------------------------------------------------------------------------


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
        (lambda w: "heavy", "must be an array"),
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


# --- validation, stopping, callbacks -------------------------------------------------------------


def held_out():
    rng = np.random.default_rng(76)
    rows, columns = rng.integers(0, 30, 80), rng.integers(0, 20, 80)
    return rows, columns, rng.integers(1, 11, 80) / 2


def rmse_of(model, rows, columns, values):
    return np.sqrt(np.mean((model.predict(rows, columns) - values) ** 2))


@pytest.mark.parametrize("bias", [False, True])
def test_the_best_iteration_is_kept(bias):
    """Overfitting: the validation error rises after a few iterations."""
    validation = held_out()
    course = [
        rmse_of(fit(iterations=n, regularization=1e-3, bias=bias), *validation) for n in range(1, 9)
    ]
    best = int(np.argmin(course)) + 1
    assert best < 8
    model = fit(iterations=8, regularization=1e-3, validation=validation, bias=bias)
    found = [metrics["rmse"] for metrics in model.report_.metrics]
    np.testing.assert_allclose(found, course, rtol=1e-9)
    assert model.report_.best_iteration == best
    assert rmse_of(model, *validation) == pytest.approx(min(course), rel=1e-9)
    assert f"kept iteration {best}" in str(model.report_)


def test_patience():
    validation = held_out()
    full = fit(iterations=12, regularization=1e-3, validation=validation)
    best = full.report_.best_iteration
    assert best < 9
    model = fit(iterations=12, regularization=1e-3, validation=validation, patience=2)
    assert model.report_.stopped == "patience"
    assert model.report_.iterations == best + 2
    np.testing.assert_array_equal(model.user_factors, full.user_factors)


def test_validation_as_a_matrix_or_interactions():
    rows, columns, values = held_out()
    matrix = sp.coo_matrix((values, (rows, columns)), shape=(30, 20)).tocsr()  # sums repeats
    triples = matrix.tocoo()
    expected = fit(validation=(triples.row, triples.col, triples.data)).report_.metrics
    interactions = Interactions.from_matrix(matrix, dtype=np.float64)
    for form in (matrix, interactions):
        for found, metrics in zip(fit(validation=form).report_.metrics, expected, strict=True):
            assert found == pytest.approx(metrics)


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        (([0], [0]), "users, items, ratings"),
        (([0, 1], [0], [1.0, 2.0]), "one length"),
        (([30], [0], [1.0]), "users.*0 to 29"),
        (([0], [20], [1.0]), "items.*0 to 19"),
        (([0], [0], [np.nan]), "NaN"),
        (([], [], []), "at least one rating"),
        (sp.csr_matrix((30, 20)), "at least one rating"),
        (sp.csr_matrix(np.ones((20, 30))), r"shape \(20, 30\)"),
    ],
)
def test_bad_validation(validation, message):
    with pytest.raises(InputError, match=f"validation.*{message}"):
        fit(validation=validation)


def test_patience_without_validation():
    with pytest.raises(InputError, match=r"patience.*validation"):
        fit(patience=2)


def test_tol_stops_when_the_loss_settles():
    course = fit(iterations=60).report_.losses
    for tol in (1e-2, 1e-4):
        gains = -np.diff(course) / course[:-1]
        expected = int(np.argmax(gains <= tol)) + 2
        report = fit(iterations=60, tol=tol).report_
        assert report.stopped == "tol"
        assert report.iterations == expected < 60
    assert fit(iterations=5, tol=0.0).report_.iterations == 5


@pytest.mark.parametrize("tol", [0.0, 1e-3])
def test_tol_stops_a_fit_whose_loss_can_fall_no_further(tol):
    """Ratings of zero are met to the last bit, and nothing is lower than a loss of zero."""
    zeros = sp.csr_matrix((np.zeros(6), ([0, 0, 1, 1, 2, 2], [0, 1, 1, 2, 2, 0])), shape=(3, 3))
    report = fit(zeros, bias=False, iterations=9, tol=tol).report_
    assert report.losses == [0.0, 0.0]
    assert report.stopped == "tol"


@pytest.mark.parametrize("worst", range(4))
def test_the_reported_residual_is_the_largest_of_all_half_sweeps(worst, monkeypatch):
    """Of either side, and of the first iteration as of the last."""
    solve, numbers = engine.solve_parts, iter(range(4))

    def solve_with_a_residual(*args, **options):
        stats = solve(*args, **options)
        stats.residual = 0.25 if next(numbers) == worst else 0.125
        return stats

    monkeypatch.setattr(engine, "solve_parts", solve_with_a_residual)
    assert fit(iterations=2).report_.max_residual == 0.25


def test_callbacks_see_every_iteration():
    seen = []
    model = fit(callback=lambda *arguments: seen.append(arguments))
    assert [iteration for iteration, _, _ in seen] == [0, 1, 2, 3]
    assert [loss for _, _, loss in seen] == model.report_.losses
    assert all(seconds > 0 for _, seconds, _ in seen)


def test_a_callback_can_stop_the_training():
    def stop(iteration, seconds, loss):
        if iteration == 1:
            raise StopTraining

    model, two = fit(callback=stop), fit(iterations=2)
    assert model.report_.stopped == "callback"
    assert model.report_.iterations == 2
    np.testing.assert_array_equal(model.user_factors, two.user_factors)
    np.testing.assert_array_equal(model.item_factors, two.item_factors)


def test_other_exceptions_of_a_callback_pass_through():
    def fail(iteration, seconds, loss):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fit(callback=fail)


def test_no_iterations():
    model = fit(iterations=0)
    assert model.report_.losses == []
    assert model.user_factors.shape == (30, 4)
    assert np.isfinite(model.predict(0, 0)).all()


# --- recommending and folding in -----------------------------------------------------------------


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
    with pytest.raises(InputError, match=r"ratings.*NaN"):
        fit().fold_in_users(np.full((1, 20), np.nan))


# --- parameters ----------------------------------------------------------------------------------


def test_parameters_round_trip():
    given = {
        "factors": 7, "regularization": (0.2, 0.3), "scale_regularization": None, "bias": False,
        "nonnegative": "items", "iterations": 3, "tol": 0.1, "patience": 2, "solver": "cg",
        "backend": "numpy", "num_threads": 2, "dtype": np.dtype(np.float64), "random_state": 5,
        "precision": "float16",
    }  # fmt: skip
    model = ExplicitALS(**given)
    assert model.get_params() == given
    assert model.get_params(deep=False) == given
    copy = type(model)(**model.get_params())
    assert copy.get_params() == given
    for name, value in copy.get_params().items():  # what sklearn.base.clone insists on
        assert value is model.get_params()[name]
    assert "factors=7" in repr(model)
    assert "iterations" not in repr(ExplicitALS())


def test_set_params():
    model = ExplicitALS(factors=7)
    assert model.set_params(iterations=2, regularization=0.5) is model
    assert (model.factors, model.iterations, model.regularization) == (7, 2, 0.5)
    for bad in ({"iterations": -1}, {"rank": 3}, {"iterations": 9, "factors": 0}):
        with pytest.raises(InputError):
            model.set_params(**bad)
    assert (model.factors, model.iterations) == (7, 2)


def test_set_params_keeps_the_factors():
    model = fit()
    before = model.user_factors
    model.set_params(iterations=1)
    assert model.user_factors is before


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"factors": 0}, "factors must be an integer of at least 1"),
        ({"factors": -3}, "factors"),
        ({"factors": 2.5}, "factors"),
        ({"factors": True}, "factors"),
        ({"factors": "8"}, "factors"),
        ({"regularization": -0.1}, "regularization must be a finite number of at least 0"),
        ({"regularization": np.nan}, "regularization"),
        ({"regularization": np.inf}, "regularization"),
        ({"regularization": (0.1, -1)}, "regularization"),
        ({"regularization": (1, 2, 3)}, "regularization must be one number or two"),
        ({"regularization": "much"}, "regularization"),
        ({"scale_regularization": "sum"}, "scale_regularization must be 'count' or None"),
        ({"nonnegative": "both"}, "nonnegative"),
        ({"iterations": -1}, "iterations"),
        ({"iterations": 2.0}, "iterations"),
        ({"tol": -1e-3}, "tol"),
        ({"tol": np.nan}, "tol"),
        ({"patience": 0}, "patience"),
        ({"solver": "magic"}, "solver must be one of.*cholesky"),
        ({"backend": "tpu"}, "backend must be 'auto', 'numpy' or 'cupy'"),
        ({"num_threads": -1}, "num_threads"),
        ({"dtype": np.float16}, "dtype must be numpy.float32 or numpy.float64"),
        ({"dtype": "text"}, "dtype"),
    ],
)
def test_bad_parameters(params, message):
    with pytest.raises(InputError, match=message):
        ExplicitALS(**params)


def test_bad_random_state():
    with pytest.raises(InputError, match="random_state"):
        fit(random_state="lucky")


@pytest.mark.parametrize("make", [int, np.random.default_rng, np.random.RandomState])
def test_seeds_repeat(make):
    first, second, other = (fit(random_state=make(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.user_factors, second.user_factors)
    assert (first.user_factors != other.user_factors).any()


# --- ratings that cannot be used, and some that can ----------------------------------------------


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


# --- ids, and methods before fit -----------------------------------------------------------------


def test_ids_of_users_and_items():
    ratings = Interactions.from_triples(["b", "a", "c"], [30, 10, 20], [5.0, 3.0, 1.0])
    model = ExplicitALS(2, random_state=1).fit(ratings)
    np.testing.assert_array_equal(model.user_index(["c", "a"]), [2, 0])
    np.testing.assert_array_equal(model.item_index([10, 30]), [0, 2])
    with pytest.raises(InputError, match="nobody"):
        model.user_index(["nobody"])
    model.fit(RATINGS)
    np.testing.assert_array_equal(model.user_index([29]), [29])
    with pytest.raises(IdRangeError):
        model.user_index([30])


def test_ids_are_numbered_once_for_many_lookups(monkeypatch):
    """A map of a million ids takes a second."""
    made = []

    def number(ids, size):
        made.append(ids)
        return IdMap(ids, size)

    monkeypatch.setattr(external_ids, "IdMap", number)
    ratings = Interactions.from_triples(["b", "a", "c"], [30, 10, 20], [5.0, 3.0, 1.0])
    model = ExplicitALS(2, random_state=1).fit(ratings)
    for user in "abca":
        model.user_index([user])
        model.item_index([20])
    assert len(made) == 2
    others = Interactions.from_triples(["x", "a", "y"], [30, 10, 20], [5.0, 3.0, 1.0])
    model.fit(others)
    np.testing.assert_array_equal(model.user_index(["y", "x"]), [2, 1])


@pytest.mark.parametrize(
    "call",
    [
        lambda m: m.predict(0, 0),
        lambda m: m.recommend(0),
        lambda m: m.fold_in_users(RATINGS),
        lambda m: m.user_index([0]),
        lambda m: m.save(io.BytesIO()),
    ],
)
def test_methods_before_fit(call):
    with pytest.raises(NotFittedError, match="fit"):
        call(ExplicitALS())


@pytest.mark.parametrize(("users", "items"), [([30], [0]), ([0], [20]), ([-1], [0])])
def test_predict_out_of_range(users, items):
    with pytest.raises(IndexError, match=r"users|items"):
        fit().predict(users, items)


def test_predict_wants_pairs():
    with pytest.raises(InputError, match="users has 2 numbers and items 3"):
        fit().predict([0, 1], [0, 1, 2])


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "params",
    [*VARIANTS.values(), {"dtype": np.float32, "random_state": None}, {"random_state": 3**99}],
)
def test_save_and_load(tmp_path, params):
    model = fit(**params)
    model.save(tmp_path / "model")
    loaded = ExplicitALS.load(tmp_path / "model.npz")
    for name in ("user_factors", "item_factors", "user_biases", "item_biases"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(model, name))
        assert getattr(loaded, name).dtype == model.dtype
    assert loaded.global_mean == model.global_mean
    expected = model.get_params()
    if not isinstance(expected["solver"], str):
        expected["solver"] = "auto"
    assert loaded.get_params() == expected
    np.testing.assert_array_equal(loaded.predict([1, 2], [3, 4]), model.predict([1, 2], [3, 4]))
    np.testing.assert_array_equal(
        loaded.recommend(3, RATINGS[3])[0], model.recommend(3, RATINGS[3])[0]
    )
    if isinstance(model.solver, str):
        np.testing.assert_array_equal(loaded.fold_in_users(RATINGS), model.fold_in_users(RATINGS))


def test_ids_are_saved(tmp_path):
    ratings = Interactions.from_triples(["b", "a", "c"], [30, 10, 20], [5.0, 3.0, 1.0])
    buffer = io.BytesIO()
    ExplicitALS(2, random_state=1).fit(ratings).save(buffer)
    buffer.seek(0)
    loaded = ExplicitALS.load(buffer)
    np.testing.assert_array_equal(loaded.user_index(["c", "a"]), [2, 0])
    np.testing.assert_array_equal(loaded.item_index([30]), [2])


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "model.npz"
    fit().save(path)
    return path


def test_a_truncated_file(saved):
    content = saved.read_bytes()
    for length in (0, 10, len(content) // 2, len(content) - 5):
        saved.write_bytes(content[:length])
        with pytest.raises(ModelFileError, match=r"model\.npz"):
            ExplicitALS.load(saved)


def test_a_corrupted_file(saved):
    content, expected = bytearray(saved.read_bytes()), fit().user_factors
    for place in range(200, len(content), len(content) // 25):
        spoiled = bytearray(content)
        spoiled[place] ^= 0xFF
        saved.write_bytes(spoiled)
        try:
            loaded = ExplicitALS.load(saved)
        except ModelFileError:
            continue
        np.testing.assert_array_equal(loaded.user_factors, expected)  # a byte that nobody reads


def change_arrays(path, **changes):
    with np.load(path) as archive:
        arrays = {**archive, **changes}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": None}, "no model of ExplicitALS"),
        ({"kind": "other"}, "no model of ExplicitALS"),
        ({"user_factors": None}, "user factors"),
        ({"item_factors": np.zeros((20, 5))}, "item.factors"),
        ({"item_factors": np.zeros(20)}, "item.factors"),
        ({"item_factors": np.full((20, 4), np.nan)}, "item.factors"),
        ({"item_factors": np.full((20, 4), "a")}, "item.factors"),
        ({"user_biases": np.zeros(3)}, "user factors"),
        ({"user_biases": np.full(30, "a")}, "user factors"),
        ({"global_mean": None}, "global_mean"),
        ({"global_mean": np.nan}, "global_mean"),
        ({"global_mean": "a"}, "global_mean"),
        ({"global_mean": np.zeros(2)}, "global_mean"),
        ({"param_factors": -1}, "parameter.*factors"),
        ({"param_rank": 3}, "parameter.*rank"),
        ({"param_dtype": "int8"}, "parameter.*dtype"),
        ({"user_ids": np.arange(3)}, "user_ids"),
    ],
)
def test_an_inconsistent_file(saved, changes, message):
    change_arrays(saved, **changes)
    with pytest.raises(ModelFileError, match=message):
        ExplicitALS.load(saved)


def test_a_foreign_file(tmp_path):
    path = tmp_path / "foreign.npz"
    path.write_text("user,item,rating\n1,2,3\n")
    with pytest.raises(ModelFileError, match=r"foreign\.npz"):
        ExplicitALS.load(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "nothing here")
    with pytest.raises(ModelFileError, match=r"foreign\.npz"):
        ExplicitALS.load(path)
    np.savez(path, a=np.zeros(3))
    with pytest.raises(ModelFileError, match="no model"):
        ExplicitALS.load(path)
    np.savez(path, a=np.array([{}], dtype=object))
    with pytest.raises(ModelFileError, match="pickled"):
        ExplicitALS.load(path)
    with pytest.raises(FileNotFoundError):
        ExplicitALS.load(tmp_path / "missing.npz")


def test_a_fit_that_starts_from_nothing_finite_is_refused():
    model = ExplicitALS(2, random_state=3).fit(RATINGS)
    model.user_factors[0] = np.nan
    with pytest.raises(ModelFitError, match="user_factors"):
        model.fit(RATINGS, warm_start=True)
