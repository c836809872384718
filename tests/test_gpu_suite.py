"""The GPU benchmark: its arithmetic by hand, its sections over a stand-in for CuPy."""

from __future__ import annotations

import ast
import inspect
import json
import os
import signal
import sys
import types
from itertools import count
from pathlib import Path

import cuda_on_cpu
import fake_cupy
import numpy as np
import pytest
import scipy.sparse as sp
from reference import solve_row
from test_cupy_backend import name_exists, names_used

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))

import gpu_floor  # noqa: E402
import gpu_shapes  # noqa: E402
import gpu_suite  # noqa: E402
import gpu_task  # noqa: E402
from gpu_floor import Ceilings, Work, median_ms  # noqa: E402
from gpu_shapes import SHAPES, Shape  # noqa: E402

needs_compiler = pytest.mark.skipif(
    not cuda_on_cpu.have_compiler(), reason="no g++ to compile kernels for the CPU"
)


class Event:
    """Passes one millisecond whenever it is recorded."""

    ticks = count()

    def record(self):
        self.at = next(Event.ticks)

    def synchronize(self):
        pass


@pytest.fixture
def cupy(monkeypatch):
    """Install the stand-in with what the suite needs beyond the backend."""
    with fake_cupy.installed() as cupy:
        cupy.__version__ = "stand-in"
        cupy.cuda.Event = Event
        cupy.cuda.get_elapsed_time = lambda first, second: float(second.at - first.at)
        cupy.get_default_memory_pool = lambda: types.SimpleNamespace(
            free_bytes=lambda: 0, free_all_blocks=lambda: None
        )
        runtime = cupy.cuda.runtime
        properties = runtime.getDeviceProperties(0) | {
            "multiProcessorCount": 1,
            "totalGlobalMem": 1 << 30,
        }
        runtime.getDeviceProperties = lambda device: properties
        runtime.driverGetVersion = runtime.runtimeGetVersion = lambda: 13000
        core = types.ModuleType("cupy._core")
        core._routines_linalg = types.SimpleNamespace(
            COMPUTE_TYPE_TF32=7, get_compute_type=lambda dtype: 1, set_compute_type=set_compute_type
        )
        monkeypatch.setitem(sys.modules, "cupy._core", core)
        yield cupy


compute_types = []


def set_compute_type(dtype, kind):
    compute_types.append((dtype, kind))


@pytest.fixture
def tiny(cupy, monkeypatch):
    """Make everything so small that the kernels' stand-in on the CPU is quick."""
    for name in SHAPES:
        monkeypatch.setitem(SHAPES, name, Shape(40, 30, 220, 4))
    monkeypatch.setattr(gpu_task, "QUICK_DIVISOR", 1)
    monkeypatch.setattr(gpu_task, "SMALL", Shape(25, 20, 90, 3))
    monkeypatch.setattr(gpu_suite, "KS", (8,))
    monkeypatch.setattr(gpu_suite, "MAIN_K", 8)
    monkeypatch.setattr(gpu_suite, "KERNEL_KS", (8,))
    monkeypatch.setattr(gpu_suite, "QUICK_EPOCH_KS", (8,))
    monkeypatch.setattr(
        gpu_task, "measure_ceilings", lambda xp, **_: gpu_floor.measure_ceilings(xp, **SMALLEST)
    )
    return cupy


SMALLEST = {"size": 8, "copied": 64}


@pytest.fixture
def bench(tiny):
    """Return what sections get."""
    return gpu_task.Bench(tiny, quick=True)


class Clock:
    """Stands still until it is told to go on."""

    now = 0.0

    def __call__(self):
        return self.now


def replace_sections(monkeypatch, **sections):
    """Let the suite consist of these generator functions, each with a share of 10 s."""
    monkeypatch.setattr(gpu_suite, "SECTIONS", {name: (f, 10) for name, f in sections.items()})


def run_main(folder, *arguments, clock=None):
    """Run the suite; return its exit status and what it wrote."""
    status = gpu_suite.main(["--quick", "--output", str(folder), *arguments], clock or Clock())
    (path,) = folder.glob("*.json")
    return status, json.loads(path.read_text())


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


