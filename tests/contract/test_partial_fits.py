"""Rows solved after training: recalculated, folded in, or stored by ``partial_fit_*``."""

import gc
import weakref

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from powerlaw import powerlaw_interactions
from reference import solve_row

from contract.common import (
    FACTORS,
    FEEDBACK,
    MIXED,
    N_ITEMS,
    N_USERS,
    PLAYS,
    any_alpha,
    any_feedback,
    any_regularization,
    assert_agree,
    exact_rows,
    feedback,
    fitted,
    make,
    on_host,
    trained,
)
from gpu_als import Interactions
from gpu_als.errors import InputError

SIDES = {"users": 0, "items": 1}
CHANGED = {
    "users": ("user_norms", "XtX", "items folded in"),
    "items": ("item_norms", "YtY", "users folded in", "similar items", "explain"),
}
both_sides = pytest.mark.parametrize("side", SIDES)


def rows_of(user_items, side):
    return user_items if side == "users" else user_items.T.tocsr()


def held(model, side):
    """Return the factors that a half-sweep over one side holds."""
    return on_host(model)[1 - SIDES[side]]


def fold_in(model, side, rows):
    return getattr(model, f"fold_in_{side}")(rows)


def partial_fit(model, side, ids, rows):
    return getattr(model, f"partial_fit_{side}")(ids, rows)


# --- fold_in -------------------------------------------------------------------------------------


@both_sides
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_thousands_fold_in_as_one_exact_half_sweep(use_gpu, side, dtype):
    """Rows of every length, likes and dislikes, against the reference row by row."""
    model = trained(use_gpu, alpha=2.0, dtype=dtype)
    fixed = held(model, side)
    many = powerlaw_interactions(2500, len(fixed), 20_000, seed=6)
    many.data[::5] *= -1
    assert len(set(np.diff(many.indptr))) > 20
    found = fold_in(model, side, many)
    assert found.dtype == dtype
    expected = exact_rows(fixed, many, alpha=2.0, regularization=0.05)
    assert_agree(found, expected, 1e-4 if dtype == np.float32 else 1e-10)
    errors = np.linalg.norm(found - expected, axis=1)
    sizes = np.linalg.norm(expected, axis=1)
    limit = 1e-3 if dtype == np.float32 else 1e-9
    assert (errors <= limit * sizes).all()


@any_feedback
@given(feedback(), any_alpha, any_regularization)
def test_any_rows_fold_in_as_one_exact_half_sweep(use_gpu, user_items, alpha, regularization):
    params = {"alpha": alpha, "regularization": regularization}
    model = fitted(user_items, dtype=np.float64, iterations=1, **params)
    model = model.to_gpu() if use_gpu else model
    for side in SIDES:
        rows = rows_of(user_items, side)
        expected = exact_rows(held(model, side), rows, **params)
        found = fold_in(model, side, rows)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-7 * (1 + abs(expected).max()))


def test_folding_in_the_trained_items_gives_the_trained_items(use_gpu):
    """Items are solved last, so an exact fit leaves them at the end of a half-sweep."""
    for name, user_items in FEEDBACK.items():
        model = trained(use_gpu, name, use_cg=False, alpha=1.5)
        found = model.fold_in_items(user_items.T.tocsr())
        assert_agree(found, on_host(model)[1], 1e-5)


@both_sides
def test_fold_in_with_the_objective_of_ials_is_its_half_sweep(use_gpu, side):
    """``w = alpha abs(r)``, base ``a0 Y^T Y``, ridge ``lambda (n_u + a0 n_items)^nu``."""
    ials = {"unobserved_weight": 0.3, "regularization_exponent": 0.5, "alpha": 2.0}
    model = trained(use_gpu, dtype=np.float64, **ials)
    fixed, rows = held(model, side), rows_of(PLAYS, side)
    found = fold_in(model, side, rows)
    for number in range(0, rows.shape[0], 9):
        row = rows[number]
        weights = 2.0 * row.data.astype(np.float64)
        ridge = 0.05 * (row.nnz + 0.3 * len(fixed)) ** 0.5
        base = 0.3 * fixed.T @ fixed
        expected = solve_row(fixed, row.indices, weights, weights, ridge, base)
        np.testing.assert_allclose(found[number], expected, rtol=1e-9, atol=1e-12)


