"""Validation, stopping and callbacks: when a fit stops, and what it keeps."""

import numpy as np
import pytest
import scipy.sparse as sp

from explicit.common import fit
from gpu_als import Interactions, StopTraining
from gpu_als.errors import InputError
from gpu_als.train import engine


def held_out():
    rng = np.random.default_rng(76)
    rows, columns = rng.integers(0, 30, 80), rng.integers(0, 20, 80)
    return rows, columns, rng.integers(1, 11, 80) / 2


def rmse_of(model, rows, columns, values):
    return np.sqrt(np.mean((model.predict(rows, columns) - values) ** 2))


@pytest.mark.parametrize("bias", [False, True])
def test_the_best_iteration_is_kept(bias):
    """Overfitting: the validation error rises after a few iterations."""
    validation = held_out()
    course = [
        rmse_of(fit(iterations=n, regularization=1e-3, bias=bias), *validation) for n in range(1, 9)
    ]
    best = int(np.argmin(course)) + 1
    assert best < 8
    model = fit(iterations=8, regularization=1e-3, validation=validation, bias=bias)
    found = [metrics["rmse"] for metrics in model.report_.metrics]
    np.testing.assert_allclose(found, course, rtol=1e-9)
    assert model.report_.best_iteration == best
    assert rmse_of(model, *validation) == pytest.approx(min(course), rel=1e-9)
    assert f"kept iteration {best}" in str(model.report_)


def test_patience():
    validation = held_out()
    full = fit(iterations=12, regularization=1e-3, validation=validation)
    best = full.report_.best_iteration
    assert best < 9
    model = fit(iterations=12, regularization=1e-3, validation=validation, patience=2)
    assert model.report_.stopped == "patience"
    assert model.report_.iterations == best + 2
    np.testing.assert_array_equal(model.user_factors, full.user_factors)


def test_validation_as_a_matrix_or_interactions():
    rows, columns, values = held_out()
    matrix = sp.coo_matrix((values, (rows, columns)), shape=(30, 20)).tocsr()  # sums repeats
    triples = matrix.tocoo()
    expected = fit(validation=(triples.row, triples.col, triples.data)).report_.metrics
    interactions = Interactions.from_matrix(matrix, dtype=np.float64)
    for form in (matrix, interactions):
        for found, metrics in zip(fit(validation=form).report_.metrics, expected, strict=True):
            assert found == pytest.approx(metrics)


@pytest.mark.parametrize(
    ("validation", "message"),
    [
        (([0], [0]), "users, items, ratings"),
        (([0, 1], [0], [1.0, 2.0]), "one length"),
        (([30], [0], [1.0]), "users.*0 to 29"),
        (([0], [20], [1.0]), "items.*0 to 19"),
        (([0], [0], [np.nan]), "NaN"),
        (([], [], []), "at least one rating"),
        (sp.csr_matrix((30, 20)), "at least one rating"),
        (sp.csr_matrix(np.ones((20, 30))), r"shape \(20, 30\)"),
    ],
)
def test_bad_validation(validation, message):
    with pytest.raises(InputError, match=f"validation.*{message}"):
        fit(validation=validation)


def test_patience_without_validation():
    with pytest.raises(InputError, match=r"patience.*validation"):
        fit(patience=2)


def test_tol_stops_when_the_loss_settles():
    course = fit(iterations=60).report_.losses
    for tol in (1e-2, 1e-4):
        gains = -np.diff(course) / course[:-1]
        expected = int(np.argmax(gains <= tol)) + 2
        report = fit(iterations=60, tol=tol).report_
        assert report.stopped == "tol"
        assert report.iterations == expected < 60
    assert fit(iterations=5, tol=0.0).report_.iterations == 5


@pytest.mark.parametrize("tol", [0.0, 1e-3])
def test_tol_stops_a_fit_whose_loss_can_fall_no_further(tol):
    """Ratings of zero are met to the last bit, and nothing is lower than a loss of zero."""
    zeros = sp.csr_matrix((np.zeros(6), ([0, 0, 1, 1, 2, 2], [0, 1, 1, 2, 2, 0])), shape=(3, 3))
    report = fit(zeros, bias=False, iterations=9, tol=tol).report_
    assert report.losses == [0.0, 0.0]
    assert report.stopped == "tol"


@pytest.mark.parametrize("worst", range(4))
def test_the_reported_residual_is_the_largest_of_all_half_sweeps(worst, monkeypatch):
    """Of either side, and of the first iteration as of the last."""
    solve, numbers = engine.Side.half_sweep, iter(range(4))

    def solve_with_a_residual(*args, **options):
        stats = solve(*args, **options)
        stats.residual = 0.25 if next(numbers) == worst else 0.125
        return stats

    monkeypatch.setattr(engine.Side, "half_sweep", solve_with_a_residual)
    assert fit(iterations=2).report_.max_residual == 0.25


def test_callbacks_see_every_iteration():
    seen = []
    model = fit(callback=lambda *arguments: seen.append(arguments))
    assert [iteration for iteration, _, _ in seen] == [0, 1, 2, 3]
    assert [loss for _, _, loss in seen] == model.report_.losses
    assert all(seconds > 0 for _, seconds, _ in seen)


def test_a_callback_can_stop_the_training():
    def stop(iteration, seconds, loss):
        if iteration == 1:
            raise StopTraining

    model, two = fit(callback=stop), fit(iterations=2)
    assert model.report_.stopped == "callback"
    assert model.report_.iterations == 2
    np.testing.assert_array_equal(model.user_factors, two.user_factors)
    np.testing.assert_array_equal(model.item_factors, two.item_factors)


def test_other_exceptions_of_a_callback_pass_through():
    def fail(iteration, seconds, loss):
        raise KeyError("mine")

    with pytest.raises(KeyError, match="mine"):
        fit(callback=fail)


def test_no_iterations():
    model = fit(iterations=0)
    assert model.report_.losses == []
    assert model.user_factors.shape == (30, 4)
    assert np.isfinite(model.predict(0, 0)).all()
