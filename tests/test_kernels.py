"""The row-solver kernels, run on the CPU as NVRTC compiles them, against solutions in float64.

Every specialisation that a plan for an H100 can pick for exact rows without negative weights is
run, the others at some sizes. What the backend makes of them is at the end.
"""

from dataclasses import replace

import fake_cupy
import kernel_cases
import numpy as np
import nvrtc
import ptx
import pytest
from helpers import CASES, make_case, random_ratings
from kernel_cases import (
    EVERYTHING,
    LIMIT,
    NEEDS_MACHINE,
    Case,
    cases,
    check,
    draw,
    run,
)
from reference import solve_row
from test_half_sweep import check_factors, check_objective
from threadpoolctl import threadpool_limits

from gpu_als import ExplicitALS, backends
from gpu_als.backends.cupy.launch import HALF_SWEEP, SEGMENT
from gpu_als.backends.cupy.nvrtc import source_of
from gpu_als.core.basis import SideRidge
from gpu_als.core.half_sweep import hold_fixed, solve_rows, solve_side
from gpu_als.core.objectives import Explicit, row_problem
from gpu_als.core.problem import SparseRows
from gpu_als.core.solvers import Cholesky, ConjugateGradient, NonNegative

pytestmark = NEEDS_MACHINE


@pytest.fixture(autouse=True)
def one_thread():
    """Many small products in float64 take longer on several threads than on one."""
    with threadpool_limits(1):
        yield


def boundaries(k):
    """Return lengths around those at which kernels change, and tiles and strips end."""
    ends = (1, 8, 16, 24, 32, 64, 128, 256, k)
    return (*sorted({n + d for n in ends for d in (-1, 0, 1) if n + d > 0}), 300, 513)


# k that are and are not multiples of 4, for every size of the primal form.
WIDTHS = (1, 3, 10, 33, 50, 64, 70, 100, 127, 129, 170, 200, 250)
EVERY_WIDTH = [Case(k, boundaries(k), options) for k in WIDTHS for options in ("", EVERYTHING)]
MANY_LENGTHS = [
    Case(256, (*range(1, 301, 3), 256), EVERYTHING),
    # So wide that blocks hold a part of the columns at a time, and some rows have no kernel.
    Case(520, (*range(1, 257, 5), 32, 256), EVERYTHING),
    Case(520, (33, 256), "root b0 ridges"),
    Case(1400, (1, 8, 9, 16, 17, 24, 25, 32), EVERYTHING),
]
FEW = (1, 2, 5, 8, 9, 16, 17, 31, 32, 33, 49, 50, 51, 64, 65, 100, 128, 129, 300)
# Negative weights need a ridge that keeps the systems definite.
SIGNED = [
    Case(k, FEW, options, ridge=60.0)
    for k in (12, 129)
    for options in ("signed b0 offset", "signed b0 base ridges repeats")
]
HALF = [Case(12, (1, 9, 10, 11, 12, 300), f"{EVERYTHING} half"), Case(40, (33, 39), "half")]
STEPS = [
    Case(12, FEW, "root b0 offset scaled", solver=ConjugateGradient(steps)) for steps in (1, 3, 6)
]
STEPS += [Case(12, FEW, "signed b0 base", ridge=60.0, solver=ConjugateGradient(3))]
BOUNDED = [
    Case(12, FEW, "root offset ridges", solver=NonNegative()),
    Case(12, FEW, "root b0 base repeats", solver=NonNegative(2)),
    Case(12, FEW, "signed b0 base", ridge=60.0, solver=NonNegative()),
]
TENSOR = [Case(k, (k, k + 1, 300, 513), f"{EVERYTHING} tensor") for k in (50, 96, 256)]
LONG = (65, 129, 257, 300, 650)
SPLIT = [
    Case(12, LONG, EVERYTHING, segment=32),
    Case(129, LONG, "root b0 scaled", segment=32, solver=ConjugateGradient(4)),
    Case(170, LONG, "signed b0 base tensor", ridge=60.0, segment=32, solver=NonNegative(1)),
]
OTHERS = SIGNED + HALF + STEPS + BOUNDED + TENSOR + SPLIT


