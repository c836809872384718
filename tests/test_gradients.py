"""What a half-sweep promises: the gradient of the objective vanishes, and the objective falls."""

import numpy as np
import pytest
from helpers import CASES, make_case, random_ratings
from reference import objective_value

from gpu_als import ExplicitALS, factorize, loss_and_gradient
from gpu_als.core.solvers import Cholesky, NonNegative


def numerical_gradient(objective, point):
    """Central differences; exact for a quadratic but for rounding, hence the wide step."""
    gradient = np.zeros_like(point)
    for place in np.ndindex(point.shape):
        values = []
        for step in (0.5, -0.5):
            moved = point.copy()
            moved[place] += step
            values.append(objective(moved))
        gradient[place] = values[0] - values[1]
    return gradient


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_vanishes_after_a_half_sweep(name):
    case = make_case(name, 5)
    solved, _ = case.sweep(Cholesky())
    rows = case.ridges[0] > 0  # a row with neither entries nor ridge keeps its value
    before = numerical_gradient(case.objective_at, case.start)
    after = numerical_gradient(case.objective_at, solved)
    assert np.abs(before[rows]).max(axis=1).min() > 1e-2
    assert np.abs(after[rows]).max() < 1e-9 * np.abs(before).max()


@pytest.mark.parametrize("name", CASES)
def test_under_the_constraint_the_gradient_points_inwards(name):
    case = make_case(name, 5)
    free = int(case.bias)
    solved, _ = case.sweep(NonNegative(free))
    rows = case.ridges[0] > 0
    gradient = numerical_gradient(case.objective_at, solved)[rows]
    size = 1e-9 * np.abs(numerical_gradient(case.objective_at, case.start)).max()
    bound = np.arange(5) < 5 - free
    at_zero = bound & (solved[rows] == 0)
    assert at_zero.any()
    assert (solved[rows][:, bound] >= 0).all()
    assert (gradient[at_zero] > -size).all()
    assert np.abs(gradient[~at_zero]).max() < size


@pytest.mark.parametrize("name", CASES)
def test_an_exact_half_sweep_never_raises_the_objective(name):
    """Not from anywhere, and not from its own solution."""
    case = make_case(name)
    solved, _ = case.sweep(Cholesky())
    best = case.objective_at(solved)
    assert best < case.objective_at(case.start)
    rng = np.random.default_rng(41)
    for size in (1e-3, 1e-1):
        step = size * rng.standard_normal(solved.shape)
        assert case.objective_at(solved + step) > best


def test_alternating_half_sweeps_never_raise_the_objective():
    """Each loss is the objective after an item half-sweep; between two lies one over users."""
    ratings = random_ratings(40, 30, 0.3, 42_1)
    losses = []
    for solver in ("cholesky", "cg"):
        model = ExplicitALS(
            4, 0.05, iterations=25, solver=solver, dtype=np.float64, random_state=3
        ).fit(ratings)
        losses.append(model.report_.losses)
    rng = np.random.default_rng(43)
    for missing, nonnegative in ((None, False), (rng.random((20, 15)) < 0.3, False), (None, True)):
        matrix = rng.random((20, 15))
        *_, report = factorize(
            matrix, 4, regularization=0.1, missing=missing, nonnegative=nonnegative, tol=None,
            iterations=25, random_state=4,
        )  # fmt: skip
        losses.append(report.losses)
    for course in losses:
        assert len(course) == 25
        assert (np.diff(course) <= 1e-12 * course[0]).all()
        assert course[-1] < course[0]


@pytest.fixture
def dense():
    rng = np.random.default_rng(44)
    x = rng.standard_normal((7, 9))
    return x, rng.standard_normal((7, 3)), rng.standard_normal((9, 3)), rng.random((7, 9)) < 0.3


