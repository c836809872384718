"""Sums over entries without gram weight, by their kernel: over the stand-in, and on a GPU."""

from dataclasses import replace

import numpy as np
import ptx
import pytest
import scipy.sparse as sp
from test_cupy_backend import cupy_backend  # noqa: F401

from gpu_als.backends.cupy.nvrtc import source_of
from gpu_als.backends.cupy.rhs_only import LONGEST, load_rhs_only

LENGTHS = (0, 1, 3, 4, 5, LONGEST - 1, LONGEST, LONGEST + 1, 0, 2000, 7, 1501)
N_FIXED = 400


def drawn(dtype, k, seed=61):
    """Return rows of those lengths, with indices that repeat, and the fixed side."""
    rng = np.random.default_rng(seed)
    indptr = np.append(0, np.cumsum(LENGTHS))
    indices = rng.integers(0, N_FIXED, indptr[-1], dtype=np.int32)
    targets = rng.random(indptr[-1]).astype(dtype)
    matrix = sp.csr_matrix((targets, indices, indptr), shape=(len(LENGTHS), N_FIXED))
    return matrix, rng.standard_normal((N_FIXED, k)).astype(dtype)


def exact(matrix, fixed):
    return np.stack(
        [
            matrix.data[begin:end].astype(np.float64) @ fixed[matrix.indices[begin:end]]
            for begin, end in zip(matrix.indptr[:-1], matrix.indptr[1:], strict=True)
        ]
    )


def aligned(array):
    """Return a copy in float32 that begins with a sector, as memory of a GPU does."""
    copy = np.empty(array.size + 8, np.float32)
    start = -(copy.ctypes.data // 4) % 8
    copy[start : start + array.size] = array.ravel()
    return copy[start : start + array.size].reshape(array.shape)


@pytest.fixture
def load(cupy_backend):  # noqa: F811
    """Return a function that puts a matrix and the fixed side on the device."""

    def put(matrix, fixed):
        backend = cupy_backend
        rows = load_rhs_only(backend.xp, backend.kernels, matrix)
        return rows, backend.from_host(fixed), backend.to_host

    return put


@pytest.mark.parametrize("k", [1, 3, 31, 32, 100, 128, 129, 300])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_products(load, dtype, k):
    matrix, fixed = drawn(dtype, k)
    rows, on_device, to_host = load(matrix, fixed)
    found, expected = to_host(rows @ on_device), exact(matrix, fixed)
    assert found.dtype == dtype
    size = exact(abs(matrix), abs(fixed))  # what rounding is relative to
    steps = 2 * np.sqrt(np.array(LENGTHS)[:, None] + 1)
    assert (np.abs(found - expected) <= steps * np.finfo(dtype).eps * size).all()


def test_rows_do_not_depend_on_their_company(load):
    matrix, fixed = drawn(np.float32, 50)
    rows, on_device, to_host = load(matrix, fixed)
    whole = to_host(rows @ on_device)
    np.testing.assert_array_equal(to_host(rows @ on_device), whole)
    for part in (slice(0, 3), slice(5, 12), slice(9, 10), slice(4, 4)):
        np.testing.assert_array_equal(to_host(rows[part] @ on_device), whole[part])
    some = np.array([9, 0, 2, 11, 7])
    np.testing.assert_array_equal(to_host(rows[some] @ on_device), whole[some])
    np.testing.assert_array_equal(to_host(rows[some][1:4] @ on_device), whole[some][1:4])
    np.testing.assert_array_equal(to_host(rows[3:][some[some < 9]] @ on_device), whole[[3, 5, 10]])


def test_rows_go_where_they_are_wanted(load, cupy_backend):  # noqa: F811
    matrix, fixed = drawn(np.float32, 30)
    rows, on_device, to_host = load(matrix, fixed)
    places = np.random.default_rng(62).permutation(len(LENGTHS))
    out = cupy_backend.from_host(np.full((len(LENGTHS) + 2, 32), 7, np.float32))
    rows.write(on_device, out, cupy_backend.from_host(places))
    plain = cupy_backend.from_host(np.zeros((len(LENGTHS), 30), np.float32))
    rows.write(on_device, plain, None)
    found = to_host(out)
    np.testing.assert_array_equal(found[places, :30], to_host(plain))
    assert (found[len(LENGTHS) :] == 7).all()
    assert (found[:, 30:] == 7).all()


def test_indices_of_64_bits(load, cupy_backend):  # noqa: F811
    """Where there are more than 2^31 rows of factors."""
    matrix, fixed = drawn(np.float32, 9)
    rows, on_device, to_host = load(matrix, fixed)
    wide = replace(rows, indices=cupy_backend.from_host(matrix.indices.astype(np.int64)))
    np.testing.assert_array_equal(to_host(wide @ on_device), to_host(rows @ on_device))


def test_factors_in_another_precision(load):
    matrix, fixed = drawn(np.float32, 9)
    rows, on_device, to_host = load(matrix, fixed.astype(np.float64))
    np.testing.assert_allclose(to_host(rows @ on_device), exact(matrix, fixed), rtol=1e-9)


@pytest.mark.skipif(ptx.missing() is not None, reason=str(ptx.missing()))
def test_rows_of_factors_are_read_once_for_each_entry_and_no_thread_races_another():
    warps = 16
    matrix, fixed = drawn(np.float32, 128)
    kernel = ptx.load(source_of("rhs_only"), "rhs_only", {"WARPS": warps})
    fixed, out = (aligned(array) for array in (fixed, np.zeros((len(LENGTHS), 128))))
    indptr, null = matrix.indptr.astype(np.int64), np.uint64(0)
    everybody = np.arange(len(LENGTHS))
    arguments = (
        indptr, matrix.indices, matrix.data, fixed, np.int32(128), null, np.int64(0), everybody,
        np.int64(1 << 40), null, out, np.int64(128),
    )  # fmt: skip
    results = []
    for order in ("reverse", "shuffle:5", "forward"):
        kernel.order = order
        kernel((len(LENGTHS),), (32 * warps,), arguments, shared_mem=4 * 128 * warps)
        results.append(out.copy())
    counts = kernel.counts
    assert counts.reads["argument 3"].bytes == 4 * 128 * matrix.nnz
    assert counts.reads["argument 3"].sectors == 16 * matrix.nnz  # coalesced
    assert counts.writes["argument 10"].bytes == out.nbytes
    assert counts.shared.wavefronts == counts.shared.ideal  # no bank conflicts
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])
