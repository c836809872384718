"""What several test modules share: small problems of every objective, solved by the oracle.

The weights of every objective are written out here once more, from the definitions, and meet the
package's own only in the comparison. ``reference_systems`` gives each row's ``lhs`` and ``rhs``
in float64, ``reference_objective`` the value of the whole objective.
"""

from dataclasses import dataclass, field, replace
from functools import cache
from itertools import pairwise

import numpy as np
import scipy.linalg
import scipy.optimize
import scipy.sparse as sp
from reference import objective_value, row_system

from gpu_als.backends.numpy.backend import NumpyBackend
from gpu_als.core import objectives
from gpu_als.core.half_sweep import solve_side
from gpu_als.core.objectives import row_problem
from gpu_als.core.problem import SparseRows

ALPHA = 2.0
MEAN = 1.25


@dataclass(frozen=True)
class Case:
    """One side of one objective: everything a half-sweep needs, and what it must give.

    Attributes
    ----------
    objective : Objective
    side : str
    rows : SparseRows
    fixed, start : array
        The fixed side, and the solved side before the half-sweep, both float64.
    systems : list of (lhs, rhs)
    rhs_sizes : array, shape (n_rows,)
        ``sum |t_i| |y_i|``: how large the terms are that add up to the right-hand sides.
    ridges : pair of arrays
        Of the solved and of the fixed rows.
    cells : callable
        ``(solved, fixed) -> objective`` without the ridges.
    bias : bool
    base : array, shape (k, k), or None
        What all rows' matrices share.
    """

    objective: object
    side: str
    rows: object
    fixed: np.ndarray
    start: np.ndarray
    systems: list = field(repr=False)
    rhs_sizes: np.ndarray
    ridges: tuple
    cells: object
    bias: bool = False
    base: np.ndarray | None = None

    @property
    def n_factors(self):
        return self.fixed.shape[1]

    def solution(self):
        """Rows of the exact minimiser."""
        return np.array([np.linalg.solve(lhs, rhs) for lhs, rhs in self.systems])

    def nonnegative_solution(self, free_columns=0):
        """Rows of the exact minimiser under ``x >= 0``."""
        return np.array([nonnegative_minimiser(*s, free_columns) for s in self.systems])

    def rounding(self, dtype):
        """Return for each row the error that rounding in this precision may cause.

        The condition number times the solution, and what the right-hand side loses where its
        terms cancel.
        """
        smallest, largest = np.array(
            [np.linalg.eigvalsh(lhs)[[0, -1]] for lhs, _ in self.systems]
        ).T
        sizes = np.linalg.norm(self.solution(), axis=1)
        return np.finfo(dtype).eps * (largest * sizes + self.rhs_sizes) / smallest

    def objective_at(self, solved, fixed=None):
        """Return the value of the whole objective in float64."""
        fixed = self.fixed if fixed is None else fixed
        return self.cells(solved, fixed)

    def entries(self, dtype):
        """Return the rows in a dtype."""
        rows = self.rows
        if rows.dense is not None:
            return SparseRows.from_dense(rows.dense.astype(dtype))
        weights = None if rows.weights is None else rows.weights.astype(dtype)
        return replace(rows, values=rows.values.astype(dtype), weights=weights)

    def problem(self, dtype, batch_elements):
        """Return the row problem in a dtype."""
        return row_problem(
            self.objective, self.entries(dtype), self.n_factors, batch_elements, self.side
        )

    def sweep(self, solver, dtype=np.float64, *, batch_elements=1 << 20, num_threads=1, ops=None):
        """Run a half-sweep, by default on the general path; return factors and statistics."""
        backend = ops or NumpyBackend(num_threads, batch_elements, fused=False)
        solved = backend.from_host(self.start.astype(dtype))
        with backend.session():
            stats = solve_side(
                backend,
                self.objective,
                self.entries(dtype),
                self.side,
                backend.from_host(self.fixed.astype(dtype)),
                solved,
                solver,
                bias=self.bias,
            )
        return solved, stats


