"""The best items against a full sort. Whole numbers, so that every product is exact."""

import tracemalloc
from unittest import mock

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpu_als.backends.native import top_k as native
from gpu_als.backends.native.library import variants
from gpu_als.backends.numpy.backend import NumpyBackend
from gpu_als.ranking import scan as tiles
from gpu_als.ranking.top_k import Filters, lowest_score, top_k

BACKEND = NumpyBackend(2)
GENERAL = NumpyBackend(2, fused=False)


def full_sort(users, items, n_best, liked=None, filter_items=None):
    """Score everything, sort everything: filtered items last, by score, equal scores by id."""
    with np.errstate(over="ignore", invalid="ignore"):
        scores = (users @ items.T).astype(np.float64)
    lowest = float(np.finfo(users.dtype).min)
    scores[~(scores >= lowest)] = lowest  # NaN and minus infinity
    filtered = np.zeros(scores.shape, bool)
    if filter_items is not None:
        filtered[:, filter_items] = True
    if liked is not None:
        stored = liked.tocoo()
        filtered[stored.row, stored.col] = True
    scores[filtered] = lowest
    by_id = np.broadcast_to(np.arange(len(items)), scores.shape)
    ids = np.lexsort((by_id, -scores, filtered), axis=1)[:, :n_best]
    return ids, np.take_along_axis(scores, ids, axis=1)


def whole_numbers(n_users, n_items, k, seed, dtype=np.float32, largest=3):
    """Draw small whole numbers, which give many equal scores."""
    rng = np.random.default_rng(seed)
    return [rng.integers(-largest, largest + 1, (n, k)).astype(dtype) for n in (n_users, n_items)]


def likes(n_users, n_items, density, seed):
    rng = np.random.default_rng(seed)
    return sp.csr_matrix(rng.random((n_users, n_items)) < density)


def check(users, items, n_best, **filters):
    """Hold the general path and every variant of the compiled code to the full sort."""
    expected_ids, expected = full_sort(users, items, n_best, **filters)
    results = [top_k(GENERAL, users, items, n_best, **filters)]
    for library in variants().values():
        with mock.patch.object(native, "library", return_value=library):
            results.append(top_k(BACKEND, users, items, n_best, **filters))
    for ids, scores in results:
        assert ids.dtype == np.int32
        assert scores.dtype == users.dtype
        np.testing.assert_array_equal(ids, expected_ids)
        np.testing.assert_array_equal(scores, expected)


def cut_small(patch, tile_elements, most_users=480):
    """Cut scores so small that a few hundred items need many tiles."""
    patch.setattr(tiles, "_TILE_ELEMENTS", tile_elements)
    patch.setattr(tiles, "_MOST_USERS", most_users)


SIZES = [1, 2, 63, 64, 65, 128, 700, 3000]
COMPILED = pytest.mark.skipif(not variants(), reason="no C++ compiler built the library")
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f4", "f8"])