@cases(*EVERY_WIDTH, *MANY_LENGTHS, *OTHERS)
def test_solutions(case):
    check(run(draw(case)))


@pytest.mark.parametrize("version", ["oldest", "13.0"])
@cases(
    Case(12, (7, 300), EVERYTHING),
    Case(40, (36,), "half"),
    Case(50, (300,), "root tensor"),
    STEPS[0],
    BOUNDED[0],
    SPLIT[0],
)
def test_older_compilers(case, version, monkeypatch):
    """The newest is used everywhere else. They make other code, down to how memory is addressed."""
    versions = {".".join(map(str, found)): found for found in nvrtc.versions()}
    if version not in versions and version != "oldest":
        pytest.skip(f"needs NVRTC {version} in a folder of GPU_ALS_NVRTC")
    chosen = versions.get(version, min(versions.values()))
    if chosen == nvrtc.newest():
        pytest.skip("needs the package nvidia-cuda-nvrtc-cu12")
    monkeypatch.setattr(nvrtc, "newest", lambda: chosen)
    monkeypatch.setattr(kernel_cases, "compiled", kernel_cases.compiled.__wrapped__)
    check(run(draw(case)))


def test_every_rung_is_tried():
    """Of the ladder for exact rows, the one that branches most."""
    lengths = tuple(range(1, 301))
    plans = [Case(k, lengths).plan()[1] for k in (*range(1, 258), *range(300, 1500, 100))]
    tried = [case.plan()[1] for case in EVERY_WIDTH + MANY_LENGTHS]

    def rungs(plans, *names):
        found = [(one.kernel, dict(one.macros)) for launches in plans for one in launches]
        return {(kernel, *(macros.get(name) for name in names)) for kernel, macros in found}

    for names in (("EDGE", "TILES", "UNITS"), ("WARPS",)):
        assert rungs(plans, *names) == rungs(tried, *names)
    chunked = {
        launch.chunk < case.k
        for case, launches in zip(EVERY_WIDTH + MANY_LENGTHS, tried, strict=True)
        for launch in launches
        if launch.chunk
    }
    assert chunked == {True, False}


@cases(*MANY_LENGTHS, *EVERY_WIDTH[1::2])
def test_every_rung_takes_all_shorter_rows(case):
    """Down to empty ones, which the plan leaves to others."""
    for launch in case.plan()[1]:
        macros, dual = dict(launch.macros), launch.path == "dual"
        most = macros.get("EDGE", 8) * macros["TILES"] if dual else 70
        lengths = (0, 1, most - 1, most)
        rows = np.arange(len(lengths))
        problem = draw(replace(case, lengths=lengths))
        check(run(problem, [(launch, rows)]), rows, dual=dual)


@cases(
    *(Case(k, FEW, "root", ridge=ridge) for k in (50, 129) for ridge in (1e-6, 1e6)),
    *(Case(k, FEW, "root b0 offset repeats", ridge=1e6) for k in (50, 129)),
    Case(12, LONG, "root b0", ridge=1e6, segment=32),
)
def test_tiny_and_huge_ridges(case):
    check(run(draw(case)))


@cases(Case(12, FEW, "root b0", solver=ConjugateGradient(50)))
def test_many_steps_lead_to_the_solution(case):
    problem = draw(case)
    result = run(problem)
    for u in range(len(FEW)):
        row = problem.row(u)
        exact = np.linalg.solve(row.lhs, row.rhs)
        assert np.linalg.norm(result.x(u) - exact) <= 1e-5 * np.linalg.norm(exact)