def nonnegative_minimiser(lhs, rhs, free_columns=0):
    """Minimise ``1/2 x lhs x - rhs x`` over ``x >= 0`` with SciPy's active-set solver.

    A free column is the difference of two non-negative ones.
    """
    root = scipy.linalg.cholesky(lhs)
    target = scipy.linalg.solve_triangular(root, rhs, trans="T")
    k = len(rhs)
    free = root[:, k - free_columns :]
    x, _ = scipy.optimize.nnls(np.hstack([root, -free]), target)
    negative = x[k:]
    x = x[:k].copy()
    x[k - free_columns :] -= negative
    return x


def row_errors(found, expected):
    """Return ``|found - expected|`` of each row."""
    return np.linalg.norm(found - expected, axis=1)


def residuals(systems, solved, shared=None):
    """Return ``|lhs x - rhs| / |rhs|`` of each row, in float64; 0 where both vanish.

    With ``shared``, a matrix for each row, both norms are those in which it is the identity.
    """
    out = []
    for number, ((lhs, rhs), x) in enumerate(zip(systems, solved.astype(float), strict=True)):
        misfit = lhs @ x - rhs
        if shared is not None:
            factor = np.linalg.cholesky(shared[number])
            misfit, rhs = np.linalg.solve(factor, misfit), np.linalg.solve(factor, rhs)
        size = np.linalg.norm(rhs)
        out.append(np.linalg.norm(misfit) / size if size else np.linalg.norm(misfit))
    return np.array(out)


def ragged_rows(counts, n_fixed, seed):
    """Draw ``counts`` different columns for each row, sorted. Returns indptr and indices."""
    rng = np.random.default_rng(seed)
    indices = [np.sort(rng.choice(n_fixed, count, replace=False)) for count in counts]
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    return indptr, np.concatenate([*indices, np.zeros(0, np.int64)]).astype(np.int32)


def edge_counts(k):
    """Row lengths around the dual/primal boundary, the ladder's exact part and far beyond."""
    around = {0, 1, 2, k - 1, k, k + 1, 31, 32, 33, 34}
    return np.array([*sorted(around), 3 * k, 400, 523, 1, 0, k - 1, k + 1, 32])


def rounded(array):
    """Round to float32, so that both precisions start from the very same numbers."""
    return array.astype(np.float32).astype(np.float64)


CASES = [
    "explicit",
    "explicit, one ridge per side, users",
    "explicit, one ridge per side, items",
    "explicit, scaled by count",
    "explicit, weighted",
    "explicit, weighted and scaled by count",
    "biases and mean",
    "biases, mean, weights, scaled by count",
    "implicit",
    "implicit, likes only",
    "implicit, all of confidence 1",
    "ials",
    "ials, exponent",
    "ials, exponent 1, no unobserved weight",
    "dense",
    "dense, one ridge per side, items",
]


@cache
def make_case(name, k=12, n_fixed=540, seed=20251):
    """Build the named problem; ``name`` is one of CASES."""
    rng = np.random.default_rng([seed, k, CASES.index(name)])
    counts = edge_counts(k)
    n_rows = len(counts)
    fixed = rounded(rng.standard_normal((n_fixed, k)) * rng.uniform(0.3, 1.5, k))
    start = rounded(rng.standard_normal((n_rows, k)))
    if name.startswith("dense"):
        return _dense(name, rng, fixed, start)
    indptr, indices = ragged_rows(counts, n_fixed, [seed, k, 7])
    kind = name.split(",")[0]
    build = {"implicit": _implicit, "ials": _ials}.get(kind, _explicit)
    return build(name, rng, fixed, start, indptr, indices)


def _cells(indptr, indices, n_fixed, *entries):
    """Spread values over entries into matrices, after a mask of the observed cells."""
    shape = (len(indptr) - 1, n_fixed)
    rows = np.repeat(np.arange(shape[0]), np.diff(indptr))
    out = [np.zeros(shape, bool)]
    out[0][rows, indices] = True
    for values in entries:
        matrix = np.zeros(shape)
        matrix[rows, indices] = values
        out.append(matrix)
    return out


def _systems(fixed, indptr, indices, gram, target, ridge, base=None):
    parts = [slice(*ends) for ends in pairwise(indptr)]
    systems = [
        row_system(fixed, indices[part], gram[part], target[part], ridge[u], base)
        for u, part in enumerate(parts)
    ]
    sizes = np.linalg.norm(fixed, axis=1)
    return systems, np.array([np.abs(target[p]) @ sizes[indices[p]] for p in parts])


