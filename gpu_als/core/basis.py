"""The coordinates in which the rows of one half-sweep are solved.

With a shared base (implicit feedback, iALS, dense) coordinates ``x = R z`` are chosen once per
half-sweep in which base and ridge together become the identity, so every row of every objective
is the same problem

    (shift I + W^T W) z = b0 + W^T tau,        W = root * fixed_rows

with ``shift = 1``. One ridge for all rows: ``R = C^-T`` with the Cholesky factor ``base + ridge I
= C C^T``. A ridge for each row: ``R = Q diag(d_u)^(1/2)`` with ``base = Q diag(e) Q^T`` and
``d_u = 1 / (e + ridge_u)``. Without a base the coordinates stay as they are and ``shift =
ridge_u``. The system is better conditioned than the original, and its dual form needs no base at
all (docs/mathematics.md, "The rotated basis").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpu_als.core.ops import Ops
from gpu_als.core.problem import Array, RowProblem

__all__ = ["Frame", "gram", "make_frame"]

Multiply = Callable[[Array, Array], Array]
""":meth:`gpu_als.core.ops.Ops.multiply_each` of a device."""

_MISFIT = 1e-9
"""Relative misfit of a float64 Cholesky factor that rounding cannot explain."""
_STEEP = 1e3
"""Spread of the pivots or eigenvalues of base and ridge from which the rotation is done in
float64."""


class SideRidge:
    @classmethod
    def of(cls, ridge):  # type: ignore
        made = cls()
        made.smallest, made.uniform = float(np.min(ridge, initial=np.inf)), isinstance(ridge, float)  # type: ignore
        return made


@dataclass(frozen=True)
class Frame:
    """Coordinates of one half-sweep.

    Attributes
    ----------
    fixed : array, shape (n_fixed, k)
        The fixed side in these coordinates.
    rotation, inverse : array, shape (k, k), or None
        ``x = rotation z`` and ``z = inverse x``, before any column scaling; None for the identity.
    eigenvalues : array, shape (k,), or None
        Of the base, in frames with a ridge for each row.
    base : float64 array, shape (k, k), or None
        The base itself, in frames that do not diagonalise it.
    ridge : array, shape (n_rows,), or float
    singular : bool
        Base and ridge are singular together, and so is every row's system.
    """

    fixed: Array
    rotation: Array | None
    inverse: Array | None
    eigenvalues: Array | None
    base: Array | None
    ridge: Array | float
    singular: bool = False

    @property
    def rotated(self) -> bool:
        """Whether base and ridge have become the identity."""
        return self.rotation is not None

    def ridge_of(self, xp: Any, rows: Array) -> Array:
        """Return the ridge of some rows, shape (len(rows),)."""
        if isinstance(self.ridge, float):
            return xp.full(len(rows), self.ridge, self.fixed.dtype)
        return self.ridge[rows].astype(self.fixed.dtype)

    def shift(self, xp: Any, rows: Array) -> Array:
        """Return the diagonal that is added to ``W^T W``, shape (len(rows),)."""
        if self.rotated:
            return xp.ones(len(rows), self.fixed.dtype)
        return self.ridge_of(xp, rows)

    def column_scale(self, xp: Any, rows: Array) -> Array | None:
        """Return ``d_u^(1/2)`` where it differs from row to row, shape (len(rows), k)."""
        if self.eigenvalues is None:
            return None
        return 1 / xp.sqrt(self.eigenvalues + self.ridge_of(xp, rows)[:, None])

    def enter(self, multiply_each: Multiply, x: Array, scale: Array | None) -> Array:
        """Return the coordinates of factors ``x``, shape (B, k)."""
        z = x if self.inverse is None else multiply_each(x, self.inverse.T)
        return z if scale is None else z / scale

    def leave(self, multiply_each: Multiply, z: Array, scale: Array | None) -> Array:
        """Return the factors (B, k) whose coordinates are ``z``."""
        if scale is not None:
            z = z * scale
        return z if self.rotation is None else multiply_each(z, self.rotation.T)


def gram(ops: Ops, factors: Array) -> Array:
    """Return ``factors^T factors`` in float64, shape (k, k), added in a fixed order."""
    xp = ops.xp
    total = xp.zeros((factors.shape[1],) * 2)

    def partial(start: int) -> Array:
        block = factors[start : start + height].astype(xp.float64)
        return block.T @ block

    height = _height(ops, factors)
    for part in ops.map(partial, range(0, len(factors), height)):
        total += part
    return total


def make_frame(
    ops: Ops,
    problem: RowProblem,
    fixed: Array,
    *,
    rotate: bool,
    known_gram: Array | None = None,
) -> Frame:
    """Choose the coordinates of one half-sweep.

    ``rotate`` is False for solvers that are tied to the original coordinates (x >= 0).
    ``known_gram`` is what :func:`gram` would return for the fixed side, if that is known already.
    """
    xp = ops.xp
    ridge = problem.ridge
    if problem.base_weight == 0:
        return Frame(fixed, None, None, None, None, ridge)
    # One k x k problem: float64 keeps the small eigenvalues, on which the scaling rests.
    base = problem.base_weight * (gram(ops, fixed) if known_gram is None else known_gram)
    eigenvalues = None
    if isinstance(ridge, float):
        factor, smallest, largest = _cholesky(xp, base + ridge * xp.eye(len(base)))
        inverse = factor.T
    else:
        eigenvalues, rotation = xp.linalg.eigh(base)
        eigenvalues, inverse = xp.maximum(eigenvalues, 0), rotation.T
        smallest, largest = (float(eigenvalues[end] + xp.min(ridge)) for end in (0, -1))
    singular = not smallest > len(base) * np.finfo(np.float64).eps * largest
    if singular or not rotate:
        return Frame(fixed, None, None, None, base, ridge, singular)
    if eigenvalues is None:
        rotation = xp.linalg.inv(factor).T
    else:
        eigenvalues = eigenvalues.astype(fixed.dtype)
    # Columns with small eigenvalues are scaled up, and the rounding of the product with them.
    exact = rotation if largest > _STEEP * smallest else rotation.astype(fixed.dtype)
    return Frame(
        _multiply(ops, fixed, exact),
        rotation.astype(fixed.dtype),
        inverse.astype(fixed.dtype),
        eigenvalues,
        None,
        ridge,
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


def _multiply(ops: Ops, factors: Array, matrix: Array) -> Array:
    """Return ``factors @ matrix``, computed in the wider of their dtypes and rounded once."""
    out = ops.xp.empty_like(factors)

    def block(start: int) -> None:
        rows = slice(start, start + height)
        out[rows] = factors[rows].astype(matrix.dtype, copy=False) @ matrix

    height = _height(ops, factors)
    for _ in ops.map(block, range(0, len(factors), height)):
        pass
    return out


def _height(ops: Ops, factors: Array) -> int:
    """Return how many rows to take at a time: always the same, since sums follow it."""
    return max(1, ops.block_elements // factors.shape[1])
