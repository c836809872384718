"""Rows solved on their own after training, exactly as a half-sweep would."""

from __future__ import annotations

import numpy as np

from gpu_als.core.backend import Backend
from gpu_als.core.basis import FixedSide, SideRidge
from gpu_als.core.half_sweep import hold_fixed, solve_side
from gpu_als.core.objectives import Objective
from gpu_als.core.problem import SparseRows
from gpu_als.core.solvers import Solver
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

    def hold() -> FixedSide:
        # The fewer entries, the smaller the ridge: this is the smallest of rows to come.
        ridge = SideRidge.of(objective.ridge(np.array([0, 1]), len(fixed), side))
        gram = None
        if objective.base_weight and not fixed.bias:
            gram = backend.from_host(fixed.gram(backend))
        return hold_fixed(
            backend, objective, side, matrix, ridge,
            rotate=solver.rotates, bias=fixed.bias, known_gram=gram,
        )  # fmt: skip

    with backend.session():
        matrix = fixed.on(backend)
        held = fixed.derive(f"held on {backend.name}", hold, given=(objective, solver.rotates))
        solved = backend.xp.zeros((rows.n_rows, matrix.shape[1]), matrix.dtype)
        solve_side(
            backend, objective, rows, side, matrix, solved, solver, bias=fixed.bias, held=held
        )
        return backend.to_host(solved)