def _explicit(name, rng, fixed, start, indptr, indices):
    """``w (r - mean - biases - s)^2``: gram weight w, target weight ``w (r - mean - bias)``."""
    n_fixed, n_rows, nnz = len(fixed), len(start), len(indices)
    values = rounded(rng.uniform(0.5, 5, nnz).round(1))
    weights = rounded(rng.choice([0.25, 1.0, 3.0, 7.5], nnz)) if "weight" in name else None
    bias = name.startswith("biases")
    mean = MEAN if bias else 0.0
    scaled = "count" in name
    side = "items" if name.endswith("items") else "users"
    lambdas = (0.5, 2.0) if "per side" in name else (0.75, 0.75)
    mine, other = lambdas if side == "users" else lambdas[::-1]
    counts = np.diff(indptr)
    fixed_counts = np.bincount(indices, minlength=n_fixed)
    # A row without entries counts as one entry, so that its system stays regular.
    ridge = mine * np.maximum(counts, 1) if scaled else np.full(n_rows, mine)
    fixed_ridge = other * np.maximum(fixed_counts, 1) if scaled else np.full(n_fixed, other)

    gram = np.ones(nnz) if weights is None else weights
    partners, offset = fixed, 0
    if bias:
        partners = fixed.copy()
        partners[:, -1] = 1
        offset = fixed[indices, -1]
    systems, rhs_sizes = _systems(
        partners, indptr, indices, gram, gram * (values - mean - offset), ridge
    )
    observed, weight, target = _cells(indptr, indices, n_fixed, gram, values - mean)

    def cells(solved, fixed):
        if not bias:
            return objective_value(observed, weight, target, 0, solved, fixed, ridge, fixed_ridge)
        # Both biases are factors whose partner is 1: k - 1 products and two more columns.
        one, other = np.ones((n_rows, 1)), np.ones((n_fixed, 1))
        left, right = np.hstack([solved, one]), np.hstack([fixed[:, :-1], other, fixed[:, -1:]])
        loss = objective_value(
            observed, weight, target, 0, left, right, np.zeros(n_rows), np.zeros(n_fixed)
        )
        return loss + (ridge @ solved**2).sum() + (fixed_ridge @ fixed**2).sum()

    objective = objectives.Explicit(
        lambdas if "per side" in name else mine, count_scaled=scaled, mean=mean
    )
    rows = SparseRows(indptr, indices, values, weights, n_fixed)
    return Case(
        objective,
        side,
        rows,
        fixed,
        start,
        systems,
        rhs_sizes,
        (ridge, fixed_ridge),
        cells,
        bias=bias,
    )


def _implicit(name, rng, fixed, start, indptr, indices):
    """Confidence ``c = alpha r``: gram weight ``|c| - 1``, target weight c where liked, else 0."""
    n_fixed, n_rows, nnz = len(fixed), len(start), len(indices)
    if "all of" in name:
        values = np.full(nnz, 1 / ALPHA)
    elif "likes" in name:
        values = rng.choice([0.5, 1.0, 2.5, 20.0], nnz)
    else:  # dislikes, zeros, confidences below 1 of either sign, and exactly 1 of either sign
        values = rng.choice([0.5, -0.5, 0.0, 0.25, -0.125, 1.5, 10.0, -3.0], nnz)
        kind = np.repeat(np.arange(n_rows) % 3, np.diff(indptr))
        values = np.where(kind == 1, np.abs(values) + 0.5, values)  # some rows without small ones
    confidence = np.abs(ALPHA * values)
    target = np.where(values > 0, confidence, 0)
    ridge, fixed_ridge = np.full(n_rows, 0.75), np.full(n_fixed, 0.75)
    systems, rhs_sizes = _systems(
        fixed, indptr, indices, confidence - 1, target, ridge, fixed.T @ fixed
    )
    observed, weight, liked = _cells(indptr, indices, n_fixed, confidence, values > 0)

    def cells(solved, fixed):
        return objective_value(observed, weight, liked, 1, solved, fixed, ridge, fixed_ridge)

    objective = objectives.Implicit(0.75, ALPHA)
    rows = SparseRows(indptr, indices, values, None, n_fixed)
    ridges = ridge, fixed_ridge
    base = fixed.T @ fixed
    return Case(
        objective, "users", rows, fixed, start, systems, rhs_sizes, ridges, cells, base=base
    )


