"""Metrics over plain arrays, against definitions written out user by user."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse

from gpu_als import metrics
from gpu_als.errors import InputError

# --- the definitions, one user at a time ---------------------------------------------------------


def first_hits(ranked, relevant, K):
    """1-based places, up to K, where a relevant item stands for the first time."""
    places, seen = [], set()
    for place, item in enumerate(ranked[:K], start=1):
        if item in relevant and item not in seen:
            places.append(place)
        seen.add(item)
    return places


def user_precision(ranked, relevant, K):
    return len(first_hits(ranked, relevant, K)) / K


def user_recall(ranked, relevant, K):
    return len(first_hits(ranked, relevant, K)) / len(relevant)


def user_hit_rate(ranked, relevant, K):
    return 1.0 if first_hits(ranked, relevant, K) else 0.0


def user_ndcg(ranked, relevant, K):
    gain = sum(1 / math.log2(place + 1) for place in first_hits(ranked, relevant, K))
    ideal = sum(1 / math.log2(place + 1) for place in range(1, min(K, len(relevant)) + 1))
    return gain / ideal


def user_average_precision(ranked, relevant, K):
    places = first_hits(ranked, relevant, K)
    total = sum(sum(other <= place for other in places) / place for place in places)
    return total / min(K, len(relevant))


RANKING = {
    metrics.precision_at_k: user_precision,
    metrics.recall_at_k: user_recall,
    metrics.hit_rate_at_k: user_hit_rate,
    metrics.ndcg_at_k: user_ndcg,
    metrics.average_precision_at_k: user_average_precision,
}
every_ranking_metric = pytest.mark.parametrize("metric", RANKING, ids=lambda f: f.__name__)


def over_users(metric, ranked, relevant, K):
    """Mean of a metric's per-user definition over the users with relevant items."""
    judged = [(row, items) for row, items in zip(ranked, relevant, strict=True) if items]
    return sum(RANKING[metric](list(row), items, K) for row, items in judged) / len(judged)


def as_csr(relevant, n_items):
    """Return the sets as a CSR matrix with unsorted columns, and with a stored zero."""
    indices = [item for items in relevant for item in sorted(items, reverse=True)]
    indptr = np.cumsum([0] + [len(items) for items in relevant])
    values = np.arange(len(indices), dtype=float)
    return sparse.csr_matrix((values, indices, indptr), shape=(len(relevant), n_items))


@st.composite
def judged_lists(draw):
    """Draw lists with empty places, repeats and unknown items; sets, not all empty; K."""
    n_users, n_items = draw(st.integers(1, 6)), draw(st.integers(1, 9))
    width = draw(st.integers(0, 12))
    ids = st.integers(-1, n_items + 3)
    ranked = draw(
        st.lists(st.lists(ids, min_size=width, max_size=width), min_size=n_users, max_size=n_users)
    )
    relevant = draw(
        st.lists(st.sets(st.integers(0, n_items - 1)), min_size=n_users, max_size=n_users).filter(
            any
        )
    )
    shape = (n_users, width)
    dtype = draw(st.sampled_from([np.int16, np.int32, np.int64]))
    return np.array(ranked, dtype=dtype).reshape(shape), relevant, n_items, draw(st.integers(1, 14))


# --- ranking metrics -----------------------------------------------------------------------------


@given(judged_lists())
def test_ranking_metrics_are_the_means_of_their_definitions(case):
    ranked, relevant, n_items, K = case
    for metric in RANKING:
        expected = over_users(metric, ranked, relevant, K)
        from_lists = metric(ranked, [sorted(items) for items in relevant], K)
        from_matrix = metric(ranked, as_csr(relevant, n_items), K)
        assert from_lists == pytest.approx(expected, rel=1e-13, abs=1e-15)
        assert from_matrix == from_lists
        assert isinstance(from_matrix, float)
        assert 0 <= from_matrix <= 1


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        # User 0 likes {4, 7, 9} and finds 7 at place 2 and 4 at place 4. User 1 likes {3} and finds
        # it at place 1. User 2 likes nothing. User 3 likes {5} and finds nothing.
        (metrics.precision_at_k, (2 / 4 + 1 / 4 + 0) / 3),
        (metrics.recall_at_k, (2 / 3 + 1 + 0) / 3),
        (metrics.hit_rate_at_k, 2 / 3),
        (metrics.average_precision_at_k, ((1 / 2 + 2 / 4) / 3 + 1 + 0) / 3),
        (
            metrics.ndcg_at_k,
            ((1 / math.log2(3) + 1 / math.log2(5)) / (1 + 1 / math.log2(3) + 1 / 2) + 1 + 0) / 3,
        ),
    ],
)
def test_small_example_worked_by_hand(metric, expected):
    ranked = np.array([[1, 7, 2, 4, 9], [3, 1, 2, -1, -1], [1, 2, 3, 4, 5], [0, 1, -1, -1, 5]])
    relevant = [np.array([9, 4, 7]), np.array([3]), [], [5]]
    assert metric(ranked, relevant, K=4) == pytest.approx(expected, rel=1e-14)