def cycling_systems(k=6):
    """Draw systems on which exchanging all violations at once never ends: ``w`` and ``rhs``."""
    rng = np.random.default_rng(66)
    w = rng.standard_normal((20_000, 2 * k, k)) @ rng.standard_normal((20_000, k, k))
    w = w[np.linalg.cond(w) < 40]
    rhs = 10 * rng.standard_normal((len(w), k))
    passive = np.ones(rhs.shape, bool)
    for _ in range(40):
        lhs, both = w.swapaxes(1, 2) @ w, passive[:, :, None] & passive[:, None, :]
        x = np.linalg.solve(np.where(both, lhs, np.eye(k)), (rhs * passive)[:, :, None])
        violating = np.where(passive, x[:, :, 0] < 0, (lhs @ x)[:, :, 0] < rhs)
        left = violating.any(axis=1)
        w, rhs, passive = w[left], rhs[left], (passive ^ violating)[left]
    return w.astype(np.float32), rhs.astype(np.float32)


def test_exchanging_single_columns_ends():
    w, rhs = cycling_systems()
    n_rows, n_entries, k = w.shape
    assert n_rows > 3
    case = Case(k, (n_entries,) * n_rows, "b0", ridge=1e-6, solver=NonNegative())
    entries = n_rows * n_entries
    arrays = {
        "fixed": np.pad(w.reshape(-1, k), ((0, 0), (0, 2))),
        "indices": np.arange(entries, dtype=np.int32),
        "tau": np.zeros(entries, np.float32),
        "b0": np.pad(rhs, ((0, 0), (0, 2))),
    }
    check(run(replace(draw(case), arrays=draw(case).arrays | arrays)))


# Accuracy


def errors(case):
    """Return every row's relative error."""
    problem = draw(case)
    result = run(problem)
    return np.array([problem.row(u).error(result.x(u)) for u in range(len(case.lengths))])


def condition(case, u):
    smallest, largest = np.linalg.eigvalsh(draw(case).row(u).lhs)[[0, -1]]
    return largest / smallest


def steep(k, options, ridge, spectrum, lengths):
    """Return a case of ill-conditioned systems."""
    lengths = tuple(int(k * length) for length in lengths)
    return Case(k, lengths, options, ridge=ridge, spectrum=spectrum)


ABOVE, BELOW = (1, 1.1, 1.4, 1.9, 2.5), (0.3, 0.5, 0.7, 0.9, 0.98)
STEEP = [
    steep(k, f"root{tensor}", *spectrum, lengths)
    for spectrum in ((1e-2, 1.0), (1e-3, 1.0), (1e-2, 0.1), (1e-3, 1e-2))
    for tensor, lengths in (("", ABOVE), (" tensor", ABOVE), ("", BELOW))
    for k in (50, 96, 256)
]


@cases(*STEEP)
def test_float32_accuracy(case):
    """At condition numbers up to 1e4, on tensor cores too."""
    conditions = [condition(case, u) for u in range(len(case.lengths))]
    assert 100 < max(conditions) < 1e4
    assert errors(case).max() <= 2e-5


CORRECTIONS = (
    ("mma_tf32_16x8x8(part, low[m], right);", ""),
    ("mma_tf32_16x8x8(part, high[m], rest);", ""),
)


@cases(replace(TENSOR[1], patch=CORRECTIONS))
def test_one_tf32_product_would_not_do(case):
    assert errors(case).max() > 2e-4


@cases(Case(20, (699,), "tensor"))
def test_long_rows_on_tensor_cores_are_as_exact_as_in_float32(case):
    """Their sums are rounded toward zero, which must not add up."""
    assert errors(case).max() <= 2 * errors(replace(case, options="")).max()


# What is judged


SOLVED = "solve_back<THREADS>(lhs, v.z, v.scratch);"
SPOILT = SOLVED + (
    "if (threadIdx.x % 2 && threadIdx.x < SIZE) v.z[threadIdx.x] *= 1.05f; __syncthreads();"
)
SOLVED_DUAL = "    // z = b0 / shift + W^T u, and the predictions"
SPOILT_WARP = "if (lane % 2 && lane < N) y[lane] *= 1.05f; __syncwarp();\n" + SOLVED_DUAL
SPOILT_BLOCK = "if (tid % 2 && tid < SIZE) u[tid] *= 1.05f; __syncthreads();\n" + SOLVED_DUAL