def _ials(name, rng, fixed, start, indptr, indices):
    """``w (1 - s)^2`` on top of ``alpha0 s^2`` over all cells; w = alpha |r|."""
    n_fixed, n_rows, nnz = len(fixed), len(start), len(indices)
    values = rng.choice([0.5, 1.0, -2.5, 20.0], nnz)
    gram = ALPHA * np.abs(values)
    alpha0 = 0.0 if "no unobserved" in name else 0.3
    nu = 1.0 if "exponent 1" in name else 0.6 if "exponent" in name else 0.0
    fixed_counts = np.bincount(indices, minlength=n_fixed)

    def cells_of(counts, n_partners):  # a row on which no cell pulls counts as one cell
        return np.maximum(counts + alpha0 * n_partners, 0 if alpha0 else 1)

    ridge = 0.2 * cells_of(np.diff(indptr), n_fixed) ** nu
    fixed_ridge = 0.2 * cells_of(fixed_counts, n_rows) ** nu
    systems, rhs_sizes = _systems(
        fixed, indptr, indices, gram, gram, ridge, alpha0 * fixed.T @ fixed
    )
    observed, weight, target = _cells(indptr, indices, n_fixed, gram, np.ones(nnz))
    nothing = np.zeros_like(observed)

    def cells(solved, fixed):
        zeros = np.zeros(n_rows), np.zeros(n_fixed)
        loss = objective_value(observed, weight, target, 0, solved, fixed, ridge, fixed_ridge)
        return loss + objective_value(nothing, weight, target, alpha0, solved, fixed, *zeros)

    objective = objectives.IALS(0.2, ALPHA, alpha0, nu)
    rows = SparseRows(indptr, indices, values, None, n_fixed)
    ridges = ridge, fixed_ridge
    base = alpha0 * fixed.T @ fixed if alpha0 else None
    return Case(
        objective, "users", rows, fixed, start, systems, rhs_sizes, ridges, cells, base=base
    )


def _dense(name, rng, fixed, start):
    """``(x - s)^2`` over all cells: ``lhs = Z^T Z + lambda I``, ``rhs = Z^T x``."""
    n_fixed, n_rows = len(fixed), len(start)
    matrix = rounded(rng.standard_normal((n_rows, n_fixed)) + 0.5)
    side = "items" if name.endswith("items") else "users"
    lambdas = (0.5, 2.0) if "per side" in name else (0.75, 0.75)
    mine, other = lambdas if side == "users" else lambdas[::-1]
    ridge, fixed_ridge = np.full(n_rows, mine), np.full(n_fixed, other)
    all_of_them = np.arange(n_fixed)
    none = np.zeros(n_fixed)
    systems = [row_system(fixed, all_of_them, none, row, mine, fixed.T @ fixed) for row in matrix]
    rhs_sizes = np.abs(matrix) @ np.linalg.norm(fixed, axis=1)
    everywhere = np.ones(matrix.shape, bool)

    def cells(solved, fixed):
        ones = np.ones(matrix.shape)
        return objective_value(everywhere, ones, matrix, 0, solved, fixed, ridge, fixed_ridge)

    objective = objectives.Dense(lambdas if "per side" in name else mine)
    return Case(
        objective,
        side,
        SparseRows.from_dense(matrix),
        fixed,
        start,
        systems,
        rhs_sizes,
        (ridge, fixed_ridge),
        cells,
    )


def random_ratings(n_users, n_items, density, seed, dtype=np.float64):
    """Draw a CSR matrix of ratings from 0.5 to 5 in steps of 0.5."""
    rng = np.random.default_rng(seed)
    values = rng.integers(1, 11, (n_users, n_items)) / 2
    return sp.csr_matrix(np.where(rng.random((n_users, n_items)) < density, values, 0), dtype=dtype)