def test_loss_and_gradient_are_the_stated_formulas(dense):
    x, w, z, _ = dense
    loss, gradient_w, gradient_z = loss_and_gradient(x, w, z, regularization=(0.3, 0.7))
    expected = (
        np.linalg.norm(x - w @ z.T) ** 2
        + 0.3 * np.linalg.norm(w) ** 2
        + 0.7 * np.linalg.norm(z) ** 2
    ) / 2
    assert loss == pytest.approx(expected, rel=1e-13)
    np.testing.assert_allclose(gradient_w, (w @ z.T - x) @ z + 0.3 * w, rtol=1e-12)
    np.testing.assert_allclose(gradient_z, (w @ z.T - x).T @ w + 0.7 * z, rtol=1e-12)


@pytest.mark.parametrize("how", ["complete", "mask", "nan"])
def test_loss_and_gradient_against_finite_differences(dense, how):
    x, w, z, mask = dense
    missing = None
    observed = np.ones(x.shape, bool)
    if how != "complete":
        observed, missing = ~mask, mask
    if how == "nan":
        x, missing = np.where(mask, np.nan, x), np.nan
    target = np.where(observed, x, 0)

    def objective(w, z):
        """Halve the oracle's, which has no factor 1/2; missing cells weigh nothing."""
        ones = np.ones(x.shape)
        ridges = np.full(7, 0.3), np.full(9, 0.7)
        return objective_value(observed, ones, target, 0, w, z, *ridges) / 2

    loss, gradient_w, gradient_z = loss_and_gradient(
        x, w, z, regularization=(0.3, 0.7), missing=missing
    )
    assert loss == pytest.approx(objective(w, z), rel=1e-13)
    numerical_w = numerical_gradient(lambda point: objective(point, z), w)
    numerical_z = numerical_gradient(lambda point: objective(w, point), z)
    np.testing.assert_allclose(gradient_w, numerical_w, rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(gradient_z, numerical_z, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("how", ["complete", "mask", "nan"])
def test_factorize_ends_where_the_gradient_of_z_vanishes(dense, how):
    x, _, _, mask = dense
    missing = mask if how == "mask" else np.nan if how == "nan" else None
    x = np.where(mask, np.nan, x) if how == "nan" else x
    w, z, report = factorize(
        x, 3, regularization=(0.3, 0.7), missing=missing, iterations=2, tol=None, random_state=5
    )
    loss, gradient_w, gradient_z = loss_and_gradient(
        x, w, z, regularization=(0.3, 0.7), missing=missing
    )
    assert report.losses[-1] == pytest.approx(loss, rel=1e-12)
    assert np.abs(gradient_z).max() < 1e-11
    assert np.abs(gradient_w).max() > 1e-4  # two iterations do not converge
    w, z, _ = factorize(
        x, 3, regularization=(0.3, 0.7), missing=missing, iterations=20_000, tol=0, random_state=5
    )
    _, gradient_w, gradient_z = loss_and_gradient(
        x, w, z, regularization=(0.3, 0.7), missing=missing
    )
    assert np.abs(gradient_w).max() < 1e-5
    assert np.abs(gradient_z).max() < 1e-11


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"W": np.zeros((6, 3))}, ["W", r"\(7, k\)"]),
        ({"Z": np.zeros((8, 3))}, ["Z", r"\(9, k\)"]),
        ({"Z": np.zeros((9, 2))}, ["W has 3 columns", "Z has 2"]),
        ({"regularization": -1}, ["regularization", "at least 0"]),
        ({"regularization": (1, 2, 3)}, ["regularization", "one number or two"]),
        ({"missing": np.zeros((9, 7), bool)}, ["missing", r"\(7, 9\)"]),
        ({"missing": "some"}, ["missing", "None"]),
    ],
)
def test_bad_arguments_are_named(dense, arguments, words):
    x, w, z, _ = dense
    with pytest.raises(ValueError, match=".*".join(words)):
        loss_and_gradient(**{"X": x, "W": w, "Z": z} | arguments)
