"""``recommend`` and what is new in it: dtypes, order, filters, candidates, errors."""

import numpy as np
import pytest
import scipy.sparse as sp

from contract.common import (
    N_ITEMS,
    N_USERS,
    PLAYS,
    assert_same_ranking,
    fitted,
    make,
    on_host,
    trained,
)
from gpu_als.errors import NotFittedError

USERS = np.array([0, 3, 77, 149])
LOWEST = float(np.finfo(np.float32).min)
EVERYTHING, NOTHING = 2, 7  # a user who has played the whole catalogue, and one who has nothing


@pytest.fixture
def model(use_gpu):
    return trained(use_gpu)


def scores_of(model):
    """Return the scores of every cell in float64, shape (n_users, n_items)."""
    users, items = (side.astype(np.float64) for side in on_host(model))
    return users @ items.T


def best(scores, n_best):
    order = np.argsort(-scores, kind="stable")[:n_best]
    return order, scores[order]


# --- form ----------------------------------------------------------------------------------------


def test_one_user_gets_one_dimension_and_many_get_two(model):
    for user in (3, np.int64(3), np.int32(3)):
        assert [part.shape for part in model.recommend(user, PLAYS[3])] == [(10,), (10,)]
    for users in ([3], np.array([3]), (3,)):
        assert [part.shape for part in model.recommend(users, PLAYS[3])] == [(1, 10), (1, 10)]


def test_no_users_get_no_rows(model):
    ids, scores = model.recommend([], PLAYS[:0])
    assert ids.shape == scores.shape == (0, 10)


def test_ids_are_int32_numpy_arrays(model):
    for arguments in ({}, {"items": [4, 9, 2]}, {"min_score": 0.1}, {"recalculate_user": True}):
        ids, scores = model.recommend(USERS, PLAYS[USERS], **arguments)
        assert type(ids) is type(scores) is np.ndarray
        assert ids.dtype == np.int32


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_scores_have_the_dtype_of_the_factors(use_gpu, dtype):
    model = trained(use_gpu, dtype=dtype, iterations=1)
    assert model.recommend(3, PLAYS[3])[1].dtype == dtype
    assert model.recommend(3, PLAYS[3], recalculate_user=True)[1].dtype == dtype


def test_n_is_10_unless_given(model):
    assert len(model.recommend(3, PLAYS[3])[0]) == 10
    assert len(model.recommend(3, PLAYS[3], 4)[0]) == 4


# --- order ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_best", [1, 10, N_ITEMS])
def test_the_largest_inner_products_come_first(model, n_best):
    scores = scores_of(model)
    found = model.recommend(USERS, N=n_best, filter_already_liked_items=False)
    each = [best(scores[user], n_best) for user in USERS]
    assert_same_ranking(found, tuple(np.array(part) for part in zip(*each, strict=True)))


def test_equal_scores_come_by_rising_id(model):
    ids, scores = model.recommend(NOTHING, filter_already_liked_items=False)
    np.testing.assert_array_equal(ids, np.arange(10))
    np.testing.assert_array_equal(scores, np.zeros(10))


def test_many_users_at_once_get_what_each_gets_alone(model):
    """Also at the accuracy of float32: no shorter products for the sake of speed."""
    ids, scores = model.recommend(np.arange(N_USERS), PLAYS, N=20)
    exact = scores_of(model)
    size = np.abs(exact).max()
    for user in range(0, N_USERS, 7):
        alone = model.recommend(user, PLAYS[user], N=20)
        assert_same_ranking((ids[user], scores[user]), alone, 1e-5)
        usual = scores[user] > LOWEST
        error = np.abs(scores[user] - exact[user, ids[user]])[usual]
        assert error.max(initial=0) < 2e-6 * size


# --- filters -------------------------------------------------------------------------------------


