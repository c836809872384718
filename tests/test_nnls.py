"""Non-negative solves against SciPy's active-set solver and the optimality conditions."""

import numpy as np
import pytest
from helpers import nonnegative_minimiser

from gpu_als.backends.numpy.backend import NumpyBackend
from gpu_als.core import nnls
from gpu_als.core.nnls import solve_nonnegative

OPS = NumpyBackend(1)


def systems(n_systems, k, *, decay=1.0, ridge=0.1, shift=0.0, seed=91):
    """Draw ``lhs = A^T A + ridge I`` and ``rhs = A^T b``, the columns of A falling to ``decay``."""
    rng = np.random.default_rng([seed, n_systems, k])
    rows = (rng.standard_normal((n_systems, 2 * k, k)) + shift) * np.geomspace(1, decay, k)
    target = rng.standard_normal((n_systems, 2 * k)) + shift
    rows = rows[:, :, rng.permutation(k)]
    lhs = rows.swapaxes(1, 2) @ rows + ridge * np.eye(k)
    return lhs, (target[:, None, :] @ rows)[:, 0]


def check_conditions(lhs, rhs, x, free=0, tolerance=1e-9):
    """``x >= 0``, gradient ``>= 0``, and one of them 0 in every constrained coordinate."""
    k = x.shape[1]
    bound, loose = slice(0, k - free), slice(k - free, k)
    gradient = (lhs @ x[:, :, None])[:, :, 0] - rhs
    noise = tolerance * (np.abs(lhs) @ np.abs(x)[:, :, None])[:, :, 0].max(axis=1, keepdims=True)
    noise += tolerance * np.abs(rhs).max(axis=1, keepdims=True)
    assert (x[:, bound] >= 0).all()
    assert (gradient[:, bound] >= -noise).all()
    assert (np.abs(gradient)[:, loose] <= noise).all()
    assert (np.where(x > 0, np.abs(gradient), 0)[:, bound] <= noise).all()


@pytest.mark.parametrize("free", [0, 1, 3])
@pytest.mark.parametrize("k", [1, 2, 3, 7, 20, 33])
def test_matches_scipy_row_by_row(k, free):
    free = min(free, k)
    lhs, rhs = systems(40, k)
    x, failed = solve_nonnegative(OPS, lhs, rhs, free)
    assert not failed.any()
    expected = [nonnegative_minimiser(*system, free) for system in zip(lhs, rhs, strict=True)]
    np.testing.assert_allclose(x, expected, rtol=0, atol=1e-10)
    check_conditions(lhs, rhs, x, free)
    if k > 3 and not free:
        assert (x == 0).any(axis=1).mean() > 0.5  # the constraint is at work


def test_float32():
    lhs, rhs = (a.astype(np.float32) for a in systems(60, 16))
    x, failed = solve_nonnegative(OPS, lhs, rhs)
    assert x.dtype == np.float32
    assert not failed.any()
    wide = lhs.astype(np.float64), rhs.astype(np.float64)
    expected = [nonnegative_minimiser(*system) for system in zip(*wide, strict=True)]
    np.testing.assert_allclose(x, expected, rtol=0, atol=2e-5)
    check_conditions(*wide, x.astype(np.float64), tolerance=1e-5)


def test_an_unconstrained_solution_that_is_positive_is_kept():
    lhs, _ = systems(10, 5)
    x_true = np.random.default_rng(92).uniform(1, 2, (10, 5))
    x, failed = solve_nonnegative(OPS, lhs, (lhs @ x_true[:, :, None])[:, :, 0])
    assert not failed.any()
    np.testing.assert_allclose(x, x_true, rtol=1e-10)


def test_a_right_hand_side_without_positive_entries_gives_zero():
    lhs, rhs = systems(10, 6)
    x, failed = solve_nonnegative(OPS, lhs, -np.abs(rhs))
    assert not failed.any()
    np.testing.assert_array_equal(x, 0)
    x, failed = solve_nonnegative(OPS, lhs, np.zeros_like(rhs))
    assert not failed.any()
    np.testing.assert_array_equal(x, 0)


@pytest.mark.parametrize("free", [0, 2])
@pytest.mark.parametrize(("decay", "ridge", "shift"), [(1e-3, 1e-6, 0), (1e-2, 1e-8, 3), (1, 0, 5)])
def test_ill_conditioned_systems_are_optimal(decay, ridge, shift, free):
    """Condition numbers up to 1e8: the conditions hold, and no value is lost against SciPy."""
    lhs, rhs = systems(60, 12, decay=decay, ridge=ridge, shift=shift)
    x, failed = solve_nonnegative(OPS, lhs, rhs, free)
    assert not failed.any()
    check_conditions(lhs, rhs, x, free)
    for matrix, right, found in zip(lhs, rhs, x, strict=True):
        best = nonnegative_minimiser(matrix, right, free)
        values = [0.5 * v @ matrix @ v - right @ v for v in (found, best)]
        assert values[0] <= values[1] + 1e-9 * abs(values[1])


