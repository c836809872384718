"""Half-sweeps of every objective, solver and precision against the float64 oracle.

A solution may be off by the condition number of its system times the precision; ``_ERROR`` is how
many times that each solver may take. Conjugate gradients run for three times as many steps as
there are factors, and their rounding errors add up over them.
"""

from dataclasses import replace

import numpy as np
import pytest
from helpers import CASES, make_case, ragged_rows, residuals, row_errors
from reference import solve_row

from gpu_als.backends.numpy.backend import NumpyBackend
from gpu_als.core.basis import SideRidge
from gpu_als.core.half_sweep import hold_fixed, solve_side
from gpu_als.core.objectives import Explicit
from gpu_als.core.problem import SparseRows
from gpu_als.core.solvers import Cholesky, ConjugateGradient, NonNegative

_ERROR = {Cholesky: 16, NonNegative: 16, ConjugateGradient: 256}
DTYPES = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["f4", "f8"])
# Small batches of 40 gathered rows: everything longer goes through in segments.
BATCHES = pytest.mark.parametrize("per_factor", [1 << 16, 40], ids=["batches", "segments"])


def expected_factors(case, solver):
    if isinstance(solver, NonNegative):
        return case.nonnegative_solution(solver.free_columns)
    return case.solution()


def check_factors(case, solver, solved, dtype):
    assert solved.dtype == dtype
    errors = row_errors(solved, expected_factors(case, solver))
    assert (errors <= _ERROR[type(solver)] * case.rounding(dtype)).all()


def check_objective(case, solved, stats, dtype):
    """Compare with the oracle; the statistics leave out a constant and the fixed side's ridge."""
    total = stats.objective + case.objective.constant(case.rows)
    total += case.ridges[1] @ (case.fixed**2).sum(axis=1)
    expected = case.objective_at(solved.astype(np.float64))
    assert total == pytest.approx(expected, rel=8 * float(np.finfo(dtype).eps))


@DTYPES
@BATCHES
@pytest.mark.parametrize("kind", [Cholesky, ConjugateGradient, NonNegative])
@pytest.mark.parametrize("name", CASES)
def test_every_objective_matches_the_oracle(name, kind, per_factor, dtype):
    case = make_case(name)
    k = case.n_factors
    solver = {
        Cholesky: Cholesky(),
        ConjugateGradient: ConjugateGradient(3 * k),
        NonNegative: NonNegative(free_columns=int(case.bias)),
    }[kind]
    solved, stats = case.sweep(solver, dtype, batch_elements=per_factor * k)
    check_factors(case, solver, solved, dtype)
    check_objective(case, solved, stats, dtype)
    assert stats.singular == 0


@DTYPES
@pytest.mark.parametrize("name", CASES)
def test_wide_factors_match_the_oracle(name, dtype):
    """Forty factors: rows of 31 to 39 entries take the dual form too."""
    case = make_case(name, 40)
    solved, stats = case.sweep(Cholesky(), dtype, num_threads=2)
    check_factors(case, Cholesky(), solved, dtype)
    check_objective(case, solved, stats, dtype)


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("name", CASES)
def test_very_few_factors_match_the_oracle(name, k):
    case = make_case(name, k)
    solver = NonNegative(free_columns=int(case.bias))
    for how in (Cholesky(), solver):
        solved, _ = case.sweep(how, np.float64, batch_elements=64)
        check_factors(case, how, solved, np.float64)


@pytest.mark.parametrize("name", ["explicit, weighted", "implicit", "ials, exponent", "dense"])
def test_two_threads_match_the_oracle(name):
    case = make_case(name)
    for per_factor in (200, 40):
        solved, _ = case.sweep(
            Cholesky(), batch_elements=per_factor * case.n_factors, num_threads=2
        )
        check_factors(case, Cholesky(), solved, np.float64)