def test_filtered_items_come_last_with_a_very_low_finite_score(model):
    ids, scores = model.recommend(3, PLAYS[3], N=N_ITEMS)
    n_open = N_ITEMS - PLAYS[3].nnz
    assert set(ids[n_open:]) == set(PLAYS[3].indices)
    assert np.isfinite(scores).all()
    assert (scores[n_open:] == LOWEST).all()
    assert (scores[:n_open] > -1e3).all()


def test_a_user_who_likes_everything_gets_filtered_items(model):
    ids, scores = model.recommend(EVERYTHING, PLAYS[EVERYTHING])
    assert ids.shape == (10,)
    assert len(set(ids)) == 10
    assert (scores == LOWEST).all()


def test_filter_items_come_last_for_every_user(model):
    first = model.recommend(USERS, PLAYS[USERS], N=1)[0][:, 0]
    ids, scores = model.recommend(USERS, PLAYS[USERS], N=N_ITEMS, filter_items=first)
    for row, user in enumerate(USERS):
        denied = set(first) | set(PLAYS[user].indices)
        assert set(ids[row, N_ITEMS - len(denied) :]) == denied
        assert (scores[row, N_ITEMS - len(denied) :] == LOWEST).all()


def test_a_sparse_filter_items_denies_each_user_its_own(model):
    rng = np.random.default_rng(31)
    denied = sp.random_array((len(USERS), N_ITEMS), density=0.3, rng=rng, format="csr")
    for liked in (False, True):
        ids, scores = model.recommend(
            USERS, PLAYS[USERS], N=N_ITEMS, filter_items=denied, filter_already_liked_items=liked
        )
        exact = scores_of(model)
        for row, user in enumerate(USERS):
            out = set(denied[[row]].indices) | (set(PLAYS[user].indices) if liked else set())
            kept = np.array([item for item in np.argsort(-exact[user]) if item not in out])
            assert set(ids[row, len(kept) :]) == out
            expected = exact[user, kept].astype(np.float32)
            assert_same_ranking((ids[row, : len(kept)], scores[row, : len(kept)]), (kept, expected))


def test_a_sparse_filter_items_denies_whatever_the_values_are(model):
    """Not even values that cancel those of the liked items bring these back."""
    liked = PLAYS[USERS]
    ids, scores = model.recommend(USERS, liked, N=N_ITEMS, filter_items=-liked)
    expected = model.recommend(USERS, liked, N=N_ITEMS)
    np.testing.assert_array_equal(ids, expected[0])
    np.testing.assert_array_equal(scores, expected[1])


def test_a_sparse_filter_items_needs_a_row_for_each_user(model):
    with pytest.raises(ValueError, match=r"filter_items.*1 row for every requested user"):
        model.recommend(USERS, PLAYS[USERS], filter_items=PLAYS)


def test_min_score_leaves_places_of_lower_scores_empty(model):
    ids, scores = model.recommend(USERS, PLAYS[USERS], N=N_ITEMS)
    usual = np.sort(scores[scores > LOWEST])
    widest = len(usual) // 2 + np.argmax(np.diff(usual[len(usual) // 2 :][:30]))
    bar = float(usual[widest : widest + 2].mean())  # between two scores, for rounding's sake
    enough = scores >= bar
    assert 0 < enough.sum() < enough.size
    found = model.recommend(USERS, PLAYS[USERS], N=N_ITEMS, min_score=bar)
    assert_same_ranking(
        found, (np.where(enough, ids, -1), np.where(enough, scores, np.float32(LOWEST)))
    )
    np.testing.assert_array_equal(found[0] == -1, ~enough)
    one = model.recommend(3, PLAYS[3], N=N_ITEMS, min_score=bar)
    assert_same_ranking(one, (found[0][1], found[1][1]))


def test_min_score_keeps_scores_that_equal_it(model):
    ids, scores = model.recommend(NOTHING, PLAYS[NOTHING], min_score=0.0)
    np.testing.assert_array_equal(ids, np.arange(10))
    np.testing.assert_array_equal(scores, np.zeros(10))


