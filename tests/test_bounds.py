"""What a half-sweep proves: how far it left the objective above its exact minimum, at most."""

from dataclasses import replace

import numpy as np
import pytest
from helpers import CASES, make_case
from test_cupy_backend import cupy_backend  # noqa: F401
from test_half_sweep import Sloppy

from gpu_als import AlternatingLeastSquares, ExplicitALS, solvers
from gpu_als.core.solvers import Certified, ConjugateGradient, NonNegative
from gpu_als.errors import InputError

# Rows of the case "implicit" have confidences below 1, which are negative weights.
WITHOUT_NEGATIVE = [name for name in CASES if name != "implicit"]
SOLVED_BY_ROWS = [name for name in WITHOUT_NEGATIVE if "dense" not in name and "all of" not in name]


def single_rows(case):
    """Yield each row with entries as a case of its own, with its number."""
    for u in np.flatnonzero(np.diff(case.rows.indptr)):
        rows = case.rows.between(u, u + 1)
        yield u, replace(case, rows=rows, start=case.start[u : u + 1])


def excess(case, u, x, expected):
    """Return how far the objective of a row is above its minimum."""
    return (x - expected) @ case.systems[u][0] @ (x - expected)


@pytest.mark.parametrize("per_factor", [1 << 16, 40], ids=["batches", "segments"])
@pytest.mark.parametrize("name", SOLVED_BY_ROWS)
def test_no_row_is_further_from_its_minimum_than_its_bound(name, per_factor):
    """Solutions that are off by far more than rounding, but not enough to be solved again."""
    case = make_case(name)
    ops, expected = Sloppy(1e-8, per_factor * case.n_factors), case.solution()
    ratios = []
    for u, row in single_rows(case):
        solved, stats = row.sweep(Certified(), ops=ops)
        above = excess(case, u, solved[0], expected[u])
        assert stats.paths["rescued"] == 0
        assert above <= stats.bound * (1 + 1e-3) + 1e-30  # rows of b0 alone are solved to rounding
        ratios.append(stats.bound / above)
    assert np.median(ratios) < 1000  # it says something


@pytest.mark.parametrize("name", ["explicit", "biases and mean"])
def test_the_bound_holds_under_constraints(name):
    case = make_case(name)
    solver = NonNegative(int(case.bias))
    expected = case.nonnegative_solution(int(case.bias))
    for u, row in single_rows(case):
        solved, stats = row.sweep(solver, ops=Sloppy(1e-7, 1 << 16))
        x, best = solved[0], expected[u]
        lhs, rhs = case.systems[u]
        above = (x + best) @ lhs @ (x - best) - 2 * rhs @ (x - best)
        assert above <= stats.bound * (1 + 1e-3) + 1e-12


@pytest.mark.parametrize("name", WITHOUT_NEGATIVE)
def test_a_device_proves_as_much(cupy_backend, name):  # noqa: F811
    case = make_case(name)
    _, stats = case.sweep(Certified(), np.float32, ops=cupy_backend)
    assert 0 <= stats.bound <= 1e-9 * np.abs(case.objective_at(case.solution()))


@pytest.mark.parametrize("name", WITHOUT_NEGATIVE)
def test_exact_rows_are_proven_to_be(name):
    case = make_case(name)
    for dtype, size in ((np.float32, 1e-9), (np.float64, 1e-24)):
        _, stats = case.sweep(Certified(), dtype)
        assert 0 <= stats.bound <= size * np.abs(case.objective_at(case.solution()))


def test_nothing_is_claimed_that_is_not_known():
    case = make_case("explicit")
    assert np.isinf(case.sweep(ConjugateGradient(3))[1].bound)
    without = replace(case, objective=replace(case.objective, regularization=0.0))
    assert np.isinf(without.sweep(Certified())[1].bound)
    for per_factor in (1 << 16, 40):
        negative = make_case("implicit")
        _, stats = negative.sweep(Certified(), batch_elements=per_factor * negative.n_factors)
        assert np.isinf(stats.bound)


def test_rows_solved_again_have_the_bound_of_what_is_kept():
    """In float64; what is kept is rounded to float32."""
    case = make_case("ials")
    sloppy, stats = case.sweep(Certified(), np.float32, ops=Sloppy(0.3, 1 << 20))
    assert stats.paths["rescued"] > 0
    assert 0 < stats.bound < 1e-10 * case.objective_at(sloppy.astype(np.float64))


def test_reports_have_the_bounds_in_the_units_of_the_losses():
    rng = np.random.default_rng(8)
    matrix = (rng.random((60, 40)) < 0.2) * rng.integers(1, 5, (60, 40)).astype(np.float32)
    for model in (
        ExplicitALS(factors=6, iterations=3, random_state=3, backend="numpy"),
        AlternatingLeastSquares(
            factors=6, iterations=3, random_state=3, use_gpu=False, use_cg=False
        ),
    ):
        model.fit(matrix)
        report = model.report_
        assert len(report.bounds) == 3
        for loss, both in zip(report.losses, report.bounds, strict=True):
            assert all(0 < bound < 1e-9 * loss for bound in both)
        assert "of their exact minimum" in str(report)
        assert type(report).from_dict(report.to_dict()) == report
    inexact = AlternatingLeastSquares(factors=6, iterations=2, use_gpu=False)
    inexact.fit(matrix, show_progress=False)
    assert inexact.report_.bounds[-1] == (None, None)


def test_a_tolerance_is_a_parameter():
    assert ExplicitALS(solver_tol=1e-7)._solver("users", bias=True) == Certified(1e-7)
    assert Certified().tolerance(np.float32) == 1e-5
    assert Certified(1e-6).tolerance(np.float64) == 1e-6
    for bad in (0, 1, -1e-5, np.nan, "small"):
        for make in (ExplicitALS, AlternatingLeastSquares):
            with pytest.raises(InputError, match="above 0 and below 1"):
                make(solver_tol=bad)
    assert solvers.Certified is Certified
