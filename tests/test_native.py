"""Compiled rows against the float64 oracle, against the general path, and against themselves."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from helpers import CASES, make_case, ragged_rows, residuals, row_errors
from test_half_sweep import check_factors, check_objective

from gpu_als.backends.native import dense
from gpu_als.backends.native import rows as native
from gpu_als.backends.native.library import aligned, variants
from gpu_als.backends.numpy.backend import NumpyBackend
from gpu_als.core.half_sweep import solve_side
from gpu_als.core.objectives import IALS, Explicit, Implicit
from gpu_als.core.problem import SparseRows
from gpu_als.core.solvers import Certified, Cholesky, ConjugateGradient

pytestmark = pytest.mark.skipif(not variants(), reason="no C++ compiler built the rows")

DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f4", "f8"])
SPARSE = [name for name in CASES if "dense" not in name]


@pytest.fixture(params=list(variants()))
def variant(request, monkeypatch):
    """Let half-sweeps run in each variant that this processor has."""
    monkeypatch.setattr(native, "library", lambda: variants()[request.param])
    return request.param


def many_rows(objective, counts, k, n_fixed=500, dtype=np.float32, seed=71):
    """Return random rows of given lengths, the fixed side and former values."""
    rng = np.random.default_rng(seed)
    indptr, indices = ragged_rows(np.asarray(counts), n_fixed, seed + 1)
    values = rng.integers(1, 6, len(indices)).astype(dtype)
    rows = SparseRows(indptr, indices, values, None, n_fixed)
    fixed = (0.3 * rng.standard_normal((n_fixed, k))).astype(dtype)
    return objective, rows, "users", fixed, rng.standard_normal((len(counts), k)).astype(dtype)


def solve(problem, solver, num_threads=1, **options):
    objective, rows, side, fixed, start = problem
    backend, solved = NumpyBackend(num_threads, **options), start.copy()
    with backend.session():
        stats = solve_side(backend, objective, rows, side, fixed, solved, solver)
    return solved, stats


@DTYPES
@pytest.mark.parametrize("k", [2, 6, 16, 40])
@pytest.mark.parametrize("name", SPARSE)
def test_every_objective_matches_the_oracle(variant, name, k, dtype):
    case = make_case(name, k)
    solvers = [Cholesky(), Certified()]
    if k >= 6:  # more steps than factors only stir rounding
        solvers.append(ConjugateGradient(3 * k))
    for solver in solvers:
        solved, stats = case.sweep(solver, dtype, ops=NumpyBackend(1))
        if isinstance(solver, Certified):
            check_energies(case, solved, solver.tolerance(dtype), dtype)
        else:
            check_factors(case, solver, solved, dtype)
        check_objective(case, solved, stats, dtype)
        assert stats.singular == 0
        assert "rescued" not in stats.paths


def check_energies(case, solved, tol, dtype):
    """Hold each row's distance from its minimum to what the certificate allows."""
    for u, expected in enumerate(case.solution()):
        if case.systems[u] is not None:
            lhs = case.systems[u][0]
            off, size = solved[u] - expected, expected @ lhs @ expected
            rounding = np.linalg.cond(lhs) * (16 * np.finfo(dtype).eps) ** 2
            assert off @ lhs @ off <= (1.01 * tol**2 + rounding) * size


@DTYPES
@pytest.mark.parametrize("name", SPARSE)
def test_few_steps_are_those_of_the_general_path(name, dtype):
    case = make_case(name, 20)
    for steps in (1, 3):
        solver = ConjugateGradient(steps)
        (found, stats), (expected, _) = (
            case.sweep(solver, dtype, ops=NumpyBackend(1, fused=fused)) for fused in (True, False)
        )
        tolerance = 1e4 * float(np.finfo(dtype).eps)
        np.testing.assert_allclose(found, expected, tolerance, tolerance * np.abs(expected).max())
        check_objective(case, found, stats, dtype)


