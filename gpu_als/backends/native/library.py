"""The compiled library, in the variant that suits the processor.

It has a plain C interface: one build serves every version of Python. Where no compiler was at hand
when the package was installed, :func:`library` returns None and NumPy does the work.
"""

from __future__ import annotations

import ctypes
from concurrent.futures import Executor, wait
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["LINE", "aligned", "call", "empty_rows", "library", "variants"]

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


def call(function: Any, arguments: ctypes.Structure, pool: Executor) -> Any:
    """Call a function of the library in a thread of the pool, so that Ctrl-C is heard.

    Parameters
    ----------
    function : callable
        Takes a pointer to the arguments.
    arguments : Structure
        ``stop``, a pointer to int32, is set by this function.
    """
    stop = ctypes.c_int32(0)
    arguments.stop = ctypes.addressof(stop)
    running = pool.submit(function, ctypes.byref(arguments))
    try:
        return running.result()
    except BaseException:  # memory may go only once nothing works on it
        stop.value = 1
        wait([running])
        raise


def empty_rows(n: int, width: int, dtype: np.dtype) -> np.ndarray:
    """Return an uninitialised matrix (n, width) that begins on a cache line."""
    size = n * width * dtype.itemsize
    room = np.empty(size + LINE, np.uint8)
    begin = -room.ctypes.data % LINE
    out: np.ndarray = room[begin : begin + size].view(dtype).reshape(n, width)
    return out


def aligned(matrix: np.ndarray) -> np.ndarray:
    """Return a matrix whose rows begin on cache lines, zeros behind them; itself if it is one."""
    lanes = LINE // matrix.dtype.itemsize
    stride = -(-matrix.shape[1] // lanes) * lanes
    if stride == matrix.shape[1] and matrix.ctypes.data % LINE == 0 and matrix.flags.c_contiguous:
        return matrix
    out = empty_rows(len(matrix), stride, matrix.dtype)
    out[:, : matrix.shape[1]] = matrix
    out[:, matrix.shape[1] :] = 0
    return out