def test_tf32_is_asked_for_and_put_back(cupy):
    compute_types.clear()
    found = gpu_floor.measure_ceilings(cupy, **SMALLEST)
    assert [kind for _, kind in compute_types] == [7, 1]
    # by the stand-in's clock everything takes a millisecond
    assert found == Ceilings(2 * 64 / 1e-3, 2 * 8**3 / 1e-3, 2 * 8**3 / 1e-3)


# The shapes


def test_shapes_have_the_sizes_of_the_data_they_stand_for():
    assert {name: (s.users, s.items, s.entries) for name, s in SHAPES.items()} == {
        "ml20m": (138_493, 26_744, 20_000_000),
        "lastfm": (358_868, 292_385, 17_500_000),
        "netflix": (480_189, 17_770, 99_100_000),
        "msd": (571_355, 41_140, 33_600_000),
    }
    assert SHAPES["ml20m"].median_user == 68


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


def test_a_matrix_is_scaled_for_those_who_do_not_apply_alpha():
    matrix = Shape(40, 30, 220, 4).draw()
    np.testing.assert_array_equal(matrix.csr(2.0).data, 2 * matrix.csr().data)
    assert matrix.csr(2.0).dtype == np.float32


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


@needs_compiler
def test_a_result_that_changes_fails_its_check(bench, monkeypatch):
    task = gpu_task.Task(bench, bench.matrix("ml20m"), "implicit", 8)
    good = gpu_task.judged(task.check())
    assert good["ok"]
    half = task.half

    def shaky(side):
        half(side)
        task.factors[side][:] *= np.float32(1 + 1e-6 * next(Event.ticks))

    monkeypatch.setattr(task, "half", shaky)
    bad = gpu_task.judged(task.check())
    assert (bad["repeatable"], bad["ok"]) == (False, False)


# The sections


@needs_compiler
def test_every_section_runs(tiny, tmp_path, monkeypatch, capsys):
    test = tmp_path / "test_one.py"
    test.write_text(
        "import pytest\n@pytest.mark.gpu\ndef test_a(): pass\ndef test_b(): assert False\n"
    )
    monkeypatch.setattr(gpu_suite, "TESTS", test)
    monkeypatch.setattr(gpu_task.Bench, "peer", "implicit is not here")
    status, results = run_main(tmp_path / "results")
    sections = results["sections"]
    assert [(name, entry.get("error")) for name, entry in sections.items()] == [
        (name, None) for name in gpu_suite.SECTIONS
    ]
    assert status == 0
    assert sections["tests"]["rows"] == [{"passed": 1, "failed": 0, "skipped": 0, "ok": True}]
    assert len(sections["agreement"]["rows"]) == len(gpu_task.OBJECTIVES)
    for name in ("ml20m", "lastfm", "netflix"):
        rows = sections[name]["rows"]
        assert rows[0] == {"note": "implicit is not here"}
        paths = [(row["objective"], row["path"]) for row in rows if "ms" in row]
        assert sorted(paths) == [
            (objective, path)
            for objective in ("explicit", "implicit")
            for path in ("general", "kernels")
        ]
        assert sum(row.get("ok", False) for row in rows) == 2
        for row in rows:
            if row.get("path") == "kernels":
                assert row["ms"] == row["users_ms"] + row["items_ms"] == 2
                assert row["launches"] == "2+2"  # dual and primal, users and items
                assert row["rounds"] == 4
            elif row.get("path") == "general":
                assert row["launches"] == "0+0"
    assert [row["k"] for row in sections["msd"]["rows"]] == [8, 8]
    assert [row.get("ok", "none") for row in sections["precision"]["rows"][1::2]] == [
        True, True, "none", True, True, "none",
    ]  # fmt: skip
    rounded = sections["precision"]["rows"][5]
    assert 1e-5 < rounded["max_error"] < 1e-2
    printed = capsys.readouterr().out
    assert "written to" in printed
    assert "no check failed" in printed


