"""The mathematics of the GPU benchmark: floors, matrices, and what results are held against."""

from __future__ import annotations

import types

import gpu_sections
import gpu_shapes
import gpu_task
import numpy as np
import pytest
import scipy.sparse as sp
from gpu_floor import Ceilings, Work, median_ms
from gpu_shapes import SHAPES, Shape
from reference import solve_row

# The floor


def test_work_of_rows_is_that_of_the_cheaper_form():
    # n = 1: dual 1*1*2 + 1/3, against primal 1*4 + 8/3; n = 3: dual 27, primal 3*4 + 8/3
    work = Work.of(np.array([0, 1, 3]), 2)
    assert work.bytes == (1 + 3) * (4 * 2 + 8)
    assert work.flops == pytest.approx(2 + 1 / 3 + 12 + 8 / 3)


def test_work_of_large_shapes_does_not_overflow():
    work = Work.of(np.array([300_000], np.int32), 8192)
    assert work.flops == pytest.approx(300_000 * 8192.0**2 + 8192.0**3 / 3)


def test_the_floor_is_the_larger_term_of_each_half():
    ceilings = Ceilings(bytes=1e12, flops=1e13, tf32_flops=1e14)
    by_memory, by_arithmetic = Work(bytes=4e9, flops=1e10), Work(bytes=1e9, flops=5e10)
    assert ceilings.floor(by_memory) == pytest.approx((4, 1))
    found = ceilings.achieved(18.0, by_memory, by_arithmetic)
    assert found["memory_ms"] == pytest.approx(5)
    assert found["arithmetic_ms"] == pytest.approx(6)
    assert found["floor_ms"] == pytest.approx(4 + 5)
    assert found["of_floor"] == pytest.approx(0.5)
    assert found["GB/s"] == pytest.approx(5e9 / 0.018 / 1e9)
    assert found["TFLOP/s"] == pytest.approx(6e10 / 0.018 / 1e12)


def test_medians_leave_the_first_round_out():
    times = iter([0, 90, 190, 0, 1, 3, 0, 2, 9, 0, 6, 7])  # three events in each of four rounds
    ms, rounds = median_ms(_timed(times), [int, int], repeats=3)
    assert rounds == 3
    assert ms.tolist() == [2, 2]


def test_a_round_that_takes_long_stays_alone():
    ms, rounds = median_ms(_timed(iter([0, 9_000])), [int], repeats=3, enough=8)
    assert (ms.tolist(), rounds) == ([9_000], 1)


def _timed(times):
    class At:
        def record(self):
            self.at = next(times)

        synchronize = list

    elapsed = lambda first, second: second.at - first.at  # noqa: E731
    return types.SimpleNamespace(cuda=types.SimpleNamespace(Event=At, get_elapsed_time=elapsed))


# The shapes


@pytest.mark.parametrize("name", SHAPES)
def test_degrees_add_up_to_the_entries(name):
    degrees = gpu_shapes._degrees(SHAPES[name])
    assert degrees.sum() == pytest.approx(SHAPES[name].entries, rel=1e-4)
    assert np.median(degrees) == pytest.approx(SHAPES[name].median_user, rel=1e-3)


@pytest.mark.parametrize("name", ["ml20m", "lastfm", "msd"])
def test_matrices_have_the_stated_size_and_follow_the_seed(name):
    shape = SHAPES[name].scaled(40)
    matrix = shape.draw()
    csr = matrix.csr()
    assert csr.shape == (shape.users, shape.items)
    assert csr.nnz == pytest.approx(shape.entries, rel=0.01)
    assert np.median(np.diff(csr.indptr)) == pytest.approx(shape.median_user, abs=1.5)
    by_user, by_item = matrix.sides
    assert by_user.indices.dtype == by_item.indices.dtype == np.int32
    assert by_user.values.dtype == np.float32
    assert set(np.unique(by_user.values)) == {1, 2, 3, 4, 5}
    for rows in matrix.sides:
        within = np.ones(len(rows.indices), bool)
        within[rows.indptr[:-1][np.diff(rows.indptr) > 0]] = False
        assert (np.diff(rows.indices)[within[1:]] > 0).all()  # rising, nothing twice
    other = sp.csr_matrix((by_item.values, by_item.indices, by_item.indptr))
    assert (csr != other.T).nnz == 0
    popularity, tenth = np.sort(np.diff(by_item.indptr)), shape.items // 10
    assert popularity[-tenth:].sum() > 4 * popularity[:tenth].sum()
    assert (shape.draw().csr() != csr).nnz == 0
    assert (shape.draw(seed=1).csr() != csr).nnz > 0


# The checks


@pytest.mark.parametrize("objective", gpu_task.OBJECTIVES)
def test_float64_solutions_are_those_of_the_reference(objective, monkeypatch):
    matrix = Shape(12, 30, 90, 5).draw()
    fixed = np.random.default_rng(3).standard_normal((30, 6)).astype(np.float32)
    found = gpu_task.exact_rows(np, objective, matrix.users, fixed, np.arange(12))
    for row in range(12):
        part = slice(*matrix.users.indptr[row : row + 2])
        g, t, base, ridge = gpu_task.weights(objective, matrix.users.values[part], 30)
        wide = fixed.astype(float)
        expected = solve_row(fixed, matrix.users.indices[part], g, t, ridge, base * wide.T @ wide)
        np.testing.assert_allclose(found[row], expected, rtol=1e-9)


def test_rows_of_every_length_are_sampled():
    lengths = np.array([7, 0, 3, 3, 100, 9, 7, 1, 2])
    assert sorted(lengths[gpu_task.sampled_rows(lengths, 100)]) == [0, 1, 2, 3, 7, 9, 100]
    assert sorted(lengths[gpu_task.sampled_rows(lengths, 2)]) == [0, 100]


def test_nan_is_an_error():
    found = gpu_task.relative_errors(np.array([[np.nan, 1], [3, 4.5]]), np.array([[1, 1], [3, 4]]))
    assert found.tolist() == [np.inf, 0.1]


def test_a_single_bad_row_among_many_fails():
    errors = np.full(99, 1e-7)
    assert gpu_task.judged(gpu_task.compared(errors, True))["ok"]
    assert not gpu_task.judged(gpu_task.compared(errors, False))["ok"]
    errors[17] = 2.1e-5
    assert not gpu_task.judged(gpu_task.compared(errors, True))["ok"]


@pytest.mark.parametrize("filtered", [False, True])
def test_rankings_are_held_against_the_best_there_are(filtered):
    rng = np.random.default_rng(17)
    users, items = rng.standard_normal((9, 4)), rng.standard_normal((12, 4))
    liked = sp.csr_matrix(rng.random((9, 12)) < 0.3) if filtered else None
    scores = users @ items.T
    if filtered:
        scores[liked.nonzero()] = -np.inf
    order = np.argsort(-scores, axis=1)
    good = gpu_sections.checked_ranking(users, items, liked, order[:, :3])
    assert gpu_task.judged(good)["ok"]
    for wrong in ([0, 1, 3], [1, 0, 2], [0, 0, 1], [0, 1, 11]):  # the last is filtered, or bad
        bad = gpu_sections.checked_ranking(users, items, liked, order[:, wrong])
        assert not gpu_task.judged(bad)["ok"]
