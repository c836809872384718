"""Fits on three workers find what a fit in one process does."""

import numpy as np
import pytest
import scipy.sparse as sp
from test_streaming import IMPLICIT, STEEP, steep_data, steep_fit

from cluster.common import (
    HELD_OUT,
    count_solves,
    difference,
    explicit,
    fit,
    fit_on,
    implicit,
    number_of_solves,
)
from gpu_als import ExplicitALS
from gpu_als.dask import DaskInteractions

EXPLICIT = {
    "bias": {},
    "plain": {"bias": False},
    "nonnegative": {"nonnegative": True},
    "unscaled": {"scale_regularization": None},
    "cg": {"solver": "cg"},
    "best in the middle": {"regularization": 0.01, "bias": False, "iterations": 4},
}
CASES = {f"implicit {name}": (implicit, options) for name, options in IMPLICIT.items()}
CASES |= {f"explicit {name}": (explicit, options) for name, options in EXPLICIT.items()}
IN_FLOAT64 = ["implicit cg", "explicit bias", "explicit best in the middle"]
IN_FLOAT32 = [case for case in CASES if case.split()[1] != "best"]
WORKERS = 3


def in_the_middle(case):
    return {"validation": HELD_OUT} if case.endswith("middle") else {}


def assert_like(found, expected, rounding):
    assert difference(found, expected) <= rounding
    report, wanted = found.report_, expected.report_
    assert report.losses == pytest.approx(wanted.losses, rel=rounding)
    assert [each["rmse"] for each in report.metrics] == pytest.approx(
        [each["rmse"] for each in wanted.metrics], rel=rounding
    )
    for name in ("user_rows", "item_rows", "singular_rows", "entries", "best_iteration"):
        assert getattr(report, name) == getattr(wanted, name)
    if isinstance(found, ExplicitALS):
        assert found.global_mean == pytest.approx(expected.global_mean, rel=1e-12)
        for side in ("user_biases", "item_biases"):
            one, other = getattr(found, side), getattr(expected, side)
            np.testing.assert_allclose(one, other, atol=rounding * np.abs(other).max())


@pytest.mark.parametrize("case", IN_FLOAT64)
def test_as_in_one_process_in_float64(client, case):
    make, options = CASES[case]
    options = options | {"dtype": np.float64}
    expected = fit(make(**options), **in_the_middle(case))
    found = fit_on(client, make(**options), **in_the_middle(case))
    assert_like(found, expected, 1e-10)
    assert found.report_.device == "Dask: 3 x CPU, 1 thread"
    if case.endswith("middle"):
        assert 1 < found.report_.best_iteration < found.report_.iterations


@pytest.mark.parametrize("case", IN_FLOAT32)
def test_no_bit_differs_from_one_process_in_float32(client, case):
    make, options = CASES[case]
    options = options | {"iterations": 4}
    found, expected = fit_on(client, make(**options)), fit(make(**options))
    assert found.user_factors.dtype == np.float32
    assert_like(found, expected, 1e-6)
    assert difference(found, expected) == 0


@pytest.mark.parametrize("ridges", STEEP)
def test_workers_change_no_bit_where_ridges_differ_by_row(client, ridges):
    found = steep_fit(DaskInteractions(client, steep_data()), ridges)
    assert difference(found, steep_fit(steep_data(), ridges)) == 0


@pytest.mark.parametrize("shape", [(1, 1), (5, 2)])
def test_fewer_rows_than_workers(client, shape):
    data = sp.csr_matrix(np.arange(1.0, 1 + shape[0] * shape[1]).reshape(shape))
    for make, options in ((implicit, {}), (explicit, {"bias": False})):
        options = options | {"factors": 3, "dtype": np.float64}
        assert_like(fit_on(client, make(**options), data), fit(make(**options), data), 1e-10)


def test_a_matrix_without_entries(client):
    found = fit_on(client, implicit(), sp.csr_matrix((5, 4), dtype=np.float32))
    assert not found.user_factors.any()


def test_no_iterations(client):
    found = fit_on(client, implicit(iterations=0))
    assert difference(found, fit(implicit(iterations=0))) == 0
    assert found.report_.losses == []


def test_every_worker_solves_its_share_once(client):
    client.run(count_solves)
    fit_on(client, implicit(iterations=2))
    assert set(client.run(number_of_solves).values()) == {4}  # a range of each side, twice
