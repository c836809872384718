"""Entries that enter right-hand sides only, on the device: products with the fixed side.

They are those of confidence 1, of which counts have many. cuSPARSE would want the fixed side
copied with columns first, and adds in an order that can change from one call to the next.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse as sp

from gpu_als.backends.cupy.nvrtc import Macros
from gpu_als.core.problem import Array

__all__ = ["COLUMNS", "KERNELS", "LONGEST", "Linear", "load_linear"]

LONGEST = 512
"""Entries of a row that one warp adds up; many warps share longer ones."""
_WARPS = 16
COLUMNS = 128
"""Of one pass; linear.cu."""
KERNELS: list[tuple[str, Macros]] = [("linear", (("WARPS", warps),)) for warps in (1, _WARPS)]
"""What products in float32 launch."""


@dataclass(frozen=True)
class Linear:
    """Rows of a sparse matrix on the device.

    Attributes
    ----------
    xp : module
        CuPy.
    get_kernel : callable
        ``get_kernel(file, macros, function)`` returns a compiled kernel.
    indptr, indices, targets : array
        The whole matrix's.
    long_rows : int64 array
        Rows of more than :data:`LONGEST` entries; on the host, rising.
    rows : range or int64 array
        Which of its rows these are; on the host.
    """

    xp: Any
    get_kernel: Callable[..., Any]
    indptr: Array
    indices: Array
    targets: Array
    long_rows: np.ndarray
    rows: range | np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, some: slice | np.ndarray) -> Linear:
        """Return some of these rows; nothing is copied."""
        if isinstance(self.rows, range) and isinstance(some, np.ndarray):
            return replace(self, rows=self.rows.start + some)
        rows: Any = self.rows
        return replace(self, rows=rows[some])

    def __matmul__(self, fixed: Array) -> Array:
        """Return the product with an array of shape (n_fixed, k), shape (len(self), k)."""
        out = self.xp.empty((len(self), fixed.shape[1]), fixed.dtype)
        self.write(fixed, out, None)
        return out

    def write(self, fixed: Array, out: Array, places: Array | None) -> None:
        """Write the product into rows of an array.

        Parameters
        ----------
        fixed : array, shape (n_fixed, k)
        out : array, shape (n, at least k)
            Of the same dtype, rows after rows.
        places : int64 array on the device, shape (len(self),), or None
            The rows of ``out``; by default its first.
        """
        if not len(self):
            return
        wide = (("WIDE", 1),) if self.indices.dtype == np.int64 else ()
        double = (("DOUBLE", 1),) if fixed.dtype == np.float64 else ()
        null = np.uint64(0)
        first, rows = np.int64(0), null
        if isinstance(self.rows, range):
            first = np.int64(self.rows.start)
        else:
            rows = self.xp.asarray(self.rows)
        targets = self.targets.astype(fixed.dtype, copy=False)
        matrix = self.indptr, self.indices, targets, self.xp.ascontiguousarray(fixed)
        for warps, chosen in ((1, None), (_WARPS, self._long())):
            n_rows = len(self) if chosen is None else len(chosen)
            if not n_rows:
                continue
            kernel = self.get_kernel("linear", (("WARPS", warps), *wide, *double), "linear")
            arguments = (
                *matrix,
                np.int32(fixed.shape[1]),
                rows,
                first,
                null if chosen is None else self.xp.asarray(chosen),
                np.int64(LONGEST),
                null if places is None else places,
                out,
                np.int64(out.shape[1]),
            )
            shared = warps * COLUMNS * out.dtype.itemsize if warps > 1 else 0
            kernel((n_rows,), (32 * warps,), arguments, shared_mem=shared)

    def _long(self) -> np.ndarray:
        """Return which of these rows are long."""
        if not isinstance(self.rows, range):
            return np.flatnonzero(np.isin(self.rows, self.long_rows))
        ends = np.searchsorted(self.long_rows, [self.rows.start, self.rows.stop])
        return self.long_rows[ends[0] : ends[1]] - self.rows.start


def load_linear(xp: Any, get_kernel: Callable[..., Any], matrix: sp.csr_matrix) -> Linear:
    """Return a matrix's rows on the device."""
    indices = matrix.indices
    if matrix.shape[1] < 1 << 31:  # SciPy widens them where there are many entries
        indices = indices.astype(np.int32, copy=False)
    indptr = matrix.indptr.astype(np.int64, copy=False)
    return Linear(
        xp,
        get_kernel,
        xp.asarray(indptr),
        xp.asarray(indices),
        xp.asarray(matrix.data),
        long_rows=np.flatnonzero(np.diff(indptr) > LONGEST),
        rows=range(matrix.shape[0]),
    )