@needs_compiler
def test_launches_alone_cover_the_half_sweep(bench):
    rows = list(gpu_suite.kernels(bench))
    matrix = bench.matrix("ml20m")
    for side, sparse in zip(("users", "items"), matrix.sides, strict=True):
        lengths = np.diff(sparse.indptr)
        mine = [row for row in rows if (row["objective"], row["side"]) == ("implicit", side)]
        launches = [row for row in mine if "GB/s" in row]
        assert [row["what"].split()[0] for row in launches] == ["primal", "dual_warp"]
        assert [row["rows"] for row in launches] == [
            (lengths >= 8).sum(),
            ((lengths > 0) & (lengths < 8)).sum(),
        ]
        for row in launches:
            assert row["ms"] == pytest.approx(1 / 5)
        assert [row["what"] for row in mine[-3:]] == [
            "these launches together", "base and rotation", "the half-sweep",
        ]  # fmt: skip


def test_devices_that_are_too_small_are_told_so(bench):
    bench.xp.cuda.runtime.memGetInfo = lambda: (1000, 1000)
    needed = bench.shape("ml20m").device_bytes(8)
    assert needed == 36 * 220 + 4 * 4 * 8 * (40 + 30)
    (row,) = [row for row in gpu_suite.iterations(bench, "ml20m", ("implicit",)) if "k" in row]
    assert (row["shape"], row["k"]) == ("ml20m", 8)
    assert row["note"].startswith("refused: needs about")
    (row,) = gpu_suite.epochs(bench)
    assert row["note"].startswith("refused: needs about")


@needs_compiler
def test_an_epoch_that_would_take_too_long_is_left_out(bench, monkeypatch):
    monkeypatch.setattr(gpu_suite, "QUICK_EPOCH_KS", (8, 16))
    left = iter([1.0, 1e-3, 1e-3])  # before the first epoch, before its check, before the second
    bench.left = lambda: next(left)
    first, second = gpu_suite.epochs(bench)
    assert first["ms"] == 2
    assert second["note"].startswith("left out: some 0 s")


class Peer:
    """Stands for ``implicit``'s class."""

    def __init__(self, factors, regularization, iterations, random_state):
        self.factors, self.regularization, self.iterations = factors, regularization, iterations

    def fit(self, user_items, show_progress, callback):
        Peer.fitted = self, user_items
        for iteration, seconds in enumerate([9.0, 0.004, 0.002, 0.003]):
            callback(iteration, seconds, None)


def test_the_peer_gets_alpha_in_its_data(bench, monkeypatch):
    monkeypatch.setattr(gpu_task.Bench, "peer", Peer)
    (row,) = gpu_suite._peer_iterations(bench, "ml20m", 32)
    assert row["ms"] == pytest.approx(3)  # the first iteration is not counted
    model, data = Peer.fitted
    assert (model.factors, model.iterations) == (32, 4)
    assert model.regularization == gpu_task.OBJECTIVES["implicit"].regularization
    np.testing.assert_array_equal(data.data, 2 * bench.matrix("ml20m").users.values)
    assert list(gpu_suite._peer_iterations(bench, "ml20m", 100)) == []
    bench.xp.cuda.runtime.memGetInfo = lambda: (0, 0)
    (row,) = gpu_suite._peer_iterations(bench, "ml20m", 32)
    assert row["note"].startswith("implicit: refused")


def test_the_peer_is_used_as_its_own_code_asks():
    als = pytest.importorskip("implicit.gpu.als", reason="implicit is not installed")
    given = set(inspect.signature(Peer.__init__).parameters)
    assert given <= set(inspect.signature(als.AlternatingLeastSquares.__init__).parameters)
    fit = inspect.signature(als.AlternatingLeastSquares.fit).parameters
    assert {"user_items", "show_progress", "callback"} <= set(fit)
    source = inspect.getsource(als.AlternatingLeastSquares.fit)
    assert "alpha" not in source
    assert "callback(iteration, time.time() - s, loss)" in source
    cuda = Path(als.__file__).parent
    if (cuda / "matrix.cu").exists():
        assert "cudaMallocManaged(&indices" in (cuda / "matrix.cu").read_text()


