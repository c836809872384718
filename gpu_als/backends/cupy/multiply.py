"""Products of many rows with one small matrix, in which no row depends on how many there are."""

from __future__ import annotations

from typing import Any

from gpu_als.memory.fit_shape import CONVERTED_ROWS
from gpu_als.row_problem import Array

__all__ = ["multiply_each"]


def multiply_each(xp: Any, rows: Array, matrix: Array) -> Array:
    """Return ``rows @ matrix``, block by block.

    All blocks have one shape and layout: cuBLAS picks its kernel by these, and kernels differ in
    the order in which they add.
    """
    out = xp.empty((len(rows), matrix.shape[1]), rows.dtype)
    for start in range(0, len(rows), CONVERTED_ROWS):
        block = xp.ascontiguousarray(rows[start : start + CONVERTED_ROWS])
        n = len(block)
        if n < CONVERTED_ROWS:
            block = xp.zeros((CONVERTED_ROWS, rows.shape[1]), rows.dtype)
            block[:n] = rows[start:]
        out[start : start + n] = (block @ matrix)[:n]
    return out
