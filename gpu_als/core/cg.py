"""Conjugate gradients on many small systems at once, with as few passes over the rows as it takes.

A system is given by what it does to a vector: ``forward`` goes to the observations (``f = W p``),
``backward`` comes back (``lhs p``). The curvature ``p . lhs p`` needs ``f`` only, so the last step
never goes back; and ``f`` of the solution, which the loss is made of, is added up on the way.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from gpu_als.core.linalg import magnitudes, row_dots, row_norms
from gpu_als.core.problem import Array

__all__ = ["DenseSystem", "LinearSystem", "conjugate_gradient"]


class LinearSystem(Protocol):
    """A batch of symmetric positive definite systems ``lhs z = rhs``.

    Attributes
    ----------
    noise : array, shape (B,), or float
        ``|residual|`` up to which a residual is nothing but rounding.
    """

    noise: Array

    def forward(self, p: Array) -> Array:
        """Return ``f``, linear in ``p`` (B, k)."""
        ...

    def curvature(self, p: Array, f: Array) -> Array:
        """Return ``p . lhs p``, shape (B,), given ``f = forward(p)``."""
        ...

    def backward(self, p: Array, f: Array) -> Array:
        """Return ``lhs p``, shape (B, k)."""
        ...

    def residual(self, z: Array, f: Array) -> Array:
        """Return ``rhs - lhs z``, shape (B, k), given ``f = forward(z)``."""
        ...


class DenseSystem:
    """Systems whose matrices are there: ``lhs`` (B, k, k) and ``rhs`` (B, k)."""

    def __init__(self, xp: Any, lhs: Array, rhs: Array) -> None:
        self.lhs, self.rhs = lhs, rhs
        # Curvature from a matrix that was added up is rounded to its largest elements: along
        # what is left once the residual is down to rounding, it could have any value.
        self.noise = 8 * np.finfo(rhs.dtype).eps * row_norms(xp, rhs)

    def forward(self, p: Array) -> Array:
        """Return ``lhs p``, of which all else follows."""
        return (self.lhs @ p[:, :, None])[:, :, 0]

    def curvature(self, p: Array, f: Array) -> Array:
        """Return the product of ``p`` and its image."""
        return (p * f).sum(axis=1)

    def backward(self, p: Array, f: Array) -> Array:
        """Return the image, which is there already."""
        return f

    def residual(self, z: Array, f: Array) -> Array:
        """Return what the right-hand side has beyond the image."""
        return self.rhs - f


def conjugate_gradient(
    xp: Any, system: LinearSystem, start: Array, steps: int
) -> tuple[Array, Array]:
    """Take ``steps`` conjugate-gradient steps from ``start`` on every system of a batch.

    Parameters
    ----------
    system : LinearSystem
    start : array, shape (B, k)
    steps : int
        At least 1.

    Returns
    -------
    z : array, shape (B, k)
        A row stays where it is once its residual has vanished in rounding, or lies in
        the null space of its matrix up to rounding.
    f : array
        ``system.forward(z)``.

    References
    ----------
    Hestenes, Stiefel: Methods of conjugate gradients for solving linear systems, 1952.
    """
    z, f = start.copy(), system.forward(start)
    residual = system.residual(z, f)
    # Everything is homogeneous in the residual; a power of two changes no digit.
    size = magnitudes(xp, residual)
    residual = residual / size
    noise = (system.noise / size[:, 0]) ** 2
    direction = residual
    energy = row_dots(xp, residual, residual)
    tiny, eps = xp.finfo(z.dtype).tiny, xp.finfo(z.dtype).eps
    square, steepest = energy, xp.zeros_like(energy)  # |direction|^2, largest curvature for it
    for step in range(steps):
        image = system.forward(direction)
        curvature = system.curvature(direction, image)
        steepest = xp.maximum(steepest, curvature / xp.maximum(square, tiny))
        # What is left of a residual in a singular system's null space is noise, and a step could
        # have any length: there is none. (0 * curvature hands on what overflowed.)
        regular = (curvature > tiny) & (curvature > eps * steepest * square)
        regular &= energy > noise
        length = xp.where(regular, energy / xp.where(regular, curvature, 1), 0 * curvature)[:, None]
        z += size * length * direction
        f = f + size * length * image
        if step == steps - 1:
            break
        residual = residual - length * system.backward(direction, image)
        former, energy = energy, row_dots(xp, residual, residual)
        turn = xp.where(former > tiny, energy / xp.maximum(former, tiny), 0)[:, None]
        direction = residual + turn * direction
        square = row_dots(xp, direction, direction)
    return z, f
