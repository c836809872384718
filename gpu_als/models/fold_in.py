"""Rows solved on their own after training, exactly as a half-sweep would."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from gpu_als.core.basis import Frame, make_frame
from gpu_als.core.half_sweep import half_sweep
from gpu_als.core.objectives import Objective
from gpu_als.core.ops import Backend
from gpu_als.core.problem import Array, SparseRows
from gpu_als.core.solvers import NonNegative, Solver
from gpu_als.models.fitted import Side

__all__ = ["fold_in"]


def fold_in(
    backend: Backend,
    objective: Objective,
    solver: Solver,
    side: str,
    fixed: Side,
    rows: SparseRows,
) -> np.ndarray:
    """Solve new rows of one side with the other one held.

    Parameters
    ----------
    side : str
        The side that the rows are of, "users" or "items".
    fixed : Side
        The other one. What half-sweeps share of it is worked out in the first call.
    rows : SparseRows

    Returns
    -------
    array, shape (n, k), or (n, k + 1) with a bias
        Zero for rows without entries and for rows with a singular system.
    """
    with backend.session():
        matrix = fixed.on(backend)
        rotate = not isinstance(solver, NonNegative)
        frame, offset = fixed.derive(
            f"held on {backend.name}",
            lambda: _hold(backend, objective, side, matrix, rotate=rotate, bias=fixed.bias),
            given=(objective, rotate),
        )
        k = matrix.shape[1]
        problem = objective.row_problem(rows, k, backend.batch_elements, side)
        problem = backend.load(problem).with_offset(offset)
        solved = backend.xp.zeros((rows.n_rows, k), matrix.dtype)
        half_sweep(backend, problem, replace(frame, ridge=problem.ridge), solved, solver)
        return backend.to_host(solved)


def _hold(
    backend: Backend, objective: Objective, side: str, fixed: Array, *, rotate: bool, bias: bool
) -> tuple[Frame, Array | None]:
    """Return the coordinates for rows of any number of entries, and the fixed side's biases.

    The fewer entries, the smaller the ridge.
    """
    offset = None
    if bias:
        offset = fixed[:, -1].copy()
        fixed = fixed.copy()
        fixed[:, -1] = 1
    empty_and_one = SparseRows(
        np.array([0, 0, 1]), np.zeros(1, np.int32), np.ones(1, fixed.dtype), None, len(fixed)
    )
    shortest = objective.row_problem(empty_and_one, fixed.shape[1], 1 << 20, side)
    return make_frame(backend, shortest, fixed, rotate=rotate), offset
