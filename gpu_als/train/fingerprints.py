"""What tells data from other data, so that a fit goes on with what it began with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np

from gpu_als.core.problem import SparseRows

__all__ = ["add_marks", "fingerprint", "mark_of_entries"]

_BLOCK = 1 << 20
"""Elements of an array taken at a time, so that it is never copied as a whole."""


def fingerprint(*arrays: np.ndarray | None) -> str:
    """Return what tells one-dimensional arrays from others: a digest of their values.

    Integers are the same in every type that holds them. None stands for no array.
    """
    if all(array is None for array in arrays):
        return "none"
    total = hashlib.blake2b(digest_size=8)
    for array in arrays:
        if array is None:
            continue
        kind = array.dtype
        if kind.kind in "iu":
            kind = np.dtype(np.int32 if array.max(initial=0) < 2**31 else np.int64)
        total.update(f"{kind.name}{len(array)}".encode())
        for start in range(0, len(array), _BLOCK):
            total.update(np.ascontiguousarray(array[start : start + _BLOCK], kind).data)
    return total.hexdigest()


def mark_of_entries(first_row: int, rows: SparseRows) -> int:
    """Return a number from 0 to 2^64 - 1 that tells rows' entries from others.

    It is the sum of one such number for each entry, so it does not matter how a matrix is cut into
    blocks of rows, nor in which types they are held, if these hold the values exactly.

    Parameters
    ----------
    first_row : int
        The number of the first of these rows in the matrix.
    rows : SparseRows
    """
    total = 0
    for start in range(0, len(rows.indices), _BLOCK):
        stop = min(start + _BLOCK, len(rows.indices))
        first, last = np.searchsorted(rows.indptr, (start, stop - 1), side="right") - 1
        counts = np.diff(np.clip(rows.indptr[first : last + 2], start, stop))
        numbers = np.arange(first_row + first, first_row + last + 1, dtype=np.uint64)
        mixed = np.repeat(numbers * np.uint64(0x9E3779B97F4A7C15), counts)
        mixed ^= rows.indices[start:stop].astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
        mixed ^= rows.values[start:stop].astype(np.float64).view(np.uint64)
        for shift, factor in ((31, 0xBF58476D1CE4E5B9), (29, 0x94D049BB133111EB)):
            mixed ^= mixed >> np.uint64(shift)
            mixed *= np.uint64(factor)
        total += int(mixed.sum(dtype=np.uint64))
    return total % 2**64


def add_marks(marks: Iterable[int]) -> str:
    """Return what tells a matrix from others, given the marks of its blocks of rows."""
    return f"{sum(marks) % 2**64:016x}"
