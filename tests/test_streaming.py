# ruff: noqa: F811 (fixtures are arguments of the same name)
"""Data that passes through the device in parts gives the factors of data that stays there."""

from bisect import bisect_left
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st
from test_cupy_backend import cupy_backend as device  # noqa: F401  (a fixture)

import gpu_als
from gpu_als.backends import BackendChoice
from gpu_als.core.memory import FitShape, plan_device
from gpu_als.core.objectives import Explicit
from gpu_als.core.ops import prefetch
from gpu_als.core.problem import SparseRows
from gpu_als.errors import BackendError
from gpu_als.train import engine
from gpu_als.train.row_blocks import MemoryRows
from gpu_als.train.training_data import TrainingData


def interactions(n_users=70, n_items=40, seed=903):
    """Return counts of very different numbers of items, some users and items having none."""
    rng = np.random.default_rng(seed)
    density = rng.uniform(0, 0.6, (n_users, 1)) ** 2 * rng.uniform(0, 2, n_items)
    counts = rng.poisson(3 * density) + 2 * (rng.random((n_users, n_items)) < density)
    counts[[3, 50]] = 0
    counts[:, 7] = 0
    return sp.csr_matrix(counts.astype(np.float32))


def cut_always(monkeypatch, max_bytes):
    """Let no side stay on the device."""
    load = engine.Side.load

    def load_in_blocks(self, backend, _):
        load(self, backend, (max_bytes, 12, 40))
        assert self.n_blocks > 3

    monkeypatch.setattr(engine.Side, "load", load_in_blocks)


IMPLICIT = {
    "exact": {"use_cg": False, "alpha": 2.5},
    "cg": {"use_cg": True, "alpha": 2.5},
    "fractions": {"use_cg": False, "alpha": 0.3},
    "ones": {"use_cg": False, "alpha": 0.5},  # counts of 2 have confidence 1
    "ials": {"use_cg": False, "unobserved_weight": 0.2, "regularization_exponent": 0.7},
}


def implicit(use_gpu, **options):
    model = gpu_als.AlternatingLeastSquares(
        8, iterations=3, random_state=11, use_gpu=use_gpu, **options
    )
    model.fit(interactions(), show_progress=False)
    return model


@pytest.mark.parametrize("options", IMPLICIT.values(), ids=IMPLICIT)
def test_streamed_factors_are_those_of_the_resident_path_on_a_gpu(
    device,
    monkeypatch,
    options,
):
    """To the bit where kernels solve the rows."""
    resident = implicit(True, **options)
    cut_always(monkeypatch, 3000)
    streamed = implicit(True, **options)
    by_kernels = device.kernels.usable and options.get("alpha", 1) != 0.5
    for name in ("user_factors", "item_factors"):
        one, other = (np.asarray(getattr(model, name)) for model in (streamed, resident))
        np.testing.assert_allclose(one, other, rtol=0, atol=0 if by_kernels else 2e-4)
    assert streamed.report_.losses == pytest.approx(resident.report_.losses, rel=1e-5)
    assert streamed.report_.user_rows == resident.report_.user_rows


@pytest.mark.parametrize("options", IMPLICIT.values(), ids=IMPLICIT)
def test_streamed_factors_are_those_of_the_resident_path_on_a_cpu(monkeypatch, options):
    resident = implicit(False, dtype=np.float64, **options)
    cut_always(monkeypatch, 3000)
    streamed = implicit(False, dtype=np.float64, **options)
    for name in ("user_factors", "item_factors"):
        np.testing.assert_allclose(getattr(streamed, name), getattr(resident, name), atol=1e-11)
    assert streamed.report_.losses == pytest.approx(resident.report_.losses, rel=1e-12)


STEEP = [(1e-3, 1.5, 0.1), (1e-2, 2.0, 1e-3)]
"""Ridge, exponent and unobserved weight: ridges that differ a thousandfold from row to row."""


