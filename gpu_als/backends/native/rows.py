"""Half-sweeps by compiled code on the CPU: rows.cpp, one row at a time in cache."""

from __future__ import annotations

import ctypes
from concurrent.futures import Executor
from typing import Any

import numpy as np
import scipy.sparse as sp

from gpu_als.backends.native.library import LINE, aligned, call, library
from gpu_als.core.basis import FixedSide
from gpu_als.core.ops import Ops
from gpu_als.core.problem import LoadedProblem, rows_left
from gpu_als.core.solvers import Solver
from gpu_als.core.stats import RESIDUAL_LIMIT, HalfSweepStats
from gpu_als.core.systems import unscaled_rhs

__all__ = ["SHARED_FROM", "solve_rows", "workspace_bytes"]

_CHUNK = 16
"""As in rows.cpp."""
_WAYS = ("shared", "dual", "primal", "cg")
_MOST_STEPS = 256
SHARED_FROM = 1 << 18
"""Entries from which on a row is worth all threads, which the general path gives it."""


class _HalfSweep(ctypes.Structure):
    """``struct HalfSweep`` of rows.cpp."""

    _fields_ = [
        *(
            (name, ctypes.c_int64)
            for name in ("n_rows", "n_long", "k", "stride", "longest", "n_steps")
        ),
        *(
            (name, ctypes.c_void_p)
            for name in (
                "order", "indptr", "indices", "root", "targets", "offset", "fixed", "ridge",
            )
        ),
        ("ridge_all", ctypes.c_double),
        *(
            (name, ctypes.c_void_p)
            for name in (
                "eigenvalues", "rotation", "inverse", "b0",
                "only_indptr", "only_indices", "only_values", "solved",
            )
        ),
        ("tolerance", ctypes.c_double),
        ("residual_limit", ctypes.c_double),
        *(
            (name, ctypes.c_int32)
            for name in (
                "wide_indices", "wide_only", "rotated", "squared_loss", "fixed_steps", "n_threads",
            )
        ),
        *(
            (name, ctypes.c_void_p)
            for name in ("solved_rows", "objective", "bound", "residual", "ways", "steps", "stop")
        ),
    ]  # fmt: skip


