"""From interactions to row problems: one small class per objective.

Each objective states what it minimises, in the notation ``r_ui`` for a stored value, ``x_u`` and
``y_i`` for the factors and ``s_ui = x_u . y_i`` for their product, and declares what its rows'
systems are made of. :func:`row_problem` turns the stored entries of one side into a
:class:`~gpu_als.core.problem.RowProblem`, the same way for all.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp

from gpu_als.core.packing import pack_rows
from gpu_als.core.problem import NO_PRIOR, Array, Prior, RowProblem, SparseRows
from gpu_als.data.csr import partition_rows
from gpu_als.errors import InputError

__all__ = ["IALS", "Dense", "Explicit", "Implicit", "Objective", "row_problem"]

_BLOCK = 1 << 20
"""Entries looked at together, so that what that takes is small beside the entries."""


class Objective(Protocol):
    """What a fit asks of an objective.

    One that is declared as a subclass gets the defaults: squared loss over observed entries of
    weight 1, no base and no prior.
    """

    @property
    def base_weight(self) -> float:
        """The base of all rows is so many times ``fixed^T fixed``; 0 where they have none."""
        return 0.0

    @property
    def weighted(self) -> bool:
        """Whether entries have gram weights other than 1 by their values."""
        return False

    @property
    def rhs_only(self) -> bool:
        """Whether many entries may have gram weight 0, and so no share in a row's matrix."""
        return False

    @property
    def squared_loss(self) -> bool:
        """Whether the observed part is a sum of squares: ``sum g (t/g - s)^2``."""
        return True

    def entry_weights(
        self, xp: Any, values: Array, weights: Array | None
    ) -> tuple[Array | None, Array]:
        """Return gram weights ``g`` (None: all 1) and target weights ``t``, elementwise.

        Parameters
        ----------
        xp : module
            Array module of the entries.
        values, weights : array, shape (n,)
            Stored values, and observation weights if there are any.
        """
        return weights, values if weights is None else weights * values

    def ridge(self, counts: np.ndarray, n_fixed: int, side: str) -> float | np.ndarray:
        """Return one ridge for all rows, or one for each, float64, shape (n_rows,).

        Parameters
        ----------
        counts : int64 array, shape (n_rows,)
            Stored entries of each row.
        n_fixed : int
            Rows of the other side.
        side : {"users", "items"}
        """
        ...

    def prior(self, side: str) -> Prior:
        """Return what pulls on the rows of a side besides; asked for before every half-sweep."""
        return NO_PRIOR

    def constant(self, rows: SparseRows) -> float:
        """Return the part of the loss that no factor changes and half-sweeps leave out."""
        return 0.0


def row_problem(
    objective: Objective, rows: SparseRows, n_factors: int, batch_elements: int, side: str
) -> RowProblem:
    """Return the problem of some rows of a side ("users" or "items").

    Parameters
    ----------
    objective : Objective
    rows : SparseRows
        Its stored entries, or a dense matrix.
    n_factors : int
    batch_elements : int
        Array elements that one batch may use.

    Raises
    ------
    InputError
        A ridge, or the weight of the base, is beyond the dtype of the values.
    """
    ridge = objective.ridge(rows.counts, rows.n_fixed, side)
    _check_scale(objective, ridge, rows.values.dtype)
    gram, rhs_only, indefinite = _split(objective, rows)
    overhead = 0
    if rows.dense is not None:  # every cell is a right-hand side of the base's system
        rhs_only, overhead = rows.dense, 2 * rows.n_fixed
    packing = pack_rows(
        gram.counts, n_factors, batch_elements, indefinite=indefinite, row_overhead=overhead
    )
    if rhs_only is not None:
        rhs_only = rhs_only[packing.places]
    return RowProblem(
        gram, packing, objective.entry_weights, ridge, rhs_only, objective.squared_loss,
        rows.dense is not None,
    )  # fmt: skip


