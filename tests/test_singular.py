"""Systems without a unique solution, and numbers at the edge of what a float holds.

Rows whose system is singular keep their former value to the bit and are counted. Nothing here may
leave NaN or infinity behind, nor warn of anything but singular rows.
"""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
from helpers import ragged_rows, random_ratings, residuals
from reference import objective_value, row_system, solve_row

from gpu_als import AlternatingLeastSquares, ExplicitALS, als_step, factorize
from gpu_als.backends.numpy.backend import NumpyBackend
from gpu_als.core.cg import DenseSystem, conjugate_gradient
from gpu_als.core.half_sweep import _relative, solve_side
from gpu_als.core.objectives import IALS, Dense, Explicit, Implicit
from gpu_als.core.problem import SparseRows
from gpu_als.core.solvers import Cholesky, ConjugateGradient, NonNegative
from gpu_als.errors import SingularRowsWarning

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f4", "f8"])
EXACT = pytest.mark.parametrize("solver", [Cholesky(), NonNegative()], ids=["chol", "nnls"])
SOLVERS = pytest.mark.parametrize(
    "solver",
    [Cholesky(), ConjugateGradient(3), ConjugateGradient(40), NonNegative()],
    ids=["chol", "cg3", "cg40", "nnls"],
)
BATCHES = pytest.mark.parametrize("per_factor", [1 << 16, 10], ids=["batches", "segments"])


def solve(objective, rows, fixed, solver, per_factor=1 << 16, seed=51, dense=None, scale=1):
    """Run a half-sweep from random factors; return those, the solved ones and the statistics."""
    n_rows = rows.n_rows if dense is None else len(dense)
    k = fixed.shape[1]
    start = np.random.default_rng(seed).standard_normal((n_rows, k)).astype(fixed.dtype) * scale
    solved = start.copy()
    backend = NumpyBackend(1, per_factor * k)
    if dense is not None:
        rows = SparseRows.from_dense(dense)
    with backend.session():
        stats = solve_side(backend, objective, rows, "users", fixed, solved, solver)
    assert np.isfinite(solved).all()
    assert np.isfinite([stats.objective, stats.residual]).all()
    return start, solved, stats


def make_rows(counts, n_fixed, dtype, values=None, weights=None, seed=52):
    """Draw entries; ``values`` and ``weights`` are functions ``(rng, size)``."""
    rng = np.random.default_rng(seed)
    indptr, indices = ragged_rows(np.asarray(counts), n_fixed, seed)
    size = len(indices)
    drawn = rng.uniform(1, 5, size) if values is None else values(rng, size)
    heavy = None if weights is None else weights(rng, size).astype(dtype)
    return SparseRows(indptr, indices, drawn.astype(dtype), heavy, n_fixed)


def normal_factors(n_fixed, k, dtype, seed=53):
    return np.random.default_rng(seed).standard_normal((n_fixed, k)).astype(dtype)


@DTYPES
@EXACT
@BATCHES
@pytest.mark.parametrize("k", [2, 6, 20])
def test_too_few_entries_and_no_ridge(k, per_factor, solver, dtype):
    counts = np.array([0, 1, k - 1, k + 25, k - 1, 50, 0])
    rows, fixed = make_rows(counts, 60, dtype), normal_factors(60, k, dtype)
    start, solved, stats = solve(Explicit(0.0, False), rows, fixed, solver, per_factor)
    short = counts < k
    assert stats.singular == short.sum()
    np.testing.assert_array_equal(solved[short], start[short])
    assert (solved[~short] != start[~short]).any(axis=1).all()
    if isinstance(solver, Cholesky):
        for u in np.flatnonzero(~short):
            part = slice(rows.indptr[u], rows.indptr[u + 1])
            ratings, ones = rows.values[part].astype(float), np.ones(counts[u])
            expected = solve_row(fixed.astype(float), rows.indices[part], ones, ratings, 0.0)
            error = np.abs(solved[u] - expected).max()
            assert error < 1e4 * np.finfo(dtype).eps * np.abs(expected).max()


@DTYPES
@EXACT
@BATCHES
@pytest.mark.parametrize("k", [2, 3, 8, 33, 40])
def test_enough_entries_of_rank_one(k, per_factor, solver, dtype):
    """Multiples of one row by whole numbers, so that the matrix is singular exactly."""
    rng = np.random.default_rng([54, k])
    fixed = np.outer(rng.integers(1, 4, 90), rng.integers(1, 6, k)).astype(dtype)
    rows = make_rows([k, k + 1, 80, k], 90, dtype)
    start, solved, stats = solve(Explicit(0.0, False), rows, fixed, solver, per_factor)
    np.testing.assert_array_equal(solved, start)
    assert stats.singular == 4


