"""The classic ALS step."""

import numpy as np
import pytest
import scipy.sparse as sp
from helpers import random_ratings
from reference import solve_row

from gpu_als import als_step
from gpu_als.errors import InputError

K = 3


@pytest.fixture
def problem():
    rng = np.random.default_rng(101)
    ratings = random_ratings(12, 9, 0.4, 102).toarray()
    ratings[5] = 0
    ratings[:, 2] = 0
    return ratings, rng.standard_normal((12, K)), rng.standard_normal((9, K))


def expected_rows(ratings, fixed, lmbda):
    rated = [np.flatnonzero(row) for row in ratings]
    return np.array(
        [
            solve_row(fixed, columns, np.ones(len(columns)), row[columns], lmbda)
            for row, columns in zip(ratings, rated, strict=True)
        ]
    )


@pytest.mark.parametrize("lmbda", [0.1, 5, np.float32(0.5)])
def test_both_sides(problem, lmbda):
    ratings, x, y = problem
    y_before = y.copy()
    assert als_step(ratings, x, y, "x", K, lmbda) is x
    np.testing.assert_allclose(x, expected_rows(ratings, y, float(lmbda)), rtol=1e-10, atol=1e-14)
    np.testing.assert_array_equal(x[5], 0)
    np.testing.assert_array_equal(y, y_before)
    x_before = x.copy()
    assert als_step(ratings, x, y, "y", K, lmbda) is y
    np.testing.assert_allclose(y, expected_rows(ratings.T, x, float(lmbda)), rtol=1e-10, atol=1e-14)
    np.testing.assert_array_equal(x, x_before)


@pytest.mark.parametrize("variable", ["x", "y"])
def test_the_side_that_is_held_may_be_read_only(problem, variable):
    ratings, x, y = problem
    held = y if variable == "x" else x
    held.flags.writeable = False
    solved = als_step(ratings, x, y, variable, K, 0.3)
    rated = ratings if variable == "x" else ratings.T
    np.testing.assert_allclose(solved, expected_rows(rated, held, 0.3), rtol=1e-10, atol=1e-14)


def test_steps_lower_the_objective(problem):
    ratings, x, y = problem

    def objective():
        misfit = (ratings - x @ y.T)[ratings != 0]
        return (misfit**2).sum() + 0.2 * ((x**2).sum() + (y**2).sum())

    values = [objective()]
    for _ in range(10):
        for variable in "xy":
            als_step(ratings, x, y, variable, K, 0.2)
            values.append(objective())
    assert (np.diff(values) <= 1e-12 * values[0]).all()
    assert values[-1] < 0.5 * values[0]


def test_every_container(problem):
    ratings, x, y = problem
    expected = als_step(ratings, x.copy(), y, "x", K, 0.1)
    for form in (sp.csr_matrix(ratings), sp.coo_matrix(ratings), sp.csc_array(ratings),
                 ratings.tolist()):  # fmt: skip
        np.testing.assert_array_equal(als_step(form, x.copy(), y, "x", K, 0.1), expected)


def test_stored_zeros_are_ratings_in_a_sparse_matrix(problem):
    _, x, y = problem
    ratings = sp.csr_matrix((np.zeros(2), [0, 1], [0] + [2] * 12), shape=(12, 9))
    x[0] = 7
    als_step(ratings, x, y, "x", K, 0.1)
    np.testing.assert_array_equal(x[0], 0)
    ratings.data[:] = [0, 1]
    als_step(ratings, x, y, "x", K, 0.1)
    expected = solve_row(y, np.array([0, 1]), np.ones(2), np.array([0, 1]), 0.1)
    np.testing.assert_allclose(x[0], expected, rtol=1e-10)


def test_dtypes_and_layouts(problem):
    """The arrays are updated in place whatever their layout, in the wider of the two types."""
    ratings, x, y = problem
    expected = expected_rows(ratings, y, 0.1)
    narrow = als_step(ratings, x.astype(np.float32), y.astype(np.float32), "x", K, 0.1)
    assert narrow.dtype == np.float32
    np.testing.assert_allclose(narrow, expected, atol=1e-4)
    mixed = als_step(ratings, x.astype(np.float32), y, "x", K, 0.1)
    np.testing.assert_array_equal(mixed, als_step(ratings, x.copy(), y, "x", K, 0.1).astype("f4"))
    wide = np.zeros((24, 2 * K))
    view = wide[::2, ::2]
    assert als_step(ratings, view, np.asfortranarray(y), "x", K, 0.1) is view
    np.testing.assert_allclose(wide[::2, ::2], expected, rtol=1e-10)
    assert (wide[1::2] == 0).all()
    column_major = np.asfortranarray(x)
    als_step(ratings, column_major, y, "x", K, 0.1)
    np.testing.assert_allclose(column_major, expected, rtol=1e-10)


