"""Training on more data than the process may hold, in time that grows with the entries alone.

For each number of entries: data are made, converted to shards within a budget, and trained on by a
process whose address space is limited (RLIMIT_AS). Users, items and factors stay the same, so
memory should too, and time should grow linearly. Everything lies in one folder, which is removed.

    python benchmarks/out_of_core.py [--entries 1e6 1e7 1e8 2e8] [--limit 1.5G] [--write]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from harness import machine, write_results

from gpu_als.data.shards import convert

USERS, ITEMS, FACTORS = 200_000, 50_000, 32
_BLOCK = 10_000_000
_CHILD = "--child"


def make_files(folder: Path, entries: int) -> list[Path]:
    """Write triples of users, items and counts: users of very different activity, a few hits."""
    paths = []
    for number, first in enumerate(range(0, entries, _BLOCK)):
        rng = np.random.default_rng([7, number])
        size = min(_BLOCK, entries - first)
        # the first block names every user and item, so that all sizes have the same shape
        users = (USERS * rng.random(size) ** 1.5).astype(np.int32)
        items = (ITEMS * rng.random(size) ** 2).astype(np.int32)
        if number == 0:
            users[: min(USERS, size)] = np.arange(min(USERS, size))
            items[:ITEMS] = rng.permutation(ITEMS)
        path = folder / f"plays-{number:03}.npz"
        np.savez(path, users=users, items=items, ratings=rng.integers(1, 6, size, dtype=np.int8))
        paths.append(path)
    return paths


def train(folder: str, limit: int, iterations: int) -> dict[str, Any]:
    """Train in this process, under a limit, and say what it took."""
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    from gpu_als import AlternatingLeastSquares
    from gpu_als.data.shards import ShardedMatrix

    data = ShardedMatrix.open(folder)
    model = AlternatingLeastSquares(
        factors=FACTORS, use_cg=False, use_gpu=False, iterations=iterations, random_state=5
    )
    begin = time.perf_counter()
    model.fit(data, show_progress=False)
    assert model.report_ is not None
    status = Path("/proc/self/status").read_text().splitlines()
    size = {line.split(":")[0]: int(line.split()[1]) << 10 for line in status if line[:2] == "Vm"}
    return {
        "shape": data.shape,
        "nnz": data.nnz,
        "seconds": time.perf_counter() - begin,
        "sweeps": report_seconds(model),
        "resident": size["VmHWM"],
        "address_space": size["VmPeak"],
        "losses": model.report_.losses,
    }


def report_seconds(model: Any) -> list[float]:
    """Return the seconds of each iteration."""
    return [sum(pair) for pair in model.report_.seconds]


def measure(entries: int, limit: int, iterations: int) -> dict[str, Any]:
    """Make, convert and train, and remove it all."""
    folder = Path(tempfile.mkdtemp(prefix="out-of-core-"))
    try:
        paths = make_files(folder, entries)
        begin = time.perf_counter()
        convert(paths, folder / "plays.shards", memory=1 << 30, show_progress=False)
        converting = time.perf_counter() - begin
        for path in paths:
            path.unlink()
        files = [path for path in (folder / "plays.shards").rglob("*") if path.is_file()]
        on_disk = sum(path.stat().st_size for path in files)
        command = [sys.executable, __file__, _CHILD, str(folder / "plays.shards"), str(limit)]
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
        run = subprocess.run(
            [*command, str(iterations)],
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        if run.returncode:
            raise SystemExit(run.stderr)
        return json.loads(run.stdout) | {"on_disk": on_disk, "converting": converting}
    finally:
        shutil.rmtree(folder)


def main() -> None:
    """Run all sizes and print the table."""
    if sys.argv[1:2] == [_CHILD]:
        print(json.dumps(train(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))))
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--entries", type=float, nargs="+", default=[1e6, 1e7, 1e8, 2e8])
    parser.add_argument("--limit", type=float, default=1.5, help="GiB of address space")
    parser.add_argument("--iterations", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/*.json")
    arguments = parser.parse_args()
    limit = int(arguments.limit * 2**30)
    results: dict[str, Any] = {"machine": machine(), "limit": limit, "rows": []}
    for name, value in results["machine"].items():
        print(f"{name}: {value}")
    print(f"{USERS:,} users, {ITEMS:,} items, {FACTORS} factors, exact; at most {limit:,} bytes\n")
    print("    entries  on disk MB  converting s   s/iteration  ns/entry   resident MB  disk/limit")
    for entries in map(int, arguments.entries):
        row = measure(entries, limit, arguments.iterations)
        best = min(row["sweeps"])
        print(
            f"{row['nnz']:11,} {row['on_disk'] / 1e6:11,.0f} {row['converting']:13.1f} "
            f"{best:13.2f} {1e9 * best / row['nnz']:9.0f} {row['resident'] / 1e6:13.0f} "
            f"{row['on_disk'] / limit:11.2f}",
            flush=True,
        )
        results["rows"].append(row)
    if arguments.write:
        print(f"written to {write_results('out-of-core', results)}")


if __name__ == "__main__":
    main()
