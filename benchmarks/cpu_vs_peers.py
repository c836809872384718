"""Iterations on the CPU beside those of ``implicit`` and irspack, in one run on one machine.

Each package runs two iterations (of both half-sweeps) in turn, of which the second one counts, with
the same number of threads and ``OPENBLAS_NUM_THREADS=1``, as ``implicit`` asks for. Ours and
``implicit`` start from the same factors. Times are the shortest of a few turns; ratios are taken
within the run.

    python benchmarks/cpu_vs_peers.py [--only main short ials] [--factors 64 128] [--write]

irspack comes from PyPI (``pip install irspack``); without it the part "ials" is left out.
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before NumPy loads

import argparse
import importlib.util
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import scipy.sparse as sp
from harness import ceilings, machine, sweep_floor, write_results
from implicit.cpu.als import AlternatingLeastSquares as Implicit
from powerlaw import powerlaw_interactions

from gpu_als import AlternatingLeastSquares

SHAPES = {  # users, items, entries, median entries of a user
    "main": (100_000, 20_000, 5_000_000, 27),
    "short": (1_000_000, 50_000, 12_000_000, 10),
    "ml-1m": (6_040, 3_706, 1_000_209, 96),
}
REGULARIZATION = 0.01
IALS = {"unobserved_weight": 0.3, "regularization_exponent": 1.0, "regularization": 0.003}

Marks = list[tuple[float, float]]
Iterations = Callable[[], Marks]
"""Runs two iterations; returns the wall-clock and processor seconds after each."""


def now() -> tuple[float, float]:
    """Return the seconds of the clock and of this process."""
    return time.perf_counter(), time.process_time()


def interactions(name: str) -> sp.csr_matrix:
    """Return the matrix of a shape."""
    *shape, median = SHAPES[name]
    return powerlaw_interactions(*shape, median_user=median, seed=20)


def estimator(kind: type, matrix: sp.csr_matrix, k: int, **options: Any) -> tuple[Any, Iterations]:
    """Return a model with given first factors, the same for every kind, and its iterations."""
    if kind is AlternatingLeastSquares:
        options["use_gpu"] = False
    model = kind(factors=k, iterations=2, **{"regularization": REGULARIZATION} | options)
    rng = np.random.default_rng(k)
    model.user_factors = rng.random((matrix.shape[0], k), dtype=np.float32) * np.float32(0.01)
    model.item_factors = rng.random((matrix.shape[1], k), dtype=np.float32) * np.float32(0.01)

    def iterate() -> Marks:
        marks: Marks = []
        model.fit(matrix, show_progress=False, callback=lambda *_: marks.append(now()))
        return marks

    return model, iterate


def irspack(matrix: sp.csr_matrix, k: int, threads: int) -> Iterations:
    """Return two epochs of irspack's iALS with three conjugate-gradient steps."""
    from irspack.recommenders.ials import IALSRecommender

    recommender = IALSRecommender(
        matrix.astype(np.float64), k, alpha0=IALS["unobserved_weight"], nu=1.0,
        reg=IALS["regularization"], solver_type="CG", max_cg_steps=3, n_threads=threads,
    )  # fmt: skip
    trainer = recommender._create_trainer()

    def iterate() -> Marks:
        marks: Marks = []
        for _ in range(2):
            trainer.run_epoch()
            marks.append(now())
        return marks

    return iterate


