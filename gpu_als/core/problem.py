"""The one problem every objective becomes: independent small least-squares systems, one per row.

With one side of the factorisation fixed (``fixed``, shape ``(n_fixed, k)``), row ``u`` of the
other side solves

    lhs_u = base + sum_i g_ui y_i y_i^T + ridge_u I
    rhs_u = rhs0_u + sum_i t_ui y_i
    x_u   = lhs_u^-1 rhs_u

where ``y_i`` is row ``i`` of ``fixed``, ``g`` the gram weights and ``t`` the target weights.
Entries with ``g = 0`` enter ``rhs`` only; they are kept apart (``rhs_only``), since they do not
make the system any larger. The base is a multiple of ``fixed^T fixed`` plus that of a
:class:`Prior`, which also gives ``rhs0``.

An entry with a gram weight is kept as ``root``, the square root of ``abs(g)`` with the sign of
``g``, and ``tau = t / abs(root)``: scaling an entry's row by ``abs(root)`` turns the weighted
problem into an unweighted one with target ``tau``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import scipy.sparse as sp

from gpu_als.core.packing import Packing, pack_rows

__all__ = [
    "NO_PRIOR",
    "Array",
    "EntryWeights",
    "LoadedProblem",
    "Noise",
    "Prior",
    "RowProblem",
    "SparseRows",
    "load_problem",
    "rows_left",
]

Array = Any  # a NumPy or CuPy array

EntryWeights = Callable[[Any, Array, Array | None], tuple[Array | None, Array]]
"""``entry_weights(xp, values, weights) -> (g, t)``, elementwise on the stored entries.

