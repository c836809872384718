"""AlternatingLeastSquares as a user meets it, alone and beside ``implicit``."""

import io

import numpy as np
import pytest
import scipy.sparse as sp
from helpers import random_ratings
from threadpoolctl import threadpool_limits

from gpu_als import AlternatingLeastSquares, Interactions, StopTraining
from gpu_als.backends.numpy.reference import objective_value, solve_row
from gpu_als.data.synthetic import powerlaw_interactions
from gpu_als.errors import (
    IdRangeError,
    InputError,
    ModelFileError,
    ModelFitError,
    NotFittedError,
    ParameterWarning,
)


def mixed_feedback(seed=121, n_users=35, n_items=22):
    """Likes and dislikes of every strength: below 1, exactly 1, above, and stored zeros."""
    rng = np.random.default_rng(seed)
    values = rng.choice([1.0, 2.0, 5.0, 0.5, -1.0, -3.0, -0.25, 0.0], (n_users, n_items))
    rows, columns = np.nonzero(rng.random((n_users, n_items)) < 0.35)
    return sp.csr_matrix((values[rows, columns], (rows, columns)), shape=(n_users, n_items))


PLAYS = powerlaw_interactions(150, 90, 2500, random_state=5)
MIXED = mixed_feedback()


def fit(user_items=PLAYS, callback=None, **params):
    defaults = {"factors": 6, "regularization": 0.05, "iterations": 4, "random_state": 9}
    model = AlternatingLeastSquares(**defaults | params)
    assert model.fit(user_items, show_progress=False, callback=callback) is None
    return model


def observed_cells(user_items):
    observed = np.zeros(user_items.shape, bool)
    rows = np.repeat(np.arange(user_items.shape[0]), np.diff(user_items.indptr))
    observed[rows, user_items.indices] = True
    return observed


def loss_of(model, user_items):
    """Return the loss as documented: over all cells, then divided as ``implicit`` divides it."""
    values = model.alpha * user_items.toarray()
    observed = observed_cells(user_items)
    users, items = model.user_factors, model.item_factors
    ridges = [np.full(n, model.regularization) for n in user_items.shape]
    loss = objective_value(observed, np.abs(values), values > 0, 1, users, items, *ridges)
    return loss / (np.abs(values).sum() + (~observed).sum())


def ials_loss_of(model, user_items):
    """Return the loss of iALS; the divisor is the same."""
    weights = model.alpha * np.abs(user_items.toarray())
    observed = observed_cells(user_items)
    users, items = model.user_factors, model.item_factors
    alpha0 = 1.0 if model.unobserved_weight is None else model.unobserved_weight
    nu = model.regularization_exponent or 0.0
    ridges = [
        model.regularization * (observed.sum(axis) + alpha0 * user_items.shape[axis]) ** nu
        for axis in (1, 0)
    ]
    ones, zeros = np.ones(observed.shape), [np.zeros(n) for n in user_items.shape]
    loss = objective_value(observed, weights, ones, 0, users, items, *ridges)
    loss += objective_value(observed & False, weights, ones, alpha0, users, items, *zeros)
    return loss / (weights.sum() + (~observed).sum())


@pytest.mark.parametrize("user_items", [PLAYS, MIXED], ids=["plays", "mixed"])
@pytest.mark.parametrize("alpha", [1.0, 2.0, 7.5])
@pytest.mark.parametrize("use_cg", [False, True])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_reported_loss_is_the_documented_objective(user_items, alpha, use_cg, dtype):
    model = fit(user_items, alpha=alpha, use_cg=use_cg, dtype=dtype)
    assert model.user_factors.dtype == model.item_factors.dtype == dtype
    limit = 1e-12 if dtype == np.float64 else 1e-5
    assert model.report_.losses[-1] == pytest.approx(loss_of(model, user_items), rel=limit)
    assert len(model.report_.losses) == 4
    assert (np.diff(model.report_.losses) < 0).all()


