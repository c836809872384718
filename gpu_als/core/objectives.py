"""From interactions to row problems: one small class per objective.

Each objective states what it minimises, in the notation ``r_ui`` for a stored value, ``x_u`` and
``y_i`` for the factors and ``s_ui = x_u . y_i`` for their product, and turns the stored entries
of one side into a :class:`~gpu_als.core.problem.RowProblem`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp

from gpu_als.core.packing import pack_rows
from gpu_als.core.problem import Array, RowProblem, SparseRows
from gpu_als.data.csr import cut_rows

__all__ = ["IALS", "Dense", "Explicit", "Implicit", "Objective", "count_entries"]

_BLOCK = 1 << 20
"""Entries looked at together, so that what that takes is small beside the entries."""


class Objective(Protocol):
    """What the training loop asks of an objective."""

    @property
    def base_weight(self) -> float:
        """The base of all rows is so many times ``fixed^T fixed``; 0 where they have none."""
        ...

    def row_problem(
        self, rows: SparseRows | np.ndarray, n_factors: int, batch_elements: int, side: str
    ) -> RowProblem:
        """Return the problem of the side whose entries are ``rows`` ("users" or "items")."""
        ...

    def constant(self, rows: SparseRows | np.ndarray) -> float:
        """Return the part of the loss that no factor changes and half-sweeps leave out."""
        ...


def count_entries(rows: SparseRows) -> np.ndarray:
    """Return the number of stored entries of each row, int64, shape (n_rows,)."""
    return np.diff(rows.indptr)


def _by_side(value: float | tuple[float, float], side: str) -> float:
    return float(value[0 if side == "users" else 1] if isinstance(value, tuple) else value)


def row_problem(objective, rows, n_factors, batch_elements, side):  # type: ignore
    problem = objective.row_problem(rows, n_factors, batch_elements, side)
    problem.check_scale(rows.values.dtype)
    return problem


@dataclass(frozen=True)
class Explicit:
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

    weighted = False

    def ridge(self, counts: Any, n_fixed: int, side: str) -> Any:
        """Shim."""
        ridge: Any = _by_side(self.regularization, side)
        return ridge * np.maximum(counts, 1) if self.count_scaled else ridge

    @property
    def base_weight(self) -> float:
        """See :class:`Objective`."""
        return 0.0

    def weigh(
        self, xp: Any, values: Array, weights: Array | None
    ) -> tuple[Array | None, Array | None, Array]:
        """Gram weight ``w``, target weight ``w (r - mean)``."""
        centred = values - values.dtype.type(self.mean)
        if weights is None:
            return None, None, centred
        root = xp.sqrt(weights)
        return root, None, root * centred

    def row_problem(
        self, rows: SparseRows | np.ndarray, n_factors: int, batch_elements: int, side: str
    ) -> RowProblem:
        """See :class:`Objective`."""
        assert isinstance(rows, SparseRows)
        counts = count_entries(rows)
        ridge: float | np.ndarray = _by_side(self.regularization, side)
        if self.count_scaled:
            ridge = ridge * np.maximum(counts, 1)
        packing = pack_rows(counts, n_factors, batch_elements)
        return RowProblem(
            rows, packing, self.weigh, self.base_weight, ridge, None, squared_loss=True
        )

    def constant(self, rows: SparseRows | np.ndarray) -> float:
        """See :class:`Objective`."""
        return 0.0


@dataclass(frozen=True)
class Implicit:
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

    weighted = True

    def ridge(self, counts: Any, n_fixed: int, side: str) -> Any:
        """Shim."""
        return float(self.regularization)

    @property
    def base_weight(self) -> float:
        """See :class:`Objective`."""
        return 1.0

    def weigh(
        self, xp: Any, values: Array, weights: Array | None
    ) -> tuple[Array | None, Array | None, Array]:
        """Never called where the gram weight is 0."""
        gram, target = self.cell_weights(xp, values)
        root = xp.sqrt(xp.abs(gram))
        return root, xp.sign(gram), target / root

    def cell_weights(self, xp: Any, values: Array) -> tuple[Array, Array]:
        """Return gram weight ``abs(c) - 1`` and target weight ``max(c, 0)``."""
        confidence = values * values.dtype.type(self.alpha)
        return xp.abs(confidence) - 1, xp.maximum(confidence, 0)

    def row_problem(
        self, rows: SparseRows | np.ndarray, n_factors: int, batch_elements: int, side: str
    ) -> RowProblem:
        """See :class:`Objective`."""
        assert isinstance(rows, SparseRows)
        gram, linear = _split(rows, self._where(np.equal, rows.values), self.alpha)
        negative = self._where(np.less, gram.values)
        indefinite = np.diff(_flagged_before(negative, gram.indptr)) > 0 if negative.any() else None
        packing = pack_rows(count_entries(gram), n_factors, batch_elements, indefinite=indefinite)
        if linear is not None:
            linear = linear[np.append(packing.order, packing.long_rows).astype(np.int64)]
        return RowProblem(
            gram,
            packing,
            self.weigh,
            self.base_weight,
            float(self.regularization),
            linear,
            squared_loss=False,
        )

    def _where(self, compare: Callable[..., np.ndarray], values: np.ndarray) -> np.ndarray:
        """Compare each value's confidence with 1, with no other array of their length."""
        flags = np.empty(len(values), bool)
        for start in range(0, len(values), _BLOCK):
            block = slice(start, start + _BLOCK)
            confidence = np.abs(values[block] * values.dtype.type(self.alpha))
            flags[block] = compare(confidence, 1)
        return flags

    def constant(self, rows: SparseRows | np.ndarray) -> float:
        """``sum c p^2``: the confidences of the liked cells."""
        assert isinstance(rows, SparseRows)
        liked = rows.values[rows.values * self.alpha > 0]
        return float(abs(self.alpha) * np.abs(liked).sum(dtype=np.float64))


