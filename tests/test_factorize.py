"""Factorising a dense matrix, complete or with missing entries."""

import numpy as np
import pytest
import scipy.sparse as sp
from helpers import nonnegative_minimiser
from reference import row_system, solve_row

from gpu_als import StopTraining, factorize, loss_and_gradient
from gpu_als.errors import InputError

RNG = np.random.default_rng(111)
X = RNG.standard_normal((14, 9)) + 0.5
GAPS = RNG.random((14, 9)) < 0.25
GAPS[3] = [True] * 8 + [False]


def with_gaps(how):
    """Return the matrix and the ``missing`` argument for one way to mark the gaps."""
    if how == "complete":
        return X, None
    if how == "mask":
        return np.where(GAPS, 1e300, X), GAPS  # what stands in a gap must not matter
    return np.where(GAPS, np.nan, X), {"nan": np.nan, "f4": np.float32("nan"), "word": "nan"}[how]


every_form = pytest.mark.parametrize("how", ["complete", "mask", "nan", "f4", "word"])


@every_form
@pytest.mark.parametrize("solver", ["auto", "cholesky", "cg"])
@pytest.mark.parametrize("penalty", [0.3, (0.2, 0.9)])
def test_the_reported_loss_is_the_documented_objective(how, solver, penalty):
    matrix, missing = with_gaps(how)
    w, z, report = factorize(
        matrix, 3, regularization=penalty, missing=missing, solver=solver, iterations=5, tol=None,
        random_state=1,
    )  # fmt: skip
    lambda_w, lambda_z = np.broadcast_to(penalty, 2)
    observed = np.ones(X.shape) if how == "complete" else ~GAPS
    expected = (observed * (X - w @ z.T) ** 2).sum()
    expected += lambda_w * (w**2).sum() + lambda_z * (z**2).sum()
    assert report.losses[-1] == pytest.approx(expected / 2, rel=1e-12)
    assert len(report.losses) == 5
    assert report.entries == observed.sum()
    assert w.shape == (14, 3)
    assert z.shape == (9, 3)
    assert w.dtype == z.dtype == np.float64


@every_form
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_last_half_sweep_solves_every_column(how, dtype):
    matrix, missing = with_gaps(how)
    if how == "mask":
        matrix = np.where(GAPS, 7, X)
    w, z, _ = factorize(
        matrix, 3, regularization=(0.2, 0.9), missing=missing, iterations=3, dtype=dtype,
        random_state=2,
    )  # fmt: skip
    observed = np.ones(X.shape, bool) if how == "complete" else ~GAPS
    for j in range(9):
        rows = np.flatnonzero(observed[:, j])
        expected = solve_row(w, rows, np.ones(len(rows)), X[rows, j].astype(dtype), 0.9)
        limit = 1e-12 if dtype == np.float64 else 2e-5
        np.testing.assert_allclose(z[j], expected, rtol=0, atol=limit)


def test_the_three_ways_to_mark_gaps_agree():
    runs = []
    for how in ("mask", "nan", "word"):
        matrix, missing = with_gaps(how)
        matrix = np.where(GAPS, 0, X) if how == "mask" else matrix
        runs.append(factorize(matrix, 3, regularization=0.3, missing=missing, random_state=3)[:2])
    for w, z in runs[1:]:
        np.testing.assert_array_equal(w, runs[0][0])
        np.testing.assert_array_equal(z, runs[0][1])


def test_a_mask_without_gaps_is_the_complete_problem():
    expected = factorize(X, 3, regularization=0.3, random_state=4)[:2]
    for missing in (np.nan, np.zeros(X.shape, bool)):
        found = factorize(X, 3, regularization=0.3, missing=missing, random_state=4)[:2]
        np.testing.assert_array_equal(found[0], expected[0])
        np.testing.assert_array_equal(found[1], expected[1])


def test_the_complete_problem_ends_at_the_truncated_svd():
    """The minimum of the ridge problem soft-thresholds the singular values at lambda.

    ``1/2 |X - W Z^T|^2 + lambda/2 (|W|^2 + |Z|^2)`` has the minimum of ``1/2 |X - A|^2 + lambda
    |A|_*`` over matrices A of that rank (Srebro et al.), which the SVD gives.
    """
    left, sizes, right = np.linalg.svd(X, full_matrices=False)
    shrunk = np.maximum(sizes - 0.5, 0) * (np.arange(9) < 4)
    best = (left * shrunk) @ right
    w, z, report = factorize(X, 4, regularization=0.5, iterations=5000, tol=1e-15, random_state=5)
    np.testing.assert_allclose(w @ z.T, best, atol=1e-4)
    minimum = 0.5 * ((X - best) ** 2).sum() + 0.5 * shrunk.sum()
    assert report.losses[-1] == pytest.approx(minimum, rel=1e-8)