def test_rows_go_the_documented_ways():
    case = make_case("explicit", 40)
    counts = np.diff(case.rows.indptr)
    _, stats = case.sweep(Cholesky())
    assert stats.paths["shared"] == (counts == 0).sum()
    assert stats.paths["dual"] >= ((counts > 0) & (counts < 36)).sum()  # 39 is padded to 40
    assert stats.paths["primal"] > 0
    assert stats.paths["rescued"] == stats.paths["long"] == 0
    assert stats.paths.total() == len(counts)
    _, stats = case.sweep(Cholesky(), batch_elements=100 * 40)
    assert stats.paths["long"] == (counts > 100).sum()
    _, stats = case.sweep(ConjugateGradient(2))
    assert stats.paths == {"cg": (counts > 0).sum(), "shared": (counts == 0).sum()}
    _, stats = case.sweep(NonNegative())
    assert stats.paths == {"nnls": (counts > 0).sum(), "shared": (counts == 0).sum()}


@BATCHES
@pytest.mark.parametrize("name", CASES)
def test_few_conjugate_gradient_steps_start_from_the_former_value(name, per_factor):
    """From the solution no step leads away; from near it three steps lead nearer."""
    case = make_case(name)
    exact = expected_factors(case, Cholesky())
    for distance in (0, 1e-3):
        near = replace(case, start=exact + distance * (case.start - exact))
        before = row_errors(near.start, exact)
        solved, _ = near.sweep(ConjugateGradient(3), batch_elements=per_factor * case.n_factors)
        after = row_errors(solved, exact)
        assert (after <= 0.9 * before + 1e-12 * np.linalg.norm(exact, axis=1) + 1e-13).all()


class Sloppy(NumpyBackend):
    """A backend whose solutions are off by a known relative error."""

    def __init__(self, error, batch_elements):
        super().__init__(1, batch_elements, fused=False)
        self.error = error

    def cholesky_solve(self, lhs, rhs):
        solution, failed = super().cholesky_solve(lhs, rhs)
        rng = np.random.default_rng(solution.shape)
        noise = self.error * rng.standard_normal(solution.shape)
        return (solution * (1 + noise)).astype(solution.dtype), failed


@DTYPES
@BATCHES
@pytest.mark.parametrize(
    "name", [name for name in CASES if "all of" not in name and "dense" not in name]
)
def test_the_reported_residual_is_that_of_the_factors(name, per_factor, dtype):
    """Errors far above rounding, yet below the limit from which rows are solved again."""
    case = make_case(name)
    error = 2e-5 if dtype == np.float32 else 2e-8
    ops = Sloppy(error, per_factor * case.n_factors)
    solved, stats = case.sweep(Cholesky(), dtype, ops=ops)
    shared = None
    if case.base is not None:
        shared = [case.base + ridge * np.eye(case.n_factors) for ridge in case.ridges[0]]
    true = residuals(case.systems, solved, shared).max()
    limit = 1e-3 if dtype == np.float32 else 1e-6
    assert error < true < limit
    assert stats.residual == pytest.approx(true, rel=0.03)
    assert stats.paths["rescued"] == 0


@DTYPES
@BATCHES
@pytest.mark.parametrize("name", ["explicit, weighted", "implicit", "ials, exponent"])
def test_rows_with_a_large_residual_are_solved_again(name, per_factor, dtype):
    case = make_case(name)
    solved, stats = case.sweep(Cholesky(), dtype, ops=Sloppy(0.3, per_factor * case.n_factors))
    entries = np.diff(case.rows.indptr) > 0
    assert stats.paths["rescued"] >= 0.8 * entries.sum()
    assert stats.singular == 0
    check_factors(case, Cholesky(), solved, dtype)
    check_objective(case, solved, stats, dtype)
    assert stats.residual < (1e-3 if dtype == np.float32 else 1e-6)


class Unsettled(NumpyBackend):
    """A backend that returns NaN, as an overflow would."""

    def cholesky_solve(self, lhs, rhs):
        return np.full_like(rhs, np.nan), np.zeros(len(rhs), bool)


