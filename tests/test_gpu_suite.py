"""The GPU benchmark: its two calls over a stand-in for CuPy, their order and their limits."""

from __future__ import annotations

import ast
import contextlib
import inspect
import json
import os
import re
import signal
import sys
import types
from itertools import count
from pathlib import Path

import fake_cupy
import gpu_floor
import gpu_peer
import gpu_sections
import gpu_suite
import gpu_task
import gpu_tools
import gpu_traced
import numpy as np
import ptx
import pytest
from gpu_floor import Ceilings
from gpu_shapes import SHAPES, Shape
from test_cupy_backend import name_exists, names_used

needs_machine = pytest.mark.skipif(ptx.missing() is not None, reason=str(ptx.missing()))


class Event:
    """Passes one millisecond whenever it is recorded."""

    ticks = count()

    def record(self):
        self.at = next(Event.ticks)

    def synchronize(self):
        pass


class Pool:
    """Holds so many bytes, whatever is done."""

    held = 0

    def free_bytes(self):
        return 0

    def free_all_blocks(self):
        pass

    def used_bytes(self):
        return 0

    def total_bytes(self):
        return self.held


@pytest.fixture
def cupy(monkeypatch):
    """Install the stand-in with what the suite needs beyond the backend."""
    with fake_cupy.installed() as cupy:
        cupy.__version__ = "stand-in"
        cupy.cuda.Event = Event
        cupy.cuda.get_elapsed_time = lambda first, second: float(second.at - first.at)
        pool = Pool()
        cupy.get_default_memory_pool = lambda: pool
        runtime = cupy.cuda.runtime
        runtime.deviceSynchronize = runtime.profilerStart = runtime.profilerStop = int
        core = types.ModuleType("cupy._core")
        core._routines_linalg = types.SimpleNamespace(
            COMPUTE_TYPE_TF32=7, get_compute_type=lambda dtype: 1, set_compute_type=set_compute_type
        )
        monkeypatch.setitem(sys.modules, "cupy._core", core)
        monkeypatch.setattr("gpu_als.backends.cupy.backend._made", {})
        monkeypatch.setenv("CUPY_ACCELERATORS", "cub")  # the suite changes it
        yield cupy


compute_types = []


def set_compute_type(dtype, kind):
    compute_types.append((dtype, kind))


class NoPeer:
    """Stands for a machine without ``implicit``."""

    usable, words = False, "NOT USABLE: implicit is not here"

    def close(self):
        pass


@pytest.fixture
def tiny(cupy, monkeypatch):
    """Make everything so small that the kernels' stand-in on the CPU is quick."""
    for name in SHAPES:
        monkeypatch.setitem(SHAPES, name, Shape(60, 50, 330, 4))
    for module in (gpu_task, gpu_sections):
        monkeypatch.setattr(module, "SMALL", Shape(25, 20, 90, 3))
    monkeypatch.setattr(gpu_task, "QUICK_DIVISOR", 1)
    monkeypatch.setattr(gpu_sections, "EPOCH_KS", (128,))
    monkeypatch.setattr(gpu_suite, "Peer", NoPeer)
    monkeypatch.setattr("gpu_als.core.memory._SMALLEST_PART", 1 << 9)
    monkeypatch.setattr(
        gpu_task, "measure_ceilings", lambda xp, **_: gpu_floor.measure_ceilings(xp, **SMALLEST)
    )
    return cupy


SMALLEST = {"size": 8, "copied": 64}


@pytest.fixture
def bench(tiny, tmp_path):
    """Return what sections get: 8 factors, so that there are rows of every kind."""
    return gpu_task.Bench(quick=True, folder=tmp_path)


class Clock:
    """Stands still until it is told to go on."""

    now = 0.0

    def __call__(self):
        return self.now


def replace_sections(monkeypatch, **sections):
    """Let the first call consist of these generator functions, each with a share of 10 s."""
    monkeypatch.setattr(gpu_suite, "SECTIONS", {name: (f, 10) for name, f in sections.items()})
    monkeypatch.setitem(gpu_suite.CALLS, 1, (30.0, list(sections)))


def run_main(folder, *arguments, clock=None):
    """Run the first call, or what is asked for; return the exit status and what was written."""
    which = [] if {"--only", "--call"} & set(arguments) else ["--call", "1"]
    arguments = [*which, *arguments, "--quick", "--output", str(folder)]
    status = gpu_suite.main(arguments, clock or Clock())
    (path,) = folder.glob("*.json")
    return status, json.loads(path.read_text())


