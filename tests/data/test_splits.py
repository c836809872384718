"""Splits are partitions, follow their arguments and repeat for a seed."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from gpu_als.data.interactions import Interactions
from gpu_als.data.readers import read_interactions
from gpu_als.data.splits import (
    check_random_state,
    k_fold_splits,
    leave_k_out_split,
    temporal_split,
    train_test_split,
)
from gpu_als.errors import InputError


def random_ratings(seed=19, shape=(40, 60), density=0.3):
    """Return ratings with zeros and negative ones among them, each place with its own value."""
    rng = np.random.default_rng(seed)
    places = np.flatnonzero(rng.random(shape[0] * shape[1]) < density)
    values = rng.permutation(len(places)) - len(places) // 3
    return sp.csr_matrix((values.astype(np.float32), np.divmod(places, shape[1])), shape=shape)


def entries(matrix):
    coo = matrix.tocoo()
    return set(zip(coo.row.tolist(), coo.col.tolist(), coo.data.tolist(), strict=True))


def assert_partition(train, test, whole):
    for part in (train, test):
        assert isinstance(part, sp.csr_matrix)
        assert part.shape == whole.shape
        assert part.has_canonical_format
    assert train.nnz + test.nnz == whole.nnz
    assert entries(train) | entries(test) == entries(whole)


def seeds():
    return [7, np.int64(7), np.random.RandomState(7), np.random.default_rng(7)]


SPLITS = [train_test_split, leave_k_out_split]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("which", range(4))
def test_every_seed_type_splits_and_repeats(split, which):
    whole = random_ratings()
    train, test = split(whole, random_state=seeds()[which])
    assert_partition(train, test, whole)
    again = split(whole, random_state=seeds()[which])[1]
    assert entries(again) == entries(test)
    other = split(whole, random_state=8)[1]
    assert entries(other) != entries(test)


@pytest.mark.parametrize("split", SPLITS)
def test_no_seed_means_a_new_split_each_time(split):
    whole = random_ratings()
    assert entries(split(whole)[1]) != entries(split(whole)[1])


@pytest.mark.parametrize("split", SPLITS)
def test_generators_advance(split):
    whole = random_ratings()
    for state in (np.random.RandomState(7), np.random.default_rng(7)):
        first, second = (split(whole, random_state=state)[1] for _ in range(2))
        assert entries(first) != entries(second)


@pytest.mark.parametrize("split", SPLITS)
def test_input_types(split):
    whole = random_ratings()
    test = entries(split(whole, random_state=5)[1])
    for given_as in (whole.tocoo(), whole.tocsc()):
        assert entries(split(given_as, random_state=5)[1]) == test
    names = [f"u{n}" for n in range(whole.shape[0])], np.arange(whole.shape[1]) + 7
    parts = split(Interactions(whole, *names), random_state=5)
    assert entries(parts[1].user_items) == test
    for part in parts:
        assert (part.user_ids.tolist(), part.item_ids.tolist()) == (names[0], names[1].tolist())
    assert [part.dtype for part in split(whole.astype(np.float64))] == [np.float64] * 2
    assert [part.dtype for part in split(whole.astype(int))] == [np.float32] * 2
    with pytest.raises(InputError, match="ratings: found 1 value"):
        split(np.array([[np.nan, 1.0]]))


def test_train_percentage_is_the_probability():
    whole = random_ratings(shape=(200, 500), density=0.5)
    train, _ = train_test_split(whole, 0.7, 23)
    deviation = np.sqrt(0.7 * 0.3 * whole.nnz)
    assert abs(train.nnz - 0.7 * whole.nnz) < 4 * deviation
    assert train_test_split(whole, 1.0, 23)[1].nnz == 0
    assert train_test_split(whole, 0.0, 23)[0].nnz == 0


@pytest.mark.parametrize("percentage", [-0.1, 1.1, 80, float("nan"), None, "half"])
def test_train_percentage_is_checked(percentage):
    with pytest.raises(
        InputError, match=r"train_percentage: found .*; pass a fraction from 0 to 1"
    ):
        train_test_split(random_ratings(), percentage)


@given(
    st.lists(st.integers(0, 8), min_size=1, max_size=12).filter(any),
    st.integers(1, 4),
    st.integers(0, 10**6),
)
def test_k_ratings_of_users_with_more_than_k_plus_one_are_held_out(counts, k, seed):
    columns = np.concatenate([np.arange(count) for count in counts])
    indptr = np.concatenate([[0], np.cumsum(counts)])
    whole = sp.csr_matrix((columns + 1.0, columns, indptr), shape=(len(counts), 8))
    train, test = leave_k_out_split(whole, k, 0.0, seed)
    assert_partition(train, test, whole)
    assert np.diff(test.indptr).tolist() == [k if count > k + 1 else 0 for count in counts]


def test_held_out_ratings_are_drawn_uniformly():
    whole = sp.csr_matrix(np.ones((8000, 5)))
    _, test = leave_k_out_split(whole, 2, 0.0, 31)
    held_out = np.bincount(test.indices, minlength=5)
    # Hypergeometric: each of 5 places is among the 2 with probability 2/5.
    assert abs(held_out - 3200).max() < 4 * np.sqrt(8000 * 0.4 * 0.6)


@pytest.mark.parametrize(("size", "n_kept"), [(0.0, 0), (0.25, 10), (0.99, 39)])
def test_train_only_users_keep_everything(size, n_kept):
    whole = random_ratings()
    _, test = leave_k_out_split(whole, 1, size, 3)
    assert (np.diff(whole.indptr) > 2).all()
    assert (np.diff(test.indptr) == 0).sum() == n_kept


@pytest.mark.parametrize("k", [0, -1, 1.5, "1", None])
def test_k_is_checked(k):
    with pytest.raises(InputError, match=r"^K: found .*; pass an integer of at least 1"):
        leave_k_out_split(random_ratings(), k)


@pytest.mark.parametrize("size", [-0.1, 1.0, 2, None, "half"])
def test_train_only_size_is_checked(size):
    with pytest.raises(InputError, match=r"train_only_size: found .*; pass a fraction"):
        leave_k_out_split(random_ratings(), train_only_size=size)


def test_folds_test_every_rating_once():
    whole = random_ratings()
    folds = list(k_fold_splits(whole, 4, random_state=9))
    sizes = [test.nnz for _, test in folds]
    assert len(folds) == 4
    assert max(sizes) - min(sizes) <= 1
    assert sorted(value for _, test in folds for value in test.data) == sorted(whole.data)
    for train, test in folds:
        assert_partition(train, test, whole)
    for bad in (1, 0, 2.5, None):
        with pytest.raises(InputError, match=r"^n_folds: found .*; pass an integer of at least 2"):
            k_fold_splits(whole, bad)


@given(
    st.lists(st.lists(st.integers(0, 6), max_size=6), min_size=1, max_size=8).filter(any),
    st.integers(0, 10),
)
def test_time_divides_what_came_first_from_what_came_later(rows, tenths):
    columns = np.concatenate([np.arange(len(row)) for row in rows])
    indptr = np.concatenate([[0], np.cumsum([len(row) for row in rows])])
    shape = len(rows), 6
    whole = sp.csr_matrix((np.arange(len(columns)) + 1.0, columns, indptr), shape=shape)
    times = sp.csr_matrix((np.concatenate(rows).astype(float), columns, indptr), shape=shape)
    when = dict(zip(whole.data.tolist(), times.data.tolist(), strict=True))
    train, test = temporal_split(whole, times, tenths / 10)
    assert_partition(train, test, whole)
    assert 10 * train.nnz >= tenths * whole.nnz
    first, later = ([when[value] for value in part.data] for part in (train, test))
    assert max(first, default=-1) < min(later, default=7)
    if first:  # no moment more than is needed
        assert 10 * sum(moment < max(first) for moment in first) < tenths * whole.nnz
    train, test = temporal_split(whole, times, tenths / 10, by_user=True)
    assert_partition(train, test, whole)
    for number, row in enumerate(rows):
        n_tested = len(row) * (10 - tenths) // 10
        expected = sorted(range(len(row)), key=lambda place: (row[place], place))
        assert test[number].indices.tolist() == sorted(expected[len(row) - n_tested :])


def test_times_must_be_of_the_same_ratings():
    whole = random_ratings()
    for times in (whole[:-1], whole[:, ::-1], whole.T):
        with pytest.raises(InputError, match="times must have the shape and the stored entries"):
            temporal_split(whole, times)


def test_times_come_from_the_same_file(tmp_path):
    (tmp_path / "r.csv").write_text("user,item,rating,timestamp\na,x,3,90\na,y,4,20\nb,x,5,60\n")
    ratings, times = (
        read_interactions(tmp_path / "r.csv", rating=column, duplicates="last", dtype=np.float64)
        for column in ("rating", "timestamp")
    )
    train, test = temporal_split(ratings, times, 0.6)
    assert test.user_items.toarray().tolist() == [[3, 0], [0, 0]]
    assert train.user_ids.tolist() == ["a", "b"]


def test_random_states():
    generator = np.random.default_rng(3)
    assert check_random_state(generator) is generator
    same = [check_random_state(np.random.RandomState(3)).random() for _ in range(2)]
    assert same[0] == same[1]
    assert check_random_state(3).random() == np.random.default_rng(3).random()
    assert isinstance(check_random_state(None), np.random.Generator)


@pytest.mark.parametrize("state", [-1, "7", 1.0, True, np.random, [1]])
def test_other_random_states_are_refused(state):
    with pytest.raises(
        InputError, match=r"random_state: found .*; pass None, an integer of at lea"
    ):
        check_random_state(state)