``g`` is None where every gram weight is 1.
"""

_BLOCK = 1 << 22
"""Entries whose weights are worked out together, so that what that takes is small beside them."""


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
    dense : array, shape (n_rows, n_fixed), or None
        A matrix whose cells are all observed; it has no entries besides.
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
    def from_csr(cls, matrix: sp.csr_matrix, weights: Array | None = None) -> SparseRows:
        """Share the arrays of a SciPy CSR matrix."""
        return cls(
            matrix.indptr.astype(np.int64), matrix.indices, matrix.data, weights, matrix.shape[1]
        )

    @classmethod
    def from_dense(cls, matrix: np.ndarray) -> SparseRows:
        """Share a matrix whose cells are all observed, shape (n_rows, n_fixed)."""
        n_rows, n_fixed = matrix.shape
        no_entries = np.zeros(n_rows + 1, np.int64), np.zeros(0, np.int32), matrix[:0, 0]
        return cls(*no_entries, None, n_fixed, matrix)

    def to_csr(self) -> sp.csr_matrix:
        """Return the entries as a SciPy matrix that shares their arrays, without the weights."""
        arrays = self.values, self.indices, self.indptr
        return sp.csr_matrix(arrays, shape=(self.n_rows, self.n_fixed), copy=False)

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


@dataclass(frozen=True)
class Prior:
    """What pulls on a side's rows besides its entries, the Gram and the ridge.

    A normal prior with precision ``P`` and mean ``m_u`` is ``base = P`` and ``rhs = P m_u``; a
    prior mean under the ridge alone is ``rhs = ridge_u m_u``.

    Attributes
    ----------
    base : float64 array, shape (k, k), or None
        Symmetric, positive semidefinite; added to the left-hand side of every row.
    rhs : array, shape (k,) or (n_rows, k), or None
        Added to the right-hand side: one for all rows, or one for each.
    """

    base: np.ndarray | None = None
    rhs: Array | None = None


NO_PRIOR = Prior()


@dataclass(frozen=True)
class RowProblem:
    """Consecutive rows of one side as a fit has them on the host, the same in every half-sweep.

    Attributes
    ----------
    rows : SparseRows
        Entries whose gram weight is not zero.
    packing : Packing
        How the rows are grouped into padded batches.
    entry_weights : EntryWeights
    ridge : float or float64 array, shape (n_rows,)
        One ridge for all rows, or one for each.
    rhs_only : matrix, shape (n_rows, n_fixed), or None
        Target weights of the entries whose gram weight is zero (sparse, or the whole dense X).
        Its rows follow ``packing.places``, so that a batch is a slice.
    squared_loss : bool
        True where the observed part of the objective is ``sum g (t/g - s)^2`` over predictions
        ``s``; False where it is ``sum g s^2 - 2 t s``, the rest being constant.
    all_cells : bool
        ``rhs_only`` is a dense X, whose cells are all observed: the loss is ``sum (X - s)^2``.
    """

    rows: SparseRows
    packing: Packing
    entry_weights: EntryWeights
    ridge: float | np.ndarray
    rhs_only: Any | None
    squared_loss: bool
    all_cells: bool = False


@dataclass(frozen=True)
class Noise:
    """Standard normal numbers that turn a row's solution into a draw from its posterior.

    The row ``(shift I + W^T W) z = b0 + W^T tau`` is solved with ``b0 + sqrt(shift) eta`` and
    ``tau + eps``.

    Attributes
    ----------
    eta : array, shape (n_rows, k)
    eps : array, shape (nnz,)

    References
    ----------
    Bhattacharya, Chakraborty, Mallick: Fast sampling with Gaussian scale mixture priors in
    high-dimensional regression, Biometrika 103 (2016).
    """

    eta: Array
    eps: Array


@dataclass(frozen=True)
class LoadedProblem:
    """A row problem as half-sweeps take it: arrays of the device, weights worked out.

    Attributes
    ----------
    indptr : int64 array, shape (n_rows + 1,)
    indices : integer array, shape (nnz,)
    root : array, shape (nnz,), or None
        Square roots of the gram weights' sizes, with the signs of these; None where all are 1.
    tau : array, shape (nnz,)
    n_fixed : int
    packing : Packing
        On the host.
    order : int64 array, shape (n_rows,)
        ``packing.places``, on the device.
    ridge : float or float64 array, shape (n_rows,)
    rhs_only : matrix or None
        As in :class:`RowProblem`; has slices of rows, and products with the fixed side.
    squared_loss, all_cells : bool
    host_indptr : int64 array, shape (n_rows + 1,)
        ``indptr`` on the host.
    noise : Noise or None
        For a half-sweep that draws.
    kept : dict
        What a device works out of it once and keeps with it.
    """

    indptr: Array
    indices: Array
    root: Array | None
    tau: Array
    n_fixed: int
    packing: Packing
    order: Array
    ridge: float | Array
    rhs_only: Any | None
    squared_loss: bool
    all_cells: bool
    host_indptr: np.ndarray
    noise: Noise | None = None
    kept: dict[Any, Any] = field(default_factory=dict)

    @property
    def n_rows(self) -> int:
        """Number of rows."""
        return len(self.host_indptr) - 1

    @property
    def targets(self) -> Array:
        """``tau``, with its noise in a half-sweep that draws; shape (nnz,)."""
        return self.tau if self.noise is None else self.tau + self.noise.eps

    def ridge_of(self, xp: Any, rows: Array, dtype: np.dtype) -> Array:
        """Return the ridge of some rows, shape (len(rows),)."""
        if isinstance(self.ridge, float):
            return xp.full(len(rows), self.ridge, dtype)
        return self.ridge[rows].astype(dtype)


def load_problem(
    xp: Any, move: Callable[[Array], Array], problem: RowProblem, rhs_only: Any | None
) -> LoadedProblem:
    """Return a row problem with its arrays on a device, and its entries' weights worked out.

    Parameters
    ----------
    xp : module
        Array module of the device.
    move : callable
        Takes a NumPy array to the device.
    problem : RowProblem
    rhs_only : matrix or None
        ``problem.rhs_only`` as the device multiplies it.
    """
    rows = problem.rows
    root, tau = _roots_and_targets(xp, move, problem)
    return LoadedProblem(
        move(rows.indptr),
        move(rows.indices),
        root,
        tau,
        rows.n_fixed,
        problem.packing,
        move(problem.packing.places),
        problem.ridge if isinstance(problem.ridge, float) else move(problem.ridge),
        rhs_only,
        problem.squared_loss,
        problem.all_cells,
        rows.indptr,
    )


def _roots_and_targets(
    xp: Any, move: Callable[[Array], Array], problem: RowProblem
) -> tuple[Array | None, Array]:
    rows = problem.rows
    values, dtype, nnz = move(rows.values), rows.values.dtype, len(rows.values)
    weights = None if rows.weights is None else move(rows.weights)
    root, tau = None, xp.empty(nnz, dtype)
    for start in range(0, nnz, _BLOCK):
        part = slice(start, start + _BLOCK)
        g, t = problem.entry_weights(xp, values[part], None if weights is None else weights[part])
        if g is not None:
            size = xp.sqrt(xp.abs(g))
            root = xp.empty(nnz, dtype) if root is None else root
            root[part] = xp.copysign(size, g)
            t = t / size
        tau[part] = t
    return root, tau


def rows_left(
    xp: Any, problem: LoadedProblem, left: np.ndarray, n_factors: int, batch_elements: int
) -> LoadedProblem:
    """Return the problem of the rows at some places of the packing, which rise."""
    if not len(left):  # nothing as long as the data need be touched
        return replace(problem, packing=pack_rows(left, n_factors, batch_elements))
    former = problem.packing
    indefinite = np.zeros(len(left), bool)
    for span in former.spans:
        here = (left >= span.start) & (left < span.stop)
        indefinite[here] = not span.definite
    rows = former.places[left]
    counts = problem.host_indptr[rows + 1] - problem.host_indptr[rows]
    packing = pack_rows(counts, n_factors, batch_elements, indefinite=indefinite)
    moved = packing.places  # places within left
    rhs_only = problem.rhs_only
    if rhs_only is not None:
        rhs_only = rhs_only[left[moved]]
    packing = replace(
        packing,
        order=rows[packing.order],
        long_rows=tuple(int(rows[place]) for place in packing.long_rows),
    )
    order = xp.asarray(packing.places)
    return replace(problem, packing=packing, order=order, rhs_only=rhs_only, kept={})
