"""Other data are refused by name; the same data in another form are not."""

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from checkpoint.common import (
    BY_HYPOTHESIS,
    HELD_OUT,
    N_ITEMS,
    N_USERS,
    RATINGS,
    assert_same,
    explicit,
    fit,
    implicit,
    state,
)
from gpu_als import Interactions
from gpu_als.errors import CheckpointError


def other_value(matrix, draw):
    changed = matrix.copy()
    changed.data[draw(st.integers(0, matrix.nnz - 1))] += draw(st.sampled_from([-0.25, 1e-4, 3]))
    return changed


def one_entry_less(matrix, draw):
    dense = matrix.toarray()
    rows, columns = matrix.nonzero()
    entry = draw(st.integers(0, matrix.nnz - 1))
    dense[rows[entry], columns[entry]] = 0
    return sp.csr_matrix(dense)


def entry_elsewhere(matrix, draw):
    """Move an entry to an empty cell, of its row or of another."""
    dense = matrix.toarray()
    rows, columns = matrix.nonzero()
    empty_rows, empty_columns = np.nonzero(dense == 0)
    old, new = (draw(st.integers(0, len(of) - 1)) for of in (rows, empty_rows))
    dense[empty_rows[new], empty_columns[new]] = dense[rows[old], columns[old]]
    dense[rows[old], columns[old]] = 0
    return sp.csr_matrix(dense)


def larger(matrix, draw):
    """Add empty rows or columns."""
    rows, columns = draw(st.sampled_from([(1, 0), (0, 1), (2, 3)]))
    changed = matrix.copy()
    changed.resize((N_USERS + rows, N_ITEMS + columns))
    return changed


@BY_HYPOTHESIS
@given(data=st.data())
@pytest.mark.parametrize("make", [explicit, implicit])
@pytest.mark.parametrize(
    ("change", "named"),
    [
        (other_value, "data"),
        (one_entry_less, "entries"),
        (entry_elsewhere, "data"),
        (larger, "shape"),
    ],
)
def test_other_ratings_are_refused_by_name(change, named, make, saved, data):
    if named == "data":
        named = "ratings" if make is explicit else "user_items"
    with pytest.raises(CheckpointError, match=rf"different: .*\b{named} \(then"):
        fit(make(), change(RATINGS, data.draw), resume=saved[make])


def test_the_message_says_how_large_both_were(saved):
    smaller = RATINGS[:-1]
    message = (
        rf"shape \(then \[40, 30\], now \[39, 30\]\), "
        rf"entries \(then {RATINGS.nnz}, now {smaller.nnz}\), ratings \(then"
    )
    with pytest.raises(CheckpointError, match=message):
        fit(explicit(), smaller, resume=saved[explicit])


@BY_HYPOTHESIS
@given(entry=st.integers(0, RATINGS.nnz - 1), weight=st.sampled_from([None, 1e-3, 1.001, 5]))
def test_other_weights_are_refused_by_name(entry, weight, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weighted")
    weights = np.ones(RATINGS.nnz)
    file = state(folder, explicit(iterations=1), 1, sample_weight=weights)
    changed = None
    if weight is not None:
        changed = weights.copy()
        changed[entry] = weight
    with pytest.raises(
        CheckpointError, match=r"different: sample_weight \(then '\w+', now '\w+'\)\."
    ):
        fit(explicit(), resume=file, sample_weight=changed)


@BY_HYPOTHESIS
@given(data=st.data())
def test_another_validation_set_is_refused_by_name(data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("validated")
    triples = HELD_OUT.tocoo()
    triples = [triples.row, triples.col, triples.data]
    file = state(folder, explicit(iterations=1), 1, validation=tuple(triples))
    changed = None
    part = data.draw(st.sampled_from([None, 0, 1, 2]))
    if part is not None:
        changed = [array.copy() for array in triples]
        place = data.draw(st.integers(0, HELD_OUT.nnz - 1))
        changed[part][place] = (changed[part][place] + 1) % N_ITEMS
        changed = tuple(changed)
    with pytest.raises(CheckpointError, match=r"different: validation \(then '\w+', now '\w+'\)\."):
        fit(explicit(), resume=file, validation=changed)


# What counts as the same data


def wide(matrix):
    """Return the same matrix with 64-bit indices."""
    same = matrix.copy()
    same.indices, same.indptr = matrix.indices.astype(np.int64), matrix.indptr.astype(np.int64)
    return same


def shuffled(matrix):
    """Return the same matrix with the entries of each row in another order."""
    triples = matrix.tocoo()
    order = np.random.default_rng(4).permutation(matrix.nnz)
    order = order[np.argsort(triples.row[order], kind="stable")]
    return sp.csr_matrix((triples.data[order], triples.col[order], matrix.indptr), matrix.shape)


@pytest.mark.parametrize("make", [explicit, implicit])
@pytest.mark.parametrize(
    "as_given",
    [
        wide,
        shuffled,
        lambda matrix: matrix.toarray(),
        lambda matrix: matrix.astype(np.float32),
        sp.csr_array,
        lambda matrix: Interactions(matrix, np.array([f"u{n}" for n in range(N_USERS)])),
    ],
    ids=["int64 indices", "unsorted", "dense", "float32", "array", "with ids"],
)
def test_the_same_ratings_in_another_form_are_the_same_data(make, as_given, saved):
    assert_same(fit(make(), as_given(RATINGS), resume=saved[make]), fit(make()))


def test_a_validation_set_in_another_form_is_the_same_data(tmp_path):
    triples = HELD_OUT.tocoo()
    file = state(tmp_path, explicit(), validation=HELD_OUT)
    as_tuple = triples.row.astype(np.int64), triples.col.astype(np.uint16), triples.data
    whole = fit(explicit(), validation=HELD_OUT)
    assert_same(fit(explicit(), resume=file, validation=as_tuple), whole)
