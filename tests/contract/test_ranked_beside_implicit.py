"""Everything a trained model answers, beside ``implicit`` with the very same factors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from contract.common import (
    FEEDBACK,
    MIXED,
    N_ITEMS,
    N_USERS,
    PLAYS,
    any_alpha,
    any_feedback,
    any_regularization,
    assert_agree,
    assert_same_ranking,
    feedback,
    on_host,
)

PARAMS = {"use_cg": False, "alpha": 2.0}
USERS = np.array([0, 3, 77, 149])

ARGUMENTS = {
    "plain": {},
    "longer": {"N": 25},
    "the whole catalogue": {"N": N_ITEMS},
    "unfiltered": {"filter_already_liked_items": False},
    "filter_items": {"filter_items": [0, 5, 6]},
    "recalculated": {"recalculate_user": True},
    "recalculated, unfiltered": {"recalculate_user": True, "filter_already_liked_items": False},
    "items": {"items": np.arange(20, 60)},
    "fewer items than N": {"items": np.arange(6)},
    "items, unfiltered": {"items": np.arange(9, 40), "filter_already_liked_items": False},
}
with_arguments = pytest.mark.parametrize("arguments", ARGUMENTS.values(), ids=list(ARGUMENTS))


# --- recommend -----------------------------------------------------------------------------------


@with_arguments
def test_recommend_for_many_users_is_that_of_implicit(use_gpu, twins, arguments):
    model, other = twins(PLAYS, use_gpu=use_gpu, **PARAMS)
    assert_same_ranking(
        model.recommend(USERS, PLAYS[USERS], **arguments),
        other.recommend(USERS, PLAYS[USERS], **arguments),
        1e-4 if "recalculate_user" in arguments else 1e-5,
    )


@with_arguments
def test_recommend_for_one_user_is_that_of_implicit(use_gpu, twins, arguments):
    model, other = twins(PLAYS, use_gpu=use_gpu, **PARAMS)
    assert_same_ranking(
        model.recommend(77, PLAYS[77], **arguments),
        other.recommend(77, PLAYS[77], **arguments),
        1e-4 if "recalculate_user" in arguments else 1e-5,
    )


@any_feedback
@given(feedback(), st.data())
def test_recommend_is_that_of_implicit_on_any_data(twins, user_items, data):
    """Any users, N up to the number of items, any filters or any candidates."""
    n_users, n_items = user_items.shape
    some_items = st.lists(st.integers(0, n_items - 1), min_size=1, max_size=8, unique=True)
    users = np.array(data.draw(st.lists(st.integers(0, n_users - 1), min_size=1, max_size=5)))
    arguments = {
        "N": data.draw(st.integers(1, n_items)),
        "filter_already_liked_items": data.draw(st.booleans()),
    }
    choice = data.draw(st.sampled_from(["items", "filter_items", "neither"]))
    if choice != "neither":
        arguments[choice] = data.draw(some_items)
    model, other = twins(user_items, dtype=np.float64, **PARAMS)
    rows = user_items[users]
    assert_same_ranking(
        model.recommend(users, rows, **arguments), other.recommend(users, rows, **arguments), 1e-9
    )


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
def test_recommend_all_is_that_of_implicit(use_gpu, twins):
    model, other = twins(PLAYS, use_gpu=use_gpu, **PARAMS)
    with pytest.deprecated_call(match="recommend"):
        found = model.recommend_all(PLAYS, N=7, filter_items=[3])
    expected = other.recommend_all(PLAYS, N=7, filter_items=[3])
    every = np.arange(N_USERS)
    scores = other.recommend(every, PLAYS, N=7, filter_items=[3])[1]
    assert_same_ranking((found, scores), (expected, scores))


@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
@pytest.mark.parametrize("recalculate", [False, True])
def test_rank_items_is_that_of_implicit(use_gpu, twins, recalculate):
    model, other = twins(PLAYS, use_gpu=use_gpu, **PARAMS)
    some = [8, 2, 30, 31, 32, 5]
    with pytest.deprecated_call(match="recommend"):
        found = model.rank_items(3, PLAYS[3], some, recalculate_user=recalculate)
    expected = other.rank_items(3, PLAYS[3], some, recalculate_user=recalculate)
    assert_same_ranking(found, expected, 1e-4)
    assert sorted(found[0]) == sorted(some)


# --- similar rows --------------------------------------------------------------------------------

SIMILAR = {
    "plain": {},
    "filtered": {"filter": [4, 60, 61]},
    "candidates": {"only": np.arange(5, 50)},
    "the whole side": {"N": N_ITEMS},
}


@pytest.mark.parametrize("arguments", SIMILAR.values(), ids=list(SIMILAR))
@pytest.mark.parametrize("ids", [7, np.array([7, 60, 0])], ids=["one", "many"])
@pytest.mark.parametrize("side", ["users", "items"])
def test_similar_users_and_items_are_those_of_implicit(use_gpu, twins, side, ids, arguments):
    model, other = twins(PLAYS, use_gpu=use_gpu, **PARAMS)
    names = {"filter": f"filter_{side}", "only": side, "N": "N"}
    named = {names[name]: value for name, value in arguments.items()}
    found, expected = (getattr(each, f"similar_{side}")(ids, **named) for each in (model, other))
    assert_same_ranking(found, expected)


@pytest.mark.parametrize("ids", [7, np.array([7, 60, 0])], ids=["one", "many"])
def test_similar_items_of_recalculated_ones_are_those_of_implicit(use_gpu, twins, ids):
    model, other = twins(PLAYS, use_gpu=use_gpu, **PARAMS)
    rows = PLAYS.T.tocsr()[np.atleast_1d(ids)]
    arguments = {"recalculate_item": True, "item_users": rows}
    assert_same_ranking(
        model.similar_items(ids, **arguments), other.similar_items(ids, **arguments), 1e-4
    )


@any_feedback
@given(feedback(), st.data())
def test_similar_items_are_those_of_implicit_on_any_data(twins, user_items, data):
    n_items = user_items.shape[1]
    items = np.array(data.draw(st.lists(st.integers(0, n_items - 1), min_size=1, max_size=4)))
    n_best = data.draw(st.integers(1, n_items))
    model, other = twins(user_items, dtype=np.float64, **PARAMS)
    assert_same_ranking(
        model.similar_items(items, n_best), other.similar_items(items, n_best), 1e-9
    )


@pytest.mark.parametrize("name", ["user_norms", "item_norms", "YtY", "XtX"])
def test_norms_and_grams_are_those_of_implicit(use_gpu, twins, name):
    model, other = twins(PLAYS, use_gpu=use_gpu, **PARAMS)
    np.testing.assert_allclose(
        np.asarray(getattr(model, name)), getattr(other, name), rtol=1e-5, atol=1e-6
    )


def test_a_norm_of_zero_is_that_of_implicit(use_gpu, twins):
    model, other = twins(PLAYS, use_gpu=use_gpu, **PARAMS)
    nobody = np.flatnonzero(np.diff(PLAYS.indptr) == 0)
    assert len(nobody)
    np.testing.assert_array_equal(model.user_norms[nobody], np.float32(1e-10))
    np.testing.assert_array_equal(other.user_norms[nobody], np.float32(1e-10))


# --- solving rows --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FEEDBACK)
def test_recalculated_factors_are_those_of_implicit(use_gpu, twins, name):
    user_items = FEEDBACK[name]
    model, other = twins(user_items, use_gpu=use_gpu, **PARAMS)
    for side, rows in (("user", user_items), ("item", user_items.T.tocsr())):
        for ids in (np.array([5, 17, 9]), 17):
            found, expected = (
                getattr(each, f"recalculate_{side}")(ids, rows[ids]) for each in (model, other)
            )
            assert_agree(found, expected)


@pytest.mark.parametrize("name", FEEDBACK)
@pytest.mark.parametrize("side", ["users", "items"])
def test_partial_fits_are_those_of_implicit(use_gpu, twins, name, side):
    """Known rows and new ones, with rows between that nobody has given."""
    user_items = FEEDBACK[name] if side == "users" else FEEDBACK[name].T.tocsr()
    model, other = twins(FEEDBACK[name], use_gpu=use_gpu, **PARAMS)
    n_rows = user_items.shape[0]
    ids = [4, n_rows + 3, 0]
    for each in (model, other):
        getattr(each, f"partial_fit_{side}")(ids, user_items[[7, 8, 9]])
    for found, expected in zip(on_host(model), on_host(other), strict=True):
        assert_agree(found, expected)
    names = ["user_norms", "XtX"] if side == "users" else ["item_norms", "YtY"]
    for name in names:
        assert_agree(getattr(model, name), getattr(other, name))


@any_feedback
@given(feedback(), any_alpha, any_regularization)
def test_partial_fits_are_those_of_implicit_on_any_data(twins, user_items, alpha, regularization):
    params = {"alpha": alpha, "regularization": regularization, "dtype": np.float64}
    model, other = twins(user_items, use_cg=False, **params)
    n_users = user_items.shape[0]
    for each in (model, other):
        each.partial_fit_users(np.arange(n_users) + 2, user_items)
        each.partial_fit_items([0], user_items[:, :1].T.tocsr())
    for found, expected in zip(on_host(model), on_host(other), strict=True):
        assert_agree(found, expected, 1e-5)


# --- explanations --------------------------------------------------------------------------------


def assert_same_explanation(found, expected, rtol):
    """Assert equal scores and contributions, whose items may differ where they are equal."""
    assert found[0] == pytest.approx(expected[0], rel=rtol, abs=rtol)
    ours, theirs = (np.array(each[1], float).reshape(-1, 2).T for each in (found, expected))
    assert_same_ranking(ours, theirs, rtol)


@pytest.mark.parametrize("name", FEEDBACK)
@pytest.mark.parametrize("n_best", [1, 4, 10])
def test_explanations_are_those_of_implicit(use_gpu, twins, name, n_best):
    user_items = FEEDBACK[name].copy()
    user_items.eliminate_zeros()  # theirs lists them, with a contribution of zero
    model, other = twins(user_items, use_gpu=use_gpu, **PARAMS)
    for user, item in ((3, 5), (7, 1)):
        found, expected = (
            each.explain(user, user_items, item, N=n_best) for each in (model, other)
        )
        assert_same_explanation(found, expected, 1e-4)


@any_feedback
@given(feedback(), any_alpha, st.data())
def test_explanations_are_those_of_implicit_on_any_data(twins, user_items, alpha, data):
    n_users, n_items = user_items.shape
    user, item = data.draw(st.integers(0, n_users - 1)), data.draw(st.integers(0, n_items - 1))
    model, other = twins(
        user_items, use_cg=False, alpha=alpha, regularization=0.1, dtype=np.float64
    )
    found, expected = (each.explain(user, user_items, item) for each in (model, other))
    assert_same_explanation(found, expected, 1e-5)  # their confidences are float32


def test_user_weights_of_either_explain_for_the_other(use_gpu, twins):
    model, other = twins(PLAYS, use_gpu=use_gpu, **PARAMS)
    expected = other.explain(3, PLAYS, 5)
    first = model.explain(3, PLAYS, 5)
    with_theirs = model.explain(3, PLAYS, 5, user_weights=expected[2])
    with_ours = other.explain(3, PLAYS, 5, user_weights=first[2])
    for found in (first, with_theirs, with_ours):
        assert_same_explanation(found, expected, 1e-4)


def test_dislikes_count_in_the_ranking_of_both(use_gpu, twins):
    """A filter is about what is stored, whatever its sign."""
    model, other = twins(MIXED, use_gpu=use_gpu, **PARAMS)
    users = np.arange(MIXED.shape[0])
    found, expected = (each.recommend(users, MIXED, N=22) for each in (model, other))
    assert_same_ranking(found, expected)
    for row, user in enumerate(users):
        n_stored = MIXED.indptr[user + 1] - MIXED.indptr[user]
        last = found[0][row, 22 - n_stored :]
        assert sorted(last) == sorted(MIXED[user].indices)
