"""What there is to measure on one GPU, in two calls, for when it is at hand for minutes only.

    python benchmarks/gpu_suite.py --call 1 --output FOLDER     (at most 150 s)
    python benchmarks/gpu_suite.py --call 2 --output FOLDER     (at most 480 s)

Half-sweeps and whole iterations by CUDA events, beside the floor that the same run's ceilings set
(gpu_floor.py), on seeded matrices of well-known sizes (gpu_shapes.py). The first call tells whether
kernels compile and are right, and how long each takes:

    ceilings   a copy; matrix products in float32 and TF32
    peer       whether ``implicit`` trains here
    compile    the kernels of k = 128
    agreement  every row of a small matrix beside the NumPy backend in float64
    kernels    each launch of a half-sweep alone

The second compares, what matters most first:

    ml20m, lastfm    iterations, implicit, k = 128: ``implicit``'s in the same run, then ours
    default          three steps of conjugate gradients, as ``AlternatingLeastSquares`` has it
    clocks           what nvidia-smi says meanwhile
    k64, k256        iterations, implicit, ``implicit``'s first
    explicit         iterations
    general          our general path
    ranking          the best items for many users, ``implicit``'s first
    fits             whole fits, data resident and streamed: time, bits, memory beside the plan's
    precision        "tf32x3" and "float16"
    counts           alpha = 1, where many entries have confidence 1 and need no system; the floor
                     is that of entries that do
    netflix          iterations
    msd              one epoch of iALS at ever larger widths, as far as the time goes
    tests            pytest -m gpu
    profile, races   five launches in Nsight Compute, a small matrix in compute-sanitizer, where
                     these programs are

Results are checked: solved twice they must be equal to the bit, and within 2e-5 of a float64
solution in a row of every length. A section gets its share of the time that is left, so what one
does not use later ones may; what its time does not suffice for is left out with a note, and no
section stops another. Results are written after every measurement, beside them the output of other
programs. The exit status is 1 if a check failed, or a section, and 2 without a GPU.

The package need not be installed, nor ``implicit`` (that it is missing is said at the start).
gpu_wheels.py brings it along where nothing can be downloaded.
"""

from __future__ import annotations

import argparse
import datetime
import faulthandler
import os
import platform
import re
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))  # the package beside this, installed or not

import gpu_sections
import numpy as np
import scipy
from gpu_peer import Peer
from gpu_run import Row, Section, Table, failures, run_sections, text_of, write_whole
from gpu_sections import CG_PATH, PEER_PATH
from gpu_shapes import SHAPES
from gpu_task import MAIN_K, TOLERANCE, Bench

import gpu_als
from gpu_als.errors import BackendError

RESULTS = Path(__file__).parent / "results"


def _iterations(*cases: gpu_sections.Case, beside_peer: bool = False) -> Any:
    return lambda bench: gpu_sections.iterations(bench, *cases, beside_peer=beside_peer)


SECTIONS: dict[str, Section] = {
    "ceilings": (gpu_sections.ceilings, 8),
    "peer": (gpu_sections.peer, 12),
    "compile": (gpu_sections.compile_kernels, 35),
    "agreement": (gpu_sections.agreement, 25),
    "kernels": (gpu_sections.kernels, 60),
    "ml20m": (_iterations(("ml20m", "implicit", MAIN_K), beside_peer=True), 35),
    "lastfm": (_iterations(("lastfm", "implicit", MAIN_K), beside_peer=True), 35),
    "default": (gpu_sections.default_solver, 15),
    "clocks": (gpu_sections.clocks, 8),
    "k64": (
        _iterations(("ml20m", "implicit", 64), ("lastfm", "implicit", 64), beside_peer=True),
        25,
    ),
    "k256": (
        _iterations(("ml20m", "implicit", 256), ("lastfm", "implicit", 256), beside_peer=True),
        25,
    ),
    "explicit": (_iterations(*(("ml20m", "explicit", k) for k in (MAIN_K, 64, 256))), 25),
    "general": (gpu_sections.general_path, 10),
    "ranking": (gpu_sections.ranking, 20),
    "fits": (gpu_sections.fits, 25),
    "precision": (gpu_sections.precision, 15),
    "counts": (_iterations(("ml20m", "counts", MAIN_K)), 8),
    "netflix": (_iterations(("netflix", "explicit", MAIN_K), ("netflix", "implicit", MAIN_K)), 45),
    "msd": (gpu_sections.epochs, 50),
    "tests": (gpu_sections.tests, 70),
    "profile": (gpu_sections.profiler, 25),
    "races": (gpu_sections.races, 20),
}
"""What runs, in this order, and its share of the time in seconds."""