@pytest.mark.parametrize("weights", [(0.3, 0.0), (0.1, 1.0), (None, 0.7), (0.5, None)])
@pytest.mark.parametrize("use_cg", [False, True])
def test_the_reported_loss_of_ials(weights, use_cg):
    model = fit(
        alpha=3.0, use_cg=use_cg, dtype=np.float64, unobserved_weight=weights[0],
        regularization_exponent=weights[1],
    )  # fmt: skip
    assert model.report_.losses[-1] == pytest.approx(ials_loss_of(model, PLAYS), rel=1e-12)


@pytest.mark.parametrize("user_items", [PLAYS, MIXED], ids=["plays", "mixed"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_items_solve_their_equations(user_items, dtype):
    model = fit(user_items, alpha=2.0, use_cg=False, dtype=dtype)
    by_item, users = user_items.tocsc(), model.user_factors.astype(np.float64)
    for i in range(user_items.shape[1]):
        part = slice(by_item.indptr[i], by_item.indptr[i + 1])
        c = 2.0 * by_item.data[part].astype(np.float64)
        expected = solve_row(
            users, by_item.indices[part], np.abs(c) - 1, np.maximum(c, 0), 0.05, users.T @ users
        )
        limit = 1e-11 if dtype == np.float64 else 1e-4
        np.testing.assert_allclose(model.item_factors[i], expected, rtol=0, atol=limit)


def test_empty_rows_get_zero_factors():
    dense = PLAYS.toarray()
    dense[[0, 9]] = 0
    dense[:, 3] = 0
    model = fit(sp.csr_matrix(dense), use_cg=False)
    np.testing.assert_array_equal(model.user_factors[[0, 9]], np.zeros((2, 6)))
    np.testing.assert_array_equal(model.item_factors[3], np.zeros(6))


def test_disliked_items_score_lower():
    """The same feedback, but for one item that one user dislikes strongly."""
    dense = PLAYS.toarray()
    user, item = 4, PLAYS[4].indices[0]
    scores = []
    for value in (50.0, 1.0, -50.0):
        dense[user, item] = value
        model = fit(sp.csr_matrix(dense), use_cg=False, factors=20, iterations=10)
        scores.append(model.user_factors[user] @ model.item_factors[item])
    assert scores[0] > scores[1] > scores[2]


# --- beside implicit -----------------------------------------------------------------------------


@pytest.fixture
def theirs():
    """Return a function that fits ``implicit``'s model on the CPU; its losses are kept too."""
    implicit = pytest.importorskip("implicit.cpu.als")

    def run(user_items=PLAYS, **params):
        defaults = {"factors": 6, "regularization": 0.05, "iterations": 4, "random_state": 9}
        with threadpool_limits(1, "blas"):
            model = implicit.AlternatingLeastSquares(
                **defaults | params, num_threads=1, calculate_training_loss=True
            )
            model.losses = []
            model.fit(
                user_items,
                show_progress=False,
                callback=lambda iteration, seconds, loss: model.losses.append(loss),
            )
        return model

    return run


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("seed", [int, np.random.default_rng])
def test_initial_factors_are_those_of_implicit(theirs, seed, dtype):
    other = theirs(iterations=0, dtype=dtype, random_state=seed(11))
    model = fit(iterations=0, dtype=dtype, random_state=seed(11))
    np.testing.assert_array_equal(model.user_factors, other.user_factors)
    np.testing.assert_array_equal(model.item_factors, other.item_factors)


@pytest.mark.parametrize("alpha", [1.0, 3.0])
@pytest.mark.parametrize("regularization", [0.01, 5.0])
@pytest.mark.parametrize("user_items", [PLAYS, MIXED.astype(np.float32)], ids=["plays", "mixed"])
def test_exact_factors_are_those_of_implicit(theirs, user_items, alpha, regularization):
    params = {"alpha": alpha, "regularization": regularization, "use_cg": False}
    other, model = theirs(user_items, **params), fit(user_items, **params)
    for name in ("user_factors", "item_factors"):
        found, expected = getattr(model, name), getattr(other, name)
        error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        assert error < 1e-4
    # Theirs counts the confidence in dislikes as loss, as if p were 1 there: a constant.
    values = alpha * user_items.toarray()
    cells = np.abs(values).sum() + values.size - user_items.nnz
    dislikes = np.maximum(-values, 0).sum() / cells
    np.testing.assert_allclose(model.report_.losses, other.losses - dislikes, rtol=1e-4)


def test_the_objective_of_conjugate_gradients_is_that_of_implicit(theirs):
    """Both take three steps, ours in other coordinates: never a worse loss, in the end the same."""
    other, model = (run(use_cg=True, iterations=15) for run in (theirs, fit))
    assert (np.array(model.report_.losses) < 1.001 * np.array(other.losses)).all()
    other, model = (run(use_cg=True, iterations=120) for run in (theirs, fit))
    np.testing.assert_allclose(model.report_.losses[-1], other.losses[-1], rtol=1e-3)


def test_recommendations_are_those_of_implicit(theirs):
    other, model = theirs(use_cg=False), fit(use_cg=False)
    users = np.array([0, 3, 77, 149])
    for arguments in (
        {},
        {"N": 25},
        {"filter_already_liked_items": False},
        {"filter_items": [0, 5, 6]},
        {"recalculate_user": True},
        {"items": np.arange(20, 60)},
    ):
        ids, scores = model.recommend(users, PLAYS[users], **arguments)
        expected_ids, expected = other.recommend(users, PLAYS[users], **arguments)
        np.testing.assert_array_equal(ids, expected_ids)
        np.testing.assert_allclose(scores, expected, rtol=1e-3, atol=1e-4)
        assert ids.dtype == expected_ids.dtype or "items" in arguments
        one, one_scores = model.recommend(77, PLAYS[77], **arguments)
        assert one.shape == one_scores.shape == expected_ids[2].shape
        np.testing.assert_array_equal(one, expected_ids[2])


def test_recalculated_factors_are_those_of_implicit(theirs):
    params = {"use_cg": False, "alpha": 3.0}
    other, model = theirs(**params), fit(**params)
    model.user_factors, model.item_factors = other.user_factors, other.item_factors
    for ids in ([5, 17, 80], 17):
        found = model.recalculate_user(ids, PLAYS[ids])
        expected = other.recalculate_user(ids, PLAYS[ids])
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, atol=1e-4)
    items = PLAYS.T.tocsr()
    np.testing.assert_allclose(
        model.recalculate_item([2, 3], items[[2, 3]]),
        other.recalculate_item([2, 3], items[[2, 3]]),
        atol=1e-4,
    )
    assert model.recalculate_item(2, items[2]).shape == (6,)


@pytest.mark.parametrize("random_state", [9, None])
def test_files_load_both_ways(theirs, tmp_path, random_state):
    other = theirs(alpha=2.5, use_cg=False, random_state=random_state)
    other.save(str(tmp_path / "theirs.npz"))
    loaded = AlternatingLeastSquares.load(str(tmp_path / "theirs"))
    np.testing.assert_array_equal(loaded.user_factors, other.user_factors)
    np.testing.assert_array_equal(loaded.item_factors, other.item_factors)
    for name in ("factors", "regularization", "alpha", "iterations", "use_cg", "cg_steps",
                 "num_threads", "dtype", "random_state", "calculate_training_loss"):  # fmt: skip
        assert getattr(loaded, name) == getattr(other, name)
    ids = [1, 3]
    assert PLAYS[ids].nnz > 2  # theirs puts equal scores, an empty user's, in another order
    np.testing.assert_array_equal(
        loaded.recommend(ids, PLAYS[ids])[0], other.recommend(ids, PLAYS[ids])[0]
    )
    model = fit(alpha=2.5, use_cg=False, random_state=random_state)
    model.save(tmp_path / "ours.npz")
    back = type(other).load(str(tmp_path / "ours.npz"))
    np.testing.assert_array_equal(back.user_factors, model.user_factors)
    np.testing.assert_array_equal(back.item_factors, model.item_factors)
    for name in ("factors", "regularization", "alpha", "iterations", "use_cg", "cg_steps"):
        assert getattr(back, name) == getattr(model, name)
    np.testing.assert_array_equal(
        back.recommend(ids, PLAYS[ids])[0], model.recommend(ids, PLAYS[ids])[0]
    )


# --- fitting -------------------------------------------------------------------------------------


def test_a_second_fit_goes_on_from_the_factors():
    four = fit(iterations=4, use_cg=False)
    model = fit(iterations=2, use_cg=False)
    model.fit(PLAYS, show_progress=False)
    np.testing.assert_array_equal(model.user_factors, four.user_factors)
    np.testing.assert_array_equal(model.item_factors, four.item_factors)


def test_fit_does_not_touch_the_factors_it_starts_from():
    model = fit(iterations=1)
    before = model.user_factors, model.item_factors
    kept = [a.copy() for a in before]
    model.fit(PLAYS, show_progress=False)
    for array, copy in zip(before, kept, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_starting_from_one_side():
    """Users come first, so only the items' start counts where every step is exact."""
    items = fit().item_factors
    model = AlternatingLeastSquares(6, 0.05, use_cg=False, iterations=1, random_state=1)
    model.item_factors = items
    model.fit(PLAYS, show_progress=False)
    other = AlternatingLeastSquares(6, 0.05, use_cg=False, iterations=1, random_state=2)
    other.item_factors = items.astype(np.float64)
    other.fit(PLAYS, show_progress=False)
    np.testing.assert_array_equal(model.user_factors, other.user_factors)


def test_callbacks():
    seen = []
    model = fit(callback=lambda *arguments: seen.append(arguments))
    assert [iteration for iteration, _, _ in seen] == [0, 1, 2, 3]
    assert all(seconds > 0 and loss is None for _, seconds, loss in seen)
    seen.clear()
    model.calculate_training_loss = True
    model.user_factors = model.item_factors = None
    model.fit_callback = lambda *arguments: seen.append(arguments)
    model.fit(PLAYS, show_progress=False)
    assert [loss for _, _, loss in seen] == model.report_.losses
    first = []
    model.fit(PLAYS, False, lambda *arguments: first.append(arguments))
    assert len(first) == len(seen) == 4


def test_a_callback_can_stop_the_training():
    def stop(iteration, seconds, loss):
        raise StopTraining

    model, one = fit(callback=stop), fit(iterations=1)
    assert model.report_.stopped == "callback"
    np.testing.assert_array_equal(model.user_factors, one.user_factors)


def test_the_number_of_cg_steps_counts():
    """More steps come closer to the exact half-sweeps."""
    exact = fit(use_cg=False, iterations=1, dtype=np.float64).user_factors
    errors = []
    for steps in (1, 3, 6, 30):
        model = AlternatingLeastSquares(6, 0.05, iterations=1, random_state=9, dtype=np.float64)
        model.cg_steps = steps
        model.fit(PLAYS, show_progress=False)
        errors.append(np.linalg.norm(model.user_factors - exact))
    assert errors[0] > errors[1] > errors[2]
    assert errors[3] < 1e-9
    model.cg_steps = 0
    with pytest.raises(InputError, match="cg_steps must be at least 1"):
        model.fit(PLAYS)


@pytest.mark.parametrize("make", [int, np.int64, np.random.default_rng, np.random.RandomState])
def test_seeds_repeat(make):
    first, second, other = (fit(random_state=make(seed)) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.user_factors, second.user_factors)
    assert (first.user_factors != other.user_factors).any()


def test_other_formats_are_converted_with_a_warning():
    expected = fit().user_factors
    for form in ("csc", "coo", "lil"):
        with pytest.warns(ParameterWarning, match=f"{form.upper()}.*CSR"):
            model = fit(PLAYS.asformat(form))
        np.testing.assert_array_equal(model.user_factors, expected)
    interactions = Interactions.from_matrix(PLAYS)
    for form in (PLAYS.toarray(), sp.csr_array(PLAYS), interactions, PLAYS.toarray().tolist()):
        np.testing.assert_array_equal(fit(form).user_factors, expected)


@pytest.mark.parametrize("dtype", [bool, np.int8, np.int32, np.int64, np.uint8])
def test_integer_and_bool_values(dtype):
    plays = PLAYS.astype(dtype)
    expected = fit(plays.astype(np.float32))
    np.testing.assert_array_equal(fit(plays).user_factors, expected.user_factors)


def test_unsorted_and_repeated_indices():
    halves = sp.coo_matrix(PLAYS)
    order = np.random.default_rng(122).permutation(2 * PLAYS.nnz)
    rows, columns, data = (np.tile(a, 2)[order] for a in (halves.row, halves.col, halves.data / 2))
    by_row = np.argsort(rows, kind="stable")
    indptr = np.searchsorted(rows[by_row], np.arange(151))
    messy = sp.csr_matrix((data[by_row], columns[by_row], indptr), shape=PLAYS.shape)
    before = messy.data.copy(), messy.indices.copy()
    np.testing.assert_array_equal(fit(messy).user_factors, fit().user_factors)
    np.testing.assert_array_equal(messy.data, before[0])
    np.testing.assert_array_equal(messy.indices, before[1])


@pytest.mark.parametrize(
    ("user_items", "message"),
    [
        (np.array([[1.0, np.nan]]), r"user_items.*NaN.*\(0, 1\)"),
        (sp.csr_matrix(np.array([[1.0, np.inf]])), "user_items.*infinite"),
        (np.zeros((0, 3)), "user_items.*at least one user"),
        (np.zeros((3, 0)), "user_items.*at least one user"),
        (np.ones(3), "user_items"),
        (np.array([["a"]]), "user_items.*real numbers"),
        (np.array([[1e30]]), "user_items.*1e[+]30"),
        (None, "user_items"),
    ],
)
def test_bad_interactions(user_items, message):
    with pytest.raises(InputError, match=message):
        fit(user_items)


def test_confidences_that_overflow():
    """Alpha times a value beyond the range of float32 is an error that names alpha."""
    with pytest.raises(InputError, match="alpha"):
        fit(PLAYS, alpha=1e38)


def test_large_confidences_stay_finite():
    for dtype in (np.float32, np.float64):
        for use_cg in (False, True):
            model = fit(PLAYS * 1e11, dtype=dtype, use_cg=use_cg)
            assert np.isfinite(model.user_factors).all()
            assert np.isfinite(model.report_.losses).all()


def test_an_empty_matrix():
    model = fit(sp.csr_matrix((4, 3)))
    assert model.report_.losses[-1] < 1e-20
    exact = fit(sp.csr_matrix((4, 3)), use_cg=False)
    np.testing.assert_array_equal(exact.user_factors, np.zeros((4, 6)))


def test_every_cell_stored_as_zero():
    """Confidence 0 everywhere: nothing to explain and nothing to divide the loss by."""
    zeros = sp.csr_matrix((np.zeros(6), np.tile([0, 1, 2], 2), [0, 3, 6]), shape=(2, 3))
    model = fit(zeros, use_cg=False)
    np.testing.assert_array_equal(model.user_factors, np.zeros((2, 6)))
    assert np.isfinite(model.report_.losses).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1)])
