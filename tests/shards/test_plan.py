"""Rows and cells are cut where they ought to be, and entries of a cell become one."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpu_als.data.csr import partition_rows
from gpu_als.data.shards.entries import combine
from gpu_als.data.shards.plan import Parts, shard_bounds
from gpu_als.errors import InputError
from shards.common import BY_HYPOTHESIS

COUNTS = st.lists(st.integers(0, 40), min_size=1, max_size=40).map(
    lambda counts: np.array(counts, np.int64)
)


@BY_HYPOTHESIS
@given(COUNTS, st.integers(1, 300))
def test_shards_hold_as_many_rows_as_fit(counts, shard_bytes):
    bounds = shard_bounds(counts, 100, "float32", shard_bytes).tolist()
    sizes = (8 + 8 * counts).tolist()
    assert bounds[0] == 0
    assert bounds[-1] == len(counts)
    for start, stop in itertools.pairwise(bounds):
        assert stop == start + 1 or sum(sizes[start:stop]) <= shard_bytes
        assert stop > start
        assert stop == len(sizes) or sum(sizes[start : stop + 1]) > shard_bytes


def test_indices_are_wide_only_where_they_have_to_be():
    counts = np.array([10, 10])
    assert len(shard_bounds(counts, 2**31 - 1, "codes", 2 * (8 + 10 * 5))) == 2
    assert len(shard_bounds(counts, 2**31, "codes", 2 * (8 + 10 * 5))) == 3
    assert len(shard_bounds(counts, 2**31, "codes", 2 * (8 + 10 * 9))) == 2


def test_the_bytes_of_a_row_may_be_more_than_32_bits_number():
    """Where the counts of the entries are not; each of these rows takes 3 GB."""
    counts = np.full(5, 2**28, np.int32)
    assert partition_rows(counts, 7 * 10**9, 12, 40) == (0, 2, 4, 5)


@BY_HYPOTHESIS
@given(COUNTS, st.integers(1, 60), st.integers(1, 50))
def test_parts_cover_all_cells_and_hold_few_different_ones(counts, n_columns, limit):
    counts = np.minimum(counts, n_columns)  # entries of different cells
    parts = Parts.of(counts, n_columns, limit)
    cells = np.arange(len(counts) * n_columns)
    found = parts.of_keys(cells)
    assert found[0] == 0
    assert set(np.diff(found).tolist()) <= {0, 1}
    assert found[-1] == len(parts.firsts) - 1
    assert [parts.of_key(key) for key in cells.tolist()] == found.tolist()
    rng = np.random.default_rng(61)
    entries = np.concatenate(
        [row * n_columns + rng.permutation(n_columns)[:n] for row, n in enumerate(counts)]
    ).astype(np.int64)
    assert np.bincount(parts.of_keys(entries), minlength=1).max() <= limit


def test_more_cells_than_64_bits_number_are_refused():
    with pytest.raises(InputError, match="more cells than 64 bits can number"):
        Parts.of(np.ones(8, np.int64), 2**60, 100)
    assert Parts.of(np.ones(7, np.int64), 2**60, 100).n_columns == 2**60


@pytest.mark.parametrize("last", [7, 2**62])
def test_the_order_of_the_input_decides_which_value_is_the_last(last):
    keys = np.random.default_rng(62).choice([0, 1, 2, last], 5000)
    values = np.arange(5000.0)
    found = combine(keys, values, "last")
    assert found[0].tolist() == [0, 1, 2, last]
    assert found[1].tolist() == [values[keys == key].max() for key in (0, 1, 2, last)]


@pytest.mark.parametrize("bits", range(56, 64))
def test_cells_that_lie_far_apart_are_put_in_order(bits):
    """However many bits their distance has, up to all that a key can have."""
    keys = [2**bits - 1, 5, 2 ** (bits - 1) + 3, 0, 2**bits - 2, 5]
    found = combine(np.array(keys), np.arange(1.0, 7), "sum")
    assert found[0].tolist() == sorted(set(keys))
    assert found[1].tolist() == [4, 2 + 6, 3, 5, 1]


KEYS = st.lists(st.integers(0, 30) | st.integers(0, 2**62), max_size=60)


@BY_HYPOTHESIS
@given(KEYS, st.sampled_from(["sum", "last"]), st.data())
def test_entries_of_a_cell_become_one_however_they_are_divided(keys, duplicates, data):
    values = [1 / (3 + place) for place in range(len(keys))]
    expected = {}
    for key, value in zip(keys, values, strict=True):
        expected[key] = expected[key] + value if duplicates == "sum" and key in expected else value
    cut = data.draw(st.integers(0, len(keys)))
    keys, values = np.array(keys, np.int64), np.array(values, np.float64)
    first = combine(keys[:cut], values[:cut], duplicates)
    both = [np.concatenate(pair) for pair in zip(first, (keys[cut:], values[cut:]), strict=True)]
    for found in (combine(keys, values, duplicates), combine(*both, duplicates)):
        assert found[0].tolist() == sorted(expected)
        assert found[1].tolist() == [expected[key] for key in sorted(expected)]