@DTYPES
@BATCHES
@pytest.mark.parametrize("k", [3, 8, 33])
def test_enough_entries_of_too_low_a_rank(k, per_factor, dtype):
    """A row either keeps its value and is counted, or solves its equations.

    A zero pivot among rounding errors cannot always be told from a small one; what is then added
    from the null space changes no prediction.
    """
    rng = np.random.default_rng([54, k])
    distinct = rng.standard_normal((k - 1, k))
    fixed = distinct[rng.integers(0, k - 1, 90)].astype(dtype)
    rows = make_rows([k, k + 1, 80, k, 60], 90, dtype)
    start, solved, stats = solve(Explicit(0.0, False), rows, fixed, Cholesky(), per_factor)
    kept = (solved == start).all(axis=1)
    assert stats.singular == kept.sum()
    assert np.abs(solved).max() < 1e4
    for u in np.flatnonzero(~kept):
        part = slice(rows.indptr[u], rows.indptr[u + 1])
        gathered, ratings = fixed[rows.indices[part]].astype(float), rows.values[part].astype(float)
        fitted = gathered @ np.linalg.lstsq(gathered, ratings)[0]
        limit = 1e-2 if dtype == np.float32 else 1e-8
        assert np.abs(gathered @ solved[u].astype(float) - fitted).max() < limit


@DTYPES
@SOLVERS
@BATCHES
@pytest.mark.parametrize("k", [2, 3, 8, 20])
def test_low_rank_up_to_rounding_stays_in_bounds(k, per_factor, solver, dtype):
    """Whether such a row is solved or kept, it stays in size: a null space has no pull."""
    rng = np.random.default_rng([55, k])
    for rank in {1, k - 1}:
        fixed = (rng.standard_normal((90, rank)) @ rng.standard_normal((rank, k))).astype(dtype)
        for ridge in (0.0, 1e-30):
            rows = make_rows([1, 2, k, k + 1, 80, k], 90, dtype)
            _, solved, _ = solve(Explicit(ridge, False), rows, fixed, solver, per_factor)
            # A rank of k - 1 in float32 may be k with a tiny singular value: size is 1 over that.
            assert np.abs(solved).max() < (1e3 if rank == 1 else 1e5)


@DTYPES
def test_conjugate_gradients_take_no_step_along_a_residual_of_rounding(dtype):
    """A step along it could have any length, here 1; beside it is a row with more to go."""
    eps = np.finfo(dtype).eps
    lhs = np.tile(np.diag([1, 4 * eps]).astype(dtype), (2, 1, 1))
    rhs = np.array([[1, 4 * eps], [1, 64 * eps]], dtype)
    start = np.array([[1, 0], [1, 0]], dtype)
    for steps in (1, 3):
        z, _ = conjugate_gradient(np, DenseSystem(np, lhs, rhs), start, steps)
        np.testing.assert_array_equal(z, [[1, 0], [1, 16]])


@EXACT
def test_a_careful_solve_gives_zero_for_singular_systems_alone(solver):
    lhs = np.array([[[1.0, 1], [1, 1]], [[1, 0], [0, 4]], [[np.inf, 0], [0, 1]]])
    x, singular = solver.solve_in_float64(
        NumpyBackend(1), lhs, np.array([[3.0, 3], [3, 2], [1, 1]])
    )
    assert singular.tolist() == [True, False, True]
    np.testing.assert_array_equal(x, [[0, 0], [3, 0.5], [0, 0]])


@DTYPES
@SOLVERS
@BATCHES
def test_more_factors_than_items_and_no_ridge(solver, per_factor, dtype):
    """The shared matrix is singular and with it every row, whatever its entries."""
    rows = make_rows([0, 1, 2, 3, 4, 5], 5, dtype)
    fixed = normal_factors(5, 8, dtype)
    for objective in (Implicit(0.0, 3.0), IALS(0.0, 1.0, 0.5, 0.5)):
        start, solved, stats = solve(objective, rows, fixed, solver, per_factor)
        np.testing.assert_array_equal(solved, start)
        assert stats.singular == 6
    ones = make_rows([0, 1, 2, 3, 4, 5], 5, dtype, values=lambda rng, size: np.ones(size))
    start, solved, stats = solve(Implicit(0.0), ones, fixed, solver, per_factor)
    np.testing.assert_array_equal(solved, start)
    assert stats.singular == 6