def test_a_low_rank_matrix_is_completed():
    rng = np.random.default_rng(112)
    truth = rng.standard_normal((40, 2)) @ rng.standard_normal((2, 30))
    gaps = rng.random(truth.shape) < 0.4
    w, z, _ = factorize(
        np.where(gaps, np.nan, truth), 2, regularization=1e-8, missing=np.nan, iterations=500,
        tol=None, random_state=6,
    )  # fmt: skip
    assert np.abs(w @ z.T - truth)[gaps].max() < 1e-4


# --- non-negative --------------------------------------------------------------------------------


@every_form
def test_nonnegative_factors_solve_their_constrained_problems(how):
    matrix, missing = with_gaps(how)
    matrix = np.where(GAPS, 0, X) if how == "mask" else matrix
    w, z, report = factorize(
        matrix, 4, regularization=0.1, missing=missing, nonnegative=True, iterations=5,
        random_state=7,
    )  # fmt: skip
    assert (w >= 0).all()
    assert (z >= 0).all()
    assert (z == 0).any()
    observed = np.ones(X.shape, bool) if how == "complete" else ~GAPS
    for j in range(9):
        rows = np.flatnonzero(observed[:, j])
        system = row_system(w, rows, np.ones(len(rows)), X[rows, j], 0.1)
        np.testing.assert_allclose(z[j], nonnegative_minimiser(*system), atol=1e-9)
    loss = loss_and_gradient(matrix, w, z, regularization=0.1, missing=missing)[0]
    assert report.losses[-1] == pytest.approx(loss, rel=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("penalty", [1e-6, 1e-4])
def test_more_nonnegative_factors_than_the_rank(dtype, penalty):
    """The Gram matrix is all but singular; in float32 it takes the detour through float64."""
    rng = np.random.default_rng(113)
    truth = rng.random((40, 3)) @ rng.random((3, 25))
    w, z, report = factorize(
        truth.astype(dtype), 6, regularization=penalty, nonnegative=True, iterations=100, tol=None,
        random_state=8,
    )  # fmt: skip
    assert report.singular_rows == 0
    assert np.abs(truth - w @ z.T).max() < 0.02


# --- types, seeds, stopping ----------------------------------------------------------------------


def test_dtypes():
    for dtype in (np.float32, np.float64, np.int16, np.uint8, bool):
        w, z, _ = factorize(np.eye(5).astype(dtype), 2, regularization=0.1, random_state=9)
        assert w.dtype == z.dtype == (np.float32 if dtype == np.float32 else np.float64)
    w, _, _ = factorize(X, 2, regularization=0.1, dtype=np.float32, random_state=9)
    assert w.dtype == np.float32


def test_float32_agrees_with_float64():
    wide, narrow = (
        factorize(X, 3, regularization=0.3, iterations=8, dtype=dtype, random_state=10)
        for dtype in (np.float64, np.float32)
    )
    np.testing.assert_allclose(narrow[0] @ narrow[1].T, wide[0] @ wide[1].T, atol=1e-4)


def test_the_input_is_left_alone():
    matrix, missing = with_gaps("nan")
    before = matrix.copy()
    factorize(matrix, 2, regularization=0.1, missing=missing)
    np.testing.assert_array_equal(matrix, before)


def test_layouts_do_not_matter():
    expected = factorize(X, 3, regularization=0.3, random_state=11)[0]
    wide = np.zeros((28, 18))
    wide[::2, ::2] = X
    for form in (np.asfortranarray(X), wide[::2, ::2], X.tolist()):
        found = factorize(form, 3, regularization=0.3, random_state=11)[0]
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("make", [int, np.random.default_rng, np.random.RandomState])
def test_seeds_repeat(make):
    first, second, other = (
        factorize(X, 3, regularization=0.3, random_state=make(seed))[0] for seed in (3, 3, 4)
    )
    np.testing.assert_array_equal(first, second)
    assert (first != other).any()


def test_tol_and_iterations():
    course = factorize(X, 3, regularization=0.3, iterations=200, tol=None, random_state=12)[
        2
    ].losses
    assert len(course) == 200
    for tol in (1e-2, 1e-5):
        expected = int(np.argmax(-np.diff(course) <= tol * np.array(course[:-1]))) + 2
        report = factorize(X, 3, regularization=0.3, iterations=200, tol=tol, random_state=12)[2]
        assert report.stopped == "tol"
        assert report.iterations == expected < 200
    w, z, report = factorize(X, 3, regularization=0.3, iterations=0, random_state=12)
    assert report.losses == []
    assert np.isfinite(w @ z.T).all()


def test_callbacks():
    seen = []

    def stop(iteration, seconds, loss):
        seen.append((iteration, loss))
        if iteration == 2:
            raise StopTraining

    report = factorize(X, 3, regularization=0.3, callback=stop, random_state=13)[2]
    assert seen == list(enumerate(report.losses))
    assert len(seen) == 3
    assert report.stopped == "callback"


# --- edges ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (7, 1), (2, 3)])
@pytest.mark.parametrize("factors", [1, 2, 12])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_small_shapes_and_many_factors(shape, factors, dtype):
    matrix = np.random.default_rng(114).uniform(1, 2, shape)
    w, z, report = factorize(
        matrix, factors, regularization=1e-4, iterations=300, dtype=dtype, random_state=14
    )
    assert np.isfinite(report.losses).all()
    if factors >= min(shape):
        assert np.abs(matrix - w @ z.T).max() < 0.02


def test_a_matrix_of_zeros():
    w, z, report = factorize(np.zeros((4, 3)), 2, regularization=0.1, random_state=15)
    assert report.losses[-1] < 1e-12
    assert np.abs(w @ z.T).max() < 1e-12


def test_rows_and_columns_that_are_missing_altogether():
    gaps = GAPS.copy()
    gaps[5], gaps[:, 2] = True, True
    w, z, _ = factorize(X, 3, regularization=0.3, missing=gaps, random_state=16)
    np.testing.assert_array_equal(w[5], 0)
    np.testing.assert_array_equal(z[2], 0)
    others = [np.delete(np.arange(14), 5), np.delete(np.arange(9), 2)]
    assert (np.linalg.norm(w[others[0]], axis=1) > 0).all()


def test_the_scale_of_the_matrix_is_the_scale_of_the_loss():
    """Factors scale with the square root, so the penalty scales with the matrix."""
    expected = factorize(X, 3, regularization=0.3, iterations=9, tol=None, random_state=17)
    for size in (1e-20, 1e30):
        found = factorize(
            X * size, 3, regularization=0.3 * size, iterations=9, tol=None, random_state=17
        )
        np.testing.assert_allclose(
            found[0] @ found[1].T / size, expected[0] @ expected[1].T, rtol=1e-8, atol=1e-10
        )
        np.testing.assert_allclose(
            np.array(found[2].losses) / size**2, expected[2].losses, rtol=1e-9
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"X": np.where(GAPS, np.nan, X)}, "X holds NaN or inf; pass missing=numpy.nan"),
        ({"X": np.full((2, 2), np.inf)}, "X holds NaN or inf"),
        ({"X": np.where(GAPS, np.inf, X), "missing": np.nan}, "X holds NaN or inf"),
        ({"X": np.zeros((0, 3))}, r"X must be.*at least one row.*\(0, 3\)"),
        ({"X": np.zeros((3, 0))}, "X must be"),
        ({"X": np.zeros(3)}, "X must be a 2-D array"),
        ({"X": np.array([["a"]])}, "X must be.*real numbers"),
        ({"X": X + 1j}, "X must be.*real numbers"),
        ({"X": None}, "X must be"),
        ({"X": sp.csr_matrix(X)}, "X is sparse.*toarray.*ExplicitALS"),
        ({"X": X.astype(np.float32) * 1e30}, "X.*float64"),
        ({"factors": 0}, "factors must be an integer of at least 1"),
        ({"factors": 2.0}, "factors"),
        ({"regularization": -1}, "regularization must be a finite number of at least 0"),
        ({"regularization": (1, -1)}, "regularization"),
        ({"regularization": (1, 2, 3)}, "regularization must be one number or two"),
        ({"regularization": np.nan}, "regularization"),
        ({"missing": np.ones((9, 14), bool)}, r"missing.*\(14, 9\)"),
        ({"missing": np.ones((14, 9))}, "missing must be a bool array"),
        ({"missing": np.ones((14, 9), bool)}, "missing marks every entry"),
        ({"missing": 0.0}, "missing must be None, numpy.nan or a bool array"),
        ({"missing": "zeros"}, "missing"),
        ({"iterations": -1}, "iterations"),
        ({"tol": -1}, "tol"),
        ({"solver": "magic"}, "solver"),
        ({"backend": "tpu"}, "backend"),
        ({"num_threads": -1}, "num_threads"),
        ({"dtype": np.float16}, "dtype"),
        ({"dtype": "text"}, "dtype"),
        ({"random_state": "lucky"}, "random_state"),
    ],
)
def test_bad_arguments(changes, message):
    with pytest.raises(InputError, match=message):
        factorize(**{"X": X, "factors": 2, "regularization": 0.1} | changes)