def _split(
    objective: Objective, rows: SparseRows
) -> tuple[SparseRows, sp.csr_matrix | None, np.ndarray | None]:
    """Set the entries whose gram weight is 0 apart, as a matrix of their target weights.

    Returns the other entries, that matrix, and which rows have a negative gram weight, shape
    (n_rows,); None for nothing of the kind.
    """
    if rows.weights is None and not objective.weighted:
        return rows, None, None
    nnz = len(rows.values)
    zero, negative = np.zeros(nnz, bool), np.zeros(nnz, bool)
    targets = []
    for start in range(0, nnz, _BLOCK):
        part = slice(start, start + _BLOCK)
        weights = None if rows.weights is None else rows.weights[part]
        g, t = objective.entry_weights(np, rows.values[part], weights)
        if g is not None:
            zero[part], negative[part] = g == 0, g < 0
            targets.append(t[zero[part]])
    rhs_only = None
    if zero.any():
        before, kept = _flagged_before(zero, rows.indptr), ~zero
        rhs_only = sp.csr_matrix(
            (np.concatenate(targets), rows.indices[zero], before), shape=(rows.n_rows, rows.n_fixed)
        )
        rows = SparseRows(
            rows.indptr - before,
            rows.indices[kept],
            rows.values[kept],
            None if rows.weights is None else rows.weights[kept],
            rows.n_fixed,
        )
        negative = negative[kept]
    indefinite = None
    if negative.any():
        indefinite = np.diff(_flagged_before(negative, rows.indptr)) > 0
    return rows, rhs_only, indefinite


@dataclass(frozen=True)
class Explicit(Objective):
    """Ratings, observed entries only.

        sum_observed w_ui (r_ui - mean - b_u - b_i - s_ui)^2
            + sum_u ridge_u |x_u|^2 + sum_i ridge_i |y_i|^2

    with ``ridge_u = lambda``, or ``lambda * n_u`` where ``count_scaled`` (ALS-WR; Zhou, Wilkinson,
    Schreiber, Pan: Large-scale parallel collaborative filtering for the Netflix prize, AAIM 2008).
    A row without entries counts as one entry, so that its system stays regular. Biases are
    factors whose partner is fixed at 1 and share the ridge; the training loop supplies those of
    the fixed side as the problem's ``offset``.

    MAP estimation of probabilistic matrix factorisation (Salakhutdinov, Mnih: Probabilistic
    matrix factorization, NIPS 2007) is this objective with ``regularization =
    (sigma^2 / sigma_users^2, sigma^2 / sigma_items^2)`` and no count scaling.

    Attributes
    ----------
    regularization : float or (float, float)
        lambda, or one for users and one for items.
    count_scaled : bool
    mean : float
    """

    regularization: float | tuple[float, float]
    count_scaled: bool = True
    mean: float = 0.0

    def entry_weights(
        self, xp: Any, values: Array, weights: Array | None
    ) -> tuple[Array | None, Array]:
        """Gram weight ``w``, target weight ``w (r - mean)``."""
        centred = values - values.dtype.type(self.mean)
        return weights, centred if weights is None else weights * centred

    def ridge(self, counts: np.ndarray, n_fixed: int, side: str) -> float | np.ndarray:
        """``lambda``, or ``lambda * n_u``."""
        ridge = _by_side(self.regularization, side)
        return ridge * np.maximum(counts, 1) if self.count_scaled else ridge


@dataclass(frozen=True)
class Implicit(Objective):
    """Implicit feedback after Hu, Koren, Volinsky, with the conventions of ``implicit``.

        sum_all c_ui (p_ui - s_ui)^2 + lambda (|X|^2 + |Y|^2)

    Observed cells have ``c = abs(alpha * r)`` and ``p = 1``, or ``p = 0`` where ``r < 0``
    ("disliked, with that confidence"); all other cells have ``c = 1, p = 0``. So the confidence
    is ``alpha * r``, not ``1 + alpha * r`` as in the paper or in LensKit.

    References
    ----------
    Hu, Koren, Volinsky: Collaborative filtering for implicit feedback datasets, ICDM 2008.
    """

    regularization: float
    alpha: float = 1.0

    base_weight = 1.0
    weighted = True
    rhs_only = True
    squared_loss = False

    def entry_weights(self, xp: Any, values: Array, weights: Array | None) -> tuple[Array, Array]:
        """Gram weight ``abs(c) - 1``, target weight ``max(c, 0)``."""
        confidence = values * values.dtype.type(self.alpha)
        return xp.abs(confidence) - 1, xp.maximum(confidence, 0)

    def ridge(self, counts: np.ndarray, n_fixed: int, side: str) -> float:
        """``lambda``."""
        return float(self.regularization)

    def constant(self, rows: SparseRows) -> float:
        """``sum c p^2``, and what rounding adds to the loss where scores are 1.

        Half-sweeps weigh an entry by ``root^2`` and ``root tau``, which differ from ``g`` and ``t``
        in the last bit: the same bit for all entries of one value, so that it adds up to more than
        the loss where confidences are large.
        """
        total = 0.0
        for start in range(0, len(rows.values), _BLOCK):
            values = rows.values[start : start + _BLOCK]
            gram, target = self.entry_weights(np, values[values * self.alpha > 0], None)
            total += target.sum(dtype=np.float64)
            gram, target = gram[gram != 0], target[gram != 0]
            root = np.sqrt(np.abs(gram))
            tau = (target / root).astype(np.float64)
            rounded = root.astype(np.float64)
            error = np.copysign(rounded * rounded, gram) - gram - 2 * (rounded * tau - target)
            total -= error.sum()
        return float(total)


