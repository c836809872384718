"""Evaluation of models: agreement with implicit.evaluation, and the formulas user by user."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from threadpoolctl import threadpool_limits

from gpu_als import evaluation, metrics
from gpu_als.errors import InputError

BY_NAME = {
    "precision": evaluation.precision_at_k,
    "map": evaluation.mean_average_precision_at_k,
    "ndcg": evaluation.ndcg_at_k,
    "auc": evaluation.AUC_at_k,
}
TRUE = {
    evaluation.true_precision_at_k: metrics.precision_at_k,
    evaluation.recall_at_k: metrics.recall_at_k,
    evaluation.hit_rate_at_k: metrics.hit_rate_at_k,
}
every_function = pytest.mark.parametrize(
    "function",
    [evaluation.ranking_metrics_at_k, *BY_NAME.values(), *TRUE],
    ids=lambda f: f.__name__,
)


class Lists:
    """A model that recommends lists given beforehand, and remembers what it was asked."""

    def __init__(self, lists):
        self.lists = np.asarray(lists, dtype=np.int32)
        self.calls = []

    def recommend(self, userids, user_items, N=10, filter_already_liked_items=True):
        userids = np.asarray(userids)
        self.calls.append((userids, user_items, N))
        return self.lists[userids, :N], np.zeros((len(userids), N), dtype=np.float32)


class Scores:
    """A model with fixed scores that moves filtered items to the end of the list, never dropped."""

    def __init__(self, scores):
        self.scores = np.asarray(scores, dtype=np.float32)

    def recommend(self, userids, user_items, N=10, filter_already_liked_items=True):
        scores = self.scores[np.asarray(userids)]
        scores[user_items.nonzero()] = np.finfo(np.float32).min
        ids = np.argsort(-scores, axis=1, kind="stable")[:, :N].astype(np.int32)
        return ids, np.take_along_axis(scores, ids, axis=1)


def interactions(rng, n_users, n_items, density):
    return sparse.csr_matrix((rng.random((n_users, n_items)) < density).astype(np.float32))


def formulas(lists, liked, n_items, K):
    """Evaluate the documented formulas one user at a time; lists may hold -1 and repeats."""
    found = findable = 0
    averages, gains, areas = [], [], []
    for items, likes in zip(lists, liked, strict=True):
        if not likes:
            continue
        hit = [item in likes for item in items[:K]]
        miss = [item not in likes for item in items[:K]]
        reachable = min(K, len(likes))
        found += sum(hit)
        findable += reachable
        at = [place for place, is_hit in enumerate(hit, start=1) if is_hit]
        averages.append(sum(sum(hit[:place]) / place for place in at) / reachable)
        ideal = sum(1 / math.log2(place + 1) for place in range(1, reachable + 1))
        gains.append(sum(1 / math.log2(place + 1) for place in at) / ideal)
        others = n_items - len(likes)
        if others:
            area = sum(sum(hit[:place]) for place, is_miss in enumerate(miss) if is_miss)
            area += (others - sum(miss)) * (sum(hit) + len(likes)) / 2
            areas.append(area / (len(likes) * others))
    return {
        "precision": found / findable,
        "map": sum(averages) / len(averages),
        "ndcg": sum(gains) / len(gains),
        "auc": sum(areas) / len(areas) if areas else math.nan,
    }


def as_csr(liked, n_items):
    indices = [item for items in liked for item in items]
    indptr = np.cumsum([0] + [len(items) for items in liked])
    return sparse.csr_matrix((np.ones(len(indices)), indices, indptr), shape=(len(liked), n_items))


@st.composite
def listed_and_liked(draw):
    n_users, n_items = draw(st.integers(1, 5)), draw(st.integers(2, 8))
    K = draw(st.integers(1, 10))
    ids = st.integers(-1, n_items + 1)
    row = st.lists(ids, min_size=K, max_size=K)
    lists = draw(st.lists(row, min_size=n_users, max_size=n_users))
    # Nobody likes the whole catalogue: implicit divides by zero there.
    likes = st.sets(st.integers(0, n_items - 1), max_size=n_items - 1)
    liked = draw(st.lists(likes, min_size=n_users, max_size=n_users).filter(any))
    return lists, liked, n_items, K


# --- agreement with implicit ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def theirs():
    return pytest.importorskip("implicit.evaluation")


@pytest.fixture(scope="module", params=["few items", "many users"])
def fitted(request, theirs):
    """Return a model of implicit, its training matrix and a test matrix."""
    als = pytest.importorskip("implicit.cpu.als")
    rng = np.random.default_rng(23)
    # Few items: long training rows, so that filtered items enter the lists at K < n_items.
    # Many users: several batches, the last of them partly filled.
    shape, density = ((150, 40), 0.6) if request.param == "few items" else ((2300, 90), 0.1)
    train = interactions(rng, *shape, density)
    tested = rng.random((shape[0], 1)) < 0.9
    test = sparse.csr_matrix(tested & (rng.random(shape) < 0.08))
    with threadpool_limits(1, "blas"):
        model = als.AlternatingLeastSquares(factors=8, iterations=3, random_state=29, num_threads=1)
        model.fit(train, show_progress=False)
        yield model, train, test


@pytest.mark.parametrize("K", [1, 2, 10, 30, 40, 90, 95])
def test_agrees_with_implicit_on_its_own_model(fitted, theirs, K):
    model, train, test = fitted
    n_available = train.shape[1] - train.sum(axis=1).max()
    assert n_available < 80, "the larger K must reach filtered items"
    assert (np.diff(test.indptr) == 0).any(), "some users must have no test items"
    expected = theirs.ranking_metrics_at_k(model, train, test, K=K, show_progress=False)
    ours = evaluation.ranking_metrics_at_k(model, train, test, K=K, show_progress=False)
    assert list(ours) == list(expected)
    assert ours == pytest.approx(expected, rel=1e-12)


@pytest.mark.filterwarnings("ignore:Method expects CSR input")  # its own doing
def test_agrees_with_implicit_on_a_model_that_gives_short_lists(theirs):
    neighbours = pytest.importorskip("implicit.nearest_neighbours")
    rng = np.random.default_rng(53)
    train = interactions(rng, 90, 50, 0.1).astype(np.float64)
    test = interactions(rng, 90, 50, 0.08)
    model = neighbours.CosineRecommender(K=3, num_threads=1)
    model.fit(train, show_progress=False)
    assert (model.recommend(np.arange(90), train, N=20)[0] == -1).any()
    expected = theirs.ranking_metrics_at_k(model, train, test, K=20, show_progress=False)
    ours = evaluation.ranking_metrics_at_k(model, train, test, K=20, show_progress=False)
    assert ours == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("key", BY_NAME)
def test_each_name_of_implicit_gives_its_value(fitted, theirs, key):
    model, train, test = fitted
    function = BY_NAME[key]
    expected = getattr(theirs, function.__name__)(model, train, test, show_progress=False)
    ours = function(model, train, test, show_progress=False, num_threads=4)
    assert ours == pytest.approx(expected, rel=1e-12)
    assert isinstance(ours, float)


@given(listed_and_liked())
def test_agrees_with_implicit_on_any_lists(theirs, case):
    lists, liked, n_items, K = case
    arguments = Lists(lists), as_csr([[]] * len(liked), n_items), as_csr(liked, n_items)
    expected = theirs.ranking_metrics_at_k(*arguments, K=K, show_progress=False)
    ours = evaluation.ranking_metrics_at_k(*arguments, K=K, show_progress=False)
    assert ours == pytest.approx(expected, rel=1e-12, abs=1e-15)


def test_asks_the_model_what_implicit_asks(theirs):
    rng = np.random.default_rng(31)
    train, test = interactions(rng, 2500, 12, 0.3), interactions(rng, 2500, 12, 0.2)
    asked = []
    for module in (theirs, evaluation):
        model = Lists(rng.integers(0, 12, size=(2500, 5)))
        module.ranking_metrics_at_k(model, train, test, K=5, show_progress=False)
        asked.append(model.calls)
    for (users, rows, N), (our_users, our_rows, our_N) in zip(*asked, strict=True):
        np.testing.assert_array_equal(our_users, users)
        np.testing.assert_array_equal(our_rows.toarray(), rows.toarray())
        assert type(our_rows) is type(rows)
        assert our_N == N


# --- without implicit ----------------------------------------------------------------------------


@given(listed_and_liked())
def test_values_are_the_documented_formulas(case):
    lists, liked, n_items, K = case
    ours = evaluation.ranking_metrics_at_k(
        Lists(lists), as_csr([[]] * len(liked), n_items), as_csr(liked, n_items), K, False
    )
    assert ours == pytest.approx(formulas(lists, liked, n_items, K), rel=1e-13, abs=1e-15)


def test_example_worked_by_hand():
    # User 0 likes {2, 4} of 6 items and gets 4 first; user 1 likes nothing; user 2 likes {0} and
    # gets it third. AUC: user 0 has 1 hit before 2 misses, then 2 others at the height (1 + 2) / 2;
    # user 2 has no hit before 2 misses, then 3 others at the height 1.
    model = Lists([[4, 0, 1], [0, 1, 2], [1, 2, 0]])
    ours = evaluation.ranking_metrics_at_k(
        model, sparse.csr_matrix((3, 6)), as_csr([[2, 4], [], [0]], 6), K=3, show_progress=False
    )
    assert ours == pytest.approx(
        {
            "precision": 2 / (2 + 1),
            "map": (1 / 2 + 1 / 3) / 2,
            "ndcg": (1 / (1 + 1 / math.log2(3)) + 1 / math.log2(4)) / 2,
            "auc": ((2 + 2 * 1.5) / (2 * 4) + 3 / 5) / 2,
        },
        rel=1e-14,
    )


@pytest.mark.parametrize("K", [1, 4, 10, 25])
def test_textbook_metrics_are_those_of_the_whole_lists(K, monkeypatch):
    rng = np.random.default_rng(37)
    train, test = interactions(rng, 130, 20, 0.5), interactions(rng, 130, 20, 0.08)
    model = Scores(rng.random((130, 20)))
    ids, _ = model.recommend(np.arange(130), train, N=K)
    monkeypatch.setattr(evaluation, "_USERS_PER_BATCH", 30)
    for function, metric in TRUE.items():
        expected = metric(ids, test, K)
        assert function(model, train, test, K, show_progress=False) == pytest.approx(
            expected, rel=1e-14
        )


def test_filtered_item_at_the_end_of_the_list_counts_like_any_other():
    # Item 1 is in both matrices. The model ranks it last, where it still is a hit.
    both = sparse.csr_matrix(np.array([[0, 1, 0]]))
    model = Scores([[0.1, 0.9, 0.5]])
    assert evaluation.precision_at_k(model, both, both, K=3, show_progress=False) == 1
    assert evaluation.precision_at_k(model, both, both, K=2, show_progress=False) == 0
    assert evaluation.recall_at_k(model, both, both, K=3, show_progress=False) == 1


def test_short_list_is_a_list_with_empty_places():
    rng = np.random.default_rng(41)
    test = interactions(rng, 50, 9, 0.3)
    ids = np.argsort(rng.random((50, 9)), axis=1)[:, :4]
    padded = np.hstack([ids, np.full((50, 3), -1)])
    short, long = (
        evaluation.ranking_metrics_at_k(Lists(lists), test, test, 7, show_progress=False)
        for lists in (ids, padded)
    )
    assert short == long


def test_user_who_likes_everything_is_left_out_of_the_auc():
    test = as_csr([[0, 1, 2], [1]], 3)
    model = Lists([[0, 1, 2], [0, 1, 2]])
    assert evaluation.AUC_at_k(model, test, test, K=3, show_progress=False) == 1 / 2
    ours = evaluation.ranking_metrics_at_k(model, test[:1], test[:1], K=3, show_progress=False)
    assert ours == pytest.approx(
        {"precision": 1, "map": 1, "ndcg": 1, "auc": math.nan}, nan_ok=True, rel=1e-15
    )


def test_every_stored_test_entry_is_a_liked_item():
    stored_zero = sparse.csr_matrix((np.zeros(1), [2], [0, 1]), shape=(1, 4))
    assert evaluation.recall_at_k(Lists([[2]]), stored_zero, stored_zero, 1, False) == 1
    assert evaluation.precision_at_k(Lists([[2]]), stored_zero, stored_zero, 1, False) == 1


@pytest.mark.parametrize(
    "form",
    [sparse.coo_matrix, sparse.csr_array, np.asarray],
)
@every_function
def test_every_matrix_form_gives_the_same(function, form):
    rng = np.random.default_rng(43)
    train, test = interactions(rng, 40, 15, 0.3), interactions(rng, 40, 15, 0.2)
    model = Lists(rng.integers(0, 15, size=(40, 10)))

    def convert(matrix):
        return form(matrix.toarray() if form is np.asarray else matrix)

    ours = function(model, convert(train), convert(test), show_progress=False)
    _, rows, _ = model.calls.pop()
    assert type(rows) is sparse.csr_matrix, "implicit's models take nothing else"
    assert ours == function(model, train, test, show_progress=False)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_model_is_given_the_training_values(dtype):
    train = sparse.csr_matrix(np.array([[1 / 3, math.nan, 0], [0, 2, 0]], dtype=dtype))
    model = Lists([[0], [1]])
    evaluation.recall_at_k(model, train, train, K=1, show_progress=False)
    ((_, rows, _),) = model.calls
    assert rows.dtype == dtype
    np.testing.assert_array_equal(rows.toarray(), train.toarray())


@every_function
def test_users_come_in_batches_whose_lists_are_bounded(function, monkeypatch):
    rng = np.random.default_rng(47)
    test = interactions(rng, 70, 10, 0.2)
    with_items = np.flatnonzero(np.diff(test.indptr))
    model = Lists(rng.integers(0, 10, size=(70, 6)))
    expected = function(model, test, test, K=6, show_progress=False)
    assert len(model.calls) == 1
    model.calls.clear()
    monkeypatch.setattr(evaluation, "_PLACES_PER_BATCH", 50)
    in_batches = function(model, test, test, K=6, show_progress=False)
    assert in_batches == pytest.approx(expected, rel=1e-13)
    assert max(len(users) for users, _, _ in model.calls) == 50 // 6
    np.testing.assert_array_equal(
        np.concatenate([users for users, _, _ in model.calls]), with_items
    )
    for users, rows, N in model.calls:
        np.testing.assert_array_equal(rows.toarray(), test[users].toarray())
        assert N == 6


@every_function
def test_progress_bar_counts_the_tested_users(function, capsys):
    test = as_csr([[1], [], [0], [2]], 3)
    function(Lists([[0]] * 4), test, test, K=1, show_progress=False)
    assert capsys.readouterr().err == ""
    function(Lists([[0]] * 4), test, test, K=1)
    assert "3/3" in capsys.readouterr().err


@every_function
def test_training_matrix_may_have_more_users_but_not_fewer(function):
    test = as_csr([[1], [0]], 3)
    model = Lists([[0, 1], [1, 2], [0, 2]])
    more = as_csr([[1], [0], [2]], 3)
    function(model, more, test, K=2, show_progress=False)
    with pytest.raises(
        InputError, match="train_user_items: found 2 rows; pass one for each of the 3"
    ):
        function(model, test, more, K=2, show_progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_user_items": None}, "train_user_items: found NoneType"),
        ({"test_user_items": np.array([["a"]])}, "test_user_items: found values of type"),
        ({"test_user_items": np.array([1.0, 0.0])}, "test_user_items: found 1 dim"),
        ({"test_user_items": sparse.csr_matrix((2, 3))}, "test_user_items: found no entry"),
        ({"K": 0}, "K: found 0"),
        ({"K": 1.5}, "K: found 1.5"),
    ],
)
@every_function
def test_bad_argument_is_named(function, change, message):
    test = as_csr([[1], [0]], 3)
    arguments = {"train_user_items": test, "test_user_items": test, "K": 2} | change
    with pytest.raises(InputError, match=message):
        function(Lists([[0, 1], [1, 2]]), **arguments, show_progress=False)


@every_function
def test_model_must_answer_for_every_user(function):
    class FirstOnly(Lists):
        def recommend(self, userids, user_items, N=10):
            return self.lists[0], None

    test = as_csr([[1], [0]], 3)
    with pytest.raises(InputError, match=r"model: found ids of shape \(2,\)"):
        function(FirstOnly([[0, 1]]), test, test, K=2, show_progress=False)
