"""Everything there is to measure on one GPU, in one call of under nine minutes.

Half-sweeps and whole iterations of the exact solver by CUDA events, beside the floor that the
same run's ceilings set (gpu_floor.py), on seeded matrices of well-known sizes (gpu_shapes.py):

    ceilings   a copy; matrix products in float32 and TF32
    compile    the kernels of every width, before anything is timed
    tests      pytest -m gpu
    agreement  every row of a small matrix beside the NumPy backend in float64
    ml20m, lastfm, netflix
               iterations, explicit and implicit; beside them, in the same run, our general path
               (k = 128) and the GPU code of ``implicit`` where it is installed
    kernels    each launch of a half-sweep alone
    precision  "tf32x3" and "float16" beside "float32"
    counts     implicit with alpha = 1, where many entries have confidence 1 and need no system;
               the floor is that of entries that do
    msd        one epoch of iALS at ever larger widths, as far as the time goes

Each width's results are checked: solved twice they must be equal to the bit, and within 2e-5 of a
float64 solution in a row of every length. A section gets its share of the time that is left, so
what one does not use later ones may; what its time does not suffice for is left out with a note.
Results are written after every measurement. The exit status is 1 if a check failed, or a section.

``implicit`` does three steps of conjugate gradients where we solve exactly. Its alpha is multiplied
into the data beforehand, since its GPU code does not apply it. It keeps its matrices in managed
memory, which the first iteration moves to the device: that one is not counted.

    python benchmarks/gpu_suite.py [--only ml20m kernels] [--quick] [--seconds 520]
        [--output FOLDER]
"""

from __future__ import annotations

import argparse
import datetime
import faulthandler
import os
import platform
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the package beside this, installed or not

import numpy as np
import scipy
from gpu_floor import Work, median_ms
from gpu_run import Row, Section, Table, failures, run_sections, text_of, write_whole
from gpu_shapes import SHAPES
from gpu_task import (
    ALPHA,
    OBJECTIVES,
    SAMPLED_ROWS,
    SOLVER,
    TOLERANCE,
    Bench,
    Task,
    judged,
    relative_errors,
)

import gpu_als
from gpu_als.backends.cupy.launch import Launch, stride_of
from gpu_als.backends.numpy.backend import NumpyBackend
from gpu_als.core.basis import make_frame
from gpu_als.core.half_sweep import solve_side
from gpu_als.core.problem import SparseRows
from gpu_als.errors import BackendError

ROOT = Path(__file__).parents[1]
TESTS = ROOT / "tests"
RESULTS = Path(__file__).parent / "results"

KS = (128, 64, 100, 256)  # those with targets first
MAIN_K = 128
KERNEL_KS = (128, 64)
EPOCH_KS = (512, 1024, 2048, 4096, 8192)
QUICK_EPOCH_KS = (512, 1024)

TOTAL_SECONDS = 520.0


# The sections: generators of rows. gpu_run.py runs them.


def ceilings(bench: Bench) -> Iterator[Row]:
    """Measure what the device does at best."""
    best = bench.ceilings
    yield {
        "copy_GB/s": best.bytes / 1e9,
        "float32_TFLOP/s": best.flops / 1e12,
        "tf32_TFLOP/s": best.tf32_flops / 1e12,
    }


def compile_kernels(bench: Bench) -> Iterator[Row]:
    """Compile what the others launch; CuPy's cache on disk may have some."""
    for k in sorted(KS):
        begin = time.perf_counter()
        kernels = bench.backend().compile_kernels(k)
        yield {"k": k, "kernels": kernels, "seconds": time.perf_counter() - begin}