@pytest.mark.parametrize("factors", [1, 12])
@pytest.mark.parametrize("use_cg", [False, True])
def test_one_row_and_one_column(shape, factors, use_cg):
    model = fit(sp.csr_matrix(np.full(shape, 3.0)), factors=factors, use_cg=use_cg, iterations=20)
    scores = model.user_factors @ model.item_factors.T
    assert np.abs(scores - 1).max() < 0.1
    assert model.report_.losses[-1] == pytest.approx(
        loss_of(model, sp.csr_matrix(np.full(shape, 3.0))), rel=1e-4
    )


def test_more_factors_than_users_and_items():
    likes = sp.csr_matrix(random_ratings(6, 5, 0.5, 123))
    for use_cg in (False, True):
        model = fit(likes, factors=50, use_cg=use_cg, iterations=10, dtype=np.float64)
        assert model.report_.singular_rows == 0
        assert model.report_.losses[-1] == pytest.approx(loss_of(model, likes), rel=1e-10)


def test_a_transposed_matrix_is_recognised():
    model = fit()
    with pytest.raises(InputError, match=r"transposed.*users x items.*None"):
        model.fit(PLAYS.T.tocsr())
    with pytest.raises(InputError, match=r"user_factors has shape.*set it to None"):
        model.fit(PLAYS[:10])
    assert model.user_factors.shape == (150, 6)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_spoiled_factors(bad):
    for name in ("user_factors", "item_factors"):
        model = fit()
        getattr(model, name)[0, 0] = bad
        with pytest.raises(ModelFitError, match=f"{name}.*None"):
            model.fit(PLAYS, show_progress=False)