@DTYPES
@SOLVERS
def test_a_dense_matrix_with_more_factors_than_columns_and_no_ridge(solver, dtype):
    matrix = np.random.default_rng(56).standard_normal((7, 5)).astype(dtype)
    fixed = normal_factors(5, 8, dtype)
    start, solved, stats = solve(Dense(0.0), None, fixed, solver, dense=matrix)
    np.testing.assert_array_equal(solved, start)
    assert stats.singular == 7


@DTYPES
@BATCHES
@pytest.mark.parametrize("ridge", [1e-6, 1e-12, 1e-20])
def test_tiny_ridges_with_a_shared_base(ridge, per_factor, dtype):
    """More factors than items: either solved well or kept and counted."""
    counts = [0, 1, 2, 3, 4, 5]
    rows, fixed = make_rows(counts, 5, dtype), normal_factors(5, 8, dtype)
    start, solved, stats = solve(Implicit(ridge, 2.0), rows, fixed, Cholesky(), per_factor)
    kept = (solved == start).all(axis=1)
    assert stats.singular == kept.sum() == (6 if ridge < 1e-14 else 0)
    wide = fixed.astype(float)
    systems = []
    for u in range(6):
        part = slice(rows.indptr[u], rows.indptr[u + 1])
        c = 2.0 * rows.values[part].astype(float)
        systems.append(row_system(wide, rows.indices[part], c - 1, c, ridge, wide.T @ wide))
    if not kept.any():
        # What is left out of the row space is bounded by the rounding of x over sqrt(ridge).
        assert residuals(systems, solved).max() < 1e-3


@DTYPES
@SOLVERS
@BATCHES
@pytest.mark.parametrize("ridge", [1e-8, 1e-30, 1e-45])
def test_tiny_ridges_without_a_base(ridge, per_factor, solver, dtype):
    """Short rows tend to the shortest of all solutions, which is no larger than without a ridge."""
    counts = np.array([1, 2, 4, 8, 30])
    rows, fixed = make_rows(counts, 60, dtype), normal_factors(60, 8, dtype)
    start, solved, _ = solve(Explicit(ridge, False), rows, fixed, solver, per_factor)
    assert np.abs(solved).max() < 1e4
    if isinstance(solver, Cholesky):
        for u in range(3):
            if (solved[u] == start[u]).all():  # in float32 the smallest ridge of all is zero
                assert dtype(ridge) == 0 or ridge < 1e-14
                continue
            part = slice(rows.indptr[u], rows.indptr[u + 1])
            gathered = fixed[rows.indices[part]].astype(float)
            shortest = np.linalg.lstsq(gathered, rows.values[part].astype(float))[0]
            np.testing.assert_allclose(solved[u], shortest, rtol=0, atol=2e-4)


def worst_objective(rows, fixed, solved, ridge, weights):
    """Return how much each row's objective exceeds its minimum, relatively."""
    wide, excess = fixed.astype(float), []
    for u in range(rows.n_rows):
        part = slice(rows.indptr[u], rows.indptr[u + 1])
        if part.start == part.stop:
            continue
        target = rows.values[part].astype(float)[None]
        weight, gathered = weights[part].astype(float), wide[rows.indices[part]]
        best = solve_row(wide, rows.indices[part], weight, weight * target[0], ridge)
        values = [
            objective_value(
                np.ones(target.shape, bool), weight[None], target, 0, x[None].astype(float),
                gathered, np.array([ridge]), np.zeros(len(gathered)),
            )
            for x in (solved[u], best)
        ]  # fmt: skip
        excess.append(values[0] / values[1] - 1)
    return np.array(excess)


@DTYPES
@BATCHES
@pytest.mark.parametrize("largest", [1e3, 1e12])
def test_huge_weights(largest, per_factor, dtype):
    """Weights over many powers of ten. Rows with more entries than factors, so nothing is 0/0."""
    rows = make_rows(
        [12, 20, 33, 50, 7], 60, dtype,
        weights=lambda rng, size: largest ** rng.uniform(0, 1, size),
    )  # fmt: skip
    fixed = normal_factors(60, 6, dtype)
    _, solved, stats = solve(Explicit(0.1, False), rows, fixed, Cholesky(), per_factor)
    assert stats.singular == 0
    excess = worst_objective(rows, fixed, solved, 0.1, rows.weights)
    assert excess.max() < (1e-2 if dtype == np.float32 else 1e-6)


