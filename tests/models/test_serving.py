"""The two estimators serve alike: from the same factors the same answers, biases added where due.

Expected values with biases come from the formulas in float64: ``score = mean + b_u + b_i + x.y``.
"""

import copy
import io
import pickle

import numpy as np
import pytest
import scipy.sparse as sp
from helpers import nonnegative_minimiser, random_ratings
from reference import row_system

from gpu_als import AlternatingLeastSquares, ExplicitALS, Interactions
from gpu_als.core.half_sweep import hold_fixed
from gpu_als.errors import InputError, ModelFileError, NotFittedError
from gpu_als.models import fold_in as folding

N_USERS, N_ITEMS, FACTORS, MEAN = 40, 30, 5, 3.25
RATINGS = random_ratings(N_USERS, N_ITEMS, 0.3, 501)
ITEM_USERS = RATINGS.T.tocsr()
SOME = np.array([3, 17, 5])
ZERO = 9  # a row whose factors are zero
LOWEST = np.finfo(np.float64).min

rng = np.random.default_rng(503)
USERS, ITEMS = rng.standard_normal((N_USERS, FACTORS)), rng.standard_normal((N_ITEMS, FACTORS))
USERS[ZERO], ITEMS[ZERO] = 0, 0
USER_BIASES, ITEM_BIASES = rng.standard_normal(N_USERS), rng.standard_normal(N_ITEMS)


def implicit(**options):
    options = {"regularization": 0.3, "dtype": np.float64, "use_gpu": False} | options
    model = AlternatingLeastSquares(FACTORS, **options)
    model.user_factors, model.item_factors = USERS, ITEMS
    return model


def plain(**options):
    """Return a model of ratings without biases, from the same factors."""
    options = {"regularization": 0.3, "dtype": np.float64, "backend": "numpy"} | options
    model = ExplicitALS(FACTORS, bias=False, **options)
    model.user_factors, model.item_factors = USERS, ITEMS
    return model


def biased(**options):
    options = {"regularization": 0.3, "dtype": np.float64, "backend": "numpy"} | options
    model = ExplicitALS(FACTORS, **options)
    model.user_factors, model.item_factors = USERS, ITEMS
    model.user_biases, model.item_biases, model.global_mean = USER_BIASES, ITEM_BIASES, MEAN
    return model


EVERY = {"implicit": implicit, "plain": plain, "biased": biased}
every_model = pytest.mark.parametrize("make", EVERY.values(), ids=EVERY)
both_sides = pytest.mark.parametrize("side", ["user", "item"])


def scores_of(model):
    """Return all predictions in float64, shape (n_users, n_items)."""
    found = model.user_factors @ model.item_factors.T
    if isinstance(model, ExplicitALS):
        found += model.global_mean + model.user_biases[:, None] + model.item_biases
    return found