@pytest.mark.parametrize("bad", [np.nan, "high"])
def test_min_score_must_be_a_number(bad):
    with pytest.raises(ValueError, match="min_score must be a number"):
        fitted().recommend(3, PLAYS[3], min_score=bad)


# --- candidates ----------------------------------------------------------------------------------


@pytest.mark.parametrize("liked", [False, True])
def test_items_are_the_only_candidates(model, liked):
    chosen = np.array([70, 4, 12, 33, 5, 80])
    ids, scores = model.recommend(
        USERS, PLAYS[USERS], N=4, items=chosen, filter_already_liked_items=liked
    )
    exact = scores_of(model).astype(np.float32)
    for row, user in enumerate(USERS):
        mine = exact[user].copy()
        if liked:
            mine[PLAYS[user].indices] = LOWEST
        rank = chosen[np.argsort(-mine[chosen])][:4]
        assert_same_ranking((ids[row], scores[row]), (rank, mine[rank]))


def test_items_may_be_unsorted_and_repeated(model):
    tidy, untidy = (
        model.recommend(USERS, PLAYS[USERS], items=items)
        for items in ([3, 4, 50, 88], [88, 4, 3, 50, 4, 88])
    )
    for found, expected in zip(untidy, tidy, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_items_are_not_sorted_in_place(model):
    items = np.array([50, 3, 88])
    model.recommend(3, PLAYS[3], items=items)
    np.testing.assert_array_equal(items, [50, 3, 88])


@pytest.mark.parametrize("arguments", [{}, {"items": [9, 4, 30]}, {"items": [9, 4, 9]}])
def test_n_is_cut_to_the_number_of_candidates(model, arguments):
    n_candidates = len(set(arguments.get("items", range(N_ITEMS))))
    ids, scores = model.recommend(3, PLAYS[3], N=1000, **arguments)
    assert ids.shape == scores.shape == (n_candidates,)
    assert len(set(ids)) == n_candidates


def test_items_and_filter_items_together_are_a_value_error(model):
    with pytest.raises(ValueError, match=r"items.*filter_items"):
        model.recommend(3, PLAYS[3], items=[3, 4], filter_items=[4])
    model.recommend(3, PLAYS[3], items=[3, 4], filter_items=[])  # nothing: as if not given


# --- recalculation -------------------------------------------------------------------------------


def test_recalculate_user_ranks_with_factors_folded_in(model):
    users = model.fold_in_users(PLAYS[USERS]).astype(np.float64)
    exact = users @ on_host(model)[1].astype(np.float64).T
    ids, scores = model.recommend(USERS, PLAYS[USERS], recalculate_user=True)
    for row, user in enumerate(USERS):
        exact[row, PLAYS[user].indices] = LOWEST
        assert_same_ranking((ids[row], scores[row]), best(exact[row], 10), 1e-4)


def test_recalculate_user_reads_counts_in_the_dtype_of_the_model(use_gpu):
    """In float64 they may be such as float32 has no number for."""
    counts = PLAYS.astype(np.float64) * (1 + 1e-9)
    counts.data[0] = 1e40
    model = trained(use_gpu, dtype=np.float64, alpha=7.0)
    ids, scores = model.recommend(
        USERS, counts[USERS], filter_already_liked_items=False, recalculate_user=True
    )
    exact = model.fold_in_users(counts[USERS]) @ on_host(model)[1].T
    np.testing.assert_allclose(scores, np.take_along_axis(exact, ids, 1), rtol=1e-12, atol=1e-14)
    model.recommend(np.arange(PLAYS.shape[0]), counts)


def test_recalculate_user_takes_users_that_were_not_trained(model):
    found = model.recommend([5000, 5001], PLAYS[[3, 77]], recalculate_user=True)
    expected = model.recommend([3, 77], PLAYS[[3, 77]], recalculate_user=True)
    for part, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(part, other)


def test_recalculate_user_stores_nothing(model):
    before = on_host(model)
    model.recommend(USERS, PLAYS[[5, 6, 8, 9]], recalculate_user=True)
    for found, expected in zip(on_host(model), before, strict=True):
        np.testing.assert_array_equal(found, expected)


# --- deprecated ----------------------------------------------------------------------------------


def test_recommend_all_recommends_to_the_users_of_its_rows(model):
    with pytest.deprecated_call(match="use recommend"):
        ids = model.recommend_all(PLAYS[40:60], N=7, users_items_offset=40, filter_items=[2])
    expected = model.recommend(np.arange(40, 60), PLAYS[40:60], N=7, filter_items=[2])[0]
    np.testing.assert_array_equal(ids, expected)


def test_rank_items_ranks_all_items_given(model):
    """Liked ones as well, and more than 10."""
    some = [*PLAYS[3].indices, 80, 79, 78, 77]
    with pytest.deprecated_call(match="use recommend"):
        ids, scores = model.rank_items(3, PLAYS[3], some)
    expected = best(scores_of(model)[3, np.sort(some)], len(some))
    assert_same_ranking((ids, scores), (np.sort(some)[expected[0]], expected[1]))
    assert len(ids) == len(some) > 10


# --- errors --------------------------------------------------------------------------------------


def test_user_items_may_be_none_where_nothing_is_filtered_or_solved(model):
    found = model.recommend(3, None, filter_already_liked_items=False)
    expected = model.recommend(3, PLAYS[3], filter_already_liked_items=False)
    np.testing.assert_array_equal(found[0], expected[0])


@pytest.mark.parametrize(
    "arguments", [{}, {"recalculate_user": True, "filter_already_liked_items": False}]
)
def test_user_items_must_have_one_row_per_requested_user(model, arguments):
    for users, rows in ((3, None), (3, PLAYS), (USERS, PLAYS), (USERS, PLAYS[3])):
        with pytest.raises(ValueError, match="user_items"):
            model.recommend(users, rows, **arguments)


@pytest.mark.parametrize(
    ("users", "arguments"),
    [
        (N_USERS, {}),
        (-1, {}),
        ([0, N_USERS], {}),
        (3, {"items": [3, N_ITEMS]}),
        (3, {"items": [-1]}),
        (3, {"filter_items": [N_ITEMS]}),
    ],
)
def test_numbers_out_of_range_are_index_errors(model, users, arguments):
    with pytest.raises(IndexError):
        model.recommend(users, PLAYS[np.zeros(np.size(users), int)], **arguments)


@pytest.mark.parametrize(
    "call",
    [
        lambda model: model.recommend(0, PLAYS[0]),
        lambda model: model.recommend_all(PLAYS),
        lambda model: model.rank_items(0, PLAYS[0], [1]),
        lambda model: model.similar_items(0),
        lambda model: model.similar_users(0),
        lambda model: model.recalculate_user(0, PLAYS[0]),
        lambda model: model.recalculate_item(0, PLAYS.T.tocsr()[0]),
        lambda model: model.partial_fit_users([0], PLAYS[0]),
        lambda model: model.partial_fit_items([0], PLAYS.T.tocsr()[0]),
        lambda model: model.fold_in_users(PLAYS),
        lambda model: model.fold_in_items(PLAYS.T),
        lambda model: model.explain(0, PLAYS, 1),
        lambda model: model.predict(0, 1),
        lambda model: model.recommend_to_file("never.npy", PLAYS),
        lambda model: model.user_index([0]),
        lambda model: model.user_norms,
        lambda model: model.YtY,
    ],
)
@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning")
def test_methods_before_fit_are_not_fitted_errors(tmp_path, monkeypatch, use_gpu, call):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotFittedError, match="fit"):
        call(make(use_gpu=use_gpu))
    assert not list(tmp_path.iterdir())