@dataclass(frozen=True)
class IALS(Objective):
    """Implicit feedback in the form Rendle et al. call iALS.

        sum_observed w_ui (1 - s_ui)^2 + alpha0 sum_all s_ui^2
            + sum_u ridge_u |x_u|^2 + sum_i ridge_i |y_i|^2

    with ``w = alpha * abs(r)`` and ``ridge_u = lambda (n_u + alpha0 n_fixed)^nu``, where a row on
    which no cell pulls counts as one cell, so that its system stays regular. The observed terms
    stand on top of the all-cells term, which differs from :class:`Implicit`.

    Attributes
    ----------
    regularization, alpha : float
    unobserved_weight : float
        alpha0 of the paper.
    exponent : float
        nu of the paper; 0 gives every row the ridge lambda, 1 a ridge in proportion to the
        number of cells that pull on it.

    References
    ----------
    Rendle, Krichene, Zhang, Koren: Revisiting the performance of iALS on item recommendation
    benchmarks, RecSys 2022.
    """

    regularization: float
    alpha: float = 1.0
    unobserved_weight: float = 1.0
    exponent: float = 0.0

    weighted = True

    @property
    def base_weight(self) -> float:
        """``alpha0``."""
        return self.unobserved_weight

    def entry_weights(self, xp: Any, values: Array, weights: Array | None) -> tuple[Array, Array]:
        """Gram weight and target weight, both ``w``."""
        weight = xp.abs(values) * values.dtype.type(self.alpha)
        return weight, weight

    def ridge(self, counts: np.ndarray, n_fixed: int, side: str) -> float | np.ndarray:
        """``lambda (n_u + alpha0 n_fixed)^nu``."""
        if not self.exponent:
            return float(self.regularization)
        cells = counts + self.unobserved_weight * n_fixed
        with np.errstate(over="ignore"):  # an infinite ridge is refused
            ridge: np.ndarray = np.where(cells > 0, cells, 1) ** self.exponent
            return self.regularization * ridge


@dataclass(frozen=True)
class Dense(Objective):
    """A dense matrix with nothing missing: ``|X - W Z^T|_F^2`` plus the ridges.

    No row has a system of its own: ``base = Z^T Z`` serves all, and the rows of X are right-hand
    sides. (The objective is stated without the factor 1/2 that its gradient is usually given
    for; with ``1/2 lambda |W|^2`` as the penalty the minimisers are the same.)
    """

    regularization: float | tuple[float, float]

    base_weight = 1.0

    def ridge(self, counts: np.ndarray, n_fixed: int, side: str) -> float:
        """``lambda`` of the side."""
        return _by_side(self.regularization, side)


def _by_side(value: float | tuple[float, float], side: str) -> float:
    return float(value[0 if side == "users" else 1] if isinstance(value, tuple) else value)


def _check_scale(objective: Objective, ridge: float | np.ndarray, dtype: np.dtype) -> None:
    """Refuse ridges and bases that the factors' dtype cannot hold."""
    limit = float(np.sqrt(np.finfo(dtype).max))
    if not float(np.max(ridge, initial=0)) <= limit:
        raise InputError(
            f"regularization, scaled to rows, exceeds {limit:.0e}, what {dtype} can work with; "
            "lower it (or its exponent) or pass dtype=numpy.float64"
        )
    weight = objective.base_weight
    if weight and not 1 / limit <= weight <= limit:
        raise InputError(
            f"unobserved_weight {weight:g} is beyond what {dtype} can work with; "
            f"keep it between {1 / limit:.0e} and {limit:.0e}"
        )


def _flagged_before(flags: np.ndarray, indptr: np.ndarray) -> np.ndarray:
    """Return how many entries before each row are flagged, int64, shape (n_rows + 1,)."""
    before = np.zeros(len(indptr), np.int64)
    bounds = partition_rows(np.diff(indptr), _BLOCK, 1, 0)
    for first, last in pairwise(bounds):
        ends = indptr[first : last + 1]
        within = np.cumsum(flags[ends[0] : ends[-1]], dtype=np.int64)
        within = np.append(0, within)[ends[1:] - ends[0]]
        before[first + 1 : last + 1] = before[first] + within
    return before
