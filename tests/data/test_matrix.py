"""Whatever comes in, one trustworthy CSR matrix comes out, or an error that says what to do."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from gpu_als.data.csr import as_csr, check_index_array, check_magnitude, to_host
from gpu_als.data.interactions import Interactions
from gpu_als.errors import IdRangeError, InputError

DENSE = np.array([[0.0, 2.5, 0.0, -1.0], [3.0, 0.0, 0.0, 0.0], [0.0, 0.0, 4.0, 0.5]])
FORMATS = ["csr", "csc", "coo", "bsr", "dia", "lil", "dok"]


class OnDevice:
    """A stand-in for a CuPy array or sparse matrix."""

    def __init__(self, value):
        self._value = value
        self.shape = value.shape
        self.dtype = value.dtype

    def get(self):
        return self._value


def unchecked(container, data, indices, indptr, shape):
    """Build a compressed matrix that SciPy has not checked."""
    matrix = container(shape)
    matrix.data = np.asarray(data, float)
    matrix.indices = np.asarray(indices)
    matrix.indptr = np.asarray(indptr)
    return matrix


@pytest.mark.parametrize("container", [sp.csr_matrix, sp.csr_array])
@pytest.mark.parametrize("fmt", FORMATS)
def test_every_sparse_format_gives_the_same_csr(container, fmt):
    result = as_csr(container(DENSE).asformat(fmt))
    assert isinstance(result, sp.csr_matrix)
    assert result.dtype == np.float32
    assert result.nnz == 5
    assert result.has_canonical_format
    np.testing.assert_array_equal(result.toarray(), DENSE)


@pytest.mark.parametrize("dtype", ["?", "i1", "u1", "i4", "i8", "u8", "f2", "f4", "f8", "g"])
def test_real_dense_types_convert(dtype):
    dense = np.array([[0, 1], [1, 0], [1, 1]], dtype=dtype)
    np.testing.assert_array_equal(as_csr(dense).toarray(), [[0, 1], [1, 0], [1, 1]])


@pytest.mark.parametrize("dtype", ["?", "i1", "i8", "f4"])
def test_real_sparse_types_convert(dtype):
    matrix = sp.csr_matrix(np.array([[0, 1], [1, 0]], dtype=dtype))
    np.testing.assert_array_equal(as_csr(matrix, dtype=np.float64).toarray(), [[0, 1], [1, 0]])


def test_lists_interactions_and_device_objects_convert():
    for given_as in (
        DENSE.tolist(),
        Interactions(sp.csr_matrix(DENSE)),
        OnDevice(DENSE),
        OnDevice(sp.csr_matrix(DENSE)),
    ):
        np.testing.assert_array_equal(as_csr(given_as).toarray(), DENSE)


@pytest.mark.parametrize("fmt", ["csr", "csc", "coo"])
def test_stored_zeros_stay(fmt):
    matrix = sp.coo_matrix(([0.0, 3.0], ([0, 1], [1, 0])), shape=(2, 2)).asformat(fmt)
    result = as_csr(matrix)
    assert result.nnz == 2
    assert result.indices.tolist() == [1, 0]
    assert result.data.tolist() == [0.0, 3.0]


def test_duplicates_are_summed_without_wrapping_and_the_caller_keeps_his():
    data = np.array([100, 100, 100, 7], np.int8)
    matrix = sp.csr_matrix((data, [2, 0, 2, 1], [0, 3, 4]), shape=(2, 3))
    result = as_csr(matrix)
    assert result.toarray().tolist() == [[100, 0, 200], [0, 7, 0]]
    assert matrix.data.tolist() == [100, 100, 100, 7]
    assert matrix.indices.tolist() == [2, 0, 2, 1]
    coo = sp.coo_matrix((data, ([0, 0, 0, 1], [2, 0, 2, 1])), shape=(2, 3))
    assert as_csr(coo).toarray().tolist() == [[100, 0, 200], [0, 7, 0]]
    assert coo.nnz == 4


@pytest.mark.parametrize("columns", [[2, 0, 1], [2, 0, 2]], ids=["unsorted", "repeated"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f4", "f8"])
def test_floats_that_need_no_other_type_are_put_in_order_in_a_copy(columns, dtype):
    data = np.array([4.0, 1.0, 0.5], dtype)
    matrix = sp.csr_matrix((data.copy(), columns, [0, 3]), shape=(1, 3))
    result = as_csr(matrix, dtype=dtype)
    assert result.toarray().tolist() == [[1.0, 0.5, 4.0] if 1 in columns else [1.0, 0.0, 4.5]]
    assert matrix.data.tolist() == data.tolist()
    assert matrix.indices.tolist() == columns


def test_stale_flags_are_not_believed():
    matrix = sp.csr_matrix(np.array([[1.0, 2.0, 0.0]]))
    assert matrix.has_canonical_format
    matrix.indices[:] = [2, 0]
    result = as_csr(matrix)
    assert result.indices.tolist() == [0, 2]
    assert result.data.tolist() == [2.0, 1.0]


def test_right_input_is_shared_not_copied():
    matrix = sp.csr_matrix(DENSE.astype(np.float32))
    result = as_csr(matrix)
    for attribute in ("data", "indices", "indptr"):
        assert np.shares_memory(getattr(result, attribute), getattr(matrix, attribute))


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 4), st.integers(-9, 9)), min_size=1, max_size=40
    )
)
def test_any_triples_agree_with_adding_them_up(triples):
    rows, columns, values = map(np.array, zip(*triples, strict=True))
    expected = np.zeros((6, 5))
    np.add.at(expected, (rows, columns), values)
    for fmt in ("coo", "csc"):
        matrix = sp.coo_matrix((values, (rows, columns)), shape=(6, 5)).asformat(fmt)
        result = as_csr(matrix)
        np.testing.assert_array_equal(result.toarray(), expected)
        assert result.nnz == len({(row, column) for row, column, _ in triples})
        for row in range(6):
            indices = result.indices[result.indptr[row] : result.indptr[row + 1]]
            assert (np.diff(indices) > 0).all()


def test_nan_and_inf_are_counted_and_located():
    bad = DENSE.copy()
    bad[0, 3], bad[2, 2] = np.nan, -np.inf
    for given_as in (bad, sp.csc_matrix(bad)):
        with pytest.raises(InputError, match=r"^plays: found 2 value.*\(0, 3\); remove these"):
            as_csr(given_as, name="plays")
    kept = as_csr(bad, require_finite=False)
    assert np.isnan(kept[0, 3])
    assert kept[2, 2] == -np.inf


def test_values_beyond_float32_are_refused():
    matrix = sp.csr_matrix(np.array([[1.0, 0.0], [0.0, -1e39]]))
    with pytest.raises(InputError, match=r"ratings: found 1 value.*\(1, 1\).*dtype=numpy.float64"):
        as_csr(matrix)
    assert as_csr(matrix, dtype=np.float64)[1, 1] == -1e39


def test_duplicates_whose_sum_overflows_are_refused():
    parts = ([3e38, 3e38], [0, 0], [0, 2])
    wide = sp.csr_matrix(parts, shape=(1, 1), dtype=np.float64)
    with pytest.raises(InputError, match=r"too large for float32.*; rescale"):
        as_csr(wide)
    for fmt in ("csr", "csc"):
        narrow = sp.csr_matrix(parts, shape=(1, 1), dtype=np.float32).asformat(fmt)
        with pytest.raises(InputError, match=r"infinite.*; remove these"):
            as_csr(narrow)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_empty_dimensions_are_refused(shape):
    with pytest.raises(InputError, match=r"ratings: found shape .* at least one user and one item"):
        as_csr(sp.csr_matrix(shape))
    with pytest.raises(InputError, match="ratings: found shape"):
        as_csr(np.zeros(shape))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (np.zeros(3), "1 dimension"),
        ([1, 2, 3], "1 dimension"),
        (np.zeros((2, 2, 2)), "3 dimension"),
        (sp.coo_array(np.array([1.0, 0.0])), "1 dimension"),
        ([[1, 2], [3]], "different lengths"),
        (np.array([["a"]]), "real numbers first"),
        (np.array([[1, None]]), "real numbers first"),
        (np.eye(2) * 1j, "real numbers first"),
        (sp.csr_matrix(np.eye(2) * 1j), "real numbers first"),
        (pd.DataFrame({"user": [1]}), "use Interactions.from_frame"),
        ({"user": [1]}, "use Interactions.from_frame"),
        (np.zeros(2, [("user", int)]), "use Interactions.from_frame"),
        (np.ma.masked_invalid(np.eye(2)), "filled"),
        ("ratings.csv", "pass a 2-D NumPy array or a scipy.sparse matrix"),
        (None, "pass a 2-D NumPy array or a scipy.sparse matrix"),
    ],
)
def test_other_things_are_refused_with_a_remedy(value, message):
    with pytest.raises(InputError, match=f"^weights: .*{message}"):
        as_csr(value, name="weights")


@pytest.mark.parametrize(
    ("indices", "indptr"),
    [
        ([0, 3], [0, 1, 2]),  # a column too many
        ([0, -1], [0, 1, 2]),
        ([0, 1], [0, 2, 1]),  # falls, and ends before the indices do
        ([0, 1], [0, 3, 2]),
        ([0, 1], [1, 1, 2]),
        ([0, 1], [0, 1, 3]),
        ([0, 1], [0, 1, 1]),
        ([0, 1], [0, 2]),
    ],
)
def test_corrupt_index_arrays_are_refused(indices, indptr):
    for container, shape in ((sp.csr_matrix, (2, 3)), (sp.csc_array, (3, 2))):
        matrix = unchecked(container, [1, 2], indices, indptr, shape)
        for dtype in (matrix.dtype, np.float32):  # as wanted already, and to be converted
            with pytest.raises(InputError, match=r"^ratings: found .*; rebuild it"):
                as_csr(matrix, dtype=dtype)


@pytest.mark.parametrize(
    ("indices", "indptr"),
    [([2, 0], [0, 2, 2]), ([1, 1], [0, 2, 2]), ([1, 1], [0, 0, 2])],
    ids=["falling", "twice", "twice in the last row"],
)
def test_a_row_out_of_order_is_put_in_order(indices, indptr):
    """Whatever SciPy remembers of the matrix."""
    matrix = unchecked(sp.csr_matrix, [1.0, 2.0], indices, indptr, (2, 3))
    matrix.has_sorted_indices = matrix.has_canonical_format = True
    found = as_csr(matrix, dtype=np.float64)
    expected = np.zeros((2, 3))
    np.add.at(expected, (np.repeat([0, 1], np.diff(indptr)), indices), [1.0, 2.0])
    np.testing.assert_array_equal(found.toarray(), expected)
    assert all((np.diff(found[row].indices) > 0).all() for row in (0, 1))
    assert found is not matrix


def test_what_is_in_order_is_returned_as_it_is():
    matrix = unchecked(sp.csr_matrix, [1.0, 2.0, 3.0], [2, 0, 1], [0, 1, 3], (2, 3))
    assert as_csr(matrix, dtype=np.float64) is matrix
    spoiled = unchecked(sp.csr_matrix, [1.0, np.nan, 3.0], [2, 0, 1], [0, 1, 3], (2, 3))
    with pytest.raises(InputError, match="NaN"):
        as_csr(spoiled, dtype=np.float64)


def test_corrupt_coo_is_refused():
    matrix = sp.coo_matrix(DENSE)
    matrix.row[0] = 3
    with pytest.raises(InputError, match="row indices from 0 to 3 where only 0 to 2 exist"):
        as_csr(matrix)


@pytest.mark.parametrize("dtype", [np.int32, np.float16, "nonsense"])
def test_other_result_types_are_refused(dtype):
    with pytest.raises(InputError, match=r"^dtype: .*numpy.float32 or numpy.float64"):
        as_csr(DENSE, dtype=dtype)


@pytest.mark.parametrize(("dtype", "limit"), [(np.float32, 1e12), (np.float64, 1e100)])
@pytest.mark.parametrize("sign", [1, -1])
def test_magnitudes_are_limited(dtype, limit, sign):
    edge = sp.csr_matrix(np.array([[sign * limit]]))
    check_magnitude(edge, dtype=dtype, name="ratings")
    with pytest.raises(InputError, match=r"plays: .*\(0, 0\); squares .*rescale the ratings"):
        check_magnitude(edge * 1.01, dtype=dtype, name="plays")


def test_magnitude_of_nothing_is_fine_and_float32_has_a_way_out():
    check_magnitude(sp.csr_matrix((2, 2)), dtype=np.float32, name="ratings")
    with pytest.raises(InputError, match=r"or pass dtype=numpy\.float64"):
        check_magnitude(sp.csr_matrix([[1e13]]), dtype=np.float32, name="ratings")


@pytest.mark.parametrize("ids", [3, np.int8(3), [3], (3,), np.array([3], np.uint64), range(3, 4)])
def test_row_numbers_become_int64(ids):
    result = check_index_array(ids, 4, name="userids")
    assert result.dtype == np.int64
    assert result.tolist() == [3]


def test_no_row_numbers_are_fine():
    assert check_index_array([], 4, name="userids").tolist() == []
    assert check_index_array(OnDevice(np.array([1])), 4, name="userids").tolist() == [1]


@pytest.mark.parametrize("ids", [-1, [0, 4], np.array([2**64 - 1], np.uint64), [2**62]])
def test_row_numbers_out_of_range_are_both_errors(ids):
    with pytest.raises(IdRangeError, match=r"userids: .*pass integers from 0 to 3") as caught:
        check_index_array(ids, 4, name="userids")
    assert isinstance(caught.value, IndexError)
    assert isinstance(caught.value, InputError)


@pytest.mark.parametrize("ids", [1.0, [True], ["1"], None, [2**70]])
def test_row_numbers_of_other_types_are_refused(ids):
    with pytest.raises(InputError, match=r"userids: .*numpy.asarray\(ids, dtype=numpy.int64\)"):
        check_index_array(ids, 4, name="userids")


def test_row_numbers_have_one_dimension():
    with pytest.raises(InputError, match="userids: found 2 dimensions; pass a 1-D array"):
        check_index_array([[1]], 4, name="userids")
    with pytest.raises(InputError, match="userids: found nested lists"):
        check_index_array([[1], [1, 2]], 4, name="userids")


def test_only_device_objects_are_fetched():
    frame = pd.DataFrame({"a": [1]})
    for value in (frame, frame["a"], {"a": 1}, sp.dok_matrix((2, 2)), np.ones(2)):
        assert to_host(value) is value