@every_ranking_metric
def test_k_defaults_to_ten(metric):
    ranked, relevant = np.arange(14).reshape(1, 14), [[9, 13]]
    assert metric(ranked, relevant) == metric(ranked, relevant, K=10)
    assert metric(ranked, [[9]]) > 0
    assert metric(ranked, [[10]]) == 0


@pytest.mark.parametrize(
    "metric", [metrics.ndcg_at_k, metrics.average_precision_at_k, metrics.recall_at_k]
)
@pytest.mark.parametrize("K", [1, 3, 10, 97])
def test_perfect_lists_score_exactly_one(metric, K):
    ranked = np.arange(5 * K).reshape(5, K)
    assert metric(ranked, list(ranked), K) == 1.0


@every_ranking_metric
def test_repeated_item_counts_once(metric):
    repeats = metric(np.array([[4, 4, 4, 1]]), [[4, 1]], K=4)
    assert repeats == metric(np.array([[4, -1, -1, 1]]), [[4, 1]], K=4)


@every_ranking_metric
def test_item_outside_the_catalogue_is_not_another_users_item(metric):
    # With 3 items, item 4 of user 0 has the key of item 1 of user 1.
    relevant = sparse.csr_matrix(np.array([[1, 0, 0], [0, 1, 0]]))
    assert metric(np.array([[4, 3], [-1, 2]]), relevant, K=2) == 0


@every_ranking_metric
def test_stored_duplicates_in_the_matrix_are_one_item(metric):
    twice = sparse.csr_matrix((np.ones(3), [2, 2, 0], [0, 3]), shape=(1, 4))
    ranked = np.array([[2, 1, 3]])
    assert metric(ranked, twice, K=3) == metric(ranked, [[0, 2]], K=3)


@every_ranking_metric
def test_hashed_ids_need_no_small_catalogue(metric):
    rng = np.random.default_rng(11)
    hashed = rng.integers(2**61, 2**63 - 1, size=12)
    relevant = [set(map(int, rng.choice(12, size, replace=False))) for size in (3, 0, 5, 2, 12)]
    ranked = rng.integers(-1, 12, size=(5, 6))
    expected = metric(ranked, as_csr(relevant, 12), K=5)
    ids = [hashed[sorted(items)] for items in relevant]
    unknown = np.where(ranked == 11, 2**63 - 1, hashed[ranked])
    assert metric(np.where(ranked < 0, -1, hashed[ranked]), ids, K=5) == expected
    assert metric(np.where(ranked < 0, -1, unknown), ids, K=5) == metric(
        np.where(ranked == 11, -1, ranked), as_csr(relevant, 12), K=5
    )


@pytest.mark.parametrize("form", [sparse.csr_array, sparse.csc_matrix, sparse.coo_array])
def test_every_sparse_form_is_read(form):
    rng = np.random.default_rng(13)
    relevant = sparse.csr_matrix(rng.random((8, 6)) < 0.4)
    ranked = rng.integers(0, 6, size=(8, 3))
    expected = metrics.recall_at_k(ranked, relevant, K=3)
    assert metrics.recall_at_k(ranked, form(relevant), K=3) == expected