def solve_rows(
    ops: Ops,
    problem: LoadedProblem,
    held: FixedSide,
    solved: np.ndarray,
    solver: Solver,
    pool: Executor,
    num_threads: int,
) -> tuple[HalfSweepStats, LoadedProblem]:
    """Solve rows, as :meth:`~gpu_als.core.backend.Backend.solve_fused` says.

    Those that need more care are left: rows of more than 2^18 entries, those without a ridge and
    those whose solution does not pass its check.

    Parameters
    ----------
    pool : Executor
        Has a thread to wait for the library, so that Ctrl-C is heard.
    """
    basis = held.basis
    counts = np.diff(problem.host_indptr)[list(problem.packing.long_rows)]
    n_long = int(np.searchsorted(counts, SHARED_FROM, side="right"))
    n_rows = len(problem.packing.order) + n_long
    served = solver.kernel in ("cholesky", "cg") and basis.base is None and not basis.singular
    only = problem.rhs_only
    if not served or n_rows == 0 or not (only is None or sp.issparse(only)):
        return HalfSweepStats(), problem
    dtype, k = basis.fixed.dtype, basis.fixed.shape[1]
    chunks = -(-(n_rows - n_long) // _CHUNK) + n_long
    out: dict[str, np.ndarray] = {
        "solved_rows": np.zeros(n_rows, np.uint8),
        "objective": np.zeros(chunks),
        "bound": np.zeros(chunks),
        "residual": np.zeros(chunks),
        "ways": np.zeros(len(_WAYS), np.int64),
        "steps": np.zeros(_MOST_STEPS, np.int64),
    }
    if "fixed" not in held.kept:
        held.kept["fixed"] = aligned(basis.fixed)
    fixed = held.kept["fixed"]
    stride = fixed.shape[1]
    rhs = unscaled_rhs(np, ops.rowwise_matmul, problem, held)
    row_ridge = not isinstance(problem.ridge, float)
    arrays: dict[str, np.ndarray | None] = {
        "order": problem.order,
        "indptr": problem.indptr,
        "indices": problem.indices,
        "root": problem.root,
        "targets": problem.targets,
        "offset": held.offset,
        "fixed": fixed,
        "ridge": np.asarray(problem.ridge, np.float64) if row_ridge else None,
        "eigenvalues": _padded(basis.eigenvalues, stride),
        "rotation": None if basis.rotation is None else np.ascontiguousarray(basis.rotation.T),
        "inverse": None if basis.inverse is None else np.ascontiguousarray(basis.inverse.T),
        "b0": None if rhs is None else aligned(rhs),
        "solved": solved,
        **out,
    }
    if only is not None:
        if "only_indptr" not in problem.kept:
            problem.kept["only_indptr"] = only.indptr.astype(np.int64, copy=False)
        arrays["only_indptr"] = problem.kept["only_indptr"]
        arrays["only_indices"], arrays["only_values"] = only.indices, only.data
    sweep = _HalfSweep(
        n_rows=n_rows,
        n_long=n_long,
        k=k,
        stride=stride,
        longest=_longest(problem, n_long),
        n_steps=_MOST_STEPS,
        ridge_all=0.0 if row_ridge else problem.ridge,
        tolerance=solver.tolerance(dtype),
        residual_limit=RESIDUAL_LIMIT[dtype],
        wide_indices=problem.indices.dtype == np.int64,
        wide_only=only is not None and only.indices.dtype == np.int64,
        rotated=basis.rotated,
        squared_loss=problem.squared_loss,
        fixed_steps=solver.kernel_options.get("steps", 0),
        n_threads=num_threads,
    )
    for name, array in arrays.items():
        setattr(sweep, name, None if array is None else array.ctypes.data)
    run = getattr(library(), {4: "half_sweep_float", 8: "half_sweep_double"}[dtype.itemsize])
    call(run, sweep, pool)
    stats = HalfSweepStats(
        residual=float(out["residual"].max()),
        bound=float(out["bound"].sum()),
        objective=float(out["objective"].sum()),
    )
    ways = zip(_WAYS, out["ways"].tolist(), strict=True)
    stats.paths.update({way: number for way, number in ways if number})
    taken = np.flatnonzero(out["steps"])
    stats.steps.update(dict(zip(taken.tolist(), out["steps"][taken].tolist(), strict=True)))
    left = np.flatnonzero(out["solved_rows"] == 0)
    left = np.append(left, np.arange(n_rows, problem.n_rows))
    return stats, rows_left(np, problem, left, k, ops.batch_elements)


def workspace_bytes(n_factors: int, value_bytes: int, longest: int) -> int:
    """Return the bytes that a thread works in: ``struct Work`` of rows.cpp, as far as it is used.

    Parameters
    ----------
    longest : int
        Entries of the longest row.
    """
    lanes = LINE // value_bytes
    width = -(-n_factors // lanes) * lanes
    segment = max(width + 16, (1 << 18) // value_bytes // width)
    gathered = min(longest, width) + min(longest, segment)
    systems = 2 * (width + lanes) if longest > segment else width + lanes
    entry = ctypes.sizeof(ctypes.c_void_p) + 6 * value_bytes
    return value_bytes * width * (gathered + systems + 2 * _CHUNK) + entry * longest


def _longest(problem: LoadedProblem, n_long: int) -> int:
    """Return the entries of the longest row that is solved here."""
    places = problem.packing.places[: len(problem.packing.order) + n_long]
    ends = [span.stop - 1 for span in problem.packing.spans[:2]] + [len(places) - 1]
    rows = places[[end for end in ends if end >= 0]]
    return int((problem.host_indptr[rows + 1] - problem.host_indptr[rows]).max())


def _padded(array: Any, size: int) -> np.ndarray | None:
    """Return a vector with zeros behind it up to ``size``."""
    return None if array is None else np.pad(array, (0, size - len(array)))