def steep_data():
    """Return users and items with far more entries first: what fits one end misleads the other."""
    rng = np.random.default_rng(77)
    chosen = rng.random((120, 60)) < np.linspace(0.9, 0.02, 120)[:, None]
    matrix = chosen * rng.integers(1, 6, chosen.shape)
    matrix = matrix[:, np.argsort(-chosen.sum(axis=0))]
    return sp.csr_matrix(matrix.astype(np.float32))


def steep_fit(data, ridges):
    """Fit where the choice of the basis depends on the smallest ridge of all."""
    regularization, exponent, weight = ridges
    how = {"unobserved_weight": weight, "regularization_exponent": exponent, "use_cg": False}
    model = gpu_als.AlternatingLeastSquares(
        20, regularization, iterations=2, random_state=11, use_gpu=False, **how
    )
    model.fit(data, show_progress=False)
    return model


@pytest.mark.parametrize("ridges", STEEP)
def test_streaming_changes_no_bit_where_ridges_differ_by_row(monkeypatch, ridges):
    resident = steep_fit(steep_data(), ridges)
    cut_always(monkeypatch, 2000)
    streamed = steep_fit(steep_data(), ridges)
    np.testing.assert_array_equal(streamed.user_factors, resident.user_factors)
    np.testing.assert_array_equal(streamed.item_factors, resident.item_factors)


@pytest.mark.parametrize(
    "options",
    [{}, {"bias": False}, {"nonnegative": True}, {"scale_regularization": None}, {"solver": "cg"}],
    ids=["bias", "plain", "nonnegative", "unscaled", "cg"],
)
@pytest.mark.parametrize("backend", ["numpy", "cupy"])
def test_streamed_ratings(device, monkeypatch, backend, options):
    ratings = interactions()
    weight = np.random.default_rng(5).uniform(0.5, 2, ratings.nnz)
    options = {"factors": 7, "iterations": 3, "random_state": 11, "backend": backend} | options
    fit = {"sample_weight": weight, "validation": ratings[:, :40]}
    resident = gpu_als.ExplicitALS(**options).fit(ratings, **fit)
    cut_always(monkeypatch, 3000)
    streamed = gpu_als.ExplicitALS(**options).fit(ratings, **fit)
    for name in ("user_factors", "item_factors", "user_biases", "item_biases"):
        np.testing.assert_allclose(
            getattr(streamed, name), getattr(resident, name), rtol=0, atol=2e-4
        )
    assert streamed.report_.metrics[-1] == pytest.approx(resident.report_.metrics[-1], rel=1e-4)


def test_a_dense_matrix_is_streamed(monkeypatch):
    matrix = np.random.default_rng(8).standard_normal((40, 30))
    options = {"regularization": 0.1, "iterations": 4, "random_state": 3, "tol": None}
    resident = gpu_als.factorize(matrix, 4, **options)
    cut_always(monkeypatch, 3000)
    streamed = gpu_als.factorize(matrix, 4, **options)
    for one, other in zip(streamed[:2], resident[:2], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-12)


def test_a_fit_that_the_device_cannot_hold_is_streamed(device, monkeypatch):
    """Data of a hundred times the workspace would not fit; its parts do."""
    resident = implicit(True, use_cg=False)
    free, workspace = device.available_memory()
    monkeypatch.setattr("gpu_als.core.memory._SMALLEST_PART", 1 << 10)
    shape = FitShape(70, 40, interactions().nnz, 8, longest=40)
    needed = plan_device(shape, free, workspace).total
    backend, times = type(device), []
    prefetch = backend.prefetch

    def counted(self, makers):
        times.append(1)
        return prefetch(self, makers)

    monkeypatch.setattr(backend, "available_memory", lambda self: (needed - 2000, workspace))
    monkeypatch.setattr(backend, "prefetch", counted)
    streamed = implicit(True, use_cg=False)
    assert len(times) == 6
    np.testing.assert_allclose(
        np.asarray(streamed.user_factors), np.asarray(resident.user_factors), rtol=0, atol=2e-4
    )