def run_tests(bench: Bench) -> Iterator[Row]:
    """Run the tests that need a GPU, in processes of their own."""
    bench.free_bytes()
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider"]
    if find_spec("xdist"):  # most of the time kernels are compiled, by the host
        command += ["-n", str(min(8, len(os.sched_getaffinity(0)))), "--dist", "worksteal"]
    # Without CUB, whose reductions take seconds each to compile.
    environment = os.environ | {"CUPY_ACCELERATORS": ""}
    try:
        done = subprocess.run(
            [*command, str(TESTS)], cwd=ROOT, capture_output=True, text=True, env=environment,
            timeout=max(1.0, bench.left()),
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        yield {"ok": False, "note": f"the tests did not end within {error.timeout:.0f} s"}
        yield {"note": (error.stdout or b"").decode(errors="replace")[-6000:].strip()}
        return
    summary = (done.stdout.strip().splitlines() or [""])[-1]
    counts = {
        word: int(n) for n, word in re.findall(r"(\d+) (passed|failed|error|skipped)", summary)
    }
    passed = counts.get("passed", 0)
    yield {
        "passed": passed,
        "failed": counts.get("failed", 0) + counts.get("error", 0),
        "skipped": counts.get("skipped", 0),
        "ok": done.returncode == 0 and passed > 0,
    }
    if done.returncode or not passed:
        yield {"note": (done.stdout[-6000:] + done.stderr[-2000:]).strip()}


def agreement(bench: Bench) -> Iterator[Row]:
    """Compare every row of a small matrix with the NumPy backend in float64."""
    matrix, numpy_backend = bench.small, NumpyBackend()
    for k in KS:
        for name, objective in OBJECTIVES.items():
            task = Task(bench, matrix, name, k)
            errors = []
            for side in (0, 1):
                rows = matrix.sides[side]
                wide = SparseRows(
                    rows.indptr, rows.indices, rows.values.astype(np.float64), None, rows.n_fixed
                )
                elements = numpy_backend.batch_elements
                problem = objective.row_problem(wide, k, elements, ("users", "items")[side])
                fixed = bench.xp.asnumpy(task.factors[1 - side]).astype(np.float64)
                expected = np.zeros((rows.n_rows, k))
                with numpy_backend.session():
                    solve_side(numpy_backend, problem, fixed, expected, SOLVER)
                task.half(side)
                errors.append(relative_errors(bench.xp.asnumpy(task.factors[side]), expected))
            error = np.concatenate(errors)
            yield judged(
                {
                    "objective": name,
                    "k": k,
                    "rows": len(error),
                    "median_error": float(np.median(error)),
                    "max_error": float(error.max()),
                    "repeatable": task.check(1)["repeatable"],
                }
            )


def iterations(
    bench: Bench, shape: str, objectives: tuple[str, ...], *, every_width: bool = True
) -> Iterator[Row]:
    """Time whole iterations at every width, check them, and time the others beside them."""
    if isinstance(bench.peer, str):
        yield {"note": bench.peer}
    for k in KS if every_width else (MAIN_K,):
        refused = bench.refusal(bench.shape(shape).device_bytes(k))
        if refused:
            yield {"shape": shape, "k": k, "note": refused}
            continue
        for objective in objectives:
            name = {"shape": shape, "objective": objective, "k": k}
            task = Task(bench, bench.matrix(shape), objective, k)
            yield {**name, "path": "kernels", **task.time()}
            yield judged({**name, **task.check()})
            if k == MAIN_K:
                general = bench.backend(fused=False)
                yield {**name, "path": "general", **task.time(general, repeats=2)}
            del task
            if objective == "implicit":
                yield from _peer_iterations(bench, shape, k)


def _peer_iterations(bench: Bench, shape: str, k: int) -> Iterator[Row]:
    """Time ``implicit``'s iterations by its own clock, which waits for the device."""
    if isinstance(bench.peer, str) or k % 32:  # its kernels add up over whole warps
        return
    name = {"shape": shape, "objective": "implicit", "k": k}
    size = bench.shape(shape)
    # Managed memory beyond the device's own would be moved to and fro, or hang it.
    refused = bench.refusal(2 * 8 * size.entries + 8 * k * (size.users + size.items))
    if refused:
        yield {**name, "note": f"implicit: {refused}"}
        return
    seconds: list[float] = []
    model = bench.peer(
        factors=k, regularization=OBJECTIVES["implicit"].regularization, iterations=4,
        random_state=k,
    )  # fmt: skip
    model.fit(
        bench.matrix(shape).csr(ALPHA),
        show_progress=False,
        callback=lambda iteration, elapsed, loss: seconds.append(elapsed),
    )
    yield {**name, "path": "implicit, 3 CG steps", "ms": 1e3 * float(np.median(seconds[1:]))}


def kernels(bench: Bench) -> Iterator[Row]:
    """Time each launch of a half-sweep alone, and what comes before the launches."""
    for k in KERNEL_KS:
        for objective in ("implicit", "explicit"):
            task = Task(bench, bench.matrix("ml20m"), objective, k)
            for side, side_name in enumerate(("users", "items")):
                task.half(side)
                name = {"objective": objective, "k": k, "side": side_name}
                (frame_ms,), _ = median_ms(bench.xp, [partial(_frame, task, side)])
                total = 0.0
                for launch, run, lengths in _launches(task, side):
                    # Several in one measurement, so that the host is ahead of the device.
                    (ms,), _ = median_ms(bench.xp, [lambda run=run: [run() for _ in range(5)]])
                    ms = float(ms) / 5
                    total += ms
                    yield {
                        **name,
                        "rows": len(lengths),
                        "ms": ms,
                        **bench.ceilings.achieved(ms, Work.of(lengths, k)),
                        "what": f"{launch.kernel} {_macros(launch)}",
                    }
                (whole,), _ = median_ms(bench.xp, [partial(task.half, side)])
                rows = len(task.lengths[side])
                yield {**name, "rows": rows, "ms": total, "what": "these launches together"}
                yield {**name, "rows": rows, "ms": float(frame_ms), "what": "base and rotation"}
                yield {**name, "rows": rows, "ms": float(whole), "what": "the half-sweep"}


def _frame(task: Task, side: int) -> Any:
    return make_frame(task.backend, task.problems[side], task.factors[1 - side], rotate=True)


def _launches(task: Task, side: int) -> Iterator[tuple[Launch, Callable[[], None], np.ndarray]]:
    """Yield each launch of a half-sweep's plan, what runs it, and its rows' lengths."""
    xp, problem, fused = task.xp, task.problems[side], task.backend.fused
    n_rows, k = task.factors[side].shape
    frame = _frame(task, side)
    z = xp.zeros((n_rows, stride_of(k)), np.float32)
    sweep = fused.describe(problem, frame, SOLVER, z)
    lengths = task.lengths[side][xp.asnumpy(problem.places)]
    for launch in fused.plan(problem, frame, SOLVER).launches:
        run = partial(fused.launch, launch, sweep)
        yield launch, run, lengths[launch.start : launch.stop]


def _macros(launch: Launch) -> str:
    return " ".join(f"{name}={value}" for name, value in launch.macros)


def precision(bench: Bench) -> Iterator[Row]:
    """Time the other precisions, and report how far their results are from float64."""
    for objective in ("implicit", "explicit"):
        for how in ("float32", "tf32x3", "float16"):
            name = {"shape": "ml20m", "objective": objective, "k": MAIN_K, "path": how}
            task = Task(bench, bench.matrix("ml20m"), objective, MAIN_K, how)
            yield {**name, **task.time()}
            checked = {**name, **task.check()}
            yield checked if how == "float16" else judged(checked)  # float16 factors are rounded


def epochs(bench: Bench) -> Iterator[Row]:
    """Time an epoch of iALS at ever larger widths."""
    shape, per_flop = bench.shape("msd"), 0.0
    for k in QUICK_EPOCH_KS if bench.quick else EPOCH_KS:
        name = {"shape": "msd", "objective": "ials", "k": k}
        refused = bench.refusal(shape.device_bytes(k))
        if refused:
            yield {**name, "note": refused}
            continue
        matrix = bench.matrix("msd")
        flops = sum(Work.of(np.diff(rows.indptr), k).flops for rows in matrix.sides)
        expected, left = flops * per_flop, bench.left()
        if expected > left:
            yield {**name, "note": f"left out: some {expected:.0f} s, {left:.0f} s are left"}
            continue
        task = Task(bench, matrix, "ials", k)
        row = task.time(repeats=2, enough=5.0)
        per_flop = row["ms"] / 1e3 / flops
        yield {**name, "path": "kernels", **row}
        # Two more epochs and some float64 systems: few where those are large.
        if bench.left() > 3e-3 * row["ms"]:
            yield judged({**name, **task.check(max(4, min(SAMPLED_ROWS, (1 << 29) // k**2)))})
        del task


SECTIONS: dict[str, Section] = {
    "ceilings": (ceilings, 10),
    "compile": (compile_kernels, 40),
    "tests": (run_tests, 80),
    "agreement": (agreement, 30),
    "ml20m": (partial(iterations, shape="ml20m", objectives=("implicit", "explicit")), 70),
    "kernels": (kernels, 30),
    "precision": (precision, 25),
    "counts": (partial(iterations, shape="ml20m", objectives=("counts",), every_width=False), 15),
    "lastfm": (partial(iterations, shape="lastfm", objectives=("implicit", "explicit")), 45),
    "netflix": (partial(iterations, shape="netflix", objectives=("explicit", "implicit")), 70),
    "msd": (epochs, 120),
}
"""What runs, in this order, and its share of the time in seconds."""


def targets(sections: dict[str, dict[str, Any]]) -> list[Row]:
    """Hold the rows of all sections to what was aimed at; None where it was not measured."""
    rows = [row for entry in sections.values() for row in entry["rows"]]
    timed = {
        (row["shape"], row["objective"], row["k"], row["path"]): row
        for row in rows
        if "path" in row and "ms" in row
    }

    def row(what: str, found: list[float], wanted: float, *, at_least: bool) -> Row:
        worst = (min if at_least else max)(found, default=None)
        met = None if worst is None else (worst >= wanted if at_least else worst <= wanted)
        return {"target": what, "wanted": wanted, "found": worst, "met": met}

    def times_faster(other: str, shapes: tuple[str, ...]) -> list[float]:
        return [
            theirs["ms"] / timed[*key, "kernels"]["ms"]
            for (*key, path), theirs in timed.items()
            if path == other and key[0] in shapes and key[2] == MAIN_K
        ]

    recommenders = "ml20m", "lastfm"
    checks = [row["max_error"] for row in rows if "ok" in row and "max_error" in row]
    return [
        *[
            row(
                f"times faster than implicit, {shape}, k = {MAIN_K}",
                times_faster("implicit, 3 CG steps", (shape,)), 10, at_least=True,
            )
            for shape in recommenders
        ],
        row(
            f"times faster than our general path, k = {MAIN_K}",
            times_faster("general", tuple(SHAPES)), 10, at_least=True,
        ),
        *[
            row(
                f"of the floor, k = {k}",
                [
                    one["of_floor"] for key, one in timed.items()
                    if key[2:] == (k, "kernels") and key[1] != "counts"
                ],
                0.5, at_least=True,
            )
            for k in (64, 128)
        ],
        row(
            "s for an epoch of iALS, msd, k = 8192",
            [one["ms"] / 1e3 for key, one in timed.items() if key[1:3] == ("ials", 8192)],
            120, at_least=False,
        ),
        row("relative difference to float64", checks, TOLERANCE, at_least=False),
    ]  # fmt: skip


def environment(xp: Any) -> Row:
    """Return what figures must be read with."""
    properties = xp.cuda.runtime.getDeviceProperties(xp.cuda.runtime.getDevice())
    try:
        implicit: str | None = metadata.version("implicit")
    except metadata.PackageNotFoundError:
        implicit = None
    return {
        "device": properties["name"].decode(),
        "compute_capability": f"{properties['major']}.{properties['minor']}",
        "multiprocessors": properties["multiProcessorCount"],
        "memory_GB": properties["totalGlobalMem"] / 1e9,
        "driver": xp.cuda.runtime.driverGetVersion(),
        "cuda": xp.cuda.runtime.runtimeGetVersion(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "cupy": xp.__version__,
        "implicit": implicit,
        "gpu_als": gpu_als.__version__,
        "date": datetime.date.today().isoformat(),
    }


def main(argv: list[str] | None = None, clock: Callable[[], float] = time.monotonic) -> int:
    """Run the sections, print the tables and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SECTIONS, metavar="SECTION",
                        help=f"some of {', '.join(SECTIONS)}")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="small matrices: a smoke test")
    parser.add_argument("--seconds", type=float, default=TOTAL_SECONDS, help="for everything")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    arguments = parser.parse_args(argv)
    bench = Bench(None, quick=arguments.quick)
    try:
        bench.xp = bench.backend().xp
    except BackendError as error:
        print(error, file=sys.stderr)
        return 2
    sections = {name: SECTIONS[name] for name in SECTIONS if name in (arguments.only or SECTIONS)}
    machine = environment(bench.xp)
    for name, value in machine.items():
        print(f"{name}: {text_of(value)}")
    device = re.sub(r"\W+", "-", machine["device"].lower())
    kind = "-quick" if arguments.quick else "".join(f"-{name}" for name in arguments.only or ())
    arguments.output.mkdir(parents=True, exist_ok=True)
    path = arguments.output / f"gpu-{device}-{machine['date']}{kind}.json"
    results: dict[str, Any] = {"machine": machine, "quick": arguments.quick, "sections": {}}

    def save() -> None:
        results["targets"] = targets(results["sections"])
        write_whole(path, results)

    # Should a call into CUDA never return, no alarm is heard: this ends the process from outside.
    faulthandler.dump_traceback_later(arguments.seconds + 15, exit=True, file=sys.__stderr__)
    try:
        with warnings.catch_warnings():
            # A kernel that does not compile is to be seen here, not replaced.
            warnings.filterwarnings("error", message=".*using the general path")
            run_sections(sections, bench, results["sections"], arguments.seconds, save, clock)
    finally:
        faulthandler.cancel_dump_traceback_later()
    if not arguments.quick:
        print()
        table = Table()
        for row in results["targets"]:
            table.show(row)
    failed = failures(results["sections"])
    print(
        f"\nwritten to {path}; " + (f"FAILED: {', '.join(failed)}" if failed else "no check failed")
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
