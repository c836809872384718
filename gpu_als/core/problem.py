"""The one problem every objective becomes: independent small least-squares systems, one per row.

With one side of the factorisation fixed (``fixed``, shape ``(n_fixed, k)``), row ``u`` of the
other side solves

    lhs_u = base + sum_i g_ui y_i y_i^T + ridge_u I
    rhs_u =        sum_i t_ui y_i
    x_u   = lhs_u^-1 rhs_u

where ``y_i`` is row ``i`` of ``fixed``, ``g`` the gram weights and ``t`` the target weights.
Entries with ``g = 0`` enter ``rhs`` only; they are kept apart (``linear``), since they do not
make the system any larger.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import scipy.sparse as sp

from gpu_als.core.packing import Packing
from gpu_als.errors import InputError

__all__ = ["RowProblem", "SparseRows", "WeighEntries"]

Array = Any  # a NumPy or CuPy array

WeighEntries = Callable[[Any, Array, Array | None], tuple[Array | None, Array | None, Array]]
"""``weigh(xp, values, weights) -> (root, sign, tau)``, elementwise on the stored entries.

``root = sqrt(abs(g))`` (None where every g is 1), ``sign`` the sign of g (None where no g is
negative) and ``tau = t / root``: scaling an entry's row by ``root`` turns the weighted problem
into an unweighted one with target ``tau``.
"""


@dataclass(frozen=True)
class SparseRows:
    """Observed entries by row, in CSR layout.

    Attributes
    ----------
    indptr : int64 array, shape (n_rows + 1,)
    indices : integer array, shape (nnz,)
    values : array, shape (nnz,)
    weights : array, shape (nnz,), or None
        Observation weights; None means 1 everywhere.
    n_fixed : int
        Number of rows of the fixed side, the bound of ``indices``.
    """

    indptr: Array
    indices: Array
    values: Array
    weights: Array | None
    n_fixed: int
    dense: Array | None = None

    @property
    def n_rows(self) -> int:
        """Number of rows to solve."""
        return len(self.indptr) - 1

    @property
    def counts(self) -> np.ndarray:
        """Number of entries of each row, int64, shape (n_rows,)."""
        return np.diff(self.indptr)

    @classmethod
    def from_dense(cls, matrix: np.ndarray) -> SparseRows:
        """Share a matrix whose cells are all observed, shape (n_rows, n_fixed)."""
        n_rows, n_fixed = matrix.shape
        no_entries = np.zeros(n_rows + 1, np.int64), np.zeros(0, np.int32), matrix[:0, 0]
        return cls(*no_entries, None, n_fixed, matrix)

    def between(self, first: int, last: int) -> SparseRows:
        """Return rows ``first`` to ``last``; no entry is copied."""
        ends = self.indptr[first : last + 1]
        place = slice(int(ends[0]), int(ends[-1]))
        return SparseRows(
            ends - ends[0],
            self.indices[place],
            self.values[place],
            None if self.weights is None else self.weights[place],
            self.n_fixed,
            None if self.dense is None else self.dense[first:last],
        )

    @classmethod
    def from_csr(cls, matrix: sp.csr_matrix, weights: Array | None = None) -> SparseRows:
        """Share the arrays of a SciPy CSR matrix."""
        return cls(
            matrix.indptr.astype(np.int64), matrix.indices, matrix.data, weights, matrix.shape[1]
        )

    def to_csr(self) -> sp.csr_matrix:
        """Return the entries as a SciPy matrix that shares their arrays, without the weights."""
        arrays = self.values, self.indices, self.indptr
        return sp.csr_matrix(arrays, shape=(self.n_rows, self.n_fixed), copy=False)


@dataclass(frozen=True)
class RowProblem:
    """Everything about one side of a factorisation that stays the same between half-sweeps.

    Attributes
    ----------
    rows : SparseRows
        Entries whose gram weight is not zero.
    packing : Packing
        How the rows are grouped into padded batches.
    weigh : WeighEntries
        Gives the weights of the entries; see there.
    base_weight : float
        ``base = base_weight * fixed^T fixed``; 0 for objectives over observed entries only.
    ridge : float or float64 array, shape (n_rows,)
        One ridge for all rows, or one for each.
    linear : matrix, shape (n_rows, n_fixed), or None
        Target weights of the entries whose gram weight is zero (sparse, or the whole dense X).
        Its rows follow ``packing.order`` and then ``packing.long_rows``, so that a batch is a
        slice.
    squared_loss : bool
        True where the observed part of the objective is ``sum g (t/g - s)^2`` over predictions
        ``s``; False where it is ``sum g s^2 - 2 t s``, the rest being constant.
    offset : array, shape (n_fixed,), or None
        Subtracted from every target: the biases of the fixed side.
    """

    rows: SparseRows
    packing: Packing
    weigh: WeighEntries
    base_weight: float
    ridge: float | Array
    linear: Any | None
    squared_loss: bool
    offset: Array | None = None

    def with_offset(self, offset: Array | None) -> RowProblem:
        """Return the same problem with other biases on the fixed side."""
        return replace(self, offset=offset)

    def check_scale(self, dtype: np.dtype) -> None:
        """Refuse ridges and bases that the factors' dtype cannot hold."""
        limit = float(np.sqrt(np.finfo(dtype).max))
        if not float(np.max(self.ridge)) <= limit:
            raise InputError(
                f"regularization, scaled to rows, exceeds {limit:.0e}, what {dtype} can work with; "
                "lower it (or its exponent) or pass dtype=numpy.float64"
            )
        if self.base_weight and not 1 / limit <= self.base_weight <= limit:
            raise InputError(
                f"unobserved_weight {self.base_weight:g} is beyond what {dtype} can work with; "
                f"keep it between {1 / limit:.0e} and {limit:.0e}"
            )
