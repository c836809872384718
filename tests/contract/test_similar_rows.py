"""``similar_users``, ``similar_items``, and the norms and Grams they stand on."""

import numpy as np
import pytest

from contract.common import (
    FACTORS,
    N_ITEMS,
    N_USERS,
    PLAYS,
    assert_agree,
    assert_same_ranking,
    make,
    on_host,
    trained,
)

LOWEST = float(np.finfo(np.float32).min)
SIDES = {"users": (N_USERS, 0), "items": (N_ITEMS, 1)}
NOBODY = 7  # a user without a play, whose factors are zero

both_sides = pytest.mark.parametrize("side", SIDES)


@pytest.fixture
def model(use_gpu):
    return trained(use_gpu)


def cosines(model, side):
    """Return the cosine of every pair in float64; rows of zero have cosine 0 with everybody."""
    factors = on_host(model)[SIDES[side][1]].astype(np.float64)
    norms = np.linalg.norm(factors, axis=1)
    unit = factors / np.where(norms == 0, 1e-10, norms)[:, None]
    return unit @ unit.T


def similar(model, side, ids, **arguments):
    return getattr(model, f"similar_{side}")(ids, **arguments)


@both_sides
@pytest.mark.parametrize("n_best", [1, 10, 80])
def test_the_largest_cosines_come_first(model, side, n_best):
    exact = cosines(model, side)
    ids = [0, 60, 3]
    order = np.argsort(-exact[ids], axis=1, kind="stable")[:, :n_best]
    expected = order, np.take_along_axis(exact[ids], order, axis=1)
    assert_same_ranking(similar(model, side, ids, N=n_best), expected)


@both_sides
def test_a_row_is_most_similar_to_itself_with_score_1(model, side):
    # rows with the same few entries are as similar to one another as to themselves
    ids = np.flatnonzero((cosines(model, side) > 1 - 1e-6).sum(axis=1) == 1)
    assert len(ids) > 60
    found, scores = similar(model, side, ids, N=3)
    np.testing.assert_array_equal(found[:, 0], ids)
    np.testing.assert_allclose(scores[:, 0], 1, atol=1e-6)


@both_sides
def test_one_row_gets_one_dimension_and_many_get_two(model, side):
    for part in similar(model, side, 3):
        assert part.shape == (10,)
    for part in similar(model, side, [3, 0, 9]):
        assert part.shape == (3, 10)
    one, many = similar(model, side, 3), similar(model, side, [0, 3])
    assert_same_ranking(one, (many[0][1], many[1][1]))


@both_sides
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_similar_ids_are_int32_and_scores_of_the_factors_dtype(use_gpu, side, dtype):
    model = trained(use_gpu, dtype=dtype, iterations=1)
    for arguments in ({}, {side: [4, 9, 2]}):
        ids, scores = similar(model, side, 3, **arguments)
        assert (ids.dtype, scores.dtype) == (np.int32, dtype)


@both_sides
def test_filtered_rows_come_last_with_a_very_low_finite_score(model, side):
    size = SIDES[side][0]
    first = similar(model, side, 3, N=4)[0]
    ids, scores = similar(model, side, 3, N=size, **{f"filter_{side}": first})
    assert set(ids[-4:]) == set(first)
    assert (scores[-4:] == LOWEST).all()
    assert (scores[:-4] >= -1.00001).all()


@both_sides
def test_candidates_are_the_only_ones(model, side):
    chosen = np.array([70, 4, 12, 33, 5, 80])
    ids, scores = similar(model, side, 3, N=4, **{side: chosen})
    exact = cosines(model, side)[3]
    rank = chosen[np.argsort(-exact[chosen])][:4]
    assert_same_ranking((ids, scores), (rank, exact[rank]))


@both_sides
def test_n_is_cut_to_the_number_of_candidates(model, side):
    assert len(similar(model, side, 3, N=1000)[0]) == SIDES[side][0]
    assert len(similar(model, side, 3, N=1000, **{side: [9, 4, 9]})[0]) == 2


@both_sides
def test_candidates_and_a_filter_together_are_a_value_error(model, side):
    with pytest.raises(ValueError, match=rf"{side}.*filter_{side}"):
        similar(model, side, 3, **{side: [3, 4], f"filter_{side}": [4]})