@DTYPES
@SOLVERS
@BATCHES
@pytest.mark.parametrize(
    ("ridge", "weights", "values"),
    [
        (0.1, lambda rng, size: np.full(size, 1e12), None),
        (0.0, lambda rng, size: 10 ** rng.uniform(0, 12, size), None),
        (0.1, lambda rng, size: 10 ** rng.uniform(-12, 0, size), None),
        (0.1, None, lambda rng, size: np.full(size, 1e12)),
        (0.1, lambda rng, size: 10 ** rng.uniform(0, 12, size), lambda rng, n: np.full(n, 1e12)),
    ],
    ids=["heavy", "heavy, no ridge", "light", "large ratings", "heavy and large"],
)
def test_extreme_numbers_stay_finite(ridge, weights, values, per_factor, solver, dtype):
    for k in (2, 20):
        rows = make_rows([0, 1, 3, k - 1, k, k + 1, 50], 60, dtype, values, weights)
        solve(Explicit(ridge, False), rows, normal_factors(60, k, dtype), solver, per_factor)


@DTYPES
@SOLVERS
@BATCHES
@pytest.mark.parametrize("power", [-1, 1], ids=["small", "large"])
def test_values_of_any_size_are_solved_alike(power, per_factor, solver, dtype):
    """The largest are those that are accepted; both sides' factors are as large as their roots."""
    size = dtype(2.0) ** (power * (19 if dtype == np.float32 else 166))
    for k in (6, 20):
        rows, fixed = (
            make_rows([1, 3, k - 1, k, k + 3, 50], 60, dtype),
            normal_factors(60, k, dtype),
        )
        _, expected, _ = solve(Explicit(1.0, False), rows, fixed, solver, per_factor)
        scaled = replace(rows, values=rows.values * size * size), fixed * size
        objective = Explicit(float(size) ** 2, False)
        _, solved, stats = solve(objective, *scaled, solver, per_factor, scale=size)
        assert stats.singular == 0
        np.testing.assert_array_equal(solved / size, expected)


@DTYPES
@pytest.mark.parametrize("share", [1e-25, 1e25])
def test_residuals_are_judged_at_any_size(share, dtype):
    size = dtype(share ** (1 if dtype == np.float32 else 8))
    rhs, misfit = np.random.default_rng(58).standard_normal((2, 4, 7)).astype(dtype)
    expected = np.linalg.norm(misfit, axis=1) / np.linalg.norm(rhs, axis=1)
    np.testing.assert_allclose(_relative(np, size * misfit, size * rhs), expected, rtol=1e-5)


@DTYPES
@SOLVERS
@BATCHES
def test_extreme_confidences_stay_finite(per_factor, solver, dtype):
    for k in (2, 20):
        rows = make_rows(
            [0, 1, 3, k - 1, k, k + 1, 50], 60, dtype,
            values=lambda rng, size: 10 ** rng.uniform(-3, 12, size) * rng.choice([-1, 1], size),
        )  # fmt: skip
        fixed = normal_factors(60, k, dtype)
        for objective in (Implicit(0.01, 1.0), Implicit(0.0, 1.0), IALS(0.01, 1.0, 0.1, 0.5)):
            solve(objective, rows, fixed, solver, per_factor)
        zeros = make_rows([0, 2, 50], 60, dtype, values=lambda rng, size: np.zeros(size))
        solve(Implicit(0.0, 1.0), zeros, fixed, solver, per_factor)


@DTYPES
@SOLVERS
@BATCHES
@pytest.mark.parametrize("size", [0.0, 1e-25, 1e12])
def test_factors_of_any_size_stay_finite(size, per_factor, solver, dtype):
    rows = make_rows([0, 1, 5, 6, 7, 50], 60, dtype)
    fixed = size * normal_factors(60, 6, dtype)
    for objective in (Explicit(0.1, False), Explicit(0.0, False), Implicit(0.1, 3.0)):
        solve(objective, rows, fixed.astype(dtype), solver, per_factor)
    dense = np.random.default_rng(57).standard_normal((9, 60)).astype(dtype)
    solve(Dense(0.1), None, fixed.astype(dtype), solver, dense=dense)


@DTYPES
@BATCHES
def test_items_with_identical_factors(per_factor, dtype):
    """Every item alike: ``x = y sum r / (n |y|^2 + ridge)``, worked out by hand."""
    y = normal_factors(1, 8, dtype)[0]
    rows = make_rows([1, 3, 8, 9, 40], 60, dtype)
    fixed = np.tile(y, (60, 1))
    for ridge in (1.0, 1e-2):
        _, solved, stats = solve(Explicit(ridge, False), rows, fixed, Cholesky(), per_factor)
        assert stats.singular == 0
        wide = y.astype(float)
        for u, (a, b) in enumerate(zip(rows.indptr[:-1], rows.indptr[1:], strict=True)):
            scale = rows.values[a:b].astype(float).sum() / ((b - a) * (wide @ wide) + ridge)
            # The precision times the condition number, n |y|^2 / ridge.
            limit = 4 * np.finfo(dtype).eps * (b - a) * (wide @ wide) / ridge
            np.testing.assert_allclose(solved[u], scale * wide, rtol=0, atol=limit)


