"""How much device memory a fit needs: arithmetic on shapes, before anything is allocated."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from gpu_als.backends.cupy.launch import stride_of
from gpu_als.row_problem import RowProblem

__all__ = ["bytes_needed"]


def bytes_needed(
    problems: tuple[RowProblem, RowProblem],
    users: np.ndarray,
    items: np.ndarray,
    workspace: int,
    copies: int = 1,
) -> int:
    """Return the bytes of device memory a fit needs at its peak.

    Parameters
    ----------
    problems : pair of RowProblem
        On the host; rows of ``users`` and of ``items``.
    users, items : array
        The factors.
    workspace : int
        Elements that the general path and split rows use besides.
    copies : int
        How often the factors are there at the same time.
    """
    factors = copies * (users.nbytes + items.nbytes)
    data = sum(_problem_bytes(problem) for problem in problems)
    # While one problem's weights are worked out there are temporaries of its size.
    loading = max(12 * len(problem.rows.values) for problem in problems)
    sweeps = max(_sweep_bytes(problems[0], users, items), _sweep_bytes(problems[1], items, users))
    return factors + data + max(loading, sweeps + 4 * workspace)


def _problem_bytes(problem: RowProblem) -> int:
    """Return what one side's data takes while the fit lasts."""
    rows, linear = problem.rows, problem.linear
    per_row = 8 * (2 * rows.n_rows + rows.n_rows + 1)  # order, places, indptr
    per_entry = rows.indices.nbytes + 2 * rows.values.nbytes
    if linear is None:
        return per_row + per_entry
    if sp.issparse(linear):
        return per_row + per_entry + linear.data.nbytes + linear.indices.nbytes + 8 * rows.n_rows
    return per_row + per_entry + linear.nbytes


def _sweep_bytes(problem: RowProblem, solved: np.ndarray, fixed: np.ndarray) -> int:
    """Return what one half-sweep takes: the fixed side in its frame, solutions and checks."""
    width = stride_of(solved.shape[1]) * solved.itemsize
    sides = 2 * len(fixed) + (2 if problem.linear is None else 3) * len(solved)
    return width * sides + 16 * len(solved)
