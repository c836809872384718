"""``recommend`` on the CPU beside ``implicit``'s, in one run on one machine.

Both get the same normally distributed factors and threads, ``OPENBLAS_NUM_THREADS=1`` as
``implicit`` asks, and take turns. Ratios are given for the shortest times, for the median over
turns, and for processor time, which other work on the machine disturbs less. The floor is the
matrix products alone, measured in the same turns, with threads that are there beforehand.

    python benchmarks/ranking_vs_implicit.py [--only many few] [--turns 7] [--write]
"""

from __future__ import annotations

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before NumPy loads

import argparse
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import scipy.sparse as sp
from harness import machine, write_results
from implicit.cpu.als import AlternatingLeastSquares as Peer

from gpu_als import AlternatingLeastSquares

LIKES = 100  # of each user


class Case(NamedTuple):
    """What is asked for, and the ratio to reach."""

    users: int
    items: int
    k: int
    n_best: int
    filtered: bool
    target: float


CASES = {
    "many": [
        *(
            Case(20_000, 20_000, k, 10, filtered, target)
            for k in (64, 128)
            for filtered, target in ((False, 1.8), (True, 3.5))
        ),
        *(Case(20_000, 20_000, 64, 100, f, 1.0) for f in (False, True)),
        *(Case(1_000, 1_000_000, 64, 10, f, 1.3) for f in (False, True)),
    ],
    "few": [
        Case(users, items, 64, 10, filtered, 1.0)
        for users in (1, 50)
        for items in (20_000, 1_000_000)
        for filtered in (False, True)
    ],
}


def models(case: Case, threads: int) -> tuple[Any, Any]:
    """Return both packages' models with the same factors."""
    ours = AlternatingLeastSquares(factors=case.k, num_threads=threads, use_gpu=False)
    peer = Peer(factors=case.k, num_threads=threads)
    rng = np.random.default_rng(case.k)
    users, items = (
        rng.standard_normal((n, case.k), dtype=np.float32) for n in (case.users, case.items)
    )
    for model in (ours, peer):
        model.user_factors, model.item_factors = users, items
    return ours, peer


def likes(case: Case) -> sp.csr_matrix:
    """Return items that each user likes, drawn evenly."""
    indices = np.random.default_rng(9).integers(0, case.items, (case.users, LIKES), dtype=np.int32)
    indptr = np.arange(case.users + 1) * LIKES
    matrix = sp.csr_matrix(
        (np.ones(indices.size, np.float32), indices.reshape(-1), indptr),
        shape=(case.users, case.items),
    )
    matrix.sum_duplicates()
    return matrix


def products(model: Any, pool: ThreadPoolExecutor, threads: int) -> Callable[[], None]:
    """Return a function that computes all scores, tile by tile, and does nothing with them."""
    users, items = model.user_factors, model.item_factors
    height = max(1, min(480, -(-len(users) // threads)))
    width = min(len(items), (1 << 20) // height)
    tiles = [np.empty((width, height), np.float32) for _ in range(threads)]
    starts = range(0, len(users), height)

    def share(thread: int) -> None:
        """Take every threads-th block, in a tile of this thread's own."""
        for start in starts[thread::threads]:
            rows = users[start : start + height]
            for first in range(0, len(items), width):
                part = items[first : first + width]
                np.matmul(part, rows.T, out=tiles[thread][: len(part), : len(rows)])

    def run() -> None:
        if len(starts) == 1:  # not worth handing over to another thread
            share(0)
        else:
            list(pool.map(share, range(threads)))

    return run


def clock(function: Callable[[], Any]) -> tuple[float, float, Any]:
    """Return seconds by the wall and of processor time, and the result."""
    wall, processor = time.perf_counter(), time.process_time()
    result = function()
    return time.perf_counter() - wall, time.process_time() - processor, result


def compare(case: Case, pool: ThreadPoolExecutor, threads: int, turns: int) -> dict[str, Any]:
    """Time both packages and the products alone in turns."""
    ours, peer = models(case, threads)
    rows = likes(case) if case.filtered else None
    users = np.arange(case.users) if case.users > 1 else 0
    contestants: dict[str, Callable[[], Any]] = {
        name: lambda model=model: model.recommend(  # type: ignore[misc]
            users, rows, N=case.n_best, filter_already_liked_items=case.filtered
        )
        for name, model in (("ours", ours), ("peer", peer))
    }
    contestants["floor"] = products(ours, pool, threads)
    found = {name: function() for name, function in contestants.items()}  # once, untimed
    wall: dict[str, list[float]] = {name: [] for name in contestants}
    processor: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(turns):
        for name, function in contestants.items():
            seconds, processor_seconds, _ = clock(function)
            wall[name].append(seconds)
            processor[name].append(processor_seconds)
    ratios = np.array(wall["peer"]) / np.array(wall["ours"])
    return case._asdict() | {
        **{name: min(times) for name, times in wall.items()},
        "ratio": min(wall["peer"]) / min(wall["ours"]),
        "ratio_median": float(np.median(ratios)),
        "ratio_spread": [float(q) for q in np.quantile(ratios, [0.1, 0.9])],
        "ratio_processor": min(processor["peer"]) / min(processor["ours"]),
        "same_items": float((found["ours"][0] == found["peer"][0]).mean()),
    }


def main() -> None:
    """Run the cases and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/*.json")
    arguments = parser.parse_args()
    results: dict[str, Any] = {
        "machine": machine("implicit"), "threads": arguments.threads, "rows": [],
    }  # fmt: skip
    for name, value in results["machine"].items():
        print(f"{name}: {value}")
    print(f"{arguments.threads} threads, {arguments.turns} turns (more for one user)\n")
    print(
        "users     items    k    N  filtered  implicit ms  gpu_als ms  products ms   "
        "ratio: best  median  10-90 %     processor  target  same items"
    )
    pool = ThreadPoolExecutor(arguments.threads)
    for section in arguments.only:
        for case in CASES[section]:
            # short calls need more turns
            turns = arguments.turns * max(1, 2_000_000 // (case.users * case.items))
            row = compare(case, pool, arguments.threads, turns)
            low, high = row["ratio_spread"]
            print(
                f"{case.users:6,} {case.items:9,} {case.k:4} {case.n_best:4}  "
                f"{'yes' if case.filtered else 'no':8} {1e3 * row['peer']:12.2f} "
                f"{1e3 * row['ours']:11.2f} {1e3 * row['floor']:12.2f} {row['ratio']:14.2f} "
                f"{row['ratio_median']:7.2f}  {low:.2f}-{high:.2f} {row['ratio_processor']:12.2f} "
                f"{case.target:7.1f}  {row['same_items']:.4f}",
                flush=True,
            )
            results["rows"].append(row)
    if arguments.write:
        print(f"written to {write_results('ranking-vs-implicit', results)}")


if __name__ == "__main__":
    main()
