"""The systems of one padded batch of rows: gathered entries, and what solvers make of them.

The same lines run on NumPy and CuPy. Shapes: B rows in the batch, n entries each after padding,
k factors.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from gpu_als.core.basis import FixedSide, Multiply
from gpu_als.core.ops import Ops
from gpu_als.core.problem import Array, LoadedProblem

__all__ = [
    "Entries",
    "RowOperators",
    "Solution",
    "Systems",
    "add_to_diagonal",
    "dual_is_cheaper",
    "gather",
    "primal_system",
    "right_hand_side",
    "solve_dual",
    "unscaled_rhs",
]


@dataclass(frozen=True)
class Entries:
    """The gathered entries of a batch.

    With ``W = diag(root) rows`` every gram weight is 1 (or -1), and the targets are ``tau``.
    Scaling the rows is put off until something needs W itself.

    Attributes
    ----------
    rows : array, shape (B, n, k)
        ``fixed[indices]``.
    root : array, shape (B, n), or None
        Square roots of the gram weights' sizes, zero where padded; None where all are 1.
    tau : array, shape (B, n)
        Targets ``t / root``; zero where padded.
    sign : array, shape (B, n), or None
        Signs of the gram weights, None where all are positive.
    """

    rows: Array
    root: Array | None
    tau: Array
    sign: Array | None

    def predict(self, z: Array) -> Array:
        """``W z``, shape (B, n)."""
        return self.rooted((self.rows @ z[:, :, None])[:, :, 0])

    def combine(self, v: Array) -> Array:
        """``W^T v``, shape (B, k)."""
        return (self.rooted(v)[:, None, :] @ self.rows)[:, 0]

    def rooted(self, v: Array) -> Array:
        """``root * v`` for ``v`` of shape (B, n)."""
        return v if self.root is None else self.root * v

    def signed(self, v: Array) -> Array:
        """``sign * v`` for ``v`` of shape (B, n)."""
        return v if self.sign is None else self.sign * v

    def scale_rows(self) -> Entries:
        """Return the same entries with W as their rows; overwrites the gathered rows."""
        if self.root is None:
            return self
        rows = self.rows
        rows *= self.root[:, :, None]
        return replace(self, rows=rows, root=None)

    def some(self, xp: Any, places: Array) -> Entries:
        """Return some rows of the batch in float64."""
        parts = [_widen(xp, a, places) for a in (self.rows, self.root, self.tau, self.sign)]
        return Entries(*parts)


@dataclass(frozen=True)
class Systems:
    """What remains of a row's system besides its entries.

    Attributes
    ----------
    shift : array, shape (B,)
        Added to the diagonal.
    b0 : array, shape (B, k), or None
        The part of the right-hand side that comes from entries without gram weight.
    base : float64 array, shape (k, k), or None
        Shared part of the matrix, in coordinates that keep it.
    columns : int
        k.
    """

    shift: Array
    b0: Array | None
    base: Array | None
    columns: int

    def some(self, xp: Any, places: Array) -> Systems:
        """Return some rows of the batch in float64."""
        wide = _widen(xp, self.shift, places), _widen(xp, self.b0, places)
        return Systems(*wide, self.base, self.columns)


def _widen(xp: Any, array: Array | None, places: Array) -> Any:
    return None if array is None else array[places].astype(xp.float64)


def gather(
    ops: Ops,
    problem: LoadedProblem,
    held: FixedSide,
    starts: Array,
    counts: Array,
    width: int,
    scale: Array | None,
    *,
    definite: bool,
) -> Entries:
    """Gather ``counts`` entries from each of ``starts`` on, padded to ``width``.

    ``definite``: none has a negative gram weight, so they need no signs.
    """
    xp, fixed = ops.xp, held.basis.fixed
    places = xp.arange(width)
    where = starts[:, None] + places
    valid = places < counts[:, None]
    xp.minimum(where, len(problem.indices) - 1, out=where)  # padding reads some entry, zeroed below
    indices = problem.indices[where]
    root, sign, tau = None, None, problem.tau[where]
    if problem.noise is not None:
        tau = tau + problem.noise.eps[where]
    if problem.root is not None:
        root = problem.root[where]
        if not definite:
            root, sign = xp.abs(root), xp.sign(root)
    if held.offset is not None:
        offset = held.offset[indices]
        tau = tau - (offset if root is None else root * offset)
    if int(counts.min()) < width:
        root = valid.astype(fixed.dtype) if root is None else root * valid
        tau = tau * valid
    gathered = ops.workspace("rows", (*where.shape, fixed.shape[1]), fixed.dtype)
    ops.take_rows(fixed, indices, gathered)
    if scale is not None:
        gathered *= scale[:, None, :]
    return Entries(gathered, root, tau, sign)


@dataclass(frozen=True)
class Solution:
    """The solved rows of a batch.

    Attributes
    ----------
    z : array, shape (B, k)
    q : array, shape (B, n)
        ``W z``, the predictions.
    failed : bool array, shape (B,)
    path : str
        The way the rows went, in reports: "dual", "primal", "cg", "nnls".
    entries : Entries
        The batch's entries, which solving may have scaled.
    rhs : array, shape (B, k), or None
        ``b0 + W^T tau``, where solving needed it.
    """

    z: Array
    q: Array
    failed: Array
    path: str
    entries: Entries
    rhs: Array | None


@dataclass(frozen=True)
class RowOperators:
    """The rows' systems as operators, which never forms their matrices."""

    entries: Entries
    systems: Systems
    noise = 0.0  # a sum of squares has no rounding that could look like curvature

    def forward(self, p: Array) -> Array:
        return self.entries.predict(p)

    def curvature(self, p: Array, f: Array) -> Array:
        total = (self.entries.signed(f) * f).sum(axis=1) + self.systems.shift * (p * p).sum(axis=1)
        return total if self.systems.base is None else total + (p * (p @ self.systems.base)).sum(1)

    def backward(self, p: Array, f: Array) -> Array:
        return self.entries.combine(self.entries.signed(f)) + self._rest(p)

    def residual(self, z: Array, f: Array) -> Array:
        out = self.entries.combine(self.entries.tau - self.entries.signed(f)) - self._rest(z)
        return out if self.systems.b0 is None else out + self.systems.b0

    def _rest(self, p: Array) -> Array:
        out = self.systems.shift[:, None] * p
        return out if self.systems.base is None else out + p @ self.systems.base


