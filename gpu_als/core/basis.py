"""The coordinates in which the rows of one half-sweep are solved.

With a shared base (implicit feedback, iALS, dense, a normal prior) coordinates ``x = R z`` are
chosen once per half-sweep in which base and ridge together become the identity, so every row of
every objective is the same problem

    (shift I + W^T W) z = b0 + W^T tau,        W = root * fixed_rows

with ``shift = 1``. One ridge for all rows: ``R = C^-T`` with the Cholesky factor ``base + ridge I
= C C^T``. A ridge for each row: ``R = Q diag(d_u)^(1/2)`` with ``base = Q diag(e) Q^T`` and
``d_u = 1 / (e + ridge_u)``. Without a base the coordinates stay as they are and ``shift =
ridge_u``. The system is better conditioned than the original, and its dual form needs no base at
all (docs/mathematics.md, "The rotated basis").

A basis follows from the fixed side and the ridges of the whole solved side, so a row's solution
does not depend on which other rows are solved in the same call.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from gpu_als.core.ops import Ops
from gpu_als.core.problem import Array

__all__ = ["Basis", "FixedSide", "Multiply", "SideRidge", "make_basis"]

Multiply = Callable[[Array, Array], Array]
""":meth:`gpu_als.core.ops.Ops.rowwise_matmul` of a device."""

_MISFIT = 1e-9
"""Relative misfit of a float64 Cholesky factor that rounding cannot explain."""
_STEEP = 1e3
"""Spread of the pivots or eigenvalues of base and ridge from which the rotation is done in
float64."""


@dataclass(frozen=True)
class SideRidge:
    """What a basis needs to know of the ridges of a whole side.

    Attributes
    ----------
    smallest : float
    uniform : bool
        All rows have the same ridge.
    """

    smallest: float
    uniform: bool

    @classmethod
    def of(cls, ridge: float | np.ndarray) -> SideRidge:
        """Return that of one ridge for all rows, or of one for each."""
        if isinstance(ridge, float):
            return cls(ridge, True)
        return cls(float(np.min(ridge, initial=np.inf)), False)


@dataclass(frozen=True)
class Basis:
    """Coordinates of one half-sweep.

    Attributes
    ----------
    fixed : array, shape (n_fixed, k)
        The fixed side in these coordinates.
    rotation, inverse : array, shape (k, k), or None
        ``x = rotation z`` and ``z = inverse x``, before any column scaling; None for the identity.
    eigenvalues : array, shape (k,), or None
        Of the base, where each row has a ridge of its own.
    base : float64 array, shape (k, k), or None
        The base itself, where it is not diagonalised.
    singular : bool
        Base and ridge are singular together, and so is every row's system.
    """

    fixed: Array
    rotation: Array | None = None
    inverse: Array | None = None
    eigenvalues: Array | None = None
    base: Array | None = None
    singular: bool = False

    @property
    def rotated(self) -> bool:
        """Whether base and ridge have become the identity."""
        return self.rotation is not None

    def shift(self, xp: Any, ridge: Array) -> Array:
        """Return the diagonal that is added to ``W^T W`` of rows with these ridges, shape (B,)."""
        return xp.ones(len(ridge), self.fixed.dtype) if self.rotated else ridge

    def column_scale(self, xp: Any, ridge: Array) -> Array | None:
        """Return ``d_u^(1/2)`` where it differs from row to row, shape (B, k)."""
        if self.eigenvalues is None:
            return None
        return 1 / xp.sqrt(self.eigenvalues + ridge[:, None])

    def enter(self, matmul: Multiply, x: Array, scale: Array | None) -> Array:
        """Return the coordinates of factors ``x``, shape (B, k)."""
        z = x if self.inverse is None else matmul(x, self.inverse.T)
        return z if scale is None else z / scale

    def leave(self, matmul: Multiply, z: Array, scale: Array | None) -> Array:
        """Return the factors (B, k) whose coordinates are ``z``."""
        if scale is not None:
            z = z * scale
        return z if self.rotation is None else matmul(z, self.rotation.T)

    def enter_rhs(self, matmul: Multiply, rhs: Array, scale: Array | None) -> Array:
        """Return right-hand sides ``rhs`` (B, k) of the original system in these coordinates."""
        b = rhs if self.rotation is None else matmul(rhs, self.rotation)
        return b if scale is None else b * scale


@dataclass(frozen=True)
class FixedSide:
    """The side that a half-sweep holds, and what follows from it once for all rows.

    Attributes
    ----------
    basis : Basis
        With the fixed factors in its coordinates.
    offset : array, shape (n_fixed,), or None
        Biases of the fixed side, which come off every target.
    rhs : array, shape (k,) or (n_rows, k), or None
        Right-hand sides of the solved rows' prior, in the original coordinates.
    prior_base : float64 array, shape (k, k), or None
        The prior's share of the base, in the original coordinates.
    kept : dict
        What a device works out of it once for all blocks of rows.
    """

    basis: Basis
    offset: Array | None = None
    rhs: Array | None = None
    prior_base: Array | None = None
    kept: dict[str, Any] = field(default_factory=dict)

    def of_rows(self, place: slice) -> FixedSide:
        """Return what goes with some of the solved rows."""
        if self.rhs is None or self.rhs.ndim == 1:
            return self
        return replace(self, rhs=self.rhs[place])

    def rhs_of(self, rows: Array) -> Array | None:
        """Return the prior's right-hand side of some rows, shape (len(rows), k)."""
        if self.rhs is None or self.rhs.ndim == 2:
            return None if self.rhs is None else self.rhs[rows]
        return self.rhs[None].repeat(len(rows), 0)