ANSWERS = {
    "predict": lambda m: m.predict(SOME, [4, 9, 11]),
    "recommend": lambda m: m.recommend(SOME, RATINGS[SOME], N=7),
    "recommend to one": lambda m: m.recommend(3, RATINGS[3], N=7),
    "the whole catalogue": lambda m: m.recommend(SOME, RATINGS[SOME], N=99, filter_items=[4, 2]),
    "among items": lambda m: m.recommend(SOME, RATINGS[SOME], items=[4, 9, 11, 2, 20]),
    "above a score": lambda m: m.recommend(SOME, RATINGS[SOME], N=20, min_score=0.5),
    "similar users": lambda m: m.similar_users(SOME, N=8),
    "similar items": lambda m: m.similar_items(11, filter_items=[2, 3]),
    "user norms": lambda m: m.user_norms,
    "item norms": lambda m: m.item_norms,
    "XtX": lambda m: m.XtX,
    "YtY": lambda m: m.YtY,
    "user_index": lambda m: m.user_index([4, 9]),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_the_same_factors_give_the_same_answers(name):
    np.testing.assert_array_equal(ANSWERS[name](plain()), ANSWERS[name](implicit()))


def test_the_same_files_of_recommendations(tmp_path):
    for name, model in (("a", plain()), ("b", implicit())):
        model.recommend_to_file(tmp_path / f"{name}.npy", RATINGS, N=4, show_progress=False)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


# --- scores --------------------------------------------------------------------------------------


@every_model
def test_predictions_are_the_formula(make):
    model = make()
    pairs = np.divmod(np.arange(N_USERS * N_ITEMS), N_ITEMS)
    np.testing.assert_allclose(model.predict(*pairs), scores_of(model).ravel(), rtol=1e-13)
    assert model.predict(3, 9) == pytest.approx(scores_of(model)[3, 9], rel=1e-13)


@every_model
@pytest.mark.parametrize("users", [[3], SOME, np.arange(N_USERS)], ids=len)
def test_recommendations_are_the_largest_predictions(make, users):
    model = make()
    exact = scores_of(model)[users]
    exact[RATINGS[users].nonzero()] = LOWEST
    order = np.argsort(-exact, axis=1, kind="stable")[:, :6]
    ids, scores = model.recommend(users, RATINGS[users], N=6)
    np.testing.assert_array_equal(ids, order)
    np.testing.assert_allclose(scores, np.take_along_axis(exact, order, 1), rtol=1e-13)


@every_model
def test_filtered_items_have_the_lowest_score_whatever_the_biases(make):
    model = make()
    if make is biased:
        model.user_biases = np.full(N_USERS, 1e300)
    ids, scores = model.recommend(3, RATINGS[3], N=N_ITEMS)
    liked = RATINGS[3].indices
    assert set(ids[-len(liked) :]) == set(liked)
    assert (scores[-len(liked) :] == LOWEST).all()
    assert (scores[: -len(liked)] > LOWEST).all()


@every_model
def test_the_least_score_counts_with_the_biases(make):
    model = make()
    full = model.recommend(SOME, RATINGS[SOME], N=N_ITEMS)
    limit = float(np.median(full[1][full[1] > LOWEST]))
    ids, scores = model.recommend(SOME, RATINGS[SOME], N=N_ITEMS, min_score=limit)
    low = full[1] < limit
    np.testing.assert_array_equal(ids, np.where(low, -1, full[0]))
    np.testing.assert_array_equal(scores, np.where(low, LOWEST, full[1]))


# --- similar rows --------------------------------------------------------------------------------


def similar(model, side, ids, **options):
    return getattr(model, f"similar_{side}s")(ids, **options)


@every_model
@both_sides
def test_biases_make_no_row_similar(make, side):
    model = make()
    factors = getattr(model, f"{side}_factors")
    unit = factors / np.maximum(np.linalg.norm(factors, axis=1), 1e-10)[:, None]
    cosines = unit @ unit.T
    ids, scores = similar(model, side, SOME, N=9)
    exact = np.take_along_axis(cosines[SOME], ids, 1)
    np.testing.assert_allclose(scores, exact, rtol=1e-12)
    np.testing.assert_allclose(scores, -np.sort(-cosines[SOME], axis=1)[:, :9], rtol=1e-12)


@every_model
@both_sides
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_best", [1, 4, 999])
def test_every_row_is_first_in_its_own_list_with_score_1(make, side, dtype, n_best):
    """Also among rows that point the same way, of which there are more than the list is long."""
    model = make(dtype=dtype)
    factors = getattr(model, f"{side}_factors").astype(dtype)
    factors[10:25] = factors[10] * np.arange(1, 16)[:, None].astype(dtype)
    setattr(model, f"{side}_factors", factors)
    everybody = np.arange(len(factors))
    ids, scores = similar(model, side, everybody, N=n_best)
    known = everybody != ZERO
    np.testing.assert_array_equal(ids[known, 0], everybody[known])
    np.testing.assert_array_equal(scores[known, 0], 1)
    assert (np.diff(scores, axis=1) <= 0).all()
    assert all(len(set(row)) == len(row) for row in ids)
    np.testing.assert_array_equal(scores[ZERO], 0)
    for row in (0, 12, 24):
        one = similar(model, side, row, N=n_best)
        assert (one[0][0], one[1][0]) == (row, 1)


@both_sides
def test_a_row_is_left_out_of_its_list_where_it_may_not_be_in_it(side):
    model = biased()
    ids, scores = similar(model, side, 4, N=3, **{f"{side}s": [7, 8, 2, 11]})
    assert 4 not in ids
    assert scores[0] < 1
    ids, scores = similar(model, side, 4, N=999, **{f"filter_{side}s": [4, 7]})
    assert set(ids[-2:]) == {4, 7}
    assert (scores[-2:] == LOWEST).all()


@both_sides
def test_norms_and_cosines_of_tiny_and_huge_rows_are_right(side):
    """Whose squares vanish or overflow in float32."""
    model = biased(dtype=np.float32)
    factors = getattr(model, f"{side}_factors").astype(np.float32)
    expected = similar(model, side, 4, N=5)
    factors[4] *= np.float32(1e-30)
    factors[expected[0][1]] *= np.float32(1e30)
    setattr(model, f"{side}_factors", factors)
    exact = np.linalg.norm(factors.astype(np.float64), axis=1)
    norms = getattr(model, f"{side}_norms")
    np.testing.assert_allclose(norms[exact > 0], exact[exact > 0], rtol=1e-6)
    found = similar(model, side, 4, N=5)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)