def test_without_a_gpu_for_it_the_peer_says_why(bench):
    assert bench.peer.startswith("implicit ")


def test_tests_that_fail_are_shown(bench, tmp_path, monkeypatch):
    test = tmp_path / "test_one.py"
    test.write_text("import pytest\n@pytest.mark.gpu\ndef test_a(): assert 1 == 2\n")
    monkeypatch.setattr(gpu_suite, "TESTS", test)
    row, note = gpu_suite.run_tests(bench)
    assert row == {"passed": 0, "failed": 1, "skipped": 0, "ok": False}
    assert "assert 1 == 2" in note["note"]


# The runner


def test_results_are_written_after_every_measurement(tiny, tmp_path, monkeypatch):
    seen = []

    def first(bench):
        yield {"a": 1}
        seen.append(json.loads(next(tmp_path.glob("*.json")).read_text())["sections"])
        yield {"a": 2}

    def second(bench):
        seen.append(json.loads(next(tmp_path.glob("*.json")).read_text())["sections"])
        yield {"b": 3}

    replace_sections(monkeypatch, first=first, second=second)
    status, results = run_main(tmp_path)
    assert status == 0
    assert seen[0] == {"first": {"rows": [{"a": 1}]}}
    assert seen[1]["first"] == {"rows": [{"a": 1}, {"a": 2}], "seconds": 0}
    assert results["sections"]["second"]["rows"] == [{"b": 3}]
    assert results["machine"]["device"] == "stand-in"


def test_a_section_that_fails_stops_no_other(tiny, tmp_path, monkeypatch):
    def bad(bench):
        yield {"a": 1}
        raise RuntimeError("out of order")

    replace_sections(monkeypatch, bad=bad, good=lambda bench: iter([{"ok": True}]))
    status, results = run_main(tmp_path)
    assert status == 1
    assert results["sections"]["bad"]["rows"] == [{"a": 1}]
    assert "RuntimeError: out of order" in results["sections"]["bad"]["error"]
    assert results["sections"]["good"]["rows"] == [{"ok": True}]


@pytest.mark.parametrize(("ok", "wanted"), [(True, 0), (False, 1), (None, 0)])
def test_the_exit_status_tells_of_failed_checks(tiny, tmp_path, monkeypatch, ok, wanted):
    replace_sections(monkeypatch, one=lambda bench: iter([{"a": 1, "ok": ok}]))
    assert run_main(tmp_path)[0] == wanted


def test_only_some_sections(tiny, tmp_path, monkeypatch):
    sections = {name: lambda bench, name=name: iter([{"is": name}]) for name in "abc"}
    replace_sections(monkeypatch, **sections)
    _, results = run_main(tmp_path, "--only", "c", "a")
    assert list(results["sections"]) == ["a", "c"]
    with pytest.raises(SystemExit):
        run_main(tmp_path, "--only", "d")


def test_partial_runs_leave_the_whole_ones_results_alone(tiny, tmp_path, monkeypatch):
    replace_sections(monkeypatch, a=lambda bench: iter([{"a": 1}]), b=lambda bench: iter([]))
    for arguments in ([], ["--only", "b"], ["--quick"]):
        gpu_suite.main(["--output", str(tmp_path), *arguments], Clock())
    names = sorted(path.name.partition("-stand-in-")[2][10:] for path in tmp_path.iterdir())
    assert names == ["-b.json", "-quick.json", ".json"]