@pytest.mark.parametrize("dtype", [bool, np.int64, np.uint8])
def test_integer_and_bool_ratings(problem, dtype):
    ratings, x, y = problem
    whole = ratings.astype(dtype)
    als_step(whole, x, y, "x", K, 0.1)
    np.testing.assert_allclose(x, expected_rows(whole.astype(float), y, 0.1), rtol=1e-10)


def test_edge_shapes():
    one = np.array([[2.0]])
    x, y = np.array([[1.0]]), np.array([[3.0]])
    als_step(one, x, y, "x", 1, 1.0)
    assert x[0, 0] == pytest.approx(2 * 3 / (3 * 3 + 1))
    x, y = np.ones((2, 8)), np.ones((3, 8))
    als_step(np.ones((2, 3)), x, y, "y", 8, 1.0)  # more factors than rows and columns
    np.testing.assert_allclose(y, np.full((3, 8), 2 / (2 * 8 + 1)), rtol=1e-12)
    als_step(sp.csr_matrix((2, 3)), x, y, "x", 8, 1.0)
    np.testing.assert_array_equal(x, 0)


def arguments(problem, **changes):
    ratings, x, y = problem
    good = {"train_matrix": ratings, "x": x, "y": y, "variable": "x", "k": K, "lmbda": 0.1}
    return good | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"variable": "z"}, "variable must be 'x' or 'y', not 'z'"),
        ({"variable": None}, "variable"),
        ({"variable": np.array(["x", "y"])}, "variable must be 'x' or 'y'"),
        ({"lmbda": 1e200}, "lmbda exceeds 1e\\+154, what float64 can work with"),
        ({"train_matrix": np.full((12, 9), 1e101)}, "train_matrix.*above 1e\\+100"),
        ({"k": 0}, "k must be an integer of at least 1"),
        ({"k": 4}, r"x has shape \(12, 3\).*k = 4 need \(12, 4\)"),
        ({"k": 3.0}, "k must be"),
        ({"lmbda": -1}, "lmbda must be a finite number of at least 0"),
        ({"lmbda": np.nan}, "lmbda"),
        ({"x": np.zeros((11, 3))}, r"x has shape \(11, 3\)"),
        ({"y": np.zeros((9, 2))}, r"y has shape \(9, 2\)"),
        ({"x": np.zeros((12, 3), int)}, "x must be a NumPy array of float32 or float64"),
        ({"y": [[1.0] * 3] * 9}, "y must be a NumPy array"),
        ({"x": np.full((12, 3), np.nan)}, "x holds NaN or inf"),
        ({"y": np.full((9, 3), np.inf)}, "y holds NaN or inf"),
        ({"train_matrix": np.full((12, 9), np.nan)}, "train_matrix.*NaN"),
        ({"train_matrix": np.zeros((0, 9))}, "train_matrix.*at least one"),
        ({"train_matrix": "ratings"}, "train_matrix"),
    ],
)
def test_bad_arguments(problem, changes, message):
    x = problem[1].copy()
    with pytest.raises(InputError, match=message) as caught:
        als_step(**arguments(problem, **changes))
    assert isinstance(caught.value, ValueError)
    np.testing.assert_array_equal(problem[1], x)


def test_a_transposed_matrix_is_recognised(problem):
    ratings, x, y = problem
    with pytest.raises(InputError, match=r"transposed.*users x items"):
        als_step(ratings.T, x, y, "x", K, 0.1)


def test_ratings_too_large_for_their_type_never_spoil_the_factors(problem):
    """1e30 squared leaves float32."""
    ratings, x, y = problem
    x, y = x.astype(np.float32), y.astype(np.float32)
    try:
        als_step(ratings * 1e30, x, y, "x", K, 0.1)
    except InputError as error:
        message = str(error)
    else:
        message = "train_matrix"
    assert "train_matrix" in message
    assert np.isfinite(x).all()
    wide = [a.astype(np.float64) for a in (x, y)]
    als_step(ratings * 1e30, *wide, "x", K, 0.1)
    np.testing.assert_allclose(
        wide[0], expected_rows(ratings * 1e30, wide[1], 0.1), rtol=1e-9, atol=1e15
    )