@both_sides
def test_numbers_out_of_range_are_index_errors(model, side):
    size = SIDES[side][0]
    for ids, arguments in (
        (size, {}), (-1, {}), ([0, size], {}), (0, {side: [size]}), (0, {f"filter_{side}": [size]}),
    ):  # fmt: skip
        with pytest.raises(IndexError):
            similar(model, side, ids, **arguments)


def test_a_row_of_zero_is_similar_to_nobody(model):
    ids, scores = model.similar_users(NOBODY, N=4)
    np.testing.assert_array_equal(ids, np.arange(4))
    np.testing.assert_array_equal(scores, np.zeros(4))


def test_recalculate_item_looks_for_what_its_users_like(model):
    item_users = PLAYS.T.tocsr()
    ids = [60, 3]
    solved = model.recalculate_item(ids, item_users[ids]).astype(np.float64)
    factors = on_host(model)[1].astype(np.float64)
    norms = np.linalg.norm(factors, axis=1)
    exact = (solved @ factors.T) / np.linalg.norm(solved, axis=1)[:, None] / norms
    order = np.argsort(-exact, axis=1, kind="stable")[:, :10]
    expected = order, np.take_along_axis(exact, order, axis=1)
    arguments = {"recalculate_item": True, "item_users": item_users[ids]}
    assert_same_ranking(model.similar_items(ids, **arguments), expected, 1e-4)
    unknown = model.similar_items([5000, 5001], **arguments)  # only the rows count
    assert_same_ranking(unknown, expected, 1e-4)


def test_recalculate_item_needs_item_users(model):
    with pytest.raises(ValueError, match="item_users"):
        model.similar_items(3, recalculate_item=True)


# --- norms and Grams -----------------------------------------------------------------------------


@both_sides
def test_norms_are_the_euclidean_ones_and_1e_10_for_zero(model, side):
    factors = on_host(model)[SIDES[side][1]]
    expected = np.linalg.norm(factors.astype(np.float64), axis=1)
    norms = np.asarray(model.user_norms if side == "users" else model.item_norms)
    assert norms.dtype == factors.dtype
    np.testing.assert_allclose(norms[expected > 0], expected[expected > 0], rtol=1e-6)
    np.testing.assert_array_equal(norms[expected == 0], np.float32(1e-10))
    assert (expected == 0).any() == (side == "users")


@pytest.mark.parametrize(("name", "side"), [("XtX", 0), ("YtY", 1)])
def test_grams_are_the_factors_times_themselves(model, name, side):
    factors = on_host(model)[side].astype(np.float64)
    found = np.asarray(getattr(model, name))
    assert found.shape == (FACTORS, FACTORS)
    assert_agree(found, factors.T @ factors, 1e-6)


def test_what_is_derived_follows_the_factors(use_gpu):
    """Whether they are trained anew or set by hand."""
    model, other = trained(use_gpu), trained(use_gpu, random_state=10)

    def derived(model):
        return (
            model.user_norms, model.item_norms, model.XtX, model.YtY,
            *model.similar_users(3), *model.similar_items(3), *model.recommend(3, PLAYS[3]),
            model.fold_in_users(PLAYS[3]), model.fold_in_items(PLAYS.T.tocsr()[3]),
            model.predict(3, 4),
        )  # fmt: skip

    before = derived(model)
    model.user_factors, model.item_factors = other.user_factors, other.item_factors
    by_hand = derived(model)
    expected = derived(other)
    again = make(use_gpu=use_gpu, iterations=1)
    again.user_factors, again.item_factors = other.user_factors, other.item_factors
    again.fit(PLAYS, show_progress=False)
    model.iterations = 1
    model.fit(PLAYS, show_progress=False)
    retrained = derived(model)
    for parts in zip(before, by_hand, expected, retrained, derived(again), strict=True):
        np.testing.assert_array_equal(parts[1], parts[2])
        np.testing.assert_array_equal(parts[3], parts[4])
    assert any((a != b).any() for a, b in zip(before, expected, strict=True))
