"""The compiled library, in the variant that suits the processor.

It has a plain C interface: one build serves every version of Python. Where no compiler was at hand
when the package was installed, :func:`library` returns None and NumPy does the work.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import numpy as np

__all__ = ["LINE", "aligned", "library", "variants"]

LINE = 64
"""Bytes of a cache line, and of the vectors that rows.cpp works with."""


@cache
def variants() -> dict[str, ctypes.CDLL]:
    """Load the variants that were built and that the processor can run, the best one first."""
    generic = _load("generic")
    if generic is None:
        return {}
    found = {f"v{level}": _load(f"v{level}") for level in (4, 3) if level <= generic.level()}
    return {name: one for name, one in found.items() if one is not None} | {"generic": generic}


def library() -> ctypes.CDLL | None:
    """Return the best variant; None where none was built."""
    return next(iter(variants().values()), None)


def _load(variant: str) -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(str(Path(__file__).parent / f"rows_{variant}.so"))
    except OSError:
        return None


def aligned(matrix: np.ndarray) -> np.ndarray:
    """Return a matrix whose rows begin on cache lines, zeros behind them; itself if it is one."""
    lanes = LINE // matrix.dtype.itemsize
    stride = -(-matrix.shape[1] // lanes) * lanes
    if stride == matrix.shape[1] and matrix.ctypes.data % LINE == 0 and matrix.flags.c_contiguous:
        return matrix
    room = np.empty(len(matrix) * stride * matrix.dtype.itemsize + LINE, np.uint8)
    begin = -room.ctypes.data % LINE
    out: np.ndarray = room[begin : begin + len(matrix) * stride * matrix.dtype.itemsize]
    out = out.view(matrix.dtype).reshape(len(matrix), stride)
    out[:, : matrix.shape[1]] = matrix
    out[:, matrix.shape[1] :] = 0
    return out