@pytest.mark.parametrize(("make", "width"), [(plain, FACTORS), (biased, FACTORS + 1)])
def test_norms_and_grams_leave_biases_out(make, width):
    model = make()
    np.testing.assert_allclose(model.user_norms[:ZERO], np.linalg.norm(USERS[:ZERO], axis=1))
    np.testing.assert_allclose(model.YtY, ITEMS.T @ ITEMS, rtol=1e-12)
    assert model._fitted.items.matrix.shape == (N_ITEMS, width)


# --- rows solved after training ------------------------------------------------------------------

VARIANTS = {
    "scaled": {},
    "one ridge": {"scale_regularization": None},
    "per side": {"regularization": (0.2, 0.7)},
    "non-negative": {"nonnegative": True},
}


def exact_row(model, side, row):
    """Return factors and bias of one row of ratings, by the normal equations in float64."""
    fixed, biases = (
        (model.item_factors, model.item_biases)
        if side == "users"
        else (model.user_factors, model.user_biases)
    )
    penalty = np.broadcast_to(model.regularization, 2)[["users", "items"].index(side)]
    ridge = penalty * max(row.nnz, 1) if model.scale_regularization else penalty
    partners = np.column_stack([fixed, np.ones(len(fixed))]) if model.bias else fixed
    target = row.data - model.global_mean - biases[row.indices]
    lhs, rhs = row_system(partners, row.indices, np.ones(row.nnz), target, ridge)
    if model.nonnegative:
        return lhs, nonnegative_minimiser(lhs, rhs, free_columns=int(model.bias))
    return lhs, np.linalg.solve(lhs, rhs)


