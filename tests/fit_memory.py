"""Runs one fit on the CPU and prints how many bytes of memory its process took for it at most.

The bytes are those of the highest resident size during the fit, beyond what the process had before
the data were there and after a small fit had loaded and started all that fits need. Linux only.

    python fit_memory.py FOLDER '{"kind": "implicit", "shards": false, "fused": true,
                                  "options": {...}}'
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path

import numpy as np
import scipy.sparse as sp

import gpu_als
from gpu_als import backends
from gpu_als.backends.numpy import backend as numpy_backend
from gpu_als.data.shards import ShardedMatrix

ARRAYS = "data", "indices", "indptr"


def made_up(n_users: int, n_items: int, nnz: int, seed: int) -> sp.csr_matrix:
    """Return counts from 1 to 5, about ``nnz`` of them, in rows of very different lengths."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.exponential(nnz / n_users, n_users).astype(int), 1, n_items // 2)
    indptr = np.append(0, np.cumsum(lengths))
    places = np.arange(indptr[-1]) - indptr[:-1].repeat(lengths)  # in their rows
    places = places + rng.random(n_users).repeat(lengths)
    indices = (places * (n_items / lengths).repeat(lengths)).astype(np.int32)  # which rise by one
    values = rng.integers(1, 6, indptr[-1]).astype(np.float32)
    return sp.csr_matrix((values, indices, indptr), shape=(n_users, n_items))


def save(folder: Path, matrix: sp.csr_matrix) -> None:
    """Write a matrix for :func:`load`, and as shards."""
    for name in ARRAYS:
        np.save(folder / f"{name}.npy", getattr(matrix, name))
    (folder / "shape.json").write_text(json.dumps(matrix.shape))
    ShardedMatrix.from_matrix(matrix, folder / "shards")


def load(folder: Path) -> sp.csr_matrix:
    """Read it with nothing else of its size in memory."""
    arrays = tuple(np.load(folder / f"{name}.npy") for name in ARRAYS)
    shape = json.loads((folder / "shape.json").read_text())
    return sp.csr_matrix(arrays, shape=shape, copy=False)


def fit(kind: str, data: object, options: dict) -> None:
    """Fit one iteration."""
    options = {"iterations": 1, "random_state": 7} | options
    if kind == "explicit":
        gpu_als.ExplicitALS(backend="numpy", **options).fit(data)
    else:
        model = gpu_als.AlternatingLeastSquares(use_gpu=False, **options)
        model.fit(data, show_progress=False)


def resident(name: str) -> int:
    """Return VmRSS or VmHWM of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def main() -> None:
    """Measure."""
    folder, case = Path(sys.argv[1]), json.loads(sys.argv[2])
    if not case["fused"]:
        numpy_backend.library = lambda: None
    rng = np.random.default_rng(3)
    fit(case["kind"], sp.csr_matrix(rng.integers(0, 3, (300, 200)) * 1.0), case["options"])
    backends._numpy_backend.cache_clear()  # whose threads hold what they worked in
    gc.collect()
    before = resident("VmRSS")
    data = ShardedMatrix.open(folder / "shards") if case["shards"] else load(folder)
    Path("/proc/self/clear_refs").write_text("5")  # the highest size begins anew
    fit(case["kind"], data, case["options"])
    print(resident("VmHWM") - before)


if __name__ == "__main__":
    main()