def test_hit_matrix_marks_places_and_counts_items():
    hits, n_relevant = metrics.hit_matrix([[5, 1, 5], [1, -1, 0]], [[5, 5, 2], []], K=4)
    assert hits.dtype == bool
    np.testing.assert_array_equal(hits, [[1, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_array_equal(n_relevant, [2, 0])
    repeats, _ = metrics.hit_matrix(
        [[5, 1, 5], [1, -1, 0]], [[5, 5, 2], []], K=4, count_repeats=True
    )
    np.testing.assert_array_equal(repeats, [[1, 0, 1, 0], [0, 0, 0, 0]])


def test_hit_matrix_of_no_users_is_empty():
    hits, n_relevant = metrics.hit_matrix(np.empty((0, 5), dtype=int), [], K=3)
    assert hits.shape == (0, 3)
    assert n_relevant.shape == (0,)


@pytest.mark.parametrize(
    ("ranked", "relevant", "K", "message"),
    [
        ([1, 2], [[1], [2]], 1, "ranked: found 1 dim"),
        ([[1.0, 2.0]], [[1]], 1, "ranked: found values of type float64"),
        ([[1, -2]], [[1]], 2, "ranked: found the item id -2"),
        ([[1], [2]], [[1]], 1, "relevant: found 1 users and 2"),
        ([[1], [2]], sparse.csr_matrix((3, 4)), 1, "relevant: found 3 users and 2"),
        ([[1]], [[1, -1]], 1, "relevant: found the item id -1"),
        ([[1]], [[1.0]], 1, "relevant: found list .*float64"),
        ([[1]], [[[1]]], 1, r"relevant: found list .*shape \(1, 1\)"),
        ([[1]], [[True]], 1, "relevant: found list .*bool"),
        ([[1]], [1], 1, "relevant: found list"),
        ([[1]], None, 1, "relevant: found NoneType"),
        ([[1]], np.array([[1]]), 1, "relevant: found a dense array"),
        ([[1]], sparse.coo_array([1, 0, 1]), 1, "relevant: found 1 dim"),
        ([[1]], [[]], 1, "relevant: found no item"),
        ([[1]], sparse.csr_matrix((1, 4)), 1, "relevant: found no item"),
        ([[1]], [[1]], 0, "K: found 0"),
        ([[1]], [[1]], 2.0, "K: found 2.0"),
    ],
)
def test_ranking_metrics_name_the_bad_argument(ranked, relevant, K, message):
    for metric in RANKING:
        with pytest.raises(InputError, match=message):
            metric(ranked, relevant, K)


# --- errors of predicted values ------------------------------------------------------------------

finite = st.floats(-1e6, 1e6)


@given(st.lists(st.tuples(finite, finite, st.floats(0.01, 100)), min_size=1, max_size=30))
def test_rmse_and_mae_are_their_definitions(rows):
    truth, predicted, weight = map(np.array, zip(*rows, strict=True))
    errors = [t - p for t, p, _ in rows]
    squared = math.fsum(e * e for e in errors) / len(rows)
    assert metrics.rmse(truth, predicted) == pytest.approx(math.sqrt(squared), rel=1e-12)
    absolute = math.fsum(map(abs, errors)) / len(rows)
    assert metrics.mae(truth, predicted) == pytest.approx(absolute, rel=1e-12)

    total = math.fsum(weight)
    squared = math.fsum(w * e * e for e, w in zip(errors, weight, strict=True)) / total
    absolute = math.fsum(w * abs(e) for e, w in zip(errors, weight, strict=True)) / total
    assert metrics.rmse(truth, predicted, weight) == pytest.approx(math.sqrt(squared), rel=1e-12)
    assert metrics.mae(truth, predicted, weight) == pytest.approx(absolute, rel=1e-12)


def test_errors_worked_by_hand():
    truth, predicted = [[1, 2], [3, 4]], [[1, 4], [0, 4]]
    assert metrics.rmse(truth, predicted) == math.sqrt(13 / 4)
    assert metrics.mae(truth, predicted) == 5 / 4
    assert metrics.rmse(truth, predicted, [[5, 1], [0, 0]]) == pytest.approx(math.sqrt(4 / 6))
    assert metrics.mae(truth, predicted, [[5, 1], [0, 0]]) == pytest.approx(2 / 6)


@pytest.mark.parametrize(
    ("dtype", "truth", "predicted"),
    [
        (np.uint8, 1, 255),
        (np.float16, 2**15, -(2**15)),
        (np.float32, 2**24, -1),
        (np.int32, 2**31 - 1, -(2**31)),
        (bool, False, True),
    ],
)
def test_errors_are_accumulated_in_float64(dtype, truth, predicted):
    exact = abs(truth - predicted)
    truth, predicted = np.full(3, truth, dtype), np.full(3, predicted, dtype)
    assert metrics.rmse(truth, predicted) == pytest.approx(exact, rel=1e-15)
    assert metrics.mae(truth, predicted) == pytest.approx(exact, rel=1e-15)


@pytest.mark.parametrize("scale", [1e-308, 1e308])
def test_only_the_proportions_of_weights_matter(scale):
    assert metrics.mae([1, 2, 3], [0, 0, 0], scale * np.array([1, 1, 1])) == pytest.approx(2)


@pytest.mark.parametrize("metric", [metrics.rmse, metrics.mae])
@pytest.mark.parametrize(
    ("truth", "predicted", "weight", "message"),
    [
        ([1, 2], [1], None, "predicted: found shape"),
        ([1, 2], [[1, 2]], None, "predicted: found shape"),
        ([], [], None, "truth: found an empty"),
        ([math.nan], [1], None, "truth: found NaN"),
        ([1], [math.nan], None, "predicted: found NaN"),
        ([1], [math.inf], None, "predicted: found NaN or inf"),
        (["a"], [1], None, "truth: found values of type"),
        ([1], [1j], None, "predicted: found values of type complex"),
        ([1], [1], [math.nan], "sample_weight: found NaN"),
        ([1], [1], [1, 2], "sample_weight: found shape"),
        ([1, 1], [1, 1], [2, -1], "sample_weight: found -1"),
        ([1, 1], [1, 1], [0, 0], "sample_weight: found only zeros"),
    ],
)
def test_error_metric_names_the_bad_argument(metric, truth, predicted, weight, message):
    with pytest.raises(InputError, match=message):
        metric(truth, predicted, weight)