@both_sides
def test_fold_in_heeds_parameters_changed_since(use_gpu, side):
    model, rows = trained(use_gpu), rows_of(PLAYS, side)[:30]
    for params in ({"regularization": 0.05}, {"regularization": 5.0}, {"alpha": 3.0}):
        model.set_params(**params)
        params = {"alpha": model.alpha, "regularization": model.regularization}
        assert_agree(fold_in(model, side, rows), exact_rows(held(model, side), rows, **params))


@both_sides
def test_rows_without_entries_fold_in_as_zero(use_gpu, side):
    model = trained(use_gpu)
    rows = sp.csr_matrix((3, len(held(model, side))))
    np.testing.assert_array_equal(fold_in(model, side, rows), np.zeros((3, FACTORS)))


@both_sides
def test_folding_in_stores_nothing(use_gpu, side):
    model = trained(use_gpu)
    before = model.user_factors, model.item_factors
    fold_in(model, side, rows_of(PLAYS, side)[:7])
    for found, expected in zip((model.user_factors, model.item_factors), before, strict=True):
        assert found is expected


# --- recalculate ---------------------------------------------------------------------------------


@both_sides
def test_recalculated_rows_are_exact_and_not_stored(use_gpu, side):
    model = trained(use_gpu, "mixed", alpha=2.0)
    before = model.user_factors, model.item_factors
    rows = rows_of(MIXED, side)[[4, 2, 9]]
    recalculate = model.recalculate_user if side == "users" else model.recalculate_item
    expected = exact_rows(held(model, side), rows, alpha=2.0, regularization=0.05)
    many = recalculate([4, 2, 9], rows)
    assert_agree(many, expected)
    one = recalculate(2, rows[1])
    assert one.shape == (FACTORS,)
    assert_agree(one, expected[1])
    assert model.user_factors is before[0]
    assert model.item_factors is before[1]


@both_sides
def test_recalculating_needs_one_row_per_number(use_gpu, side):
    model = trained(use_gpu, iterations=1)
    recalculate = model.recalculate_user if side == "users" else model.recalculate_item
    with pytest.raises(ValueError, match="1 row for every requested"):
        recalculate([1, 2], rows_of(PLAYS, side)[:3])


# --- partial_fit ---------------------------------------------------------------------------------


@both_sides
def test_partial_fit_stores_exact_rows_and_leaves_the_others(use_gpu, side):
    model = trained(use_gpu)
    before = on_host(model)
    rows = rows_of(PLAYS, side)[[50, 51, 52]]
    assert partial_fit(model, side, [9, 0, 60], rows) is None
    after, place = on_host(model), SIDES[side]
    expected = before[place].copy()
    expected[[9, 0, 60]] = exact_rows(before[1 - place], rows, alpha=1.0, regularization=0.05)
    assert_agree(after[place], expected)
    others = np.setdiff1d(np.arange(len(expected)), [9, 0, 60])
    np.testing.assert_array_equal(after[place][others], before[place][others])
    np.testing.assert_array_equal(after[1 - place], before[1 - place])


@both_sides
def test_partial_fit_grows_with_rows_of_zero_between(use_gpu, side):
    model = trained(use_gpu)
    size = len(on_host(model)[SIDES[side]])
    partial_fit(model, side, [size + 4], rows_of(PLAYS, side)[50])
    grown = on_host(model)[SIDES[side]]
    assert grown.shape == (size + 5, FACTORS)
    assert not grown[size : size + 4].any()
    assert grown[size + 4].any()


@both_sides
def test_what_is_derived_is_fresh_after_a_partial_fit(use_gpu, side):
    """Norms, Grams, similar rows, recommendations and rows folded in: as of a new model."""
    model = trained(use_gpu)

    def derived(model):
        return {
            "user_norms": model.user_norms,
            "item_norms": model.item_norms,
            "XtX": model.XtX,
            "YtY": model.YtY,
            "similar users": model.similar_users(3, N=20)[1],
            "similar items": model.similar_items(3, N=20)[1],
            "recommend": model.recommend([3, 9], filter_already_liked_items=False)[1],
            "users folded in": model.fold_in_users(PLAYS[:3]),
            "items folded in": model.fold_in_items(PLAYS.T.tocsr()[:3]),
            "predict": model.predict(9, 9),
            "explain": model.explain(3, PLAYS, 9)[0],
        }

    before = derived(model)
    size = len(on_host(model)[SIDES[side]])
    partial_fit(model, side, [9, size + 1], rows_of(PLAYS, side)[[50, 51]] * 30)
    after = derived(model)
    fresh = make(use_gpu=use_gpu)
    fresh.user_factors, fresh.item_factors = on_host(model)
    for name, expected in derived(fresh).items():
        np.testing.assert_array_equal(after[name], expected, err_msg=name)
    changed = {name for name in after if not np.array_equal(after[name], before[name])}
    assert changed >= {"recommend", "predict", *CHANGED[side]}