# The checks


def test_tf32_is_asked_for_and_put_back(cupy):
    compute_types.clear()
    found = gpu_floor.measure_ceilings(cupy, **SMALLEST)
    assert [kind for _, kind in compute_types] == [7, 1]
    # by the stand-in's clock everything takes a millisecond
    assert found == Ceilings(2 * 64 / 1e-3, 2 * 8**3 / 1e-3, 2 * 8**3 / 1e-3)


@needs_machine
def test_a_result_that_changes_fails_its_check(bench, monkeypatch):
    task = gpu_task.Task(bench, bench.matrix("ml20m"), "implicit", 8)
    assert gpu_task.judged(task.check())["ok"]
    half = task.half

    def shaky(side):
        half(side)
        task.factors[side][:] *= np.float32(1 + 1e-6 * next(Event.ticks))

    monkeypatch.setattr(task, "half", shaky)
    bad = gpu_task.judged(task.check())
    assert (bad["repeatable"], bad["ok"]) == (False, False)


# The sections


@needs_machine
def test_both_calls_run_without_a_gpu(tiny, tmp_path, monkeypatch, capsys):
    test = tmp_path / "test_one.py"
    test.write_text(
        "import os\nimport pytest\n@pytest.mark.gpu\n"
        "def test_a(): assert os.environ['CUPY_ACCELERATORS'] == ''\n"
        "def test_b(): assert False\n"
    )
    monkeypatch.setattr(gpu_tools, "TESTS", test)
    monkeypatch.setattr(gpu_tools, "which", lambda program: None)
    sections = {}
    for call in ("1", "2"):
        status, results = run_main(tmp_path / call, "--call", call, "--seconds", "5000")
        errors = {name: entry.get("error") for name, entry in results["sections"].items()}
        assert errors == dict.fromkeys(gpu_suite.CALLS[int(call)][1])
        assert status == 0
        assert results["machine"]["implicit"] == "NOT USABLE: implicit is not here"
        printed = capsys.readouterr().out
        assert printed.index("NOT USABLE") < printed.index("== ceilings")
        assert "no check failed" in printed
        if call == "2":
            assert "ncu is not here" in printed
        sections |= {name: entry["rows"] for name, entry in results["sections"].items()}
    assert sections.keys() == gpu_suite.SECTIONS.keys()
    assert sections["tests"] == [{"passed": 1, "failed": 0, "skipped": 0, "ok": True}]
    assert len(sections["agreement"]) == len(gpu_task.OBJECTIVES) + 1
    for name in ("ml20m", "lastfm", "k64", "k256", "explicit", "counts", "netflix"):
        timed, checked = sections[name][::2], sections[name][1::2]
        assert all(row["ms"] == row["users_ms"] + row["items_ms"] == 2 for row in timed)
        assert all(row["ok"] for row in checked)
    assert sections["general"][0]["launches"] == "0+0"
    for name, program in (("profile", "ncu"), ("races", "compute-sanitizer")):
        assert sections[name] == [{"note": f"{program} is not here"}]
    assert "nvidia-smi is not here" in sections["clocks"][0]["note"]
    rounded = sections["precision"][-1]
    assert 1e-5 < rounded["max_error"] < 1e-2
    assert "ok" not in rounded


@needs_machine
def test_launches_alone_cover_the_half_sweep(bench):
    rows = list(gpu_sections.kernels(bench))
    matrix = bench.matrix("ml20m")
    for side, sparse in zip(("users", "items"), matrix.sides, strict=True):
        lengths = np.diff(sparse.indptr)
        mine = [row for row in rows if (row["objective"], row["side"]) == ("implicit", side)]
        launches = [row for row in mine if "GB/s" in row]
        assert {row["what"].split()[0] for row in launches} == {"primal", "dual_warp"}
        assert sum(row["rows"] for row in launches) == (lengths > 0).sum()
        for row in launches:
            assert row["ms"] == pytest.approx(1 / 5)
        *_, together, _, whole = mine
        assert together["ms"] == pytest.approx(len(launches) / 5)
        assert whole["ms"] == 1


