"""How rows' linear systems are solved: small frozen option objects that say what they need.

A half-sweep knows no solver by name. It asks what a solver declares (whether it starts from the
former values, may choose coordinates, is exact) and hands it batches; a device looks the solver's
``kernel`` up among those it has, and leaves the rows to the general path where there is none.
"""

from __future__ import annotations

import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from gpu_als.core.cg import DenseSystem, conjugate_gradient
from gpu_als.core.linalg import eigh_solve, finite_systems
from gpu_als.core.nnls import solve_nonnegative
from gpu_als.core.ops import Ops
from gpu_als.core.problem import Array
from gpu_als.core.systems import (
    Entries,
    RowOperators,
    Solution,
    Systems,
    dual_is_cheaper,
    primal_system,
    solve_dual,
)
from gpu_als.errors import InputError

__all__ = ["Certified", "Cholesky", "ConjugateGradient", "NonNegative", "Solver", "as_solver"]

TOLERANCE = {np.dtype(np.float32): 1e-5, np.dtype(np.float64): 1e-12}
"""Of :class:`Certified`, by default."""


@runtime_checkable
class Solver(Protocol):
    """What a half-sweep asks of a solver; a subclass gets the defaults of an exact one."""

    exact: bool = True
    """Its solutions are checked: rows whose residual is large are solved again in float64."""
    from_former: bool = False
    """It starts from the rows' former values."""
    rotates: bool = True
    """The coordinates may be chosen; False where x itself is constrained."""
    kernel: str | None = None
    """The name under which a device has kernels for it, if any does."""

    @property
    def kernel_options(self) -> Mapping[str, int]:
        """What the kernel is told besides: ``steps`` and ``free_columns``, 0 where left out."""
        return {}

    def tolerance(self, dtype: np.dtype) -> float:
        """Return how exact iterations have to be that stand in for a direct solve.

        0: nothing may stand in for it. See :class:`Certified`.
        """
        return 0.0

    def solve_batch(
        self, ops: Ops, entries: Entries, systems: Systems, start: Array | None, *, definite: bool
    ) -> Solution:
        """Solve a batch of rows given by their entries.

        Parameters
        ----------
        entries : Entries
            Those of B rows, padded to n each.
        systems : Systems
            The rest of the rows' systems.
        start : array, shape (B, k), or None
            The former values, where the solver starts from them.
        definite : bool
            No row has a negative gram weight.
        """
        ...

    def solve_systems(
        self, ops: Ops, lhs: Array, rhs: Array, start: Array | None
    ) -> tuple[Array, Array]:
        """Solve systems that are there as matrices.

        Parameters
        ----------
        lhs : array, shape (B, k, k)
        rhs : array, shape (B, k)
        start : array, shape (B, k), or None

        Returns
        -------
        z : array, shape (B, k)
        failed : bool array, shape (B,)
        """
        ...

    def solve_in_float64(self, ops: Ops, lhs: Array, rhs: Array) -> tuple[Array, Array]:
        """Solve float64 systems of rows that failed; see :func:`~gpu_als.core.linalg.eigh_solve`.

        Returns
        -------
        x : float64 array, shape (B, k)
        singular : bool array, shape (B,)
        """
        return eigh_solve(ops.xp, lhs, rhs)

    def stationary(self, xp: Any, misfit: Array, z: Array) -> Array:
        """Return what of ``lhs z - rhs`` (B, k) is an error: all of it without constraints."""
        return misfit


@dataclass(frozen=True)
class Cholesky(Solver):
    """Exact solution by Cholesky factorisation, in the cheaper of the primal and the dual form.

    A row with ``n`` observations costs ``n k^2 + k^3/3`` in the primal ``(k, k)`` form and
    ``n^2 k + n^3/3`` in the dual ``(n, n)`` form; the dual is taken for ``n < k``, where it is
    also the better conditioned of the two.
    """

    kernel = "cholesky"

    def solve_batch(
        self, ops: Ops, entries: Entries, systems: Systems, start: Array | None, *, definite: bool
    ) -> Solution:
        """Take the dual form where it is cheaper; the primal one also for negative weights."""
        if definite and systems.base is None and dual_is_cheaper(*entries.rows.shape[1:]):
            z, failed = solve_dual(ops, entries, systems)
            return Solution(z, entries.predict(z), failed, "dual", entries, None)
        entries = entries.scale_rows()
        lhs, rhs = primal_system(ops, entries, systems)
        z, failed = ops.cholesky_solve(lhs, rhs)
        return Solution(z, entries.predict(z), failed, "primal", entries, rhs)

    def solve_systems(
        self, ops: Ops, lhs: Array, rhs: Array, start: Array | None
    ) -> tuple[Array, Array]:
        """Factor and substitute."""
        return ops.cholesky_solve(lhs, rhs)