def make_basis(
    ops: Ops, fixed: Array, base: Array | None, ridge: SideRidge, *, rotate: bool
) -> Basis:
    """Choose the coordinates of one half-sweep.

    Parameters
    ----------
    fixed : array, shape (n_fixed, k)
    base : float64 array, shape (k, k), or None
        What all rows' matrices share besides the ridge.
    ridge : SideRidge
        Of the whole side to solve.
    rotate : bool
        False for solvers that are tied to the original coordinates (x >= 0).
    """
    xp = ops.xp
    if base is None:
        return Basis(fixed)
    # One k x k problem: float64 keeps the small eigenvalues, on which the scaling rests.
    eigenvalues = None
    if ridge.uniform:
        factor, smallest, largest = _cholesky(xp, base + ridge.smallest * xp.eye(len(base)))
        inverse = factor.T
    else:
        eigenvalues, rotation = xp.linalg.eigh(base)
        eigenvalues, inverse = xp.maximum(eigenvalues, 0), rotation.T
        smallest, largest = (float(eigenvalues[end] + ridge.smallest) for end in (0, -1))
    singular = not smallest > len(base) * np.finfo(np.float64).eps * largest
    if singular or not rotate:
        return Basis(fixed, base=base, singular=singular)
    if eigenvalues is None:
        rotation = xp.linalg.inv(factor).T
    else:
        eigenvalues = eigenvalues.astype(fixed.dtype)
    # Columns with small eigenvalues are scaled up, and the rounding of the product with them.
    exact = rotation if largest > _STEEP * smallest else rotation.astype(fixed.dtype)
    return Basis(
        ops.transform(fixed, exact),
        rotation.astype(fixed.dtype),
        inverse.astype(fixed.dtype),
        eigenvalues,
    )


def _cholesky(xp: Any, matrix: Array) -> tuple[Array, float, float]:
    """Return the lower Cholesky factor and its smallest and largest pivot.

    The smallest is 0 where the matrix is not positive definite. NumPy raises then; CuPy returns
    whatever the factorisation left behind, which shows when it is multiplied out with a vector.
    """
    try:
        factor = xp.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        return matrix, 0.0, 0.0
    pivots = xp.diagonal(factor) ** 2
    probe = xp.cos(xp.arange(len(matrix), dtype=xp.float64))
    misfit = factor @ (factor.T @ probe) - matrix @ probe
    size = xp.abs(matrix).max() * len(matrix)
    smallest, largest, misfit, size = (
        float(n) for n in (pivots.min(), pivots.max(), xp.abs(misfit).max(), size)
    )
    return factor, smallest if misfit <= _MISFIT * size else 0.0, largest