@DTYPES
@pytest.mark.parametrize("n_items", SIZES)
def test_ties_go_to_the_lowest_id(n_items, dtype):
    users, items = whole_numbers(9, n_items, 2, 61, dtype)
    for n_best in {1, 2, 10, n_items // 64, n_items // 4, n_items - 1, n_items}:
        if 0 < n_best <= n_items:
            check(users, items, n_best)


def test_places_of_filtered_items_are_counted_beyond_2_to_the_31():
    """Place ``item * n_users + user``, for the most items that ids of 32 bits tell apart."""
    last = 2**31 - 2
    columns = np.array([3, last, 0, last], np.int32)
    liked = sp.csr_matrix((np.ones(4), columns, [0, 2, 2, 4]), shape=(3, last + 1))
    places = Filters(liked, None).places(0, 3)
    assert places.tolist() == [0 * 3 + 2, 3 * 3 + 0, last * 3 + 0, last * 3 + 2]
    assert Filters(liked, None).places(2, 3).tolist() == [0, last]


@pytest.mark.parametrize("tile_elements", [200, 5000, 3 << 19])
def test_users_without_factors_get_the_lowest_ids(monkeypatch, tile_elements):
    """All their scores are 0, beside users whose scores differ."""
    cut_small(monkeypatch, tile_elements)
    users, items = whole_numbers(40, 1500, 3, 69)
    users[::3] = 0
    users[5] = -0.0
    check(users, items, 12)
    ids, _ = top_k(BACKEND, users, items, 12)
    np.testing.assert_array_equal(ids[::3], np.tile(np.arange(12), (14, 1)))


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
    liked = likes(7, n_items, 0.4, 63).tolil()
    liked[3] = False
    liked = sp.csr_matrix(liked)
    rng = np.random.default_rng(64)
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
        np.testing.assert_array_equal(ids[u, n_items - count :], np.sort(liked[u].indices))
        assert (scores[u, n_items - count :] == lowest_score(dtype)).all()


def test_a_user_who_likes_everything_gets_everything_at_the_end():
    users, items = whole_numbers(2, 130, 2, 64)
    liked = sp.csr_matrix(np.array([[True], [False]]) & np.ones((2, 130), bool))
    ids, scores = top_k(BACKEND, users, items, 5, liked=liked)
    np.testing.assert_array_equal(ids[0], np.arange(5))
    assert (scores[0] == np.finfo(np.float32).min).all()
    assert (scores[1] > -100).all()


def test_few_items_left_come_before_filtered_ones_by_id():
    """Fewer than asked for; some of them without a score."""
    users, items = whole_numbers(30, 3000, 2, 78)
    items[5::7] = np.nan
    check(users, items, 12, liked=likes(30, 3000, 0.997, 79))


def test_a_liked_item_stored_as_zero_is_filtered_too():
    liked = sp.csr_matrix((np.zeros(1), [1], [0, 1]), shape=(1, 3))
    ids, _ = top_k(BACKEND, np.ones((1, 1)), np.array([[1.0], [9.0], [2.0]]), 3, liked=liked)
    np.testing.assert_array_equal(ids, [[2, 0, 1]])


def test_likes_may_be_stored_in_any_order():
    users, items = whole_numbers(3, 400, 2, 70)
    liked = likes(3, 400, 0.3, 71)
    reversed_rows = [liked[u].indices[::-1] for u in range(3)]
    shuffled = sp.csr_matrix(
        (np.ones(liked.nnz), np.concatenate(reversed_rows), liked.indptr), shape=liked.shape
    )
    for expected, found in zip(
        top_k(BACKEND, users, items, 300, liked=liked),
        top_k(BACKEND, users, items, 300, liked=shuffled),
        strict=True,
    ):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("most_users", [1, 4, 480])
@pytest.mark.parametrize("tile_elements", [1, 300, 7000, 3 << 19])
def test_cuts_do_not_show(monkeypatch, tile_elements, most_users):
    cut_small(monkeypatch, tile_elements, most_users)
    users, items = whole_numbers(11, 517, 3, 65)
    liked = likes(11, 517, 0.3, 66)
    for n_best in (1, 7, 150, 516, 517):
        check(users, items, n_best)
        check(users, items, n_best, liked=liked, filter_items=np.array([516, 64, 0, 63, 64]))


@pytest.mark.parametrize("order", ["rising", "falling", "zigzag"])
def test_the_order_of_scores_does_not_show(monkeypatch, order):
    """Every tile holds better items than all before it, or none does."""
    cut_small(monkeypatch, 1000)
    number = np.arange(4000, dtype=np.float32) // 2
    items = {"rising": number, "falling": -number, "zigzag": number * (-1) ** number}[order]
    users = np.array([[1.0], [2.0], [-1.0], [0.0], [-3.0]], np.float32)
    for n_best in (1, 10, 100):
        check(users, items[:, None], n_best)
        check(users, items[:, None], n_best, liked=likes(5, 4000, 0.5, 72))


@settings(max_examples=60)
@given(
    n_users=st.integers(1, 40),
    n_items=st.integers(1, 400),
    n_best=st.integers(1, 400),
    tile_elements=st.integers(1, 3000),
    most_users=st.integers(1, 40),
    largest=st.sampled_from([0, 1, 5, 1000]),
    density=st.sampled_from([0, 0.1, 0.5, 0.98, 1]),
    seed=st.integers(0, 2**32),
)
@example(40, 400, 10, 600, 40, 1, 0.1, 7)
def test_any_shape_cut_and_filter(
    n_users, n_items, n_best, tile_elements, most_users, largest, density, seed
):
    users, items = whole_numbers(n_users, n_items, 2, seed, largest=largest)
    rng = np.random.default_rng(seed + 1)
    filters = {
        "liked": sp.csr_matrix(rng.random((n_users, n_items)) < density),
        "filter_items": np.flatnonzero(rng.random(n_items) < density / 2),
    }
    with pytest.MonkeyPatch.context() as patch:
        cut_small(patch, tile_elements, most_users)
        check(users, items, min(n_best, n_items))
        check(users, items, min(n_best, n_items), **filters)


WILD = [np.inf, -np.inf, np.nan, 3e38, -3e38, 1e-30, -1e-30, 0.0, -0.0, 1.0, -2.0]


@settings(max_examples=60)
@given(
    users=st.lists(st.sampled_from(WILD), min_size=1, max_size=20),
    items=st.lists(st.sampled_from(WILD), min_size=1, max_size=300),
    repeats=st.integers(1, 5),
    n_best=st.integers(1, 50),
    tile_elements=st.integers(1, 1000),
    density=st.sampled_from([0, 0.2, 0.9]),
    seed=st.integers(0, 2**32),
)
@example([-np.inf, np.nan, 1.0, 0.0], [1.0, np.nan, -np.inf, np.inf, 0.0], 5, 50, 40, 0.2, 3)
def test_scores_without_a_number_come_before_filtered_items(
    users, items, repeats, n_best, tile_elements, density, seed
):
    """Overflow, infinity and NaN: one column, so that a score is a product without a sum."""
    users, items = (np.array(side, np.float32)[:, None] for side in (users, items * repeats))
    liked = likes(len(users), len(items), density, seed)
    with pytest.MonkeyPatch.context() as patch:
        cut_small(patch, tile_elements)
        check(users, items, min(n_best, len(items)), liked=liked)
        check(users, items, min(n_best, len(items)), filter_items=np.array([0, len(items) - 1]))


def test_nan_hides_no_item_beside_it():
    """The largest of scores among which one is NaN is not NaN."""
    items = np.full((2000, 1), np.nan, np.float32)
    items[[3, 900, 1999], 0] = [1, 3, 2]
    ids, scores = top_k(BACKEND, np.ones((4, 1), np.float32), items, 5)
    np.testing.assert_array_equal(ids, np.tile([900, 1999, 3, 0, 1], (4, 1)))
    np.testing.assert_array_equal(scores[0], [3, 2, 1, *[lowest_score(np.float32)] * 2])


def normal(n_users, n_items, k, seed, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal((n, k)).astype(dtype) for n in (n_users, n_items)]


@settings(max_examples=60)
@given(
    n_users=st.integers(1, 40),
    n_items=st.integers(1, 400),
    k=st.integers(1, 70),
    n_best=st.integers(1, 400),
    dtype=st.sampled_from([np.float32, np.float64]),
    density=st.sampled_from([0, 0.1, 0.9]),
    seed=st.integers(0, 2**32),
)
@example(20, 900, 40, 15, np.float32, 0, 67)
def test_lists_are_as_good_as_rounding_allows(n_users, n_items, k, n_best, dtype, density, seed):
    """Real numbers: each score against its product in long double, and the list against all."""
    users, items = normal(n_users, n_items, k, seed, dtype)
    n_best = min(n_best, n_items)
    liked = likes(n_users, n_items, density, seed + 1)
    exact = users.astype(np.longdouble) @ items.T.astype(np.longdouble)
    error = k * np.finfo(dtype).eps * (np.abs(users) @ np.abs(items.T))
    exact[liked.toarray()] = lowest_score(dtype)
    for backend in (GENERAL, BACKEND):
        ids, scores = top_k(backend, users, items, n_best, liked=liked)
        off = np.abs(scores - np.take_along_axis(exact, ids.astype(int), axis=1))
        assert (off <= np.take_along_axis(error, ids.astype(int), axis=1)).all()
        assert (np.diff(scores, axis=1) <= 0).all()
        best = -np.sort(-exact, axis=1)[:, :n_best]
        assert (np.abs(scores - best) <= error.max()).all()
        assert all(len(set(row)) == n_best for row in ids.tolist())


@COMPILED
@DTYPES
@pytest.mark.parametrize("k", [1, 7, 16, 37, 64])
def test_a_score_depends_on_the_two_rows_alone(k, dtype):
    """The same bits for users alone, other items beside, other threads, other vectors."""
    users, items = normal(37, 333, k, 81, dtype)
    ids, scores = top_k(BACKEND, users, items, 333)
    table = np.take_along_axis(scores, np.argsort(ids, axis=1), axis=1)
    for library in variants().values():
        if library is variants()["generic"]:
            continue  # without fused products
        with mock.patch.object(native, "library", return_value=library):
            for some in (slice(5, 6), slice(0, 3), slice(20, 37), slice(0, 37)):
                for part in (slice(0, 333), slice(1, 2), slice(7, 300)):
                    for threads in (1, 3):
                        backend = NumpyBackend(threads)
                        found, values = top_k(backend, users[some], items[part], 1)
                        expected = table[some, part]
                        np.testing.assert_array_equal(values[:, 0], expected.max(axis=1))
                        np.testing.assert_array_equal(found[:, 0], expected.argmax(axis=1))


@COMPILED
@pytest.mark.parametrize("n_users", [1, 5])
def test_threads_that_share_the_items_agree(n_users):
    """Few users and 13 million products; equal scores on either side of each cut."""
    users, items = whole_numbers(n_users, 100_000 // n_users, 128, 82, largest=1)
    liked = likes(n_users, len(items), 0.01, 83)
    alone = top_k(NumpyBackend(1), users, items, 3000, liked=liked)
    for threads in (2, 3):
        for found, expected in zip(
            top_k(NumpyBackend(threads), users, items, 3000, liked=liked), alone, strict=True
        ):
            np.testing.assert_array_equal(found, expected)
    expected = full_sort(users, items, 3000, liked=liked)
    np.testing.assert_array_equal(alone[0], expected[0])


@COMPILED
def test_likes_stored_twice_or_with_wide_numbers_are_filtered():
    users, items = whole_numbers(30, 700, 5, 84)
    liked = likes(30, 700, 0.3, 85)
    expected = top_k(BACKEND, users, items, 500, liked=liked)
    twice = sp.csr_matrix(
        (np.ones(2 * liked.nnz), np.repeat(liked.indices, 2), 2 * liked.indptr), shape=liked.shape
    )
    wide = liked.copy()
    wide.indices, wide.indptr = liked.indices.astype(np.int64), liked.indptr.astype(np.int64)
    for other in (twice, wide):
        found = top_k(BACKEND, users, items, 500, liked=other)
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])