@DTYPES
def test_nonnegative_dense_rows_with_nearly_equal_columns(dtype):
    """Beyond what float32 can factor, though far from singular in float64."""
    rng = np.random.default_rng(58)
    one = rng.uniform(1, 2, (200, 1))
    fixed = np.hstack([one, one * (1 + 1e-4 * rng.standard_normal((200, 1)))]).astype(dtype)
    dense = (fixed.astype(float) @ rng.uniform(1, 2, (2, 6))).T.astype(dtype)
    _, solved, stats = solve(Dense(1e-9), None, fixed, NonNegative(), dense=dense)
    assert stats.singular == 0
    assert np.abs(dense - solved @ fixed.T).max() < 1e-2


def test_the_fit_counts_singular_rows_and_says_so():
    dense = random_ratings(12, 9, 0.9, 59).toarray()
    dense[3, 2:] = 0
    ratings = sp.csr_matrix(dense)
    short = (np.diff(ratings.indptr) < 3).sum() + (np.diff(ratings.tocsc().indptr) < 3).sum()
    assert short > 0
    model = ExplicitALS(3, 0.0, bias=False, iterations=2, random_state=1)
    with pytest.warns(SingularRowsWarning, match=rf"{short} rows .* raise regularization"):
        model.fit(ratings)
    assert model.report_.singular_rows == short
    assert "singular" in str(model.report_)
    assert np.isfinite(model.user_factors).all()
    assert np.isfinite(model.item_factors).all()


@pytest.mark.parametrize("use_cg", [False, True])
def test_the_implicit_fit_counts_singular_rows(use_cg):
    likes = sp.csr_matrix(np.eye(4, 3, dtype=np.float32))
    model = AlternatingLeastSquares(8, 0.0, iterations=2, use_cg=use_cg, random_state=1)
    with pytest.warns(SingularRowsWarning):
        model.fit(likes, show_progress=False)
    assert model.report_.singular_rows == 4 + 3
    drawn = np.random.default_rng(1)
    for factors in (model.user_factors, model.item_factors):
        former = drawn.random(factors.shape, dtype=np.float32) * np.float32(0.01)
        np.testing.assert_array_equal(factors, former)


def test_factorize_counts_singular_rows():
    x = np.arange(6.0).reshape(2, 3)
    with pytest.warns(SingularRowsWarning):
        w, z, report = factorize(x, 4, regularization=0, random_state=2)
    assert report.singular_rows == 5
    assert np.isfinite(w).all()
    assert np.isfinite(z).all()


def test_no_warning_where_nothing_is_singular():
    """Warnings are errors in this suite."""
    ExplicitALS(3, 0.1, iterations=2, random_state=1).fit(random_ratings(12, 9, 0.5, 60))


def test_als_step_keeps_singular_rows():
    rng = np.random.default_rng(61)
    x, y = rng.standard_normal((2, 3)), rng.standard_normal((6, 3))
    former = x.copy()
    ratings = np.array([[1.0, 2, 0, 0, 0, 0], [1.0, 2, 3, 4, 5, 0]])
    als_step(ratings, x, y, "x", 3, 0.0)
    np.testing.assert_array_equal(x[0], former[0])
    expected = np.linalg.lstsq(y[:5], ratings[1, :5])[0]
    np.testing.assert_allclose(x[1], expected, rtol=1e-9)


@BATCHES
@EXACT
def test_rows_whose_solution_the_dtype_cannot_hold_keep_their_former_values(per_factor, solver):
    """``x = r / y`` of 1e42 is regular, but beyond float32; beside it is one that is not."""
    fixed = np.array([[1e-30], [2.0]], np.float32)
    indptr = np.array([0, 1, 2, 14])
    indices = np.array([0, 1, *[0] * 12])
    values = np.where(indices == 0, 1e12, 3.0).astype(np.float32)
    rows = SparseRows(indptr, indices, values, None, 2)
    start, solved, stats = solve(Explicit(0.0, False), rows, fixed, solver, per_factor)
    np.testing.assert_array_equal(solved[[0, 2]], start[[0, 2]])
    assert solved[1, 0] == pytest.approx(1.5, rel=1e-6)
    assert stats.singular == 2