# --- recommending --------------------------------------------------------------------------------


def test_recommend_ranks_inner_products():
    model = fit(dtype=np.float64)
    scores = model.user_factors @ model.item_factors.T
    ids, found = model.recommend([3, 140], filter_already_liked_items=False, N=8)
    assert ids.dtype == np.int32
    for row, user in enumerate((3, 140)):
        order = np.argsort(-scores[user], kind="stable")[:8]
        np.testing.assert_array_equal(ids[row], order)
        np.testing.assert_allclose(found[row], scores[user, order], rtol=1e-12)


def test_recommend_filters_and_restricts():
    model = fit()
    scores = model.user_factors[8] @ model.item_factors.T
    liked = PLAYS[8].indices
    ids, found = model.recommend(8, PLAYS[8], N=90)
    assert found.dtype == np.float32
    n_open = 90 - len(liked)
    assert set(ids[n_open:]) == set(liked)
    assert (found[n_open:] == np.finfo(np.float32).min).all()
    open_items = np.setdiff1d(np.arange(90), liked)
    order = open_items[np.argsort(-scores[open_items], kind="stable")]
    np.testing.assert_array_equal(ids[:n_open], order)
    np.testing.assert_array_equal(
        model.recommend(8, PLAYS[8], N=4, filter_items=order[[0, 2]])[0], order[[1, 3, 4, 5]]
    )
    ids, _ = model.recommend(8, PLAYS[8], N=10, items=order[[5, 3, 9]])
    np.testing.assert_array_equal(ids, order[[3, 5, 9]])
    assert model.recommend(8, PLAYS[8], N=1000)[0].shape == (90,)


