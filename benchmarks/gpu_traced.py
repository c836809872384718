"""A few launches for another program to look at; gpu_tools.py starts both.

    python benchmarks/gpu_traced.py largest|small [--quick]

largest: the five launches of an iteration with the most arithmetic, implicit, ml20m, k = 128,
    between the marks at which a profiler begins and ends.
small: both half-sweeps of a small matrix, exact and by conjugate gradients.
"""

from __future__ import annotations

import sys

from gpu_task import CG, EXACT, Bench, Task

LARGEST = 5


def largest(bench: Bench) -> None:
    """Run the largest launches alone, once to warm up and once for the profiler."""
    task = Task(bench, bench.matrix("ml20m"), "implicit", bench.k)
    task.half(0)
    launches = sorted(
        (launch for side in (0, 1) for launch in task.launches(side)),
        key=lambda launch: launch.work.flops,
    )[-LARGEST:]
    for launch in launches:
        launch.run()
    bench.xp.cuda.runtime.deviceSynchronize()
    bench.xp.cuda.runtime.profilerStart()
    for launch in launches:
        launch.run()
    bench.xp.cuda.runtime.deviceSynchronize()
    bench.xp.cuda.runtime.profilerStop()


def small(bench: Bench) -> None:
    """Run every launch of a small matrix."""
    for objective, solver in (("implicit", EXACT), ("implicit", CG), ("explicit", EXACT)):
        task = Task(bench, bench.small, objective, bench.k, solver=solver)
        for side in (0, 1):
            task.half(side)
    bench.xp.cuda.runtime.deviceSynchronize()


if __name__ == "__main__":
    what = {"largest": largest, "small": small}[sys.argv[1]]
    what(Bench(quick="--quick" in sys.argv))