def dual_is_cheaper(n: int, k: int) -> bool:
    """Compare the cost of the dual (n, n) with that of the primal (k, k) form."""
    return n * n * k + n**3 / 3 < n * k * k + k**3 / 3


def solve_dual(ops: Ops, entries: Entries, systems: Systems) -> tuple[Array, Array]:
    """Solve through the ``(n, n)`` system of the push-through form.

        S u = tau - W b0 / shift,    S = shift I + W W^T,    z = b0 / shift + W^T u

    A row with ``shift = 0`` and fewer entries than factors is singular and fails here.
    """
    xp, rows, root = ops.xp, entries.rows, entries.root
    shift = systems.shift
    # A singular row must not spoil its batch: it gets some regular system and is marked failed.
    failed = shift <= 0
    shift = xp.where(failed, 1, shift).astype(rows.dtype)
    s = _gram(ops, rows, rows.swapaxes(1, 2))
    if root is not None:
        s *= root[:, :, None]
        s *= root[:, None, :]
    add_to_diagonal(s, shift)
    rhs = entries.tau
    if systems.b0 is not None:
        particular = systems.b0 / shift[:, None]
        rhs = rhs - entries.predict(particular)
    u, not_definite = ops.cholesky_solve(s, rhs)
    z = entries.combine(u)
    if systems.b0 is not None:
        z += particular
    return z, failed | not_definite


def primal_system(ops: Ops, entries: Entries, systems: Systems) -> tuple[Array, Array]:
    """Return ``lhs = base + shift I + W^T sign W`` (B, k, k) and ``rhs = b0 + W^T tau`` (B, k)."""
    entries = entries.scale_rows()
    rows = entries.rows
    right = rows if entries.sign is None else rows * entries.sign[:, :, None]
    lhs = _gram(ops, rows.swapaxes(1, 2), right)
    add_to_diagonal(lhs, systems.shift)
    if systems.base is not None:
        lhs += systems.base.astype(lhs.dtype)
    return lhs, right_hand_side(entries, systems)


def right_hand_side(entries: Entries, systems: Systems) -> Array:
    """Return ``b0 + W^T tau``, shape (B, k)."""
    rhs = entries.combine(entries.tau)
    return rhs if systems.b0 is None else rhs + systems.b0


def _gram(ops: Ops, left: Array, right: Array) -> Array:
    m = left.shape[1]
    out = ops.workspace("lhs", (len(left), m, m), left.dtype)
    ops.xp.matmul(left, right, out=out)
    return out


def add_to_diagonal(matrices: Array, shift: Array) -> None:
    """Add ``shift`` (B,) to the diagonals of ``matrices`` (B, m, m), in place."""
    m = matrices.shape[1]
    matrices.reshape(len(matrices), -1)[:, :: m + 1] += shift[:, None]


def unscaled_rhs(
    xp: Any, multiply: Multiply, problem: LoadedProblem, held: FixedSide
) -> Array | None:
    """Return what priors and noise add to the right-hand sides, shape (n_rows, k), or None.

    In the coordinates of the half-sweep before any row's own column scale, which devices apply to
    the sum.
    """
    basis = held.basis
    if held.rhs is None and problem.noise is None:
        return None
    every = xp.arange(problem.n_rows)
    prior, noise = held.rhs_of(every), problem.noise
    rhs = 0 if prior is None else basis.enter_rhs(multiply, prior, None)
    if noise is not None:
        ridge = problem.ridge_of(xp, every, basis.fixed.dtype)
        scale, size = basis.column_scale(xp, ridge), xp.sqrt(basis.shift(xp, ridge))[:, None]
        rhs = rhs + noise.eta * (size if scale is None else size / scale)
    return rhs