@DTYPES
@pytest.mark.parametrize(
    "objective",
    [Implicit(0.1), Implicit(0.1, 4.0), IALS(0.003, 1.0, 0.3, 1.0), Explicit(0.05)],
    ids=repr,
)
def test_certified_rows_are_as_good_as_they_claim(variant, objective, dtype):
    """Rows long enough for conjugate gradients, held to the float64 minimum one by one."""
    problem = many_rows(objective, [60, 90, 130, 200, 400], 200, dtype=dtype)
    wide = (*problem[:1], replace(problem[1], values=problem[1].values.astype(float)), "users")
    exact, _ = solve((*wide, *(a.astype(float) for a in problem[3:])), Cholesky(), fused=False)
    solver = Certified(1e-5 if dtype == np.float32 else 1e-8)
    whole, whole_stats = solve(problem, solver)
    assert whole_stats.paths["cg"] >= 2
    assert whole_stats.steps.total() == whole_stats.paths["cg"]
    bounds = []
    for u in range(5):
        row = problem[1].between(u, u + 1)
        one = (objective, row, "users", problem[3], problem[4][u : u + 1])
        solved, stats = solve(one, solver)
        np.testing.assert_array_equal(solved[0], whole[u])
        lhs = normal_matrix(objective, row, problem[3].astype(float))
        off = solved[0] - exact[u]
        rounding = 64 * np.finfo(dtype).eps ** 2 * (exact[u] @ lhs @ exact[u])
        assert off @ lhs @ off <= 1.01 * stats.bound + rounding
        assert stats.bound <= 1.01 * solver.tol**2 * (exact[u] @ lhs @ exact[u])
        bounds.append(stats.bound)
    assert whole_stats.bound == pytest.approx(sum(bounds), rel=1e-6)


def normal_matrix(objective, row, fixed):
    """Return the matrix of one row's system."""
    y = fixed[row.indices]
    g, _ = objective.entry_weights(np, row.values.astype(float), None)
    ridge = np.ravel(objective.ridge(row.counts, row.n_fixed, "users"))[0]
    base = objective.base_weight * fixed.T @ fixed + ridge * np.eye(fixed.shape[1])
    return base + y.T @ (y if g is None else g[:, None] * y)


def test_a_tighter_tolerance_gives_more_digits():
    problem = many_rows(Implicit(1.0, 2.0), np.repeat([150, 300], 20), 200, dtype=np.float64)
    exact, _ = solve(problem, Cholesky())
    errors, steps = [], []
    for tol in (1e-1, 1e-2, 1e-4):
        solved, stats = solve(problem, Certified(tol))
        errors.append(row_errors(solved, exact).max())
        steps.append(max(stats.steps))
    assert errors[0] > 2 * errors[1] > 20 * errors[2]
    assert steps == sorted(steps)


def test_hopeless_rows_are_solved_directly():
    """A ridge so small that conjugate gradients would take more steps than they may."""
    problem = many_rows(Explicit(1e-7, count_scaled=False), [100, 160, 300], 128)
    solved, stats = solve(problem, Certified())
    direct, _ = solve(problem, Cholesky())
    assert stats.paths["cg"] == 0
    np.testing.assert_array_equal(solved, direct)


@DTYPES
@pytest.mark.parametrize("solver", [Cholesky(), Certified(), ConjugateGradient(3)], ids=repr)
@pytest.mark.parametrize(
    "objective", [Explicit(0.05), Implicit(0.1, 0.5), IALS(0.01, 1.0, 0.3, 0.7)], ids=repr
)
def test_a_row_depends_on_neither_threads_nor_other_rows(objective, solver, dtype):
    counts = [*np.repeat([1, 3, 15, 16, 17, 63, 64, 65], 9), *range(0, 300, 13)]
    problem = many_rows(objective, counts, 64, dtype=dtype)
    whole, stats = solve(problem, solver)
    for num_threads in (2, 5):
        again, same = solve(problem, solver, num_threads)
        np.testing.assert_array_equal(again, whole)
        assert same == stats
    again, _ = solve(problem, solver, 2, batch_elements=64 * 70)  # most rows are long ones
    np.testing.assert_array_equal(again, whole)
    cuts = [0, 1, 30, 31, 90, len(counts)]
    for first, last in pairwise(cuts):
        part = (*problem[:1], problem[1].between(first, last), *problem[2:4])
        solved, _ = solve((*part, problem[4][first:last]), solver)
        np.testing.assert_array_equal(solved, whole[first:last])


