"""What every benchmark shares: the machine's ceilings, the floor of a sweep, results on disk."""

from __future__ import annotations

import datetime
import json
import os
import platform
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse as sp

RESULTS = Path(__file__).parent / "results"


def machine(*packages: str) -> dict[str, Any]:
    """Return what a figure must be read with: processor, versions, date."""
    processor = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith("model name")]
        processor = names[0].split(":")[1].strip() if names else processor
    versions = {name: metadata.version(name) for name in ("gpu-als", "numpy", "scipy", *packages)}
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **versions,
        "date": datetime.date.today().isoformat(),
    }


def best_seconds(function: Callable[[], Any], repeats: int) -> float:
    """Return the shortest of several runs."""
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        function()
        times.append(time.perf_counter() - begin)
    return min(times)


def ceilings(threads: int) -> dict[str, float]:
    """Measure float32 matrix products (FLOP/s) and copies (bytes/s) with ``threads`` threads."""
    rng = np.random.default_rng(7)
    a = rng.standard_normal((1024, 1024), dtype=np.float32)
    large = rng.standard_normal(1 << 25, dtype=np.float32)
    copies = [(large, np.empty_like(large)) for _ in range(threads)]
    with ThreadPoolExecutor(threads) as pool:
        product = best_seconds(lambda: list(pool.map(lambda _: a @ a, range(threads))), 5)
        copy = best_seconds(lambda: list(pool.map(lambda p: np.copyto(p[1], p[0]), copies)), 3)
    return {
        "flops": threads * 2 * 1024**3 / product,
        "bytes": threads * 2 * large.nbytes / copy,
    }


def sweep_floor(
    user_items: sp.csr_matrix, k: int, ceiling: dict[str, float]
) -> tuple[float, float, float]:
    """Return (seconds, flops, bytes) below which no exact sweep over both sides can come.

    Rows cost the cheaper of the dual ``n^2 k + n^3/3`` and the primal ``n k^2 + k^3/3``; every
    entry gathers one row of factors, an index and a value. The floor is the larger of the two
    times at the measured ceilings.
    """
    flops = moved = 0.0
    for n in (np.diff(user_items.indptr), np.bincount(user_items.indices)):
        n = n.astype(np.float64)
        flops += np.minimum(n**2 * k + n**3 / 3, n * k**2 + k**3 / 3).sum()
        moved += n.sum() * (4 * k + 8)
    return max(flops / ceiling["flops"], moved / ceiling["bytes"]), flops, moved


def write_results(name: str, results: dict[str, Any]) -> Path:
    """Write results as JSON under ``benchmarks/results`` and return the path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}-{results['machine']['date']}.json"
    path.write_text(json.dumps(results, indent=2) + "\n")
    return path
