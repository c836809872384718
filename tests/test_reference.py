"""The oracle itself: cases small enough for pencil and paper, and sums written out cell by cell."""

import numpy as np
import pytest
from reference import objective_value, row_system, solve_row

FIXED = np.array([[1.0, 0.0], [1.0, 1.0], [5.0, -7.0]])


def test_the_system_of_a_row_by_hand():
    """``lhs = 1 [1 0]^T [1 0] + 2 [1 1]^T [1 1] + I``, ``rhs = 3 [1 0] + 4 [1 1]``."""
    lhs, rhs = row_system(FIXED, np.array([0, 1]), np.array([1, 2]), np.array([3, 4]), 1.0)
    np.testing.assert_array_equal(lhs, [[4, 2], [2, 3]])
    np.testing.assert_array_equal(rhs, [7, 4])


def test_the_solution_of_a_row_by_hand():
    """``[[4, 2], [2, 3]]^-1 [7, 4] = [[3, -2], [-2, 4]] / 8 [7, 4] = [13, 2] / 8``."""
    x = solve_row(FIXED, np.array([0, 1]), np.array([1, 2]), np.array([3, 4]), 1.0)
    np.testing.assert_allclose(x, [13 / 8, 1 / 4], rtol=1e-15)


def test_a_base_is_added_and_left_as_it_was():
    base = np.array([[2.0, 1.0], [1.0, 3.0]])
    lhs, rhs = row_system(FIXED, np.array([1]), np.array([-0.5]), np.array([2]), 0.25, base)
    np.testing.assert_array_equal(lhs, [[1.75, 0.5], [0.5, 2.75]])
    np.testing.assert_array_equal(rhs, [2, 2])
    np.testing.assert_array_equal(base, [[2, 1], [1, 3]])


def test_a_row_without_entries():
    nothing = np.zeros(0, int), np.zeros(0), np.zeros(0)
    np.testing.assert_array_equal(solve_row(FIXED, *nothing, 0.5), [0, 0])


def test_the_objective_by_hand():
    """Products ``[[1, 2], [0, 3]]``; cells ``2 (4 - 1)^2 + 0.5 2^2 + 0.5 0^2 + 1 (1 - 3)^2``.

    Ridges: ``1 |[1, 0]|^2 + 10 |[0, 1]|^2 + 100 |[1, 0]|^2 + 1000 |[2, 3]|^2``.
    """
    value = objective_value(
        observed=np.array([[True, False], [False, True]]),
        weight=np.array([[2.0, 9.0], [9.0, 1.0]]),
        target=np.array([[4.0, 9.0], [9.0, 1.0]]),
        unobserved_weight=0.5,
        users=np.eye(2),
        items=np.array([[1.0, 0.0], [2.0, 3.0]]),
        user_ridge=np.array([1.0, 10.0]),
        item_ridge=np.array([100.0, 1000.0]),
    )
    assert value == (18 + 2 + 0 + 4) + (1 + 10 + 100 + 13000)


def test_the_objective_cell_by_cell():
    rng = np.random.default_rng(11)
    users, items = rng.standard_normal((5, 3)), rng.standard_normal((4, 3))
    observed = rng.random((5, 4)) < 0.5
    weight, target = rng.uniform(0, 3, (5, 4)), rng.standard_normal((5, 4))
    user_ridge, item_ridge = rng.uniform(0, 2, 5), rng.uniform(0, 2, 4)
    expected = 0.0
    for u in range(5):
        for i in range(4):
            s = sum(users[u, f] * items[i, f] for f in range(3))
            expected += weight[u, i] * (target[u, i] - s) ** 2 if observed[u, i] else 0.7 * s * s
    for factors, ridge in ((users, user_ridge), (items, item_ridge)):
        for x, penalty in zip(factors, ridge, strict=True):
            expected += penalty * sum(value * value for value in x)
    found = objective_value(observed, weight, target, 0.7, users, items, user_ridge, item_ridge)
    assert found == pytest.approx(expected, rel=1e-13)


def test_the_solution_is_the_weighted_least_squares_fit():
    """Stack ``sqrt(g) y_i`` over ``sqrt(ridge) I`` and let a QR-based solver do it."""
    rng = np.random.default_rng(12)
    fixed, indices = rng.standard_normal((30, 6)), rng.choice(30, 9, replace=False)
    gram, rating = rng.uniform(0.2, 4, 9), rng.standard_normal(9)
    rows = np.vstack([np.sqrt(gram)[:, None] * fixed[indices], np.sqrt(0.3) * np.eye(6)])
    right = np.concatenate([np.sqrt(gram) * rating, np.zeros(6)])
    expected = np.linalg.lstsq(rows, right)[0]
    found = solve_row(fixed, indices, gram, gram * rating, 0.3)
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_no_other_point_is_better():
    rng = np.random.default_rng(13)
    fixed, indices = rng.standard_normal((8, 3)), np.array([1, 4, 5, 7])
    gram, rating = rng.uniform(0.2, 4, 4), rng.standard_normal(4)
    x = solve_row(fixed, indices, gram, gram * rating, 0.2)

    def objective(x):
        return sum(
            g * (r - fixed[i] @ x) ** 2 for i, g, r in zip(indices, gram, rating, strict=True)
        ) + 0.2 * (x @ x)

    best = objective(x)
    for step in rng.standard_normal((200, 3)):
        assert objective(x + 0.1 * step) > best


def test_float32_input_is_computed_in_float64():
    rng = np.random.default_rng(14)
    fixed = rng.standard_normal((6, 2)).astype(np.float32)
    every, g, t = np.arange(6), rng.uniform(1, 2, 6), rng.uniform(1, 2, 6)
    wide = row_system(fixed.astype(np.float64), every, g, t, 1e-9)
    for found, expected in zip(row_system(fixed, every, g, t, 1e-9), wide, strict=True):
        assert found.dtype == np.float64
        np.testing.assert_array_equal(found, expected)
