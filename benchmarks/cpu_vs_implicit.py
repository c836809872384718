"""The NumPy backend beside ``implicit``'s compiled CPU code, in one run on one machine.

Power-law data, 100,000 x 20,000 with 5,000,000 entries (median user 27). Both start from the same
factors and use the same threads, ``OPENBLAS_NUM_THREADS=1`` for ``implicit`` as it asks for. Times
are the shortest iteration of a few, taken in turns; the losses are compared after the same number
of iterations.

    python benchmarks/cpu_vs_implicit.py [--only exact cg memory] [--write]
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before NumPy loads

import argparse
import resource
import subprocess
import sys
from typing import Any

import numpy as np
import scipy.sparse as sp
from harness import ceilings, machine, sweep_floor, write_results
from implicit.cpu.als import AlternatingLeastSquares as Peer
from powerlaw import powerlaw_interactions

from gpu_als import AlternatingLeastSquares

SHAPE = (100_000, 20_000, 5_000_000)
REGULARIZATION = 0.01
TARGETS = {
    ("exact", 64): 2.5, ("exact", 128): 4.0, ("exact", 256): 6.0, ("cg", 64): 1.0, ("cg", 128): 1.0,
}  # fmt: skip


def interactions() -> sp.csr_matrix:
    """Return the benchmark's matrix."""
    users, items, entries = SHAPE
    return powerlaw_interactions(users, items, entries, median_user=27, seed=20)


def start(model: Any, matrix: sp.csr_matrix, k: int) -> Any:
    """Give a model its initial factors: the same for every model of that width."""
    rng = np.random.default_rng(k)
    model.user_factors = rng.random((matrix.shape[0], k), dtype=np.float32) * np.float32(0.01)
    model.item_factors = rng.random((matrix.shape[1], k), dtype=np.float32) * np.float32(0.01)
    return model


def models(k: int, threads: int, use_cg: bool, iterations: int) -> tuple[Any, Any]:
    """Return ours and the peer's model with the same parameters."""
    options = {
        "factors": k, "regularization": REGULARIZATION, "use_cg": use_cg, "iterations": iterations,
        "num_threads": threads,
    }  # fmt: skip
    return AlternatingLeastSquares(use_gpu=False, **options), Peer(**options)


def loss(model: Any, matrix: sp.csr_matrix) -> float:
    """Return the objective in float64, by the formula both packages document."""
    x, y = (side.astype(np.float64) for side in (model.user_factors, model.item_factors))
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    observed = 0.0
    for first in range(0, matrix.nnz, 500_000):
        block = slice(first, first + 500_000)
        s = np.einsum("nk,nk->n", x[rows[block]], y[matrix.indices[block]])
        observed += (matrix.data[block] * (1 - s) ** 2 - s**2).sum()
    ridge = REGULARIZATION * (np.sum(x**2) + np.sum(y**2))
    return float(np.sum((x.T @ x) * (y.T @ y)) + observed + ridge)


def compare_fit(
    matrix: sp.csr_matrix, k: int, threads: int, use_cg: bool, iterations: int
) -> dict[str, Any]:
    """Time both packages' iterations, one iteration of each in turn."""
    ours, peer = (start(m, matrix, k) for m in models(k, threads, use_cg, 1))
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    for _ in range(iterations):
        ours.fit(matrix, show_progress=False, callback=lambda i, s, _: times["ours"].append(s))
        peer.fit(matrix, show_progress=False, callback=lambda i, s, _: times["peer"].append(s))
    difference = loss(ours, matrix) / loss(peer, matrix) - 1
    return {"ours": min(times["ours"]), "peer": min(times["peer"]), "loss_difference": difference}


def measure_memory(k: int, threads: int) -> dict[str, float]:
    """Return the peak memory of a fit in a process of its own, beside what it may take."""
    script = (
        "import cpu_vs_implicit as b\n"
        f"b.fit_and_print_memory({k}, {threads})\n"
    )  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=os.path.dirname(os.path.abspath(__file__)), check=True, capture_output=True, text=True,
    )  # fmt: skip
    before, after, limit = (float(word) for word in done.stdout.split())
    return {"fit_mb": after - before, "limit_mb": limit}


def fit_and_print_memory(k: int, threads: int) -> None:
    """Fit once; print the peak MB before the fit, after it, and the growth allowed."""
    matrix = interactions()
    ours, _ = models(k, threads, False, 1)
    ours.use_gpu = False
    # The generator's own peak would hide the fit's: reset it (Linux).
    with open("/proc/self/clear_refs", "w") as refs:
        refs.write("5")
    before = _memory("VmRSS")
    ours.fit(matrix, show_progress=False)
    csr = matrix.data.nbytes + matrix.indices.nbytes + matrix.indptr.nbytes
    factors = ours.user_factors.nbytes + ours.item_factors.nbytes
    # the caller's own orientation is there before the fit
    print(before, _memory("VmHWM"), (csr + factors) / 1e6 + 300)


def _memory(field: str) -> float:
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith(field))
    return int(line.split()[1]) * 1024 / 1e6


def main() -> None:
    """Run the sections and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    sections = ("exact", "cg", "memory")
    parser.add_argument("--only", nargs="+", choices=sections, default=sections)
    parser.add_argument("--factors", nargs="+", type=int, default=[64, 128, 256])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--iterations", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/*.json")
    arguments = parser.parse_args()
    matrix, threads = interactions(), arguments.threads
    ceiling = ceilings(threads)
    results: dict[str, Any] = {
        "machine": machine("implicit"), "threads": threads, "ceilings": ceiling, "rows": [],
    }  # fmt: skip
    for name, value in results["machine"].items():
        print(f"{name}: {value}")
    print(
        f"{matrix.shape[0]:,} x {matrix.shape[1]:,}, {matrix.nnz:,} entries, median user "
        f"{np.median(np.diff(matrix.indptr)):.0f}, {threads} threads; ceilings "
        f"{ceiling['flops'] / 1e9:.0f} GFLOP/s, {ceiling['bytes'] / 1e9:.1f} GB/s\n"
    )
    print("what        k   implicit s  gpu_als s   ratio  target   floor s  loss difference")
    for section in arguments.only:
        for k in arguments.factors:
            if section == "memory":
                row = measure_memory(k, threads)
                print(
                    f"memory    {k:3}   the fit took {row['fit_mb']:.0f} MB of "
                    f"{row['limit_mb']:.0f} MB"
                )
                results["rows"].append({"what": section, "k": k, **row})
                continue
            if (section, k) not in TARGETS:
                continue
            row = compare_fit(matrix, k, threads, section == "cg", arguments.iterations)
            floor = sweep_floor(matrix, k, ceiling)[0] if section == "exact" else 0.0
            shown = f"{row['loss_difference']:+.1e}"
            row |= {"ratio": row["peer"] / row["ours"], "target": TARGETS[section, k]}
            print(
                f"{section:9} {k:3}   {row['peer']:10.2f} {row['ours']:10.2f} {row['ratio']:7.2f} "
                f"{row['target']:7.1f} {floor:9.2f}  {shown}",
                flush=True,
            )
            results["rows"].append({"what": section, "k": k, "floor": floor, **row})
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"peak memory of this whole run: {peak / 1e6:.1f} GB")
    if arguments.write:
        print(f"written to {write_results('cpu-vs-implicit', results)}")


if __name__ == "__main__":
    main()