def test_recommend_for_new_users():
    """With recalculation only the rows count, whoever they belong to."""
    model = fit()
    ids, scores = model.recommend([500, 501], PLAYS[:2], recalculate_user=True)
    users = model.recalculate_user([500, 501], PLAYS[:2])
    for row in range(2):
        expected = model.item_factors[ids[row]] @ users[row]
        np.testing.assert_allclose(scores[row], expected, rtol=1e-5)
        assert not set(ids[row]) & set(PLAYS[row].indices)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"userid": 150}, IdRangeError, "userid.*0 to 149"),
        ({"userid": -1}, IdRangeError, "userid"),
        ({"userid": "ann"}, InputError, "userid"),
        ({"userid": 0, "N": 0}, InputError, "N must be"),
        ({"userid": 0, "user_items": None}, InputError, "user_items is needed to filter"),
        (
            {"userid": 0, "user_items": None, "recalculate_user": True,
             "filter_already_liked_items": False},
            InputError, "user_items is needed to recalculate",
        ),
        ({"userid": 0, "user_items": PLAYS}, InputError, "1 row for every requested user"),
        ({"userid": 0, "user_items": sp.csr_matrix((1, 91))}, InputError, "91 columns"),
        ({"userid": 0, "items": [3], "filter_items": [4]}, InputError, "both"),
        ({"userid": 0, "items": [90]}, IdRangeError, "items.*0 to 89"),
        ({"userid": 0, "filter_items": [90]}, IdRangeError, "filter_items"),
    ],
)  # fmt: skip
def test_bad_recommend(arguments, error, message):
    with pytest.raises(error, match=message):
        fit().recommend(**{"user_items": PLAYS[0]} | arguments)