@pytest.mark.parametrize("make", [plain, biased])
@pytest.mark.parametrize("params", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("side", ["users", "items"])
def test_every_way_to_solve_ratings_gives_the_minimum(make, params, side):
    model = make(**params)
    rows = (RATINGS if side == "users" else ITEM_USERS)[SOME]
    expected = np.array([exact_row(model, side, row)[1] for row in rows])
    factors, biases = getattr(model, f"fold_in_{side}")(rows, return_biases=True)
    close = {"rtol": 1e-8, "atol": 1e-10}
    np.testing.assert_allclose(factors, expected[:, :FACTORS], **close)
    np.testing.assert_allclose(biases, expected[:, FACTORS] if model.bias else 0, **close)
    recalculated = getattr(model, f"recalculate_{side[:-1]}")
    np.testing.assert_array_equal(recalculated(SOME, rows), factors)
    np.testing.assert_array_equal(recalculated(SOME[0], rows[0]), factors[0])

    before = [np.array(getattr(model, f"{name}_factors")) for name in ("user", "item")]
    place = ["users", "items"].index(side)
    size = len(before[place])
    places = np.array([4, size + 2, 0])
    getattr(model, f"partial_fit_{side}")(places, rows)
    found = getattr(model, f"{side[:-1]}_factors"), getattr(model, f"{side[:-1]}_biases")
    np.testing.assert_array_equal(found[0][places], factors)
    np.testing.assert_array_equal(found[1][places], biases)
    assert not found[0][size : size + 2].any()
    others = np.setdiff1d(np.arange(size), places)
    np.testing.assert_array_equal(found[0][others], before[place][others])
    held = model.item_factors if side == "users" else model.user_factors
    np.testing.assert_array_equal(held, before[1 - place])


@every_model
def test_recommendations_to_new_users_are_those_of_their_solved_factors(make):
    model, new = make(), RATINGS[SOME]
    factors, biases = model.fold_in_users(new, return_biases=True)
    exact = factors @ ITEMS.T
    if make is biased:
        exact += MEAN + biases[:, None] + ITEM_BIASES
    ids, scores = model.recommend(
        SOME, new, N=9, filter_already_liked_items=False, recalculate_user=True
    )
    np.testing.assert_allclose(scores, -np.sort(-exact, axis=1)[:, :9], rtol=1e-11)
    np.testing.assert_allclose(scores, np.take_along_axis(exact, ids, 1), rtol=1e-11)


@every_model
def test_items_similar_to_new_ones_have_the_largest_cosine_with_their_solved_factors(make):
    model, rows = make(), ITEM_USERS[SOME]
    solved = model.fold_in_items(rows)
    exact = (solved / np.linalg.norm(solved, axis=1)[:, None]) @ (
        ITEMS / np.maximum(np.linalg.norm(ITEMS, axis=1), 1e-10)[:, None]
    ).T
    ids, scores = model.similar_items([700, 701, 702], 6, recalculate_item=True, item_users=rows)
    np.testing.assert_allclose(scores, -np.sort(-exact, axis=1)[:, :6], rtol=1e-10)
    np.testing.assert_allclose(scores, np.take_along_axis(exact, ids, 1), rtol=1e-10)


OBJECTIVES = {
    "implicit": (implicit, {}),
    "iALS": (implicit, {"unobserved_weight": 0.2}),
    "iALS with an exponent": (
        implicit, {"unobserved_weight": 0.2, "regularization_exponent": 0.7},
    ),
    "ratings": (plain, {}),
    "ratings with biases": (biased, {"scale_regularization": None}),
}  # fmt: skip


@pytest.mark.parametrize(("make", "params"), OBJECTIVES.values(), ids=OBJECTIVES)
@pytest.mark.parametrize("side", ["users", "items"])
def test_what_rows_share_is_worked_out_once_for_a_value(monkeypatch, make, params, side):
    """However many entries the rows have; and anew for other parameters or factors."""
    made = []

    def hold(*arguments, **options):
        made.append(arguments[2])
        return hold_fixed(*arguments, **options)

    monkeypatch.setattr(folding, "hold_fixed", hold)
    model = make(**params)
    rows = RATINGS if side == "users" else ITEM_USERS
    fold = getattr(model, f"fold_in_{side}")
    together = fold(rows[:9])
    for row in range(9):
        np.testing.assert_array_equal(fold(rows[row])[0], together[row])
    model.fold_in_users(RATINGS[:1])
    model.fold_in_items(ITEM_USERS[:1])
    assert sorted(made) == ["items", "users"]
    other = model.regularization * 2
    expected = make(**params | {"regularization": other})
    model.set_params(regularization=other)
    np.testing.assert_array_equal(fold(rows), getattr(expected, f"fold_in_{side}")(rows))
    if side == "users":
        model.partial_fit_items([0], ITEM_USERS[5])
    else:
        model.partial_fit_users([0], RATINGS[5])
    assert not np.array_equal(fold(rows), getattr(expected, f"fold_in_{side}")(rows))


def test_weights_are_for_ratings():
    with pytest.raises(InputError, match="sample_weight is for ratings"):
        implicit().fold_in_users(RATINGS, sample_weight=np.ones(RATINGS.nnz))


# --- explanations --------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [plain, biased])
@pytest.mark.parametrize("params", VARIANTS.values(), ids=VARIANTS)
def test_an_explanation_of_a_rating_is_a_sum_over_the_ratings(make, params):
    """``mean + b_i + sum_j y_i^T lhs^-1 y_j t_j`` with a 1 behind every y for the user's bias."""
    model, user, item = make(**params), 3, 8
    row = RATINGS[user]
    lhs, solved = exact_row(model, "users", row)
    partners = np.column_stack([ITEMS, np.ones(N_ITEMS)]) if model.bias else ITEMS
    free = solved != 0
    inverse = np.zeros_like(lhs)
    inverse[np.ix_(free, free)] = np.linalg.inv(lhs[np.ix_(free, free)])
    target = row.data - model.global_mean - model.item_biases[row.indices]
    shares = (partners[row.indices] @ inverse @ partners[item]) * target
    exact = model.global_mean + model.item_biases[item] + partners[item] @ solved
    if params.get("nonnegative"):
        assert 0 < np.count_nonzero(free[:FACTORS]) < FACTORS

    score, best, weights = model.explain(user, RATINGS, item, N=1000)
    assert score == pytest.approx(exact, rel=1e-9)
    assert score == pytest.approx(
        model.global_mean + model.item_biases[item] + sum(share for _, share in best), rel=1e-12
    )
    assert [share for _, share in best] == sorted((share for _, share in best), reverse=True)
    found = dict(best)
    assert sorted(found) == sorted(row.indices)
    for place, share in zip(row.indices, shares, strict=True):
        assert found[place] == pytest.approx(share, rel=1e-7, abs=1e-10)
    again = model.explain(user, RATINGS, 11, user_weights=weights)
    assert again[:2] == model.explain(user, RATINGS, 11)[:2]


def test_a_user_without_ratings_has_the_score_of_the_item_alone():
    score, best, _ = biased().explain(0, sp.csr_matrix((1, N_ITEMS)), 8)
    assert (score, best) == (pytest.approx(MEAN + ITEM_BIASES[8]), [])


# --- the value -----------------------------------------------------------------------------------


@every_model
@both_sides
def test_factors_that_are_set_make_another_value(make, side):
    model = make()
    before, predicted = model._fitted, model.predict(SOME, SOME)
    other = np.random.default_rng(504).standard_normal(getattr(model, f"{side}_factors").shape)
    kept = model.similar_users(3) if side == "item" else model.similar_items(3)
    setattr(model, f"{side}_factors", other)
    np.testing.assert_array_equal(getattr(model, f"{side}_factors"), other)
    np.testing.assert_allclose(model.predict(SOME, SOME), scores_of(model)[SOME, SOME], rtol=1e-13)
    same = "users" if side == "item" else "items"
    assert getattr(model._fitted, same) is getattr(before, same)
    again = model.similar_users(3) if side == "item" else model.similar_items(3)
    np.testing.assert_array_equal(again, kept)
    model._fitted = before
    np.testing.assert_array_equal(model.predict(SOME, SOME), predicted)


@both_sides
def test_biases_belong_to_their_factors(side):
    model = biased()
    factors, biases = getattr(model, f"{side}_factors"), getattr(model, f"{side}_biases")
    setattr(model, f"{side}_factors", factors * 2)
    np.testing.assert_array_equal(getattr(model, f"{side}_biases"), biases)
    setattr(model, f"{side}_factors", factors[:7])
    np.testing.assert_array_equal(getattr(model, f"{side}_biases"), np.zeros(7))
    setattr(model, f"{side}_biases", np.arange(7))
    np.testing.assert_array_equal(getattr(model, f"{side}_biases"), np.arange(7.0))
    np.testing.assert_array_equal(getattr(model, f"{side}_factors"), factors[:7])
    for bad in (np.zeros(8), np.zeros((7, 1)), ["a"] * 7):
        with pytest.raises(InputError, match="one for each row of factors"):
            setattr(model, f"{side}_biases", bad)
    for bad in (np.zeros(7), np.zeros((7, 2), int)):
        with pytest.raises(InputError, match="2-D arrays of float32 or float64"):
            setattr(model, f"{side}_factors", bad)


def test_a_model_without_biases_takes_none():
    model = plain()
    model.user_biases = np.zeros(N_USERS)
    with pytest.raises(InputError, match="bias=False"):
        model.user_biases = USER_BIASES
    np.testing.assert_array_equal(model.item_biases, np.zeros(N_ITEMS))


@every_model
@both_sides
def test_ids_go_with_their_rows(make, side):
    model = make()
    n_rows = len(getattr(model, f"{side}_factors"))
    setattr(model, f"{side}_ids", np.arange(n_rows)[::-1] + 100)
    np.testing.assert_array_equal(getattr(model, f"{side}_index")([100]), [n_rows - 1])
    factors = getattr(model, f"{side}_factors")
    setattr(model, f"{side}_factors", factors + 1)
    np.testing.assert_array_equal(getattr(model, f"{side}_index")([100]), [n_rows - 1])
    setattr(model, f"{side}_factors", factors[:-1])
    assert getattr(model, f"{side}_ids") is None
    with pytest.raises(InputError, match="ids must have shape"):
        setattr(model, f"{side}_ids", np.arange(n_rows))


@every_model
def test_copies_share_a_value_that_neither_can_change(make):
    model = make()
    model.similar_items(3)
    other = copy.copy(model)
    assert other._fitted.users is model._fitted.users
    other.partial_fit_users([0], RATINGS[5])
    np.testing.assert_array_equal(model.user_factors, USERS)
    assert len(pickle.dumps(model)) == len(pickle.dumps(make()))
    for moved in (pickle.loads(pickle.dumps(model)), copy.deepcopy(model), model.to_cpu()):
        for name, answer in ANSWERS.items():
            np.testing.assert_array_equal(answer(moved), answer(model), err_msg=name)
        moved.item_factors[:] = 0
        np.testing.assert_array_equal(model.item_factors, ITEMS)


@pytest.mark.parametrize("kind", [AlternatingLeastSquares, ExplicitALS])
def test_a_model_without_factors_says_so(kind):
    model = kind(FACTORS)
    for call in (
        *ANSWERS.values(),
        lambda m: m.fold_in_users(RATINGS),
        lambda m: m.fold_in_items(ITEM_USERS),
        lambda m: m.recalculate_user(0, RATINGS[0]),
        lambda m: m.recalculate_item(0, ITEM_USERS[0]),
        lambda m: m.partial_fit_users([0], RATINGS[0]),
        lambda m: m.partial_fit_items([0], ITEM_USERS[0]),
        lambda m: m.explain(0, RATINGS, 1),
        lambda m: m.recommend_to_file("never.npy", RATINGS),
    ):
        with pytest.raises(NotFittedError, match="fit"):
            call(model)


# --- files ---------------------------------------------------------------------------------------


def stored(model):
    file = io.BytesIO()
    model.save(file)
    file.seek(0)
    return file


@every_model
def test_a_model_comes_back_from_its_file(make):
    model = make()
    loaded = type(model).load(stored(model))
    for name in ANSWERS:
        np.testing.assert_array_equal(ANSWERS[name](loaded), ANSWERS[name](model), err_msg=name)


@pytest.mark.parametrize(
    "model",
    [
        AlternatingLeastSquares(7, regularization=0.5, use_cg=False, unobserved_weight=0.1),
        ExplicitALS(7, regularization=(0.1, 0.2), bias=False, scale_regularization=None, tol=0.1),
        ExplicitALS(),
    ],
    ids=str,
)
def test_a_model_without_factors_is_saved_and_trained_later(model):
    loaded = type(model).load(stored(model))
    assert loaded.get_params() == model.get_params()
    assert loaded.user_factors is loaded.item_factors is None
    loaded.fit(RATINGS, show_progress=False)
    assert loaded.user_factors.shape == (N_USERS, loaded.factors)


USER_IDS, ITEM_IDS = np.array([f"u{n}" for n in range(N_USERS)]), np.arange(N_ITEMS) + 100
FILES_OF_0_1_0 = {
    "ratings": (
        ExplicitALS,
        {
            "kind": "gpu_als.ExplicitALS",
            "user_factors": USERS,
            "item_factors": ITEMS,
            "user_biases": USER_BIASES,
            "item_biases": ITEM_BIASES,
            "global_mean": MEAN,
            "user_ids": USER_IDS,
            "item_ids": ITEM_IDS,
            "param_factors": FACTORS,
            "param_regularization": np.array([0.3, 0.3]),
            "param_scale_regularization": "count",
            "param_bias": True,
            "param_nonnegative": False,
            "param_iterations": 15,
            "param_solver": "auto",
            "param_dtype": "float64",
            "param_random_state": 7,
        },
        biased,
    ),
    "implicit": (
        AlternatingLeastSquares,
        {
            "user_factors": USERS,
            "item_factors": ITEMS,
            "user_ids": USER_IDS,
            "item_ids": ITEM_IDS,
            "regularization": 0.3,
            "factors": FACTORS,
            "num_threads": 0,
            "iterations": 15,
            "use_native": True,
            "use_cg": True,
            "cg_steps": 5,
            "calculate_training_loss": False,
            "random_state": 7,
            "alpha": 1.0,
            "dtype": "float64",
        },
        implicit,
    ),
}


@pytest.mark.parametrize(("kind", "arrays", "make"), FILES_OF_0_1_0.values(), ids=FILES_OF_0_1_0)
def test_files_of_version_0_1_0_load_and_are_still_written(tmp_path, kind, arrays, make):
    np.savez(tmp_path / "old.npz", **arrays)
    loaded, expected = kind.load(tmp_path / "old.npz"), make()
    assert loaded.random_state == 7
    np.testing.assert_array_equal(loaded.user_index(["u3"]), [3])
    np.testing.assert_array_equal(loaded.item_index([103]), [3])
    for name, answer in ANSWERS.items():
        if name != "user_index":
            found = answer(loaded.without_ids())
            np.testing.assert_array_equal(found, answer(expected.without_ids()), err_msg=name)
    np.testing.assert_array_equal(loaded.fold_in_users(RATINGS), expected.fold_in_users(RATINGS))
    if kind is AlternatingLeastSquares:
        assert loaded.cg_steps == 5
    with np.load(stored(loaded)) as written:
        assert set(written) == set(arrays)
    for side in ("user", "item"):
        np.savez(
            tmp_path / "lost.npz", **{n: a for n, a in arrays.items() if n != f"{side}_factors"}
        )
        with pytest.raises(ModelFileError, match=f"{side}_factors"):
            kind.load(tmp_path / "lost.npz")


@pytest.mark.parametrize("kind", [AlternatingLeastSquares, ExplicitALS])
def test_a_file_of_the_other_estimator_is_refused(kind):
    other = biased() if kind is AlternatingLeastSquares else implicit()
    with pytest.raises(ModelFileError, match=f"no {kind.__name__} model"):
        kind.load(stored(other))


def test_fits_keep_ids_and_predict_what_they_say():
    ratings = Interactions(RATINGS, USER_IDS, ITEM_IDS)
    for kind in (AlternatingLeastSquares, ExplicitALS):
        model = kind(FACTORS, iterations=2, dtype=np.float64, random_state=11)
        model.fit(ratings, show_progress=False)
        pairs = model.user_index(["u3", "u7"]), model.item_index([108, 101])
        found = model.predict(["u3", "u7"], [108, 101])
        np.testing.assert_allclose(found, scores_of(model)[pairs], rtol=1e-12)
