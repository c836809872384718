"""Data are told from other data by their values alone, wherever they lie and however cut."""

from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from gpu_als.core.problem import SparseRows
from gpu_als.train import row_blocks
from gpu_als.train.row_blocks import add_hashes, hash_arrays, hash_entries


def random_matrix(rng, n_users=23, n_items=17):
    matrix = sp.random(n_users, n_items, 0.3, "csr", np.float32, random_state=rng)
    matrix.data = rng.integers(-3, 4, matrix.nnz).astype(np.float32) / 4
    return matrix


def mark(matrix, bounds=()):
    """Return the fingerprint of a matrix that is cut into blocks of rows."""
    bounds = [0, *sorted(bounds), matrix.shape[0]]
    return add_hashes(
        hash_entries(first, SparseRows.from_csr(matrix[first:last]))
        for first, last in pairwise(bounds)
    )


@given(
    seed=st.integers(0, 2**32 - 1),
    bounds=st.lists(st.integers(0, 23), max_size=5),
    block=st.integers(1, 40),
    dtype=st.sampled_from([np.float32, np.float64]),
    index_type=st.sampled_from([np.int32, np.int64]),
)
def test_the_same_entries_have_the_same_mark(seed, bounds, block, dtype, index_type):
    matrix = random_matrix(np.random.default_rng(seed))
    other = matrix.astype(dtype)
    other.indices = other.indices.astype(index_type)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_blocks, "_HASHED_AT_ONCE", block)
        found = mark(other, bounds)
    assert found == mark(matrix)


@given(seed=st.integers(0, 2**32 - 1), data=st.data())
def test_other_entries_have_another_mark(seed, data):
    matrix = random_matrix(np.random.default_rng(seed))
    before = mark(matrix)
    place = data.draw(st.integers(0, matrix.nnz - 1))
    others = [matrix.copy() for _ in range(3)]
    others[0].data[place] += 1
    others[1].data[place] = np.nextafter(others[1].data[place], np.float32(9))
    others[2].data[place] *= -1
    if matrix.data[place] != 0:
        assert mark(others[2]) != before
    assert before not in (mark(others[0]), mark(others[1]))
    moved = matrix.tocoo()
    moved.row[place] = (moved.row[place] + 1) % 23
    assert mark(moved.tocsr()) != before
    assert mark(matrix.T.tocsr()) != before


def test_a_matrix_without_entries_has_a_mark():
    assert mark(sp.csr_matrix((3, 4))) == "0" * 16


def test_swapped_values_and_swapped_rows_are_other_entries():
    """A sum over entries could miss them."""
    matrix = random_matrix(np.random.default_rng(3))
    first, last = np.flatnonzero(matrix.data == 0.25)[0], np.flatnonzero(matrix.data == -0.5)[0]
    swapped = matrix.copy()
    swapped.data[[first, last]] = swapped.data[[last, first]]
    assert mark(swapped) != mark(matrix)
    assert mark(matrix[::-1]) != mark(matrix)


@given(
    values=st.lists(st.integers(0, 2**40), max_size=9),
    kind=st.sampled_from([np.int32, np.uint32, np.int64, np.uint64]),
)
def test_fingerprints_of_integers_depend_on_their_values_alone(values, kind):
    array = np.array(values, np.int64)
    if array.max(initial=0) <= np.iinfo(kind).max:
        assert hash_arrays(array.astype(kind)) == hash_arrays(array)
    for place in range(len(values)):
        for change in (1, 2**32):
            changed = array.copy()
            changed[place] ^= change
            assert hash_arrays(changed) != hash_arrays(array)
    assert hash_arrays(np.append(array, 0)) != hash_arrays(array)


@pytest.mark.parametrize("size", [1, 2**20 - 1, 2**20, 2**20 + 1])
def test_fingerprints_see_the_last_of_many_elements(size):
    array = np.zeros(size, np.float32)
    before = hash_arrays(array)
    array[-1] = 1
    assert hash_arrays(array) != before


def test_fingerprints_tell_where_one_array_ends_and_the_next_begins():
    one, two = np.array([1, 2, 3]), np.array([4])
    assert hash_arrays(one, two) != hash_arrays(np.array([1, 2]), np.array([3, 4]))
    assert hash_arrays(one, None) == hash_arrays(one)
    assert hash_arrays(None) == hash_arrays() == "none"
    assert hash_arrays(np.ones(3, np.float32)) != hash_arrays(np.ones(3))