@pytest.mark.skipif("v4" not in variants(), reason="the processor has no AVX-512")
@DTYPES
@pytest.mark.parametrize("objective", [Explicit(0.05), Implicit(0.1, 0.5)], ids=repr)
def test_wider_vectors_change_no_bit(monkeypatch, objective, dtype):
    problem = many_rows(objective, [1, 5, 12, 17, 40, 63, 64, 90, 200, 450], 64, dtype=dtype)
    for solver in (Cholesky(), Certified(), ConjugateGradient(3)):
        found = []
        for name in ("v3", "v4"):
            monkeypatch.setattr(native, "library", lambda name=name: variants()[name])
            found.append(solve(problem, solver))
        np.testing.assert_array_equal(found[0][0], found[1][0])
        assert found[0][1] == found[1][1]


@pytest.mark.parametrize("k", [30, 128])
def test_wide_column_numbers_are_read(k):
    problem = many_rows(Implicit(0.1, 0.5), [4, 40, 170], k)
    rows = replace(problem[1], indices=problem[1].indices.astype(np.int64))
    for solver in (Certified(), ConjugateGradient(2)):
        narrow, _ = solve(problem, solver)
        wide, _ = solve((problem[0], rows, *problem[2:]), solver)
        np.testing.assert_array_equal(wide, narrow)


def test_rows_that_fail_their_check_are_left_to_the_general_path():
    """Where nothing is added to the diagonal, and where float32 runs out of range."""
    problem = many_rows(Explicit(0.0), [3, 40, 90], 20)
    solved, stats = solve(problem, Certified())
    np.testing.assert_array_equal(solved[0], problem[4][0])  # singular: keeps its value
    assert stats.singular == 1
    problem = many_rows(Explicit(0.1), [3, 40, 90], 20)
    problem[1].values[:43] *= np.float32(1e25)
    for solver in (Certified(), ConjugateGradient(3)):
        solved, _ = solve(problem, solver)
        assert np.isfinite(solved).all()
        expected, _ = solve(problem, solver, fused=False)
        sizes = np.linalg.norm(expected.astype(float), axis=1)
        assert (np.linalg.norm(solved - expected.astype(float), axis=1) < 1e-4 * sizes).all()


def test_residuals_are_those_of_the_factors():
    case = make_case("explicit, weighted", 40)
    solved, stats = case.sweep(Cholesky(), np.float32, ops=NumpyBackend(1))
    true = residuals(case.systems, solved, None).max()
    assert 0.2 * true < stats.residual < 5 * true


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_begin_on_cache_lines(dtype):
    matrix = np.arange(3 * 21, dtype=dtype).reshape(3, 21)
    placed = aligned(matrix)
    assert placed.ctypes.data % 64 == placed.strides[0] % 64 == 0
    np.testing.assert_array_equal(placed[:, :21], matrix)
    assert not placed[:, 21:].any()
    assert aligned(placed) is placed


@DTYPES
@pytest.mark.parametrize(("n", "k"), [(1, 1), (5, 3), (300, 33), (9000, 40)])
def test_the_whole_side_is_added_up_and_moved(variant, monkeypatch, n, k, dtype):
    monkeypatch.setattr(dense, "library", native.library)
    rng = np.random.default_rng(73)
    factors, matrix = rng.standard_normal((n, k)).astype(dtype), rng.standard_normal((k, k))
    wide = factors.astype(np.float64)
    few, many = NumpyBackend(1), NumpyBackend(3)
    gram = few.gram(factors)
    np.testing.assert_allclose(gram, wide.T @ wide, rtol=1e-12, atol=1e-12 * n)
    np.testing.assert_array_equal(many.gram(factors), gram)
    moved = few.transform(factors, matrix)
    assert moved.dtype == dtype
    exact = wide @ matrix
    # One rounding of what float64 gives.
    np.testing.assert_allclose(moved, exact, np.finfo(dtype).eps, 1e-13 * k)
    np.testing.assert_array_equal(many.transform(factors, matrix), moved)
    single = few.transform(factors, matrix.astype(dtype))
    bound = 4 * k * np.finfo(dtype).eps * (np.abs(wide) @ np.abs(matrix))
    assert (np.abs(single - exact) <= bound).all()