@pytest.mark.parametrize("k", [3, 4, 5])
def test_systems_on_which_exchanging_every_violation_would_cycle(k):
    """Among thousands of such systems a few need the rule that exchanges one at a time."""
    rng = np.random.default_rng([k, 3])
    rows = rng.standard_normal((4000, 2 * k, k)) @ rng.standard_normal((4000, k, k))
    lhs, rhs = rows.swapaxes(1, 2) @ rows + 1e-3 * np.eye(k), 10 * rng.standard_normal((4000, k))
    x, failed = solve_nonnegative(OPS, lhs, rhs)
    assert not failed.any()
    check_conditions(lhs, rhs, x)


def test_a_system_that_is_not_definite_is_flagged_alone():
    lhs, rhs = systems(6, 4)
    lhs[2] -= 100 * np.eye(4)
    x, failed = solve_nonnegative(OPS, lhs, rhs)
    np.testing.assert_array_equal(failed, [False, False, True, False, False, False])
    good = ~failed
    check_conditions(lhs[good], rhs[good], x[good])


@pytest.mark.parametrize("k", [1, 3, 40])
def test_a_system_that_is_not_definite_stays_flagged_whatever_its_parts_are(k):
    """With every coordinate at 0 nothing is left of the matrix that could fail."""
    lhs, rhs = -np.tile(np.eye(k), (2, 1, 1)), -np.ones((2, k))
    _, failed = solve_nonnegative(OPS, lhs, rhs)
    assert failed.all()


def test_signs_within_rounding_are_no_violation_and_not_handed_out():
    rhs = np.array([[1.0, -1e-9, -1e-9], [-1e-9, 1.0, 2.0]], np.float32)
    x, failed = solve_nonnegative(OPS, np.tile(np.eye(3, dtype=np.float32), (2, 1, 1)), rhs, 1)
    assert not failed.any()
    np.testing.assert_array_equal(x, [[1, 0, rhs[0, 2]], [0, 1, 2]])


@pytest.mark.parametrize("free", [0, 1, 3])
def test_systems_that_do_not_settle_are_solved_one_by_one(monkeypatch, free):
    monkeypatch.setattr(nnls, "_ROUNDS_PER_FACTOR", -10)  # none at all
    lhs, rhs = systems(6, 7)
    lhs[1] -= 100 * np.eye(7)
    x, failed = solve_nonnegative(OPS, lhs, rhs, free)
    assert failed.tolist() == [False, True, False, False, False, False]
    for number in (0, 2, 3, 4, 5):
        best = nonnegative_minimiser(lhs[number], rhs[number], free)
        np.testing.assert_allclose(x[number], best, atol=1e-12)


@pytest.mark.parametrize(
    ("k", "n_systems"), [(2, 700), (5, 600), (12, 400), (30, 200), (64, 80), (128, 20)]
)
def test_no_regular_system_is_given_up(k, n_systems):
    """Fewer rows than factors, condition numbers up to 1e6: the exchange often cycles there."""
    rng = np.random.default_rng([k, 41])
    rows = rng.standard_normal((n_systems, max(1, k // 2), k))
    lhs = rows.swapaxes(1, 2) @ rows
    ridges = np.linalg.norm(lhs, 2, axis=(1, 2)) * 10 ** rng.uniform(-6, -2, n_systems)
    lhs += ridges[:, None, None] * np.eye(k)
    rhs = (rng.standard_normal((n_systems, 1, rows.shape[1])) @ rows)[:, 0]
    x, failed = solve_nonnegative(OPS, lhs, rhs)
    assert not failed.any()
    for system, right, found in zip(lhs, rhs, x, strict=True):
        best = nonnegative_minimiser(system, right)
        np.testing.assert_allclose(found, best, rtol=0, atol=1e-8 * np.abs(best).max())


def test_a_system_does_not_depend_on_its_neighbours():
    lhs, rhs = systems(30, 9)
    together, _ = solve_nonnegative(OPS, lhs, rhs)
    for u in range(30):
        alone, _ = solve_nonnegative(OPS, lhs[u : u + 1], rhs[u : u + 1])
        np.testing.assert_allclose(alone[0], together[u], rtol=1e-12, atol=1e-14)
