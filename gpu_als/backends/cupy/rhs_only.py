"""Entries that enter right-hand sides only, on the device: products with the fixed side.

They are those of confidence 1, of which counts have many. cuSPARSE would want the fixed side
copied with columns first, and adds in an order that can change from one call to the next.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse as sp

from gpu_als.backends.cupy.nvrtc import Kernels, Macros
from gpu_als.core.problem import Array

__all__ = ["COLUMNS", "KERNELS", "LONGEST", "RhsOnly", "load_rhs_only"]

LONGEST = 512
"""Entries of a row that one warp adds up; many warps share longer ones."""
_WARPS = 16
_GATHERED = 1 << 20
"""Elements of the fixed side that are gathered at a time without the kernel."""
COLUMNS = 128
"""Of one pass; rhs_only.cu."""
KERNELS: list[tuple[str, Macros]] = [("rhs_only", (("WARPS", warps),)) for warps in (1, _WARPS)]
"""What products in float32 launch."""


@dataclass(frozen=True)
class RhsOnly:
    """Rows of a sparse matrix on the device.

    Attributes
    ----------
    xp : module
        CuPy.
    kernels : Kernels
    indptr, indices, targets : array
        The whole matrix's.
    long_rows : int64 array
        Rows of more than :data:`LONGEST` entries; on the host, rising.
    rows : range or int64 array
        Which of its rows these are; on the host.
    """

    xp: Any
    kernels: Kernels
    indptr: Array
    indices: Array
    targets: Array
    long_rows: np.ndarray
    rows: range | np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, some: slice | np.ndarray) -> RhsOnly:
        """Return some of these rows; nothing is copied."""
        if isinstance(self.rows, range) and isinstance(some, np.ndarray):
            return replace(self, rows=self.rows.start + some)
        rows: Any = self.rows
        return replace(self, rows=rows[some])

    def __matmul__(self, fixed: Array) -> Array:
        """Return the product with an array of shape (n_fixed, k), shape (len(self), k)."""
        if self.kernels.usable:
            with self.kernels.or_general_path():
                out = self.xp.empty((len(self), fixed.shape[1]), fixed.dtype)
                self.write(fixed, out, None)
                return out
        return self._gather(fixed)

    def write(self, fixed: Array, out: Array, places: Array | None) -> None:
        """Write the product into rows of an array, by kernels.

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
            kernel = self.kernels.get("rhs_only", (("WARPS", warps), *wide, *double), "rhs_only")
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

    def _gather(self, fixed: Array) -> Array:
        """Return the product without our kernels: by gathered rows, padded to powers of two."""
        xp, k = self.xp, fixed.shape[1]
        rows = self.rows if isinstance(self.rows, np.ndarray) else np.array(self.rows, np.int64)
        rows = xp.asarray(rows)
        starts, counts = self.indptr[rows], self.indptr[rows + 1] - self.indptr[rows]
        lengths = xp.asnumpy(counts)
        out = xp.zeros((len(self), k), fixed.dtype)
        for power in range(int(lengths.max(initial=0)).bit_length() + 1):
            longest = 1 << power
            alike = np.flatnonzero((lengths > longest // 2) & (lengths <= longest))
            width = min(longest, LONGEST)
            height = max(1, _GATHERED // (width * k))
            for start in range(0, len(alike), height):
                some = xp.asarray(alike[start : start + height])
                for done in range(0, longest, width):
                    places = done + xp.arange(width)
                    where = xp.minimum(starts[some, None] + places, len(self.indices) - 1)
                    valid = places < counts[some, None]
                    targets = xp.where(valid, self.targets[where], 0).astype(fixed.dtype)
                    gathered = fixed[self.indices[where]]
                    out[some] += (targets[:, None, :] @ gathered)[:, 0]
        return out

    def _long(self) -> np.ndarray:
        """Return which of these rows are long."""
        if not isinstance(self.rows, range):
            return np.flatnonzero(np.isin(self.rows, self.long_rows))
        ends = np.searchsorted(self.long_rows, [self.rows.start, self.rows.stop])
        return self.long_rows[ends[0] : ends[1]] - self.rows.start


def load_rhs_only(xp: Any, kernels: Kernels, matrix: sp.csr_matrix) -> RhsOnly:
    """Return a matrix's rows on the device."""
    indices = matrix.indices
    if matrix.shape[1] < 1 << 31:  # SciPy widens them where there are many entries
        indices = indices.astype(np.int32, copy=False)
    indptr = matrix.indptr.astype(np.int64, copy=False)
    return RhsOnly(
        xp,
        kernels,
        xp.asarray(indptr),
        xp.asarray(indices),
        xp.asarray(matrix.data),
        long_rows=np.flatnonzero(np.diff(indptr) > LONGEST),
        rows=range(matrix.shape[0]),
    )