@both_sides
def test_the_former_rows_are_let_go_with_all_that_is_derived_from_them(use_gpu, side):
    """At once, and not when norms or similar rows are next asked for."""
    model = trained(use_gpu)
    similar, other_gram = (
        (model.similar_users, "YtY") if side == "users" else (model.similar_items, "XtX")
    )
    similar(3)
    kept = getattr(model, other_gram)
    factors = getattr(model, f"{side[:-1]}_factors")
    former = weakref.ref(factors)
    del factors
    partial_fit(model, side, [9], rows_of(PLAYS, side)[50])
    gc.collect()
    assert former() is None
    assert getattr(model, other_gram) is kept


def test_a_new_item_is_recommended_at_once(use_gpu):
    model = trained(use_gpu)
    fans = PLAYS.T.tocsr()[2].copy()
    fans.data[:] = 50
    model.partial_fit_items([N_ITEMS], fans)
    user = fans.indices[0]
    ids, scores = model.recommend(user, PLAYS[user], N=N_ITEMS + 1)  # rows of the former width
    exact = on_host(model)[0][user] @ on_host(model)[1][N_ITEMS]
    (place,) = np.flatnonzero(ids == N_ITEMS)
    assert scores[place] == pytest.approx(exact, rel=1e-4)


def test_a_new_user_gets_recommendations_at_once(use_gpu):
    model = trained(use_gpu)
    model.partial_fit_users([N_USERS], PLAYS[3])
    found = model.recommend(N_USERS, PLAYS[3])
    expected = model.recommend(0, PLAYS[3], recalculate_user=True)
    np.testing.assert_array_equal(found[0], expected[0])
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-5)


@both_sides
def test_partial_fit_does_not_write_to_factors_that_others_hold(use_gpu, side):
    """Who took a side, or both, before the call reads what was there."""
    model = trained(use_gpu)
    held_by_others = model.user_factors, model.item_factors
    copies = [np.array(one) for one in held_by_others]
    partial_fit(model, side, [0, 9], rows_of(PLAYS, side)[[50, 51]])
    for array, copy in zip(held_by_others, copies, strict=True):
        np.testing.assert_array_equal(np.asarray(array), copy)


@both_sides
def test_a_model_with_ids_grows_by_ids(use_gpu, side):
    model = make(use_gpu=use_gpu)
    plays = Interactions.from_triples(
        *zip(
            *((f"user {u}", f"item {i}") for u, i in zip(*PLAYS.nonzero(), strict=True)),
            strict=True,
        )
    )
    model.fit(plays, show_progress=False)
    before = on_host(model)
    rows, name = rows_of(plays.user_items, side), {"users": "user", "items": "item"}[side]
    ids = getattr(model, f"{name}_ids")
    known = str(ids[7])
    expected = getattr(model, f"fold_in_{side}")(rows[[50, 51, 52]])
    partial_fit(model, side, ["new", known, "another"], rows[[50, 51, 52]])
    grown = on_host(model)[SIDES[side]]
    assert getattr(model, f"{name}_ids").tolist() == [*ids.tolist(), "another", "new"]
    found = grown[getattr(model, f"{name}_index")(["new", known, "another"])]
    np.testing.assert_array_equal(found, expected)
    others = np.delete(np.arange(len(ids)), 7)
    np.testing.assert_array_equal(grown[others], before[SIDES[side]][others])
    with pytest.raises(InputError, match="the ids of this model are texts"):
        partial_fit(model, side, [123456], rows[50])


@both_sides
@pytest.mark.parametrize(
    ("ids", "n_rows", "error"),
    [
        ([1, 2], 1, ValueError),
        ([1], 2, ValueError),
        ([-1], 1, IndexError),
        ([2**31], 1, IndexError),
    ],
)
def test_bad_partial_fits_change_nothing(use_gpu, side, ids, n_rows, error):
    model = trained(use_gpu, iterations=1)
    before = model.user_factors, model.item_factors
    with pytest.raises(error):
        partial_fit(model, side, ids, rows_of(PLAYS, side)[:n_rows])
    assert model.user_factors is before[0]
    assert model.item_factors is before[1]
