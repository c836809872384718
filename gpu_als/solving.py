"""One side solved with the other held: the rows of all its parts, with or without biases."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from gpu_als.backends.frame import Frame, make_frame
from gpu_als.backends.half_sweep import half_sweep
from gpu_als.backends.ops import Backend
from gpu_als.backends.row_dots import row_dots
from gpu_als.backends.stats import HalfSweepStats
from gpu_als.row_problem import Array, RowProblem
from gpu_als.solvers import NonNegative, Solver

__all__ = ["solve_parts", "solve_side"]


def solve_side(
    backend: Backend,
    problem: RowProblem,
    fixed: Array,
    solved: Array,
    solver: Solver,
    *,
    bias: bool = False,
    frame: Frame | None = None,
) -> HalfSweepStats:
    """Run one half-sweep on the device; with ``bias`` the last columns are biases.

    The partner of the solved side's bias is 1, and the fixed side's bias is taken off the targets.
    """
    whole = [(slice(None), problem)]
    return solve_parts(backend, whole, fixed, solved, solver, bias=bias, frame=frame)


def solve_parts(
    backend: Backend,
    parts: Iterable[tuple[slice, RowProblem]],
    fixed: Array,
    solved: Array,
    solver: Solver,
    *,
    bias: bool = False,
    frame: Frame | None = None,
    gram: Array | None = None,
) -> HalfSweepStats:
    """Run one half-sweep whose rows come in parts; see :func:`solve_side`.

    ``gram`` is ``fixed^T fixed`` in float64, if that is known already.
    """
    offset = None
    if bias:
        offset = fixed[:, -1].copy()
        fixed = fixed.copy()
        fixed[:, -1] = 1
    stats = HalfSweepStats()
    for place, problem in parts:
        if bias:
            problem = problem.with_offset(offset)
        if frame is None:
            rotate = not isinstance(solver, NonNegative)
            frame = make_frame(backend, problem, fixed, rotate=rotate, known_gram=gram)
        own = replace(frame, ridge=problem.ridge)
        stats.add(half_sweep(backend, problem, own, solved[place], solver))
        stats.penalty += _penalty(backend.xp, problem, solved[place])
    return stats


def _penalty(xp: Any, problem: RowProblem, factors: Array) -> float:
    """Return ``sum_u ridge_u |x_u|^2``."""
    if isinstance(problem.ridge, float) and problem.ridge == 0:
        return 0.0
    with np.errstate(over="ignore"):
        squares = row_dots(xp, factors, factors).astype(xp.float64)
        return float((problem.ridge * squares).sum())