def in_turn(
    iterations: dict[str, Iterations], turns: dict[str, int]
) -> dict[str, dict[str, float]]:
    """Return the shortest wall-clock and processor seconds of each, taken in turns."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in iterations}
    for turn in range(max(turns.values())):
        for name, iterate in iterations.items():
            if turn < turns[name]:
                first, second = iterate()
                times[name].append((second[0] - first[0], second[1] - first[1]))
    return {
        name: {"wall": min(wall for wall, _ in some), "cpu": min(cpu for _, cpu in some)}
        for name, some in times.items()
    }


def loss(model: Any, matrix: sp.csr_matrix) -> float:
    """Return the objective in float64, by the formula that ``implicit`` documents."""
    x, y = (side.astype(np.float64) for side in (model.user_factors, model.item_factors))
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    observed = 0.0
    for first in range(0, matrix.nnz, 500_000):
        block = slice(first, first + 500_000)
        s = np.einsum("nk,nk->n", x[rows[block]], y[matrix.indices[block]])
        observed += (matrix.data[block] * (1 - s) ** 2 - s**2).sum()
    ridge = REGULARIZATION * (np.sum(x**2) + np.sum(y**2))
    return float(np.sum((x.T @ x) * (y.T @ y)) + observed + ridge)


def beside_implicit(matrix: sp.csr_matrix, k: int, threads: int, turns: int) -> dict[str, Any]:
    """Exact solves and conjugate gradients of both packages; losses after as many iterations."""
    ways = {
        "ours": (AlternatingLeastSquares, {"use_cg": False}),
        "ours, 3 steps": (AlternatingLeastSquares, {"use_cg": True}),
        "implicit, 3 steps": (Implicit, {"use_cg": True}),
        "implicit, exact": (Implicit, {"use_cg": False}),
    }
    made = {
        name: estimator(kind, matrix, k, num_threads=threads, **options)
        for name, (kind, options) in ways.items()
    }
    how_often = dict.fromkeys(made, turns) | {"implicit, exact": 1}
    times = in_turn({name: iterate for name, (_, iterate) in made.items()}, how_often)
    exact = loss(made["ours"][0], matrix)
    losses = {
        name: loss(model, matrix) / exact - 1
        for name, (model, _) in made.items()
        if how_often[name] == turns
    }
    report = made["ours"][0].report_
    return {"times": times, "losses": losses, "ways": report.user_rows, "bounds": report.bounds}


def beside_irspack(matrix: sp.csr_matrix, k: int, threads: int, turns: int) -> dict[str, Any]:
    """IALS with the ridge in proportion to a row's cells: ours exactly, irspack in three steps."""
    options = IALS | {"num_threads": threads}
    iterations = {
        "ours": estimator(AlternatingLeastSquares, matrix, k, use_cg=False, **options)[1],
        "ours, 3 steps": estimator(AlternatingLeastSquares, matrix, k, use_cg=True, **options)[1],
        "irspack, 3 steps": irspack(matrix, k, threads),
    }
    return {"times": in_turn(iterations, dict.fromkeys(iterations, turns))}


def main() -> None:
    """Run the parts and print their tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ("main", "short", "ials")
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--factors", nargs="+", type=int, default=[64, 128, 256])
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/*.json")
    arguments = parser.parse_args()
    threads, turns = arguments.threads, arguments.turns
    ceiling = ceilings(threads)
    peers = ["implicit"] + ["irspack"] * (importlib.util.find_spec("irspack") is not None)
    results: dict[str, Any] = {
        "machine": machine(*peers), "threads": threads, "ceilings": ceiling, "rows": [],
    }  # fmt: skip
    for name, value in results["machine"].items():
        print(f"{name}: {value}")
    rates = f"{ceiling['flops'] / 1e9:.0f} GFLOP/s, {ceiling['bytes'] / 1e9:.1f} GB/s"
    print(f"{threads} threads; ceilings {rates}")

    cases = [("main", k, beside_implicit) for k in arguments.factors if "main" in arguments.only]
    if "short" in arguments.only:
        cases.append(("short", 64, beside_implicit))
    if "ials" in arguments.only and "irspack" in peers:
        shapes = ("ml-1m", "main")
        cases += [(name, k, beside_irspack) for name in shapes for k in arguments.factors]
    matrices: dict[str, sp.csr_matrix] = {}
    for name, k, compare in cases:
        if name not in matrices:
            matrices = {name: interactions(name)}
            shape, lengths = matrices[name].shape, np.diff(matrices[name].indptr)
            print(
                f"\n{shape[0]:,} x {shape[1]:,}, {matrices[name].nnz:,} entries, median user "
                f"{np.median(lengths):.0f}\n   k  what                wall s   cpu s   wall of ours"
                "   loss above ours"
            )
        row = compare(matrices[name], k, threads, turns)
        row["floor"] = sweep_floor(matrices[name], k, ceiling)[0]
        for what, seconds in row["times"].items():
            ratio = seconds["wall"] / row["times"]["ours"]["wall"]
            above = row.get("losses", {}).get(what)
            print(
                f"{k:4}  {what:18}{seconds['wall']:8.2f}{seconds['cpu']:8.2f}{ratio:15.2f}"
                + (f"{above:18.1e}" if above is not None else ""),
                flush=True,
            )
        print(f"{k:4}  {'floor, direct':18}{row['floor']:8.2f}", flush=True)
        results["rows"].append({"shape": name, "k": k, "part": compare.__name__, **row})
    if arguments.write:
        print(f"written to {write_results('cpu-vs-peers', results)}")


if __name__ == "__main__":
    main()
