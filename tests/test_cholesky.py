"""Batched Cholesky solves on the CPU against ``numpy.linalg.solve``."""

import numpy as np
import pytest

from gpu_als.backends.numpy.backend import NumpyBackend

SIZES = [*range(1, 20), 31, 32, 33, 48, 63, 64, 65, *range(127, 131)]
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f4", "f8"])


@pytest.fixture(params=[True, False], ids=["compiled", "numpy"])
def cholesky_solve(request):
    """Return the solver of compiled code, where that was built, and that of NumPy."""
    backend = NumpyBackend(1, fused=request.param)
    if backend.fused is not request.param:
        pytest.skip("no C++ compiler built the rows")
    return backend.cholesky_solve


def batch_of_systems(n_systems, m, dtype, seed=77):
    """Draw well-conditioned systems: a Gram matrix of 2 m rows over m, plus the identity."""
    rng = np.random.default_rng([seed, n_systems, m])
    rows = rng.standard_normal((n_systems, 2 * m, m))
    lhs = (rows.swapaxes(1, 2) @ rows / m + np.eye(m)).astype(dtype)
    return lhs, rng.standard_normal((n_systems, m)).astype(dtype)


def solutions(lhs, rhs):
    return np.linalg.solve(lhs.astype(np.float64), rhs.astype(np.float64)[:, :, None])[:, :, 0]


def check_solved(found, lhs, rhs):
    """Condition numbers here are below 10, so rounding costs a few dozen units at most."""
    expected = solutions(lhs, rhs)
    error = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    assert error.max() < 64 * np.finfo(lhs.dtype).eps


@DTYPES
@pytest.mark.parametrize("m", SIZES)
def test_every_size(cholesky_solve, m, dtype):
    for n_systems in (1, 3, 4 * m + 1 if m <= 40 else 9):
        lhs, rhs = batch_of_systems(n_systems, m, dtype)
        found, failed = cholesky_solve(lhs.copy(), rhs.copy())
        assert found.dtype == dtype
        assert found.shape == (n_systems, m)
        assert not failed.any()
        check_solved(found, lhs, rhs)


def make_indefinite(matrix):
    """Give the matrix one eigenvalue of -0.5 and leave the others."""
    values, vectors = np.linalg.eigh(matrix.astype(np.float64))
    values[0] = -0.5
    return (vectors * values) @ vectors.T


def make_rank_deficient(matrix):
    """Let the last coordinate repeat the first."""
    doubled = matrix.copy()
    doubled[-1], doubled[:, -1] = doubled[0], doubled[:, 0]
    doubled[-1, -1] = doubled[0, 0]
    return doubled


@DTYPES
@pytest.mark.parametrize("spoil", [make_indefinite, make_rank_deficient])
@pytest.mark.parametrize("m", [2, 3, 5, 8, 16, 31, 32, 33, 48, 64, 129])
def test_a_bad_member_is_flagged_and_its_neighbours_are_right(cholesky_solve, m, spoil, dtype):
    for n_systems in (5, 4 * m + 3 if m <= 33 else 12):
        lhs, rhs = batch_of_systems(n_systems, m, dtype)
        bad = np.zeros(n_systems, bool)
        bad[[1, n_systems - 1]] = True
        for member in np.flatnonzero(bad):
            lhs[member] = spoil(lhs[member])
        found, failed = cholesky_solve(lhs.copy(), rhs.copy())
        np.testing.assert_array_equal(failed, bad)
        check_solved(found[~bad], lhs[~bad], rhs[~bad])


@DTYPES
@pytest.mark.parametrize("m", [1, 2, 5, 16, 17, 32, 48])
def test_a_solution_depends_on_no_other_system(cholesky_solve, m, dtype):
    lhs, rhs = batch_of_systems(150, m, dtype)
    among_bad = lhs.copy()
    among_bad[[0, 70, 149]] = -np.eye(m, dtype=dtype)
    good = np.setdiff1d(np.arange(150), [0, 70, 149])
    expected, _ = cholesky_solve(lhs.copy(), rhs.copy())
    found, failed = cholesky_solve(among_bad, rhs.copy())
    assert np.flatnonzero(failed).tolist() == [0, 70, 149]
    np.testing.assert_array_equal(found[good], expected[good])
    for some in (slice(3, 4), slice(20, 33)):
        alone, _ = cholesky_solve(lhs[some].copy(), rhs[some].copy())
        np.testing.assert_array_equal(alone, expected[some])


@DTYPES
def test_one_by_one_systems(cholesky_solve, dtype):
    lhs = np.array([4, 0, -2, 0.5, np.nan], dtype).reshape(5, 1, 1)
    found, failed = cholesky_solve(lhs, np.array([[8], [1], [1], [3], [1]], dtype))
    np.testing.assert_array_equal(failed, [False, True, True, False, True])
    np.testing.assert_allclose(found[[0, 3]], [[2], [6]], rtol=4 * np.finfo(dtype).eps)


@DTYPES
@pytest.mark.parametrize("m", [4, 40])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_member_that_is_not_finite_is_flagged(cholesky_solve, m, bad, dtype):
    for n_systems in (3, 200):
        lhs, rhs = batch_of_systems(n_systems, m, dtype)
        lhs[2, 0, 0] = bad
        with np.errstate(invalid="ignore"):
            found, failed = cholesky_solve(lhs.copy(), rhs.copy())
        np.testing.assert_array_equal(np.flatnonzero(failed), [2])
        good = np.arange(n_systems) != 2
        check_solved(found[good], lhs[good], rhs[good])


@DTYPES
@pytest.mark.parametrize("m", [3, 50])
def test_scale_does_not_matter(cholesky_solve, m, dtype):
    """Powers of two shift exponents only, so the same digits come out."""
    lhs, rhs = batch_of_systems(20, m, dtype)
    expected, _ = cholesky_solve(lhs.copy(), rhs.copy())
    scale = dtype(2.0**40)
    for factor in (scale, 1 / scale):
        found, failed = cholesky_solve(lhs * factor, rhs.copy())
        assert not failed.any()
        np.testing.assert_array_equal(found * factor, expected)


@DTYPES
@pytest.mark.parametrize("m", [5, 45])
def test_views_that_are_not_contiguous(cholesky_solve, m, dtype):
    lhs, rhs = batch_of_systems(24, m, dtype)
    found, failed = cholesky_solve(lhs.copy()[::2], rhs.copy()[::2])
    assert not failed.any()
    check_solved(found, lhs[::2], rhs[::2])