@dataclass(frozen=True)
class Certified(Cholesky):
    """Exact solution by whatever costs a row least, proven by its energy: what "auto" stands for.

    Where a device has kernels for it, a row ``(D + W^T W) z = b`` whose direct solution would cost
    more is solved by conjugate gradients with ``D^-1`` as preconditioner. They stop once the
    residual ``r``, worked out afresh from the row's entries, has

        r^T D^-1 r <= tol^2 b^T z

    The left side bounds how far the row's objective is above its minimum, since
    ``D <= D + W^T W``. A row that does not get there is solved directly. Rows without such kernels
    are solved as by :class:`Cholesky`.

    Parameters
    ----------
    tol : float, optional
        Above 0 and below 1. By default 1e-5 in float32 and 1e-12 in float64, about as exact as a
        direct solve is in its rounding.
    """

    tol: float | None = None

    def __post_init__(self) -> None:
        good = self.tol is None or isinstance(self.tol, numbers.Real)
        if not good or not (self.tol is None or 0 < self.tol < 1):
            raise InputError(
                f"the solver's tolerance must be above 0 and below 1, not {self.tol!r}"
            )

    def tolerance(self, dtype: np.dtype) -> float:
        """Return ``tol``, or the default of a dtype."""
        return TOLERANCE[np.dtype(dtype)] if self.tol is None else float(self.tol)


@dataclass(frozen=True)
class ConjugateGradient(Solver):
    """Approximate solution by a few conjugate-gradient steps from the row's former value.

    Parameters
    ----------
    steps : int
        Number of steps per row and half-sweep.

    References
    ----------
    Takács, Pilászy, Tikk: Applications of the conjugate gradient method for implicit feedback
    collaborative filtering, RecSys 2011.
    """

    steps: int = 3

    exact = False
    from_former = True
    kernel = "cg"

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise InputError(f"cg_steps must be at least 1, not {self.steps}")

    @property
    def kernel_options(self) -> Mapping[str, int]:
        """The number of steps."""
        return {"steps": self.steps}

    def solve_batch(
        self, ops: Ops, entries: Entries, systems: Systems, start: Array | None, *, definite: bool
    ) -> Solution:
        """Multiply by the entries, and never form their matrix."""
        z, q = conjugate_gradient(ops.xp, RowOperators(entries, systems), start, self.steps)
        return Solution(z, q, ~ops.xp.isfinite(z).all(axis=1), "cg", entries, None)

    def solve_systems(
        self, ops: Ops, lhs: Array, rhs: Array, start: Array | None
    ) -> tuple[Array, Array]:
        """Take the same steps on matrices."""
        z, _ = conjugate_gradient(ops.xp, DenseSystem(ops.xp, lhs, rhs), start, self.steps)
        return z, ~ops.xp.isfinite(z).all(axis=1)


@dataclass(frozen=True)
class NonNegative(Solver):
    """Exact solution under ``x >= 0`` by block principal pivoting.

    Parameters
    ----------
    free_columns : int
        The last ``free_columns`` columns (a learned bias, for instance) stay unconstrained.

    References
    ----------
    Kim, Park: Fast nonnegative matrix factorization: an active-set-like method and comparisons,
    SIAM J. Sci. Comput. 33 (2011).
    """

    free_columns: int = 0

    rotates = False
    kernel = "nnls"

    @property
    def kernel_options(self) -> Mapping[str, int]:
        """The number of columns that may be negative."""
        return {"free_columns": self.free_columns}

    def solve_batch(
        self, ops: Ops, entries: Entries, systems: Systems, start: Array | None, *, definite: bool
    ) -> Solution:
        """Form the primal systems."""
        entries = entries.scale_rows()
        lhs, rhs = primal_system(ops, entries, systems)
        z, failed = self.solve_systems(ops, lhs, rhs, start)
        return Solution(z, entries.predict(z), failed, "nnls", entries, rhs)

    def solve_systems(
        self, ops: Ops, lhs: Array, rhs: Array, start: Array | None
    ) -> tuple[Array, Array]:
        """Find which coordinates are positive."""
        return solve_nonnegative(ops, lhs, rhs, self.free_columns)

    def solve_in_float64(self, ops: Ops, lhs: Array, rhs: Array) -> tuple[Array, Array]:
        """Tell singular systems by their eigenvalues, and solve the others by pivoting."""
        _, singular = eigh_solve(ops.xp, lhs, rhs)
        x, failed = self.solve_systems(ops, *finite_systems(ops.xp, lhs, rhs), None)
        singular |= failed
        return ops.xp.where(singular[:, None], 0, x), singular

    def stationary(self, xp: Any, misfit: Array, z: Array) -> Array:
        """Return the misfit without positive gradients at ``z = 0``, which are none."""
        bound = xp.arange(z.shape[1]) < z.shape[1] - self.free_columns
        return xp.where(bound & (z <= 0), xp.minimum(misfit, 0), misfit)


_NAMES: dict[str, Solver] = {
    "auto": Certified(),
    "cholesky": Cholesky(),
    "cg": ConjugateGradient(),
}


def as_solver(solver: str | Solver, tol: float | None = None) -> Solver:
    """Return the solver that a name or an option object stands for; ``tol`` is that of "auto"."""
    if isinstance(solver, Solver):
        return solver
    if solver == "auto":
        return Certified(tol)
    if not isinstance(solver, str) or solver not in _NAMES:
        raise InputError(
            f"solver must be one of {sorted(_NAMES)} or an object of gpu_als.solvers, "
            f"not {solver!r}"
        )
    return _NAMES[solver]
