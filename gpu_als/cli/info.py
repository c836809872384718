"""``gpu-als info``: versions and devices, for a first check and for bug reports."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
from typing import Any

from gpu_als.cli.options import add_json_option, add_precision_option, new_command
from gpu_als.cli.output import print_json, print_pairs

__all__ = ["add_command", "run"]

_MOST_FACTORS = 1 << 16
_CUPY_PACKAGES = ("cupy-cuda13x", "cupy-cuda12x", "cupy")


def add_command(commands: Any) -> None:
    """Add the command to the parser."""
    parser = new_command(
        commands,
        "info",
        short="show versions, processors and the GPU, or why none is used",
        description="Shows versions, processors and the GPU; where no GPU is used, why, and what "
        "to install.",
        example="  gpu-als info --json\n  gpu-als info --compile 64 128",
    )
    parser.add_argument(
        "--compile",
        nargs="+",
        type=int,
        metavar="FACTORS",
        help="compile the GPU kernels for these numbers of factors now; later fits find them on "
        "disk",
    )
    add_precision_option(parser)
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    found = _collect()
    if args.compile:
        found["compiled"] = _compile(args.compile, args.precision)
    if args.json:
        print_json(found)
        return 0
    gpu = found["gpu"]
    lines = [
        ("gpu-als", found["gpu_als"]),
        ("Python", f"{found['python']} on {found['platform']}"),
        ("NumPy", found["numpy"]),
        ("SciPy", found["scipy"]),
        ("BLAS", ", ".join(found["blas"]) or "not recognised"),
        ("CuPy", found["cupy"] or "not installed"),
        ("processors", str(found["processors"])),
        ("compiled rows", found["compiled_rows"] or "none: no C++ compiler built them"),
    ]
    if gpu is None:
        lines += [("GPU", "none is used"), ("why", found["gpu_problem"])]
    else:
        lines += [
            ("GPU", gpu["name"]),
            ("GPU memory", f"{gpu['memory_bytes'] / 2**30:.1f} GiB"),
            ("compute capability", gpu["compute_capability"]),
        ]
    if args.compile:
        lines.append(
            (
                "compiled",
                f"{found['compiled']} kernels for {' and '.join(map(str, args.compile))} factors",
            )
        )
    lines.append(("backend 'auto'", "cupy, on the GPU" if gpu else "numpy, on the processors"))
    print_pairs(lines)
    return 0


def _collect() -> dict[str, Any]:
    import numpy as np
    import scipy.linalg
    import threadpoolctl

    from gpu_als.backends.native.library import variants
    from gpu_als.version import __version__

    gpu, problem = _gpu()
    blas = {
        f"{library['internal_api']} {library['version']}"
        for library in threadpoolctl.threadpool_info()
        if library["user_api"] == "blas"
    }
    return {
        "gpu_als": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "numpy": np.__version__,
        "scipy": scipy.__version__,
        "blas": sorted(blas),
        "cupy": _cupy_version(),
        "processors": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "compiled_rows": next(iter(variants()), None),
        "gpu": gpu,
        "gpu_problem": problem,
    }


def _gpu() -> tuple[dict[str, Any] | None, str | None]:
    """Return what is known of the GPU that "auto" takes, or None and why it takes none."""
    from gpu_als.backends import cuda_problem, get_backend

    problem = cuda_problem()
    if problem is not None:
        return None, str(problem)
    backend: Any = get_backend("cupy")
    runtime = backend.xp.cuda.runtime
    properties = runtime.getDeviceProperties(runtime.getDevice())
    return {
        "name": backend.device,
        "memory_bytes": properties["totalGlobalMem"],
        "compute_capability": f"{properties['major']}.{properties['minor']}",
        "devices": runtime.getDeviceCount(),
        "cuda_runtime": runtime.runtimeGetVersion(),
        "cuda_driver": runtime.driverGetVersion(),
    }, None


def _compile(factors: list[int], precision: str | None) -> int:
    """Compile the kernels for numbers of factors; return how many there are."""
    from gpu_als.backends import get_backend
    from gpu_als.errors import BackendError, InputError

    for k in factors:
        if not 1 <= k <= _MOST_FACTORS:
            raise InputError(
                f"--compile needs numbers of factors from 1 to {_MOST_FACTORS:,}, not {k:,}"
            )
    try:
        backend: Any = get_backend("cupy", precision=precision or "float32")
    except BackendError as error:
        raise BackendError(f"--compile needs a GPU: {error}") from error
    return sum(backend.compile_kernels(k) for k in sorted(set(factors)))


def _cupy_version() -> str | None:
    for package in _CUPY_PACKAGES:
        try:
            return f"{importlib.metadata.version(package)} ({package})"
        except importlib.metadata.PackageNotFoundError:
            continue
    return None