@pytest.mark.parametrize(
    "params",
    [{}, {"alpha": 4.0}, {"unobserved_weight": 0.3, "regularization_exponent": 0.5}],
)
@pytest.mark.parametrize("side", ["user", "item"])
def test_recalculating_is_an_exact_half_sweep(side, params):
    model = fit(MIXED if not params else PLAYS, dtype=np.float64, **params)
    matrix = MIXED if not params else PLAYS
    rows = (matrix if side == "user" else matrix.T.tocsr())[[4, 2, 9]]
    before = model.user_factors.copy(), model.item_factors.copy()
    found = getattr(model, f"recalculate_{side}")([4, 2, 9], rows)
    fixed = model.item_factors if side == "user" else model.user_factors
    for row in range(3):
        indices, c = rows[row].indices, model.alpha * rows[row].data
        if "unobserved_weight" in params:
            ridge = 0.05 * (len(indices) + 0.3 * len(fixed)) ** 0.5
            expected = solve_row(fixed, indices, c, c, ridge, 0.3 * fixed.T @ fixed)
        else:
            gram, target = np.abs(c) - 1, np.maximum(c, 0)
            expected = solve_row(fixed, indices, gram, target, 0.05, fixed.T @ fixed)
        np.testing.assert_allclose(found[row], expected, rtol=1e-9, atol=1e-12)
    one = getattr(model, f"recalculate_{side}")(2, rows[1])
    np.testing.assert_allclose(one, found[1], rtol=1e-12)
    np.testing.assert_array_equal(model.user_factors, before[0])
    np.testing.assert_array_equal(model.item_factors, before[1])