@needs_machine
def test_fits_are_streamed_and_held_against_the_plan(bench, monkeypatch):
    backend, pool = bench.backend(), bench.xp.get_default_memory_pool()
    ahead, parts = backend.prefetch, []

    def counted(makers):
        for problem in ahead(makers):
            parts.append(problem)
            yield problem

    monkeypatch.setattr(backend, "prefetch", counted)
    rows = gpu_sections.fits(bench)
    resident = next(rows)
    assert parts == []
    streamed, same = rows
    assert len(parts) >= 3 * (2 + 2)  # iterations, parts of both sides
    assert resident["ok"]
    assert streamed["ok"]
    assert same["repeatable"]
    assert streamed["planned_GB"] < resident["planned_GB"]
    pool.held = 1 + int(1e9 * streamed["planned_GB"])
    resident, streamed, _ = gpu_sections.fits(bench)
    assert (resident["ok"], streamed["ok"]) == (True, False)


@needs_machine
def test_what_other_programs_look_at_runs(bench):
    gpu_traced.largest(bench)
    gpu_traced.small(bench)


# The peer


class Model:
    """Stands for ``implicit``'s class."""

    def __init__(self, factors, regularization, iterations, random_state):
        self.given = factors, regularization, iterations

    def fit(self, user_items, show_progress, callback):
        Model.fitted = self, user_items
        for iteration, seconds in enumerate([9.0, 0.004, 0.002, 0.003]):
            callback(iteration, seconds, None)


def test_the_peer_gets_alpha_in_its_data(monkeypatch):
    monkeypatch.setattr(gpu_peer, "look", list)
    monkeypatch.setattr(gpu_peer, "_als", lambda: Model)
    shape = Shape(40, 30, 220, 4)
    ms = gpu_peer.iteration_ms(shape, 32, 0.5, 2.0)
    assert ms == pytest.approx(3)  # the first iteration is not counted
    model, data = Model.fitted
    assert model.given == (32, 0.5, 4)
    np.testing.assert_array_equal(data.data, 2 * shape.draw().users.values)


def test_the_peer_is_used_as_its_own_code_asks():
    als = pytest.importorskip("implicit.gpu.als", reason="implicit is not installed")
    given = set(inspect.signature(Model.__init__).parameters)
    assert given <= set(inspect.signature(als.AlternatingLeastSquares.__init__).parameters)
    source = inspect.getsource(als.AlternatingLeastSquares.fit)
    assert "alpha" not in source
    assert "callback(iteration, time.time() - s, loss)" in source
    recommend = inspect.signature(als.AlternatingLeastSquares.recommend).parameters
    assert list(recommend)[1:5] == ["userid", "user_items", "N", "filter_already_liked_items"]
    cuda = Path(als.__file__).parent
    if (cuda / "matrix.cu").exists():
        assert "cudaMallocManaged(&indices" in (cuda / "matrix.cu").read_text()


def test_a_peer_that_fails_or_hangs_can_be_asked_again():
    peer = gpu_peer.Peer()
    try:
        assert not peer.usable
        assert peer.words.startswith("NOT USABLE: ")
        with pytest.raises(gpu_peer.PeerError, match="ValueError"):
            peer.ask(60, int, "x")
        with pytest.raises(gpu_peer.PeerError, match="no answer within 1 s"):
            peer.ask(1, signal.pause)
        assert peer.ask(60, int, "7") == 7
    finally:
        peer.close()


# The runner


def test_results_are_written_after_every_measurement_whatever_follows(tiny, tmp_path, monkeypatch):
    seen = []

    def bad(bench):
        yield {"a": 1}
        seen.append(json.loads(next(tmp_path.glob("*.json")).read_text())["sections"])
        raise RuntimeError("out of order")

    replace_sections(monkeypatch, bad=bad, good=lambda bench: iter([{"ok": True}]))
    status, results = run_main(tmp_path)
    assert status == 1
    assert seen == [{"bad": {"rows": [{"a": 1}]}}]
    assert results["sections"]["bad"]["rows"] == [{"a": 1}]
    assert "RuntimeError: out of order" in results["sections"]["bad"]["error"]
    assert results["sections"]["good"] == {"rows": [{"ok": True}], "seconds": 0}
    assert results["machine"]["device"] == "stand-in"