_NAMES = list(SECTIONS)
CALLS = {
    1: (135.0, _NAMES[: _NAMES.index("ml20m")]),
    2: (460.0, ["ceilings", "compile", *_NAMES[_NAMES.index("ml20m") :]]),
}
"""The seconds and the sections of each call; it ends within 15 s more whatever happens."""


def targets(sections: dict[str, dict[str, Any]]) -> list[Row]:
    """Hold the rows of all sections to what was aimed at; None where it was not measured."""
    rows = [row for entry in sections.values() for row in entry["rows"]]
    timed = {
        (row["shape"], row["objective"], row["k"], row["path"]): row
        for row in rows
        if {"objective", "path", "ms"} <= row.keys()
    }

    def row(what: str, found: list[float], wanted: float, *, at_least: bool) -> Row:
        worst = (min if at_least else max)(found, default=None)
        met = None if worst is None else (worst >= wanted if at_least else worst <= wanted)
        return {"target": what, "wanted": wanted, "found": worst, "met": met}

    def times_faster(other: str, shapes: tuple[str, ...], ours: str = "kernels") -> list[float]:
        return [
            theirs["ms"] / timed[*key, ours]["ms"]
            for (*key, path), theirs in timed.items()
            if path == other and key[0] in shapes and key[2] == MAIN_K and (*key, ours) in timed
        ]

    checks = [row["max_error"] for row in rows if {"ok", "max_error"} <= row.keys()]
    return [
        *[
            row(
                f"times faster than implicit, {shape}, {solver}",
                times_faster(PEER_PATH, (shape,), ours), 10, at_least=True,
            )
            for ours, solver in (("kernels", "exact"), (CG_PATH, "3 CG steps"))
            for shape in ("ml20m", "lastfm")
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


def environment(xp: Any, implicit: str) -> Row:
    """Return what figures must be read with."""
    properties = xp.cuda.runtime.getDeviceProperties(xp.cuda.runtime.getDevice())
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
    begin = clock()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--call", type=int, choices=CALLS)
    which.add_argument("--only", nargs="+", choices=SECTIONS, metavar="SECTION",
                       help=f"some of {', '.join(SECTIONS)}")  # fmt: skip
    parser.add_argument("--quick", action="store_true", help="small matrices: a smoke test")
    parser.add_argument("--seconds", type=float, help="for everything, if not what the call has")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the results")
    arguments = parser.parse_args(argv)
    names = arguments.only or CALLS[arguments.call][1]
    chosen = {name: SECTIONS[name] for name in SECTIONS if name in names}
    seconds = arguments.seconds or sum(share for _, share in chosen.values())
    if arguments.call and not arguments.seconds:
        seconds = CALLS[arguments.call][0]
    os.environ["CUPY_ACCELERATORS"] = ""  # CUB's reductions take seconds each to compile
    arguments.output.mkdir(parents=True, exist_ok=True)
    try:
        bench = Bench(quick=arguments.quick, folder=arguments.output)
    except BackendError as error:
        print(error, file=sys.stderr)
        return 2
    # Should a call into CUDA never return, no alarm is heard: this ends the process from outside.
    faulthandler.dump_traceback_later(seconds + 10, exit=True, file=sys.__stderr__)
    peer = bench.peer = Peer()
    try:
        machine = environment(bench.xp, peer.words)
        for name, value in machine.items():
            print(f"{name}: {text_of(value)}")
        device = re.sub(r"\W+", "-", machine["device"].lower())
        kind = f"call-{arguments.call}" if arguments.call else "-".join(chosen)
        quick = "-quick" if arguments.quick else ""
        path = arguments.output / f"gpu-{device}-{machine['date']}-{kind}{quick}.json"
        results: dict[str, Any] = {"machine": machine, "quick": arguments.quick, "sections": {}}

        def save() -> None:
            results["targets"] = targets(results["sections"])
            write_whole(path, results)

        save()
        with warnings.catch_warnings():
            # A kernel that does not compile is to be seen here, not replaced.
            warnings.filterwarnings("error", message=".*using the general path")
            left = begin + seconds - clock()
            run_sections(chosen, bench, results["sections"], left, save, clock)
    finally:
        peer.close()
        faulthandler.cancel_dump_traceback_later()
    if not arguments.quick:
        print()
        table = Table()
        for row in results["targets"]:
            table.show(row)
    failed = failures(results["sections"])
    verdict = f"FAILED: {', '.join(failed)}" if failed else "no check failed"
    print(f"implicit: {peer.words}")
    print(f"written to {path}; {verdict}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