@given(
    counts=st.lists(st.integers(0, 30), min_size=1, max_size=40),
    most=st.integers(1, 500),
    row_bytes=st.integers(0, 20),
)
def test_blocks_have_all_rows_in_order_and_are_no_larger_than_asked(counts, most, row_bytes):
    indptr = np.append(0, np.cumsum(counts))
    rng = np.random.default_rng(len(counts))
    rows = SparseRows(indptr, rng.integers(9, size=indptr[-1]), rng.random(indptr[-1]), None, 9)
    cut = MemoryRows.of(rows).partition(most, 4, row_bytes)
    assert cut.bounds[0] == 0
    assert cut.bounds[-1] == len(counts)
    parts = [cut.block(number) for number in range(len(cut.bounds) - 1)]
    assert all(part.n_rows > 0 for part in parts)
    for part in parts:
        assert part.n_rows == 1 or 4 * len(part.values) + row_bytes * part.n_rows <= most
        assert part.indptr[0] == 0
    np.testing.assert_array_equal(np.concatenate([part.values for part in parts]), rows.values)
    np.testing.assert_array_equal(np.concatenate([np.diff(part.indptr) for part in parts]), counts)


SHAPE = FitShape(users=10**6, items=10**5, entries=10**8, factors=128, longest=10**5)


def test_everything_stays_on_the_device_where_it_fits():
    plan = plan_device(SHAPE, 1 << 40, 1 << 28)
    assert plan.part_bytes is None
    # factors, two orientations of indices and two values each
    assert plan.factors == 4 * 128 * 1_100_000
    assert plan.data >= 2 * 12 * 10**8


@given(st.integers(33, 40), st.integers(1, 3), st.sampled_from([4, 8]))
def test_plans_keep_to_what_is_available(exponent, copies, value_bytes):
    shape = FitShape(10**6, 10**5, 10**8, 128, value_bytes, 10**5, copies)
    try:
        plan = plan_device(shape, 1 << exponent, 1 << 28)
    except BackendError:
        # not even the factors and the smallest parts
        least = copies * 1_100_000 * 128 * value_bytes
        assert 1 << exponent < 2 * least + (1 << 30)
    else:
        assert plan.total <= 1 << exponent


def test_data_make_room_for_every_copy_of_the_factors():
    """How much has to be free for data to stay grows by both sides' factors with each of them."""
    choice = BackendChoice("numpy", 1)
    local = TrainingData.of_matrix(interactions(700, 400)).engine(Explicit(0.1), 64, choice)
    fit = local.sides, (700, 400), np.dtype(np.float32)

    def stay(available, copies):
        device = SimpleNamespace(available_memory=lambda: (available, 1 << 20), stores_half=False)
        try:
            return engine.plan_blocks(device, *fit, bias=False, copies=copies) is None
        except BackendError:
            return False

    least = [bisect_left(range(1 << 30), True, key=partial(stay, copies=n)) for n in (1, 2, 3)]
    assert np.diff(least).tolist() == [4 * 64 * 1100] * 2


def test_a_device_too_small_for_the_factors_is_refused_with_the_numbers():
    with pytest.raises(BackendError, match=r"needs about [\d,]+ bytes .* of which 1,000,000 are"):
        plan_device(SHAPE, 10**6, 1 << 20)


def test_one_is_made_while_another_is_used():
    made = []

    def maker(number):
        return lambda: made.append(number) or number

    ahead = prefetch(maker(number) for number in range(5))
    assert next(ahead) == 0
    seen = [0, *ahead]
    assert seen == made == [0, 1, 2, 3, 4]


def test_what_goes_wrong_ahead_is_raised():
    def fail():
        raise OSError("the disk is gone")

    ahead = prefetch([lambda: 1, fail, lambda: 3])
    assert next(ahead) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(ahead)