@pytest.mark.parametrize(
    "call",
    [
        lambda m: m.recommend(0, PLAYS[0]),
        lambda m: m.recalculate_user(0, PLAYS[0]),
        lambda m: m.recalculate_item(0, PLAYS[:, 0].T),
        lambda m: m.user_index([0]),
        lambda m: m.save(io.BytesIO()),
    ],
)
def test_methods_before_fit(call):
    with pytest.raises(NotFittedError, match="fit"):
        call(AlternatingLeastSquares())


# --- parameters and files ------------------------------------------------------------------------


def test_parameters_round_trip():
    given = {
        "factors": 7, "regularization": 0.2, "alpha": 2.0, "dtype": np.dtype(np.float64),
        "use_native": False, "use_cg": False, "use_gpu": False, "iterations": 3,
        "calculate_training_loss": True, "num_threads": 2, "random_state": 5,
        "unobserved_weight": 0.5, "regularization_exponent": 0.75,
        "precision": "tf32x3",
    }  # fmt: skip
    model = AlternatingLeastSquares(**given)
    assert model.get_params() == given
    copy = type(model)(**model.get_params())
    assert copy.get_params() == given
    for name, value in copy.get_params().items():  # what sklearn.base.clone insists on
        assert value is model.get_params()[name]
    assert "alpha=2.0" in repr(model)
    assert model.set_params(alpha=3.0) is model
    assert (model.alpha, model.factors) == (3.0, 7)


def test_positional_parameters_come_in_implicits_order():
    model = AlternatingLeastSquares(7, 0.2, 2.0, np.float64, False, False, None, 3, True, 2, 5)
    expected = {
        "factors": 7, "regularization": 0.2, "alpha": 2.0, "dtype": np.float64,
        "use_native": False, "use_cg": False, "use_gpu": None, "iterations": 3,
        "calculate_training_loss": True, "num_threads": 2, "random_state": 5,
    }  # fmt: skip
    for name, value in expected.items():
        assert getattr(model, name) == value
    assert model.cg_steps == 3
    assert model.fit_callback is model.user_factors is model.item_factors is None