# Well conditioned: others are refined, which would make them right again.
@cases(
    Case(50, (9, 10, 16), "root b0", ridge=10.0, patch=((SOLVED_DUAL, SPOILT_WARP),)),
    Case(50, (33, 40), "root b0", ridge=30.0, patch=((SOLVED_DUAL, SPOILT_BLOCK),)),
    Case(170, (170, 300), "root b0", ridge=30.0, patch=((SOLVED, SPOILT),)),
)
def test_the_residual_is_that_of_the_solution(case):
    """Solutions that are wrong by a few percent, for it to be more than rounding."""
    problem = draw(case)
    result = run(problem, residual_limit=1.0)
    for u in range(len(case.lengths)):
        residual, _ = problem.row(u).residual(result.x(u))
        assert residual > 3 * LIMIT
        assert result.residual[u] == pytest.approx(residual, rel=1e-3)
    kept = run(problem)
    np.testing.assert_array_equal(kept.residual, result.residual)
    np.testing.assert_array_equal(kept.z, problem.arrays["z"])


@cases(
    Case(50, FEW[:11], "root", ridge=0.0),
    Case(256, tuple(range(1, 256, 9)), "root b0", ridge=0.0),
    Case(129, FEW[:17], "signed b0", ridge=0.0),
    Case(12, FEW[:5], "root b0", ridge=0.0, solver=NonNegative()),
)
def test_singular_rows_are_refused(case):
    """More factors than entries, and no ridge."""
    problem = draw(case)
    result = run(problem)
    assert np.isnan(result.residual).all()
    np.testing.assert_array_equal(result.z, problem.arrays["z"])


@cases(*(Case(k, (*FEW, 10, 11, 13, 14, 15), "signed b0", ridge=1.0) for k in (12, 129)))
def test_indefinite_rows_are_refused(case):
    """And those among them that are definite are not."""
    problem = draw(case)
    result = run(problem)
    smallest, largest = np.array(
        [np.linalg.eigvalsh(problem.row(u).lhs)[[0, -1]] for u in range(len(case.lengths))]
    ).T
    definite, indefinite = smallest > 1e-2 * largest, smallest < -1e-2 * largest
    assert definite.sum() > 3
    assert indefinite.sum() > 3
    check(result, np.flatnonzero(definite))
    assert np.isnan(result.residual[indefinite]).all()
    np.testing.assert_array_equal(result.z[indefinite], problem.arrays["z"][indefinite])


@cases(Case(12, (12, 20, 64, 65, 300, 650), "root", ridge=0.0, segment=32))
def test_long_singular_rows_are_refused(case):
    """Two columns that are the same."""
    problem = draw(case)
    fixed = problem.arrays["fixed"].copy()
    fixed[:, 7] = fixed[:, 2]
    assert (run(problem).residual <= LIMIT).all()
    result = run(replace(problem, arrays=problem.arrays | {"fixed": fixed}))
    assert np.isnan(result.residual).all()
    np.testing.assert_array_equal(result.z, problem.arrays["z"])


