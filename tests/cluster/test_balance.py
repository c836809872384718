"""How rows are cut into ranges of equal work, and on which worker each is at home."""

from collections import Counter
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_als.dask.cluster import partition_by_work, place, work_of_rows

BY_HYPOTHESIS = settings(max_examples=200)
works = st.lists(st.floats(1e-3, 1e6), min_size=1, max_size=60).map(np.array)
names = st.text("abcdef", min_size=1, max_size=2)
clusters = st.dictionaries(names, st.integers(1, 8), min_size=1, max_size=6)


@BY_HYPOTHESIS
@given(works, st.integers(1, 80))
def test_ranges_cover_all_rows_and_none_is_empty(work, n_parts):
    bounds = partition_by_work(work, n_parts)
    assert (bounds[0], bounds[-1]) == (0, len(work))
    assert all(first < last for first, last in pairwise(bounds))
    assert 1 <= len(bounds) - 1 <= n_parts


@BY_HYPOTHESIS
@given(works, st.integers(1, 80))
def test_no_range_has_more_than_its_share_and_one_row(work, n_parts):
    bounds = partition_by_work(work, n_parts)
    most = max(work[first:last].sum() for first, last in pairwise(bounds))
    assert most <= (work.sum() / n_parts + work.max()) * (1 + 1e-9)


@BY_HYPOTHESIS
@given(st.integers(1, 40), st.integers(1, 12))
def test_rows_of_equal_work_are_cut_evenly(n_rows, n_parts):
    lengths = np.diff(partition_by_work(np.ones(n_rows), n_parts))
    assert len(lengths) == min(n_rows, n_parts)
    assert lengths.max() - lengths.min() <= 1


def test_rows_are_cut_where_the_work_is_nearest_to_equal():
    """Of 16 in all, 4 and 12 are nearer to 8 and 8 than 14 and 2."""
    assert partition_by_work(np.array([4.0, 10, 2]), 2) == (0, 1, 3)
    assert partition_by_work(np.array([2.0, 10, 4]), 2) == (0, 2, 3)


@BY_HYPOTHESIS
@given(st.lists(st.integers(0, 10**9), min_size=2, max_size=30), st.integers(1, 512))
def test_longer_rows_are_more_work_and_empty_ones_some(counts, n_factors):
    counts = np.sort(np.array(counts, np.int64))
    work = work_of_rows(counts, n_factors)
    assert work[0] > 0
    assert (np.diff(work) >= 0).all()


def test_long_rows_cost_as_much_as_their_entries_and_short_ones_less_than_a_square():
    """Rows count as they are solved: in the dual form, then in the primal."""
    counts = np.array([1, 10, 10_000, 20_000])
    one, ten, long, twice = work_of_rows(counts, 100)
    assert ten < 10 * one
    assert twice / long == np.float64(2).round() or 1.9 < twice / long < 2.0
    assert long < 10_000 * 100 * (100 + 41)


@BY_HYPOTHESIS
@given(st.lists(st.none() | names, min_size=1, max_size=12), clusters)
def test_homes_are_workers_that_are_there_in_fair_shares(former, workers):
    found = place(former, workers)
    assert len(found) == len(former)
    assert set(found) <= set(workers)
    load = Counter(found)
    assert max(load.values()) <= -(-len(former) // len(workers))


@BY_HYPOTHESIS
@given(st.lists(st.none() | names, min_size=1, max_size=12), clusters)
def test_parts_stay_where_they_are(former, workers):
    """Once ranges are placed nothing moves, and before that only what has to."""
    found = place(former, workers)
    assert place(found, workers) == found
    most = -(-len(former) // len(workers))
    kept = sum(one == other for one, other in zip(former, found, strict=True))
    assert kept >= sum(min(n, most) for name, n in Counter(former).items() if name in workers)


def test_only_parts_of_a_lost_worker_move():
    assert place(["a", "b", "c", "d"], dict.fromkeys("acd", 1)) == ["a", "a", "c", "d"]


def test_a_worker_that_joins_takes_a_part_of_one_that_has_two():
    assert place(["a", "a", "c"], dict.fromkeys("abc", 1)) == ["a", "b", "c"]