@pytest.mark.parametrize(
    ("row", "wanted"),
    [({"ok": True}, 0), ({"ok": False}, 1), ({}, 0), ({"ok": np.False_}, 1), ({"ok": np.True_}, 0)],
)
def test_the_exit_status_tells_of_failed_checks(tiny, tmp_path, monkeypatch, row, wanted):
    replace_sections(monkeypatch, one=lambda bench: iter([row]))
    assert run_main(tmp_path)[0] == wanted


def test_time_limits_are_kept_and_what_is_left_is_shared(tiny, tmp_path, monkeypatch):
    clock, limits = Clock(), []

    def section(bench):
        limits.append(bench.left())
        for seconds in (4, 7, 100):
            clock.now += seconds
            yield {"took": seconds}

    def slow(bench):
        clock.now += 100
        yield {"a": 1}

    replace_sections(monkeypatch, a=section, b=section, c=section, slow=slow, late=slow)
    status, results = run_main(tmp_path, "--seconds", "50", clock=clock)
    a, b, c, _, late = results["sections"].values()
    assert limits == [10, 9.75, pytest.approx(28 / 3)]  # a fifth of 50, a quarter of 39, ...
    for entry in (a, b, c):
        assert [row["took"] for row in entry["rows"]] == [4, 7]
    assert a["note"] == "stopped after 11 s of 10; the rest is left out"
    assert late == {"rows": [], "note": "left out: no time"}
    assert status == 0  # a note is not a failure


def test_an_alarm_ends_a_measurement_under_way(tiny, tmp_path, monkeypatch):
    def stuck(bench):
        yield {"a": 1}
        with contextlib.suppress(Exception):
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


def test_without_a_gpu_the_suite_says_so(cupy, monkeypatch, tmp_path, capsys):
    def fail(*_):
        raise fake_cupy.CUDARuntimeError("no CUDA-capable device is detected")

    monkeypatch.setattr(cupy.cuda.runtime, "getDeviceProperties", fail)
    assert gpu_suite.main(["--call", "1", "--output", str(tmp_path)]) == 2
    assert "found no usable GPU" in capsys.readouterr().err


def test_targets_are_held_against_what_was_measured():
    def timed(shape, k, path, ms, objective="implicit"):
        of_floor = {"of_floor": 1 / ms} if path == "kernels" else {}
        return {
            "shape": shape, "objective": objective, "k": k, "path": path, "ms": ms, **of_floor,
        }  # fmt: skip

    rows = [
        timed("ml20m", 128, "implicit, 3 CG steps", 22.0),
        timed("lastfm", 128, "implicit, 3 CG steps", 30.0),  # ours was not measured
        timed("ml20m", 128, "kernels", 2.0),
        timed("ml20m", 128, "kernels, 3 CG steps", 11.0),
        timed("ml20m", 128, "general", 24.0),
        timed("ml20m", 64, "kernels", 1.0),
        timed("msd", 8192, "kernels", 90_000.0, "ials"),
        {"shape": "ml20m", "k": 128, "path": "ranking", "ms": 3.0},
        {"max_error": 3e-5, "ok": False},
        {"max_error": 9e-6, "ok": True},
        {"max_error": 1e-3},  # reported, not judged
    ]
    found = gpu_suite.targets({"all": {"rows": rows}})
    assert [(row["found"], row["met"]) for row in found] == [
        (pytest.approx(11), True),
        (None, None),
        (pytest.approx(2), False),
        (None, None),
        (pytest.approx(12), True),
        (pytest.approx(1), True),
        (pytest.approx(0.5), True),
        (pytest.approx(90), True),
        (3e-5, False),
    ]


@pytest.mark.parametrize("module", [gpu_floor, gpu_sections, gpu_task, gpu_traced, gpu_suite])
def test_every_cupy_name_exists(module):
    pytest.importorskip("cupy", reason="CuPy is not installed; nothing to check names against")
    source = re.sub(r"\b(bench|self)\.xp\b", "xp", Path(module.__file__).read_text())
    names = names_used(ast.parse(source))
    assert names
    for name in names:
        assert name_exists(name), f"{module.__name__} uses {name}, which CuPy does not have"


def test_device_properties_are_those_of_the_real_cupy():
    pytest.importorskip("cupy", reason="CuPy is not installed; nothing to check names against")
    from cupy_backends.cuda.api import runtime

    extension = Path(runtime.__file__).read_bytes()
    for name in ("multiProcessorCount", "totalGlobalMem", "major", "minor"):
        assert name.encode() in extension
