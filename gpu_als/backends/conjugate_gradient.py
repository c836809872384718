"""Conjugate gradients on many small systems at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["conjugate_gradient"]

Array = Any


def conjugate_gradient(
    xp: Any, multiply: Callable[[Array], Array], rhs: Array, start: Array, steps: int
) -> Array:
    """Take ``steps`` conjugate-gradient steps on every system of a batch.

    Parameters
    ----------
    multiply : callable
        ``p -> lhs p`` for a batch of vectors, shape (B, k) to (B, k).
    rhs, start : array, shape (B, k)
    steps : int

    Returns
    -------
    array, shape (B, k)
        A row whose residual has vanished stays where it is.

    References
    ----------
    Hestenes, Stiefel: Methods of conjugate gradients for solving linear systems, 1952.
    """
    z = start.copy()
    residual = rhs - multiply(z)
    direction = residual.copy()
    energy = xp.einsum("bk,bk->b", residual, residual)
    tiny = xp.finfo(z.dtype).tiny
    for step in range(steps):
        image = multiply(direction)
        curvature = xp.einsum("bk,bk->b", direction, image)
        length = xp.where(curvature > tiny, energy / xp.maximum(curvature, tiny), 0)[:, None]
        z += length * direction
        if step == steps - 1:
            break
        residual -= length * image
        former, energy = energy, xp.einsum("bk,bk->b", residual, residual)
        direction *= xp.where(former > tiny, energy / xp.maximum(former, tiny), 0)[:, None]
        direction += residual
    return z