@cases(Case(12, FEW[:5], "root", ridge=0.0, solver=ConjugateGradient(30)))
def test_steps_on_singular_systems_end(case):
    problem = draw(case)
    result = run(problem)
    for u in range(len(case.lengths)):
        assert problem.row(u).residual(result.x(u))[0] < 1e-4
    assert (result.residual == 0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
@cases(EVERY_WIDTH[9], *HALF[1:], STEPS[1], BOUNDED[1], *SPLIT)
def test_unusable_factors_spoil_no_other_row(case, value):
    problem = draw(case)
    indptr, indices = (problem.arrays[name] for name in ("indptr", "indices"))
    parts = [indices[indptr[u] : indptr[u + 1]] for u in range(len(case.lengths))]
    name = next(name for name in parts[0] if not all(name in part for part in parts))
    spoilt = np.array([name in part for part in parts])
    fixed = problem.arrays["fixed"].copy()
    with np.errstate(over="ignore"):
        fixed[name, case.k // 2] = value
    clean, result = run(problem), run(replace(problem, arrays=problem.arrays | {"fixed": fixed}))
    assert np.isnan(result.residual[spoilt]).all()
    np.testing.assert_array_equal(result.z[spoilt], problem.arrays["z"][spoilt])
    for name in ("z", "residual", "objective"):
        found, expected = getattr(result, name), getattr(clean, name)
        assert found[~spoilt].tobytes() == expected[~spoilt].tobytes()


# Order


@cases(
    *(replace(case, lengths=case.lengths[::3]) for case in MANY_LENGTHS[:2]),
    *EVERY_WIDTH[1::2],
    *OTHERS,
)
def test_the_order_of_threads_changes_nothing(case):
    problem = draw(case)
    expected = run(problem)
    assert expected.solved.all()
    for order in ("reverse", "shuffle:1"):
        assert run(problem, order=order).same_as(expected)


@cases(EVERY_WIDTH[-1], STEPS[1], BOUNDED[1], *SPLIT)
def test_rows_do_not_depend_on_their_company(case):
    problem = draw(case)
    rows, launches = case.plan()
    alone = [(launch, rows[launch.start : launch.stop][::-1]) for launch in launches]
    assert run(problem, alone).same_as(run(problem))


@cases(Case(12, (5, 3, 8, 2, 4)), Case(40, (39, 34, 36)), Case(12, (90, 20, 14)))
def test_the_longest_rows_of_a_launch_come_first(case):
    """The first block solves them."""
    problem, (order, (launch,)) = draw(case), case.plan()
    first_block = type("FirstBlock", (type(launch),), {"grid": 1})
    result = run(problem, [(first_block(**vars(launch)), order)])
    longest_first = np.argsort(case.lengths)[::-1]
    np.testing.assert_array_equal(
        np.isfinite(result.residual[longest_first]),
        np.arange(len(order)) < launch.rows_per_block,
    )


# Long rows


@cases(*SPLIT)
def test_segments_of_any_length_agree(case):
    problem, wanted = draw(case), run(draw(case))
    size = np.linalg.norm(wanted.z, axis=1)
    for segment in (16, 21, 31):
        found = run(replace(problem, case=replace(case, segment=segment)))
        assert (np.linalg.norm(found.z - wanted.z, axis=1) <= 1e-5 * size).all()


@cases(*SPLIT)
def test_waves_change_nothing(case):
    problem = draw(case)
    wanted = run(problem)
    for most_shares in (1, 5, 17):
        assert run(problem, most_shares=most_shares).same_as(wanted)


# The struct


def test_layout():
    """As a C++ compiler lays ``struct HalfSweep`` out."""
    offsets = "".join(
        f"out[{i}] = __builtin_offsetof(HalfSweep, {name});\n"
        f"out[{i + len(HALF_SWEEP.names)}] = sizeof(HalfSweep::{name});\n"
        for i, name in enumerate(HALF_SWEEP.names)
    )
    source = source_of("dual_warp") + (
        'extern "C" __global__ void layout(int64* out) {\n'
        f"{offsets}out[{2 * len(HALF_SWEEP.names)}] = sizeof(HalfSweep);\n}}\n"
    )
    kernel = ptx.load(source, "layout", {"TILES": 1, "WARPS": 1})
    out = np.zeros(2 * len(HALF_SWEEP.names) + 1, np.int64)
    kernel((1,), (1,), (out,))
    fields = [HALF_SWEEP.fields[name] for name in HALF_SWEEP.names]
    expected = [offset for _, offset in fields] + [kind.itemsize for kind, _ in fields]
    assert out.tolist() == [*expected, HALF_SWEEP.itemsize]


# The backend


@pytest.fixture
def cupy():
    with fake_cupy.installed() as module:
        yield module


def backend_of(precision="float32", batch_elements=1 << 20):
    from gpu_als.backends.cupy.backend import CupyBackend

    backend = CupyBackend(precision)
    backend.batch_elements = batch_elements
    backend.row_kernels = replace(backend.row_kernels, batch_elements=batch_elements)
    return backend


def sweep(backend, case, solver):
    """Run one half-sweep in float32; return the solved factors and the statistics."""
    solved, stats = case.sweep(solver, np.float32, ops=backend)
    return backend.to_host(solved), stats


def lengths_of(case):
    """Return the number of entries of each row that have a gram weight, and the rows' signs."""
    problem = case.problem(np.float32, 1 << 20)
    counts = np.diff(problem.rows.indptr)
    definite = np.zeros(len(counts), bool)
    for span in problem.packing.spans:
        definite[problem.packing.order[span.start : span.stop]] = span.definite
    return counts, definite


@pytest.mark.parametrize("kind", [Cholesky, ConjugateGradient, NonNegative])
@pytest.mark.parametrize("name", CASES)
def test_every_objective(cupy, name, kind):
    case = make_case(name)
    solver = {
        Cholesky: Cholesky(),
        ConjugateGradient: ConjugateGradient(3 * case.n_factors),
        NonNegative: NonNegative(free_columns=int(case.bias)),
    }[kind]
    solved, stats = sweep(backend_of(), case, solver)
    check_factors(case, solver, solved, np.float32)
    check_objective(case, solved, stats, np.float32)
    counts, definite = lengths_of(case)
    path = {Cholesky: "primal", ConjugateGradient: "cg", NonNegative: "nnls"}[kind]
    dual = definite & (counts < case.n_factors) & (kind is Cholesky)
    expected = {
        "shared": (counts == 0).sum(),
        "dual": (dual & (counts > 0)).sum(),
        path: (~dual & (counts > 0)).sum(),
    }
    assert +stats.paths == {path: number for path, number in expected.items() if number}
    assert (stats.launches > 0) == counts.any()
    assert stats.singular == 0


@pytest.mark.parametrize("name", ["explicit, weighted", "biases and mean", "ials"])
def test_wide_factors(cupy, name):
    """Forty: rows on every rung up to 39 entries."""
    case = make_case(name, 40)
    solved, stats = sweep(backend_of(), case, Cholesky())
    check_factors(case, Cholesky(), solved, np.float32)
    check_objective(case, solved, stats, np.float32)
    assert stats.launches >= 3


def test_half_precision_rounds_the_fixed_side(cupy):
    case = make_case("explicit, weighted")
    rounded = case.fixed.astype(np.float16).astype(np.float64)
    solved, stats = sweep(backend_of("float16"), case, Cholesky())
    counts, _ = lengths_of(case)
    weights, values = case.rows.weights, case.rows.values
    for u in np.flatnonzero(counts):
        part = slice(*case.rows.indptr[u : u + 2])
        entries = case.rows.indices[part], weights[part], weights[part] * values[part]
        exact = solve_row(rounded, *entries, case.ridges[0][u])
        assert np.linalg.norm(solved[u] - exact) <= 1e-5 * np.linalg.norm(exact)
    assert stats.launches > 0


def close_to_singular(k=12, ridge=1e-6):
    """Return rows of explicit ratings, each of two items only: too much for float32."""
    rng = np.random.default_rng(61)
    counts = np.array([4, 11, 30, 400])
    indptr = np.append(0, np.cumsum(counts))
    indices = rng.integers(2, size=counts.sum(), dtype=np.int32)
    values = rng.uniform(1, 5, len(indices)).astype(np.float32)
    rows = SparseRows(indptr, indices, values, None, 2)
    fixed = rng.standard_normal((2, k)).astype(np.float32)
    return Explicit(ridge, False), rows, "users", fixed


def test_rows_that_failed_are_rescued(cupy):
    backend, (objective, rows, side, fixed) = backend_of(), close_to_singular()
    solved = np.full((4, 12), 7, np.float32)
    device, held = backend.from_host(solved), backend.from_host(fixed)
    stats = solve_side(backend, objective, rows, side, held, device, Cholesky())
    assert stats.launches > 0
    assert stats.paths["rescued"] == 4
    assert stats.singular == 0
    for u in range(4):
        part = slice(*rows.indptr[u : u + 2])
        values = rows.values[part].astype(np.float64)
        exact = solve_row(fixed, rows.indices[part], np.ones(len(values)), values, 1e-6)
        assert np.linalg.norm(device[u] - exact) <= 1e-5 * np.linalg.norm(exact)


def test_singular_rows_keep_their_values(cupy):
    backend, (objective, rows, side, fixed) = backend_of(), close_to_singular(ridge=0.0)
    solved = np.random.default_rng(62).standard_normal((4, 12)).astype(np.float32)
    device, held = backend.from_host(solved.copy()), backend.from_host(fixed)
    stats = solve_side(backend, objective, rows, side, held, device, Cholesky())
    assert stats.launches > 0
    assert stats.singular == 4
    np.testing.assert_array_equal(device, solved)


def test_split_rows_of_the_backend(cupy):
    """Longer than two segments, in one tile and in several."""
    rng = np.random.default_rng(63)
    k, counts = 12, np.array([2 * SEGMENT + 1, 40, 13000, 9000])
    indptr = np.append(0, np.cumsum(counts))
    indices = rng.integers(500, size=counts.sum(), dtype=np.int32)
    values = rng.uniform(1, 5, len(indices)).astype(np.float32)
    rows = SparseRows(indptr, indices, values, None, 500)
    fixed = rng.standard_normal((500, k)).astype(np.float32)
    found = []
    for batch_elements in (1 << 24, 6000):
        backend = backend_of(batch_elements=batch_elements)
        objective = Explicit(0.5, False)
        problem = backend.load(row_problem(objective, rows, k, batch_elements, "users"))
        solved = backend.from_host(np.zeros((4, k), np.float32))
        held = hold_fixed(
            backend, objective, "users", backend.from_host(fixed), SideRidge(0.5, uniform=True)
        )
        stats = solve_rows(backend, problem, held, solved, Cholesky())
        assert stats.paths == {"long": 3, "primal": 1}
        found.append((solved, stats.objective))
        (tiles,) = problem.kept.values()
        assert (len(tiles) > 1) == (batch_elements == 6000)
    assert found[0][0].tobytes() == found[1][0].tobytes()
    assert found[0][1] == found[1][1]
    for u in range(4):
        part = slice(*indptr[u : u + 2])
        wide = values[part].astype(np.float64)
        exact = solve_row(fixed, indices[part], np.ones(counts[u]), wide, 0.5)
        assert np.linalg.norm(found[0][0][u] - exact) <= 1e-5 * np.linalg.norm(exact)


def test_kernels_split_the_memory_of_a_multiprocessor_alike(cupy):
    """As much of it for blocks as there can be."""
    kernel = backend_of().kernels.get("dual_warp", (("TILES", 1), ("WARPS", 4)), "dual_warp")
    assert kernel.preferred_shared_memory_carveout == 100


@pytest.mark.parametrize(
    ("name", "solver"),
    [
        ("explicit, weighted", Cholesky()),
        ("biases and mean", ConjugateGradient(3)),
        ("ials, exponent", Cholesky()),
        ("implicit", Cholesky()),
        ("explicit", NonNegative()),
    ],
)
def test_batches_change_no_row(cupy, name, solver):
    """Nor does anything else between two runs."""
    case, found = make_case(name), []
    with_entries = lengths_of(case)[0] > 0
    for batch_elements in (1 << 20, 1 << 20, 100 * case.n_factors, 5000):
        solved, _ = sweep(backend_of(batch_elements=batch_elements), case, solver)
        found.append(solved[with_entries].tobytes())
    assert found[1:] == found[:-1]


def test_fits_repeat_to_the_bit(cupy, monkeypatch):
    backend = backend_of()
    monkeypatch.setattr(backends, "_cupy_backend", lambda precision="float32": backend)
    ratings = random_ratings(40, 30, 0.3, 64, np.float32)

    def fit():
        model = ExplicitALS(12, 0.1, iterations=3, random_state=65, backend="cupy").fit(ratings)
        return model.user_factors.tobytes(), model.item_factors.tobytes(), model.report_.losses

    assert fit() == fit()
