"""The compiled library under address and undefined-behaviour sanitizers, in its own process."""

import ctypes
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from gpu_als.backends import native

SOURCES = Path(native.__file__).parent
FLAGS = ["-O0", "-march=native", "-std=c++17", "-ffp-contract=fast", "-fPIC", "-shared", "-pthread"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++ to build with sanitizers")
def test_no_access_is_out_of_bounds_and_nothing_is_undefined(tmp_path):
    library = tmp_path / "rows.so"
    sources = sorted(map(str, SOURCES.glob("*.cpp")))
    command = ["g++", *FLAGS, *SANITIZERS, *sources, "-o", str(library)]
    subprocess.run(command, check=True)
    runtime = subprocess.run(
        ["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    ).stdout.strip()
    run = subprocess.run(
        [sys.executable, __file__, str(library)],
        env=os.environ | {"LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    assert run.stdout.split() == ["solved", "ranked"]


def main(path: str) -> None:
    """Solve rows of all lengths and kinds, and rank, with the library at a path."""
    from helpers import CASES, make_case
    from test_top_k import likes, whole_numbers

    from gpu_als.backends.native import dense, library, rows, top_k
    from gpu_als.backends.numpy.backend import NumpyBackend
    from gpu_als.core.solvers import Certified, Cholesky, ConjugateGradient

    loaded = ctypes.CDLL(path)
    library.variants = lambda: {"sanitized": loaded}
    rows.library = dense.library = top_k.library = lambda: loaded
    for name in CASES:
        for k in (1, 16, 40):
            case = make_case(name, k)
            for dtype in (np.float32, np.float64):
                for solver in (Cholesky(), Certified(), ConjugateGradient(3)):
                    case.sweep(solver, dtype, ops=NumpyBackend(2))
                    case.sweep(solver, dtype, ops=NumpyBackend(2, 20 * k))
    print("solved")
    for n_users, n_items, k in [
        (1, 1, 1),
        (1, 333, 13),
        (3, 700, 64),
        (70, 65, 7),
        (5, 90_000, 29),
    ]:
        for dtype in (np.float32, np.float64):
            users, items = whole_numbers(n_users, n_items, k, 5, dtype)
            liked = likes(n_users, n_items, 0.3, 6)
            for n_best in {1, min(n_items, 40), n_items}:
                NumpyBackend(3).top_k(users, items, n_best, None, None)
                NumpyBackend(3).top_k(users, items, n_best, liked, np.array([0, n_items - 1]))
    print("ranked")


if __name__ == "__main__":
    main(sys.argv[1])