def test_defaults_are_implicits():
    model = AlternatingLeastSquares()
    found = model.factors, model.regularization, model.alpha, model.iterations, model.dtype
    assert found == (100, 0.01, 1.0, 15, np.float32)
    assert model.use_cg
    assert model.num_threads == 0


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"factors": 0}, "factors must be an integer of at least 1"),
        ({"factors": 1.5}, "factors"),
        ({"regularization": -1}, "regularization must be a finite number of at least 0"),
        ({"regularization": np.nan}, "regularization"),
        ({"alpha": 0}, "alpha must be a finite number above 0"),
        ({"alpha": -1.0}, "alpha"),
        ({"dtype": np.float16}, "dtype"),
        ({"dtype": "text"}, "dtype"),
        ({"iterations": -1}, "iterations"),
        ({"num_threads": -1}, "num_threads"),
        ({"unobserved_weight": -1}, "unobserved_weight"),
        ({"regularization_exponent": -0.5}, "regularization_exponent"),
        ({"regularization_exponent": "half"}, "regularization_exponent"),
    ],
)
def test_bad_parameters(params, message):
    with pytest.raises(InputError, match=message):
        AlternatingLeastSquares(**params)


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"use_cg": False, "dtype": np.float64, "alpha": 3.0},
        {"unobserved_weight": 0.5, "regularization_exponent": 0.75},
        {"random_state": None},
        {"random_state": np.random.RandomState(4)},
    ],
)
def test_save_and_load(tmp_path, params):
    model = fit(**params)
    model.cg_steps = 5
    model.save(tmp_path / "model")
    loaded = AlternatingLeastSquares.load(tmp_path / "model.npz")
    np.testing.assert_array_equal(loaded.user_factors, model.user_factors)
    np.testing.assert_array_equal(loaded.item_factors, model.item_factors)
    expected = model.get_params()
    if not isinstance(expected["random_state"], int):
        expected["random_state"] = None
    assert loaded.get_params() == expected
    assert loaded.cg_steps == 5
    assert loaded.user_factors.dtype == model.dtype
    np.testing.assert_array_equal(loaded.recommend(3, PLAYS[3])[0], model.recommend(3, PLAYS[3])[0])
    loaded.fit(PLAYS, show_progress=False)  # goes on where the saved model stood


def test_ids_are_saved():
    buffer = io.BytesIO()
    plays = Interactions.from_triples(["b", "a", "c"], [30, 10, 20])
    fit(plays).save(buffer)
    buffer.seek(0)
    loaded = AlternatingLeastSquares.load(buffer)
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
            AlternatingLeastSquares.load(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"user_factors": None}, "user_factors is missing"),
        ({"item_factors": None}, "item_factors is missing"),
        ({"item_factors": np.zeros((90, 5), np.float32)}, "do not fit"),
        ({"user_factors": np.zeros(6, np.float32)}, "user_factors.*no matrix"),
        ({"user_factors": np.full((150, 6), "a")}, "user_factors.*no matrix"),
        ({"user_factors": np.full((150, 6), np.nan)}, "user_factors holds NaN"),
        ({"factors": 7}, "factors=7"),
        ({"factors": np.arange(3)}, "parameter"),
        ({"factors": "six"}, "parameter.*factors"),
        ({"regularization": -1.0}, "parameter.*regularization"),
        ({"dtype": "int8"}, "parameter.*dtype"),
        ({"cg_steps": 0}, "parameter.*cg_steps"),
        ({"user_ids": np.arange(3)}, "user_ids"),
    ],
)
def test_an_inconsistent_file(saved, changes, message):
    with np.load(saved) as archive:
        arrays = {**archive, **changes}
    np.savez(saved, **{name: array for name, array in arrays.items() if array is not None})
    with pytest.raises(ModelFileError, match=message):
        AlternatingLeastSquares.load(saved)


def test_a_foreign_file(tmp_path):
    path = tmp_path / "foreign.npz"
    path.write_bytes(b"user,item\n1,2\n")
    with pytest.raises(ModelFileError, match=r"foreign\.npz"):
        AlternatingLeastSquares.load(path)
    np.savez(path, a=np.zeros(3))
    with pytest.raises(ModelFileError, match="no AlternatingLeastSquares model"):
        AlternatingLeastSquares.load(path)
    np.savez(path, user_factors=np.array([[{}]], dtype=object))
    with pytest.raises(ModelFileError, match="pickled"):
        AlternatingLeastSquares.load(path)
    with pytest.raises(FileNotFoundError):
        AlternatingLeastSquares.load(tmp_path / "missing.npz")