@dataclass(frozen=True)
class IALS:
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

    def ridge(self, counts: Any, n_fixed: int, side: str) -> Any:
        """Shim."""
        if not self.exponent:
            return float(self.regularization)
        cells = counts + self.unobserved_weight * n_fixed
        with np.errstate(over="ignore"):
            return self.regularization * np.where(cells > 0, cells, 1) ** self.exponent

    @property
    def base_weight(self) -> float:
        """See :class:`Objective`."""
        return self.unobserved_weight

    def weigh(
        self, xp: Any, values: Array, weights: Array | None
    ) -> tuple[Array | None, Array | None, Array]:
        """See :class:`Objective`."""
        root = xp.sqrt(self.cell_weights(xp, values)[0])
        return root, None, root

    def cell_weights(self, xp: Any, values: Array) -> tuple[Array, Array]:
        """Return gram weight and target weight, both ``alpha abs(r)``."""
        weight = xp.abs(values) * values.dtype.type(self.alpha)
        return weight, weight

    def row_problem(
        self, rows: SparseRows | np.ndarray, n_factors: int, batch_elements: int, side: str
    ) -> RowProblem:
        """See :class:`Objective`."""
        assert isinstance(rows, SparseRows)
        counts = count_entries(rows)
        ridge: float | np.ndarray = float(self.regularization)
        if self.exponent:
            cells = counts + self.unobserved_weight * rows.n_fixed
            with np.errstate(over="ignore"):  # an infinite ridge is refused before training
                ridge = ridge * np.where(cells > 0, cells, 1) ** self.exponent
        packing = pack_rows(counts, n_factors, batch_elements)
        return RowProblem(
            rows, packing, self.weigh, self.base_weight, ridge, None, squared_loss=True
        )

    def constant(self, rows: SparseRows | np.ndarray) -> float:
        """See :class:`Objective`."""
        return 0.0


@dataclass(frozen=True)
class Dense:
    """A dense matrix with nothing missing: ``|X - W Z^T|_F^2`` plus the ridges.

    No row has a system of its own: ``base = Z^T Z`` serves all, and the rows of X are right-hand
    sides. (The objective is stated without the factor 1/2 that its gradient is usually given
    for; with ``1/2 lambda |W|^2`` as the penalty the minimisers are the same.)
    """

    regularization: float | tuple[float, float]

    weighted = False

    def ridge(self, counts: Any, n_fixed: int, side: str) -> Any:
        """Shim."""
        return _by_side(self.regularization, side)

    @property
    def base_weight(self) -> float:
        """See :class:`Objective`."""
        return 1.0

    def weigh(
        self, xp: Any, values: Array, weights: Array | None
    ) -> tuple[Array | None, Array | None, Array]:
        """Never called: no entry has a gram weight."""
        raise AssertionError("a dense problem has no gram entries")

    def row_problem(
        self, rows: SparseRows | np.ndarray, n_factors: int, batch_elements: int, side: str
    ) -> RowProblem:
        """See :class:`Objective`; ``rows`` is X for the users' side and X^T for the items'."""
        dense = rows if isinstance(rows, np.ndarray) else rows.dense
        rows = dense
        n_rows, n_fixed = rows.shape
        none = SparseRows(
            np.zeros(n_rows + 1, np.int64),
            np.zeros(0, np.int32),
            np.zeros(0, rows.dtype),
            None,
            n_fixed,
        )
        packing = pack_rows(
            count_entries(none), n_factors, batch_elements, row_overhead=2 * n_fixed
        )
        ridge = _by_side(self.regularization, side)
        return RowProblem(
            none, packing, self.weigh, self.base_weight, ridge, rows, squared_loss=True
        )

    def constant(self, rows: SparseRows | np.ndarray) -> float:
        """See :class:`Objective`."""
        return 0.0


def _split(
    rows: SparseRows, is_linear: np.ndarray, alpha: float
) -> tuple[SparseRows, sp.csr_matrix | None]:
    """Set the entries with gram weight 0 apart, as a matrix of their target weights."""
    if not is_linear.any():
        return rows, None
    before = _flagged_before(is_linear, rows.indptr)
    kept = ~is_linear
    gram = SparseRows(
        rows.indptr - before, rows.indices[kept], rows.values[kept], None, rows.n_fixed
    )
    targets = np.maximum(rows.values[is_linear] * rows.values.dtype.type(alpha), 0)
    linear = sp.csr_matrix(
        (targets, rows.indices[is_linear], before), shape=(rows.n_rows, rows.n_fixed)
    )
    return gram, linear


def _flagged_before(flags: np.ndarray, indptr: np.ndarray) -> np.ndarray:
    """Return how many entries before each row are flagged, int64, shape (n_rows + 1,)."""
    before = np.zeros(len(indptr), np.int64)
    bounds = cut_rows(np.diff(indptr), _BLOCK, 1, 0)
    for first, last in pairwise(bounds):
        ends = indptr[first : last + 1]
        within = np.cumsum(flags[ends[0] : ends[-1]], dtype=np.int64)
        within = np.append(0, within)[ends[1:] - ends[0]]
        before[first + 1 : last + 1] = before[first] + within
    return before
