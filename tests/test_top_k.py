"""The best items against a full stable sort. Whole numbers, so that every product is exact."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_als.backends.numpy.backend import NumpyBackend
from gpu_als.ranking import top_k as module
from gpu_als.ranking.top_k import lowest_score, top_k

BACKEND = NumpyBackend(2)


def full_sort(users, items, n_best, liked=None, filter_items=None):
    """Score everything, sort everything: largest first, equal scores by lowest id."""
    scores = users.astype(np.float64) @ items.astype(np.float64).T
    lowest = float(np.finfo(users.dtype).min)
    if filter_items is not None:
        scores[:, filter_items] = lowest
    if liked is not None:
        scores[liked.nonzero()] = lowest
    ids = [sorted(range(len(items)), key=lambda i: (-row[i], i))[:n_best] for row in scores]
    return np.array(ids), np.take_along_axis(scores, np.array(ids), axis=1)


def whole_numbers(n_users, n_items, k, seed, dtype=np.float32, largest=3):
    """Draw small whole numbers, which give many equal scores."""
    rng = np.random.default_rng(seed)
    return [rng.integers(-largest, largest + 1, (n, k)).astype(dtype) for n in (n_users, n_items)]


def check(users, items, n_best, **filters):
    ids, scores = top_k(BACKEND, users, items, n_best, **filters)
    expected_ids, expected = full_sort(users, items, n_best, **filters)
    assert ids.dtype == np.int32
    assert scores.dtype == users.dtype
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_array_equal(scores, expected)


SIZES = [1, 2, 63, 64, 65, 128, 700, 3000]
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f4", "f8"])


@DTYPES
@pytest.mark.parametrize("n_items", SIZES)
def test_ties_go_to_the_lowest_id(n_items, dtype):
    users, items = whole_numbers(9, n_items, 2, 61, dtype)
    for n_best in {1, 2, 10, n_items // 64 - 1, n_items // 64, n_items - 1, n_items}:
        if 0 < n_best <= n_items:
            check(users, items, n_best)


def test_all_scores_equal():
    ids, scores = top_k(BACKEND, np.zeros((3, 2)), np.ones((1000, 2)), 12)
    np.testing.assert_array_equal(ids, np.tile(np.arange(12), (3, 1)))
    np.testing.assert_array_equal(scores, 0)


@DTYPES
def test_scores_that_float32_cannot_tell_apart(dtype):
    """2^24 and 2^24 + 1 are one number in float32, and a tie there."""
    users = np.array([[1.0]], dtype)
    items = np.array([[2.0**24], [2.0**24 + 1], [0.0]]).astype(dtype)
    ids, _ = top_k(BACKEND, users, items, 2)
    np.testing.assert_array_equal(ids[0], [0, 1] if dtype == np.float32 else [1, 0])


@DTYPES
@pytest.mark.parametrize("n_items", SIZES)
def test_filtered_items_come_last_with_a_finite_score(n_items, dtype):
    users, items = whole_numbers(7, n_items, 3, 62, dtype)
    rng = np.random.default_rng(63)
    likes = rng.random((7, n_items)) < 0.4
    likes[3] = False
    liked = sp.csr_matrix(likes)
    filter_items = rng.choice(n_items, max(1, n_items // 3), replace=False)
    for filters in (
        {"liked": liked},
        {"filter_items": filter_items},
        {"liked": liked, "filter_items": np.append(filter_items, filter_items[0])},
        {"filter_items": np.zeros(0, np.int64)},
    ):
        for n_best in (1, min(10, n_items), n_items):
            check(users, items, n_best, **filters)
    ids, scores = top_k(BACKEND, users, items, n_items, liked=liked)
    assert np.isfinite(scores).all()
    for u in range(7):
        count = liked[u].nnz
        assert set(ids[u, n_items - count :]) == set(liked[u].nonzero()[1])
        assert (scores[u, n_items - count :] == lowest_score(dtype)).all()


def test_a_user_who_likes_everything_gets_everything_at_the_end():
    users, items = whole_numbers(2, 130, 2, 64)
    liked = sp.csr_matrix(np.array([[True], [False]]) & np.ones((2, 130), bool))
    ids, scores = top_k(BACKEND, users, items, 5, liked=liked)
    np.testing.assert_array_equal(ids[0], np.arange(5))
    assert (scores[0] == np.finfo(np.float32).min).all()
    assert (scores[1] > -100).all()


def test_a_liked_item_stored_as_zero_is_filtered_too():
    liked = sp.csr_matrix((np.zeros(1), [1], [0, 1]), shape=(1, 3))
    ids, _ = top_k(BACKEND, np.ones((1, 1)), np.array([[1.0], [9.0], [2.0]]), 3, liked=liked)
    np.testing.assert_array_equal(ids, [[2, 0, 1]])


@pytest.mark.parametrize("tile_items", [64, 100, 256])
@pytest.mark.parametrize("tile_elements", [1, 700, 1 << 21])
def test_tiles_do_not_show(monkeypatch, tile_items, tile_elements):
    monkeypatch.setattr(module, "_TILE_ITEMS", tile_items)
    monkeypatch.setattr(module, "_TILE_ELEMENTS", tile_elements)
    users, items = whole_numbers(11, 517, 3, 65)
    rng = np.random.default_rng(66)
    liked = sp.csr_matrix(rng.random((11, 517)) < 0.3)
    for n_best in (1, 7, 150, 516, 517):
        check(users, items, n_best)
        check(users, items, n_best, liked=liked, filter_items=np.array([0, 63, 64, 516]))


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    n_users=st.integers(1, 5),
    n_items=st.integers(1, 300),
    n_best=st.integers(1, 300),
    tile_items=st.integers(1, 200),
    seed=st.integers(0, 2**32),
)
def test_any_shape_and_tiling(n_users, n_items, n_best, tile_items, seed):
    users, items = whole_numbers(n_users, n_items, 1, seed, largest=2)
    liked = sp.csr_matrix(np.random.default_rng(seed + 1).random((n_users, n_items)) < 0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_TILE_ITEMS", tile_items)
        patch.setattr(module, "_TILE_ELEMENTS", 2 * tile_items)
        check(users, items, min(n_best, n_items), liked=liked)


def test_scores_are_inner_products():
    """Real numbers: full precision, and each user's list the same as when asked for alone."""
    rng = np.random.default_rng(67)
    users = rng.standard_normal((20, 40)).astype(np.float32)
    items = rng.standard_normal((900, 40)).astype(np.float32)
    ids, scores = top_k(BACKEND, users, items, 15)
    exact = users.astype(np.float64) @ items.astype(np.float64).T
    np.testing.assert_allclose(
        scores, np.take_along_axis(exact, ids.astype(int), axis=1), rtol=1e-6, atol=2e-6
    )
    np.testing.assert_allclose(scores, -np.sort(-exact, axis=1)[:, :15], rtol=1e-6, atol=2e-6)
    for u in range(20):
        alone, _ = top_k(BACKEND, users[u : u + 1], items, 15)
        np.testing.assert_array_equal(alone[0], ids[u])


def test_no_users():
    ids, scores = top_k(BACKEND, np.zeros((0, 3)), np.ones((10, 3)), 4)
    assert ids.shape == scores.shape == (0, 4)