@COMPILED
def test_factors_of_two_types_take_the_general_path():
    users, items = normal(3, 50, 8, 86)
    ids, scores = top_k(BACKEND, users, items.astype(np.float64), 5)
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(ids, top_k(BACKEND, users, items, 5)[0])


def test_users_in_many_blocks_and_threads():
    """More users than a block takes, and more blocks than threads."""
    users, items = whole_numbers(3000, 90, 4, 73)
    check(users, items, 10, liked=likes(3000, 90, 0.2, 74))


def test_no_users():
    ids, scores = top_k(BACKEND, np.zeros((0, 3)), np.ones((10, 3)), 4)
    assert ids.shape == scores.shape == (0, 4)


def peak_megabytes(*arguments, **filters):
    backend = NumpyBackend(1, fused=False)
    tracemalloc.start()
    try:
        top_k(backend, *arguments, **filters)
        return tracemalloc.get_traced_memory()[1] / 1e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("order", ["mixed", "rising", "falling", "equal"])
def test_memory_is_that_of_a_few_tiles(order):
    """480 users x 300,000 items are 576 MB of scores, and 3 MB a tile."""
    number = np.arange(300_000, dtype=np.float32)
    column = {
        "mixed": np.random.default_rng(75).permutation(number),
        "rising": number,
        "falling": -number,
        "equal": np.zeros_like(number),
    }[order]
    users = np.ones((480, 1), np.float32)
    assert peak_megabytes(users, column[:, None], 10) < 96


def test_filters_take_memory_for_each_like_and_none_for_each_score():
    """A mask of 50 users x 1,000,000 items would be 50 MB."""
    n_users, n_items, per_user = 50, 1_000_000, 200
    indices = np.random.default_rng(76).integers(0, n_items, n_users * per_user)
    liked = sp.csr_matrix(
        (np.ones(len(indices)), indices, np.arange(0, len(indices) + 1, per_user)),
        shape=(n_users, n_items),
    )
    users, items = whole_numbers(n_users, n_items, 1, 77)
    assert peak_megabytes(users, items, 10, liked=liked) < 32