def test_time_limits_are_kept_and_what_is_left_is_shared(tiny, tmp_path, monkeypatch):
    clock, limits = Clock(), []

    def section(bench):
        limits.append(bench.left())
        for seconds in (4, 7, 100):
            clock.now += seconds
            yield {"took": seconds}

    replace_sections(monkeypatch, a=section, b=section, c=section)
    status, results = run_main(tmp_path, "--seconds", "30", clock=clock)
    a, b, c = results["sections"].values()
    assert limits == [10, 9.5, 8]  # a third of 30, half of 19, what is left
    for entry in (a, b, c):
        assert [row["took"] for row in entry["rows"]] == [4, 7]
    assert a["note"] == "stopped after 11 s of 10; the rest is left out"
    assert status == 0  # a note is no failure


def test_sections_without_any_time_are_left_out(tiny, tmp_path, monkeypatch):
    clock = Clock()

    def slow(bench):
        clock.now += 100
        yield {"a": 1}

    replace_sections(monkeypatch, slow=slow, late=slow)
    _, results = run_main(tmp_path, "--seconds", "50", clock=clock)
    assert results["sections"]["late"] == {"rows": [], "note": "left out: no time"}


def test_an_alarm_ends_a_measurement_under_way(tiny, tmp_path, monkeypatch):
    def stuck(bench):
        yield {"a": 1}
        os.kill(os.getpid(), signal.SIGALRM)
        yield {"a": 2}

    before = signal.getsignal(signal.SIGALRM)
    replace_sections(monkeypatch, stuck=stuck, next=lambda bench: iter([{"b": 1}]))
    status, results = run_main(tmp_path)
    assert status == 0
    assert results["sections"]["stuck"]["rows"] == [{"a": 1}]
    assert "the rest is left out" in results["sections"]["stuck"]["note"]
    assert results["sections"]["next"]["rows"] == [{"b": 1}]
    assert signal.getsignal(signal.SIGALRM) is before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_without_a_gpu_the_suite_says_so(cupy, monkeypatch, capsys):
    def fail(*_):
        raise fake_cupy.CUDARuntimeError("no CUDA-capable device is detected")

    monkeypatch.setattr(cupy.cuda.runtime, "getDeviceProperties", fail)
    assert gpu_suite.main([]) == 2
    assert "found no usable GPU" in capsys.readouterr().err


def test_targets_are_held_against_what_was_measured():
    def timed(shape, k, path, ms, objective="implicit"):
        of_floor = {"of_floor": 1 / ms} if path == "kernels" else {}
        return {
            "shape": shape, "objective": objective, "k": k, "path": path, "ms": ms, **of_floor,
        }  # fmt: skip

    rows = [
        timed("ml20m", 128, "kernels", 2.0),
        timed("ml20m", 128, "kernels", 4.0, "explicit"),
        timed("ml20m", 128, "general", 24.0),
        timed("ml20m", 128, "general", 36.0, "explicit"),
        timed("ml20m", 128, "implicit, 3 CG steps", 22.0),
        timed("ml20m", 64, "kernels", 1.0),
        timed("msd", 8192, "kernels", 90_000.0, "ials"),
        {"max_error": 3e-5, "ok": False},
        {"max_error": 1e-3},  # reported, not judged
    ]
    found = gpu_suite.targets({"all": {"rows": rows}})
    assert [(row["found"], row["met"]) for row in found] == [
        (pytest.approx(11), True),
        (None, None),
        (pytest.approx(9), False),
        (pytest.approx(1), True),
        (pytest.approx(0.25), False),
        (pytest.approx(90), True),
        (3e-5, False),
    ]


@pytest.mark.parametrize("module", [gpu_floor, gpu_shapes, gpu_suite])
def test_every_cupy_name_exists(module):
    pytest.importorskip("cupy", reason="CuPy is not installed; nothing to check names against")
    for name in names_used(ast.parse(Path(module.__file__).read_text())):
        assert name_exists(name), f"{module.__name__} uses {name}, which CuPy does not have"


def test_device_properties_are_those_of_the_real_cupy():
    pytest.importorskip("cupy", reason="CuPy is not installed; nothing to check names against")
    from cupy_backends.cuda.api import runtime

    extension = Path(runtime.__file__).read_bytes()
    for name in ("multiProcessorCount", "totalGlobalMem", "major", "minor"):
        assert name.encode() in extension