@BATCHES
def test_rows_solved_again_are_as_good_as_float64(per_factor):
    """Condition numbers of 1e6, at which a matrix rounded to float32 gives no digit."""
    rng = np.random.default_rng(32)
    k, counts = 12, np.array([20, 60, 400])
    rotation = np.linalg.qr(rng.standard_normal((k, k)))[0]
    fixed = rng.standard_normal((540, k)) * np.geomspace(1, 1e-3, k) @ rotation
    fixed = fixed.astype(np.float32)
    indptr, indices = ragged_rows(counts, 540, 33)
    values = rng.uniform(1, 5, len(indices)).astype(np.float32)
    rows = SparseRows(indptr, indices, values, None, 540)
    objective, solved = Explicit(1e-6, False), np.zeros((3, k), np.float32)
    solve_side(
        Unsettled(1, per_factor * k, fused=False),
        objective,
        rows,
        "users",
        fixed,
        solved,
        Cholesky(),
    )
    for u in range(3):
        part = slice(indptr[u], indptr[u + 1])
        wide = values[part].astype(np.float64)
        expected = solve_row(fixed, indices[part], np.ones(counts[u]), wide, 1e-6)
        assert np.linalg.norm(solved[u] - expected) < 1e-6 * np.linalg.norm(expected)


@BATCHES
def test_not_a_number_never_reaches_the_factors(per_factor):
    case = make_case("explicit")
    ops = Unsettled(1, per_factor * case.n_factors, fused=False)
    solved, stats = case.sweep(Cholesky(), np.float32, ops=ops)
    check_factors(case, Cholesky(), solved, np.float32)
    assert np.isfinite(stats.objective)
    assert stats.paths["rescued"] == (np.diff(case.rows.indptr) > 0).sum()


@pytest.mark.parametrize("name", ["explicit", "implicit", "dense"])
def test_the_fixed_side_and_the_entries_are_only_read(name):
    case = make_case(name)
    fixed = case.fixed.copy()
    values = (case.rows.values if name != "dense" else case.rows.dense).copy()
    case.sweep(Cholesky())
    np.testing.assert_array_equal(case.fixed, fixed)
    after = case.rows.values if name != "dense" else case.rows.dense
    np.testing.assert_array_equal(after, values)


def test_repeated_entries_count_as_often_as_they_are_stored():
    """Weight 2 is the same rating seen twice."""
    rng = np.random.default_rng(31)
    fixed = rng.standard_normal((9, 4))
    indices, values = np.array([0, 3, 4, 8, 1, 2]), rng.uniform(1, 5, 6)
    weights = np.array([1, 2, 3, 1, 2, 1])
    once = SparseRows(np.array([0, 4, 6]), indices, values, weights.astype(float), 9)
    repeated = SparseRows(
        np.array([0, 7, 10]), np.repeat(indices, weights), np.repeat(values, weights), None, 9
    )
    backend, found = NumpyBackend(1), []
    for rows in (once, repeated):
        objective, solved = Explicit(0.3, count_scaled=False), np.zeros((2, 4))
        stats = solve_side(backend, objective, rows, "users", fixed, solved, Cholesky())
        found.append((solved, stats.objective))
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=1e-12)
    assert found[0][1] == pytest.approx(found[1][1], rel=1e-12)


@BATCHES
def test_the_objective_of_float32_rows_is_added_up_in_float64(per_factor):
    """Factors of zero predict nothing: what is left is the sum of squares of whole numbers."""
    rng = np.random.default_rng(33)
    indptr, indices = ragged_rows(rng.integers(0, 90, 200), 90, 34)
    ratings = rng.integers(-4000, 4001, len(indices))
    rows = SparseRows(indptr, indices, ratings.astype(np.float32), None, 90)
    backend = NumpyBackend(1, per_factor * 3)
    fixed, solved = np.zeros((90, 3), np.float32), np.ones((200, 3), np.float32)
    stats = solve_side(backend, Explicit(0.5), rows, "users", fixed, solved, Cholesky())
    assert not solved.any()
    assert stats.objective == (ratings**2).sum()


def test_a_failed_factorisation_without_an_error_is_noticed(monkeypatch):
    """As CuPy does it: the matrix comes back half done, with a plausible diagonal."""
    whole = np.linalg.cholesky

    def half_done(matrix):
        factor = np.tril(matrix)
        factor[:3, :3] = whole(matrix[:3, :3])
        return np.abs(factor)

    case = make_case("implicit")
    arguments = case.objective, case.side, case.fixed, SideRidge.of(case.ridges[0][0])
    assert not hold_fixed(NumpyBackend(1), *arguments).basis.singular
    monkeypatch.setattr(np.linalg, "cholesky", half_done)
    assert hold_fixed(NumpyBackend(1), *arguments).basis.singular
