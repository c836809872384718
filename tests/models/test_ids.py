"""A model fitted on ids takes and returns them, and answers as one fitted on the plain matrix."""

import numpy as np
import pytest
import scipy.sparse as sp
from helpers import random_ratings

from gpu_als import AlternatingLeastSquares, ExplicitALS, Interactions
from gpu_als.errors import InputError
from gpu_als.evaluation import ranking_metrics_at_k

RATINGS = random_ratings(30, 20, 0.3, 7, np.float32)
USERS = np.array([f"u{number:02}" for number in np.random.default_rng(5).permutation(30)])
ITEMS = np.random.default_rng(6).permutation(20) * 10 + 1000
WITH_IDS = Interactions(RATINGS, USERS, ITEMS)
SOME = [3, 0, 17]


@pytest.fixture(params=[AlternatingLeastSquares, ExplicitALS], ids=["implicit", "explicit"])
def pair(request):
    """Return a model with ids, and the same with row numbers."""
    made = []
    for data in (WITH_IDS, RATINGS):
        model = request.param(4, iterations=2, random_state=11)
        model.fit(data, show_progress=False)
        made.append(model)
    return made


@pytest.fixture
def shuffled():
    """Return the ratings in another order, with an item that no model knows."""
    order = np.random.default_rng(8).permutation(20)
    matrix = sp.hstack([RATINGS[::-1][:, order], np.ones((30, 1), np.float32)], format="csr")
    return Interactions(matrix, USERS[::-1], np.append(ITEMS[order], 7))


def test_every_answer_is_in_ids(pair, shuffled):
    model, plain = pair
    users, liked = USERS[SOME], RATINGS[SOME]
    found, expected = model.recommend(users, shuffled, N=5), plain.recommend(SOME, liked, N=5)
    np.testing.assert_array_equal(found[0], ITEMS[expected[0]])
    np.testing.assert_array_equal(found[1], expected[1])
    one = model.recommend(str(users[0]), liked[0], N=3, items=ITEMS[:9], min_score=-1e9)
    same = plain.recommend(SOME[0], liked[0], N=3, items=np.arange(9), min_score=-1e9)
    np.testing.assert_array_equal(one[0], ITEMS[same[0]])
    filtered = model.recommend(users, liked, N=4, filter_items=ITEMS[:5])
    np.testing.assert_array_equal(
        filtered[0], ITEMS[plain.recommend(SOME, liked, N=4, filter_items=range(5))[0]]
    )
    np.testing.assert_array_equal(model.predict(users, ITEMS[2]), plain.predict(SOME, 2))
    np.testing.assert_array_equal(
        model.similar_items(ITEMS[4], N=3)[0], ITEMS[plain.similar_items(4, N=3)[0]]
    )
    np.testing.assert_array_equal(
        model.similar_users(users, N=3)[0], USERS[plain.similar_users(SOME, N=3)[0]]
    )
    score, shares, _ = model.explain(users[1], shuffled, ITEMS[6], N=3)
    same_score, same_shares, _ = plain.explain(SOME[1], RATINGS, 6, N=3)
    assert score == pytest.approx(same_score, rel=1e-6)
    assert [item for item, _ in shares] == [ITEMS[item] for item, _ in same_shares]
    np.testing.assert_array_equal(
        model.recalculate_user(users, shuffled), plain.recalculate_user(SOME, liked)
    )
    np.testing.assert_array_equal(
        model.recalculate_item(ITEMS[SOME], WITH_IDS),
        plain.recalculate_item(SOME, RATINGS.T.tocsr()[SOME]),
    )
    np.testing.assert_array_equal(model.fold_in_users(shuffled), plain.fold_in_users(RATINGS[::-1]))


def test_unknown_ids_are_named_or_dropped(pair):
    model, plain = pair
    with pytest.raises(InputError, match="'nobody'"):
        model.predict(["nobody"], [1000])
    found = model.predict(["nobody", USERS[3], "nobody"], [ITEMS[2], 5, 5], unknown="skip")
    mean = getattr(plain, "global_mean", 0.0)
    biases = [getattr(plain, name, np.zeros(30)) for name in ("item_biases", "user_biases")]
    expected = mean + np.array([biases[0][2], biases[1][3], 0])
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    ids, scores = model.recommend(["nobody", USERS[3]], RATINGS[[3, 3]], N=4, unknown="skip")
    assert (ids[0] == -1).all()
    assert (scores[0] == np.finfo(np.float32).min).all()
    np.testing.assert_array_equal(ids[1], ITEMS[plain.recommend(3, RATINGS[3], N=4)[0]])


def test_seen_items_are_filtered_and_follow_partial_fits(pair, shuffled):
    model, plain = pair
    model.seen_items = shuffled
    assert (model.seen_items != (RATINGS != 0)).nnz == 0
    np.testing.assert_array_equal(
        model.recommend(USERS[SOME], N=5)[0], ITEMS[plain.recommend(SOME, RATINGS[SOME], N=5)[0]]
    )
    model.partial_fit_users(["new", USERS[3]], RATINGS[[0, 1]])
    seen = model.seen_items.toarray()
    np.testing.assert_array_equal(seen[[30, 3]], RATINGS[[0, 1]].toarray() != 0)
    np.testing.assert_array_equal(seen[4:30], RATINGS[4:].toarray() != 0)
    model.partial_fit_items([5], RATINGS[:, [0]].T.tocsr())
    assert model.seen_items.shape == (31, 21)


def test_metrics_read_rows_of_matrices(pair):
    model, plain = pair
    kept = RATINGS.copy()
    kept.data[::3] = 0
    kept.eliminate_zeros()
    test = RATINGS - kept
    found, expected = (
        ranking_metrics_at_k(each, kept, test, K=5, show_progress=False) for each in (model, plain)
    )
    assert found == expected
