"""One half-sweep: every row of one side solved with the other held, in place."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np

from gpu_als.core.backend import Backend
from gpu_als.core.basis import FixedSide, SideRidge, make_basis
from gpu_als.core.linalg import row_dots, row_norms
from gpu_als.core.objectives import Objective, row_problem
from gpu_als.core.packing import Batch
from gpu_als.core.problem import Array, LoadedProblem, SparseRows
from gpu_als.core.solvers import Solver
from gpu_als.core.stats import RESIDUAL_LIMIT, HalfSweepStats
from gpu_als.core.systems import (
    Entries,
    Solution,
    Systems,
    add_to_diagonal,
    gather,
    primal_system,
    right_hand_side,
)
from gpu_als.errors import InputError

__all__ = ["hold_fixed", "solve_rows", "solve_side"]

_WORTH_A_THREAD = 1 << 18
"""Elements below which threads wait longer for Python's lock than a batch takes to solve."""

P = ParamSpec("P")
R = TypeVar("R")


def hold_fixed(
    backend: Backend,
    objective: Objective,
    side: str,
    fixed: Array,
    ridge: SideRidge,
    *,
    rotate: bool = True,
    bias: bool = False,
    known_gram: Array | None = None,
) -> FixedSide:
    """Return what half-sweeps over a side share: the fixed side and the coordinates.

    Parameters
    ----------
    objective : Objective
    side : str
        The side to solve, "users" or "items".
    fixed : array on the device, shape (n_fixed, k)
        The other side's factors. With ``bias`` their last column is their bias: it comes off the
        targets, and the partner of the solved side's bias is 1.
    ridge : SideRidge
        Of all rows of the solved side.
    rotate : bool
        Whether the solver lets coordinates be chosen.
    known_gram : float64 array, shape (k, k), optional
        ``fixed^T fixed``, if that is known already.
    """
    xp, offset = backend.xp, None
    if bias:
        offset = fixed[:, -1].copy()
        fixed = fixed.copy()
        fixed[:, -1] = 1
    prior = objective.prior(side)
    base = prior_base = None if prior.base is None else xp.asarray(prior.base, xp.float64)
    if objective.base_weight:
        gram = backend.gram(fixed) if known_gram is None else known_gram
        base = objective.base_weight * gram + (0 if base is None else base)
    rhs = None if prior.rhs is None else xp.asarray(prior.rhs, fixed.dtype)
    basis = make_basis(backend, fixed, base, ridge, rotate=rotate)
    return FixedSide(basis, offset, rhs, prior_base)


def solve_side(
    backend: Backend,
    objective: Objective,
    rows: SparseRows,
    side: str,
    fixed: Array,
    solved: Array,
    solver: Solver,
    *,
    bias: bool = False,
    held: FixedSide | None = None,
) -> HalfSweepStats:
    """Run one half-sweep over rows that come in one piece, on the device, in place.

    ``fixed`` and ``bias`` are those of :func:`hold_fixed`, which is called where ``held`` is not
    given.
    """
    problem = row_problem(objective, rows, solved.shape[1], backend.batch_elements, side)
    if held is None:
        ridge = SideRidge.of(problem.ridge)
        held = hold_fixed(backend, objective, side, fixed, ridge, rotate=solver.rotates, bias=bias)
    return solve_rows(backend, backend.load(problem), held, solved, solver)


def solve_rows(
    backend: Backend, problem: LoadedProblem, held: FixedSide, solved: Array, solver: Solver
) -> HalfSweepStats:
    """Solve every row of ``solved`` with the other side held, in place.

    Parameters
    ----------
    backend : Backend
    problem : LoadedProblem
    held : FixedSide
        With the prior of these rows; see :meth:`~gpu_als.core.basis.FixedSide.of_rows`.
    solved : array, shape (n_rows, k)
        Same floating dtype as the fixed side. Rows with a singular system keep their values.
    solver : Solver
    """
    if problem.noise is not None and held.basis.base is not None:
        raise InputError("no row can be drawn: base and ridge are singular together")
    stats, rest = backend.solve_fused(problem, held, solved, solver)
    sweep = _Sweep(backend, rest, held, solved, solver)
    for number, row in enumerate(rest.packing.long_rows):
        stats.add(sweep.solve_long_row(row, number))
    batches = rest.packing.batches
    large = [batch for batch in batches if batch.elements >= _WORTH_A_THREAD]
    for part in backend.map(sweep.solve_batch, large):
        stats.add(part)
    for batch in batches:
        if batch.elements < _WORTH_A_THREAD:
            stats.add(sweep.solve_batch(batch))
    stats.penalty += _penalty(backend.xp, problem, held, solved)
    return stats


def _quietly(function: Callable[P, R]) -> Callable[P, R]:
    """Silence overflow: rows that leave the range of float32 are found and solved again."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with np.errstate(over="ignore", invalid="ignore"):
            return function(*args, **kwargs)

    return run


@dataclass(frozen=True)
class _Sweep:
    ops: Backend
    problem: LoadedProblem
    held: FixedSide
    solved: Array
    solver: Solver

    @_quietly
    def solve_batch(self, batch: Batch) -> HalfSweepStats:
        """Solve one batch and write its rows."""
        xp, problem, basis = self.ops.xp, self.problem, self.held.basis
        place = slice(batch.start, batch.stop)
        rows, ridge, scale, systems = self._systems(place)
        if batch.width == 0:
            return self._solve_without_entries(rows, place, systems, ridge, scale)
        starts = problem.indptr[rows]
        counts = problem.indptr[rows + 1] - starts
        entries = gather(
            self.ops, problem, self.held, starts, counts, batch.width, scale,
            definite=batch.definite,
        )  # fmt: skip
        stats, excess = HalfSweepStats(), xp.full(len(rows), np.inf)
        if basis.singular:
            z, singular = self._former(rows, scale), xp.ones(len(rows), bool)
            q = entries.predict(z)
        else:
            solver = self.solver
            start = self._former(rows, scale) if solver.from_former else None
            solution = solver.solve_batch(
                self.ops, entries, systems, start, definite=batch.definite
            )
            z, q, failed, entries = solution.z, solution.q, solution.failed, solution.entries
            stats.paths[solution.path] += len(rows)
            singular = xp.zeros(len(rows), bool)
            if solver.exact:
                residual, excess = self._judge(solution, systems)
                failed |= ~(residual <= RESIDUAL_LIMIT[z.dtype])
                if systems.base is None:  # fewer entries than factors and nothing added to them
                    singular = (systems.shift <= 0) & (counts < z.shape[1])
                    failed |= singular
                stats.residual = float(xp.where(failed, 0, residual).max())
            if bool(failed.any()):

                def system(some: Array) -> tuple[Array, Array]:
                    wide = entries.some(xp, some), systems.some(xp, some)
                    return primal_system(self.ops, *wide)

                again = system, systems.shift, z, failed, singular, excess, stats
                z, singular, excess = self._solve_again(*again)
                q = entries.predict(z)
        final, singular = self._write(rows, z, scale, singular)
        if final is not z:
            q = entries.predict(final)
        stats.singular = int(singular.sum())
        stats.bound = float(xp.where(singular, np.inf, excess).sum()) if batch.definite else np.inf
        stats.objective = self._entry_loss(entries, q) + _row_terms(systems, final)
        return stats

    def _systems(self, place: slice) -> tuple[Array, Array, Array | None, Systems]:
        """Return the rows at some places, their ridge and column scale, and their systems."""
        xp, problem, basis = self.ops.xp, self.problem, self.held.basis
        rows = problem.order[place]
        ridge = problem.ridge_of(xp, rows, basis.fixed.dtype)
        scale, shift = basis.column_scale(xp, ridge), basis.shift(xp, ridge)
        parts = []
        if problem.rhs_only is not None:
            b0 = problem.rhs_only[place] @ basis.fixed
            parts.append(b0 if scale is None else b0 * scale)
        prior = self.held.rhs_of(rows)
        if prior is not None:
            parts.append(basis.enter_rhs(self.ops.rowwise_matmul, prior, scale))
        if problem.noise is not None:
            parts.append(xp.sqrt(shift)[:, None] * problem.noise.eta[rows])
        b0 = sum(parts[1:], parts[0]) if parts else None
        return rows, ridge, scale, Systems(shift, b0, basis.base, basis.fixed.shape[1])

    def _solve_without_entries(
        self, rows: Array, place: slice, systems: Systems, ridge: Array, scale: Array | None
    ) -> HalfSweepStats:
        """Rows without a system of their own: ``z = b0 / shift``, for all at once."""
        xp, basis, problem = self.ops.xp, self.held.basis, self.problem
        k = basis.fixed.shape[1]
        stats = HalfSweepStats(Counter(shared=len(rows)))
        singular, excess = xp.full(len(rows), basis.singular), xp.zeros(len(rows))
        if systems.base is None:
            singular |= systems.shift <= 0
        if systems.b0 is None:
            z = xp.zeros((len(rows), k), basis.fixed.dtype)
        elif systems.base is None and self.solver.rotates:
            z = systems.b0 / xp.where(singular, 1, systems.shift)[:, None]
        else:
            lhs, rhs = _shared_systems(xp, systems)
            z, failed = self.solver.solve_systems(self.ops, lhs, rhs, self._former(rows, scale))
            excess = self._excess((lhs @ z[:, :, None])[:, :, 0] - rhs, z, systems.shift)

            def system(some: Array) -> tuple[Array, Array]:
                return _shared_systems(xp, systems.some(xp, some))

            again = system, systems.shift, z, failed, singular, excess, stats
            z, hopeless, excess = self._solve_again(*again)
            singular |= hopeless
        z, singular = self._write(rows, z, scale, singular)
        objective = _row_terms(systems, z)
        if problem.all_cells:
            assert problem.rhs_only is not None
            x = basis.leave(self.ops.rowwise_matmul, z, scale)
            objective = _total((problem.rhs_only[place] - z @ basis.fixed.T) ** 2)
            objective += _total(ridge[:, None] * x * x) + _prior_terms(self.held, rows, x)
        stats.singular, stats.objective = int(singular.sum()), objective
        stats.bound = float(xp.where(singular, np.inf, excess).sum())
        return stats

    @_quietly
    def solve_long_row(self, row: int, number: int) -> HalfSweepStats:
        """Solve one row whose entries do not fit a batch, segment by segment in a fixed order.

        ``row`` is the long row of that ``number`` in the packing.
        """
        xp, ops, basis, solver = self.ops.xp, self.ops, self.held.basis, self.solver
        first = len(self.problem.packing.order) + number
        rows, _, scale, systems = self._systems(slice(first, first + 1))
        lhs, rhs = self._add_segments(row, systems, scale)
        stats = HalfSweepStats(Counter(long=1), bound=np.inf)
        if basis.singular:
            z, singular = self._former(rows, scale), xp.ones(1, bool)
        else:
            single = lhs.astype(basis.fixed.dtype), rhs.astype(basis.fixed.dtype)
            start = self._former(rows, scale) if solver.from_former else None
            z, singular = solver.solve_systems(ops, *single, start)
            if solver.exact:
                misfit = (lhs @ z[:, :, None])[:, :, 0] - rhs
                residual = _relative(xp, solver.stationary(xp, misfit, z), rhs)
                singular |= ~(residual <= RESIDUAL_LIMIT[z.dtype])
                stats.residual = float(xp.where(singular, 0, residual).max())
            if bool(singular.any()):
                stats.paths["rescued"] += 1
                lhs, rhs = self._add_segments(row, systems, scale, wide=True)
                wide, singular = solver.solve_in_float64(ops, lhs, rhs)
                z = wide.astype(z.dtype)
            if solver.exact and self.problem.packing.spans[-1].definite and not singular.any():
                misfit = (lhs @ z[:, :, None])[:, :, 0] - rhs
                stats.bound = float(self._excess(misfit, z, systems.shift).sum())
        z, singular = self._write(rows, z, scale, singular)
        losses = self._map_segments(row, scale, lambda e: self._entry_loss(e, e.predict(z)))
        stats.singular = int(singular.sum())
        stats.objective = sum(losses) + _row_terms(systems, z)
        return stats

    def _add_segments(
        self, row: int, systems: Systems, scale: Array | None, *, wide: bool = False
    ) -> tuple[Array, Array]:
        """Return one long row's system in float64, shapes (1, k, k) and (1, k).

        With ``wide`` the segments themselves are multiplied out in float64 too.
        """
        xp = self.ops.xp
        lhs, rhs = _shared_systems(xp, systems.some(xp, slice(None)))
        if rhs is None:
            rhs = xp.zeros((1, lhs.shape[1]))
        nothing = Systems(xp.zeros(1, self.held.basis.fixed.dtype), None, None, lhs.shape[1])

        def system(entries: Entries) -> tuple[Array, Array]:
            if wide:
                entries = entries.some(xp, slice(None))
            part, target = primal_system(self.ops, entries, nothing)
            return part.astype(xp.float64), target

        for part, target in self._map_segments(row, scale, system):
            lhs += part
            rhs += target
        return lhs, rhs

    def _map_segments(
        self, row: int, scale: Array | None, function: Callable[[Entries], R]
    ) -> Iterator[R]:
        xp, segment = self.ops.xp, self.problem.packing.segment
        first, last = (int(end) for end in self.problem.host_indptr[row : row + 2])

        @_quietly
        def run(start: int) -> R:
            count = min(segment, last - start)
            one = xp.asarray([start]), xp.asarray([count]), count
            entries = gather(self.ops, self.problem, self.held, *one, scale, definite=False)
            return function(entries)

        return self.ops.map(run, range(first, last, segment))

    def _former(self, rows: Array, scale: Array | None) -> Array:
        return self.held.basis.enter(self.ops.rowwise_matmul, self.solved[rows], scale)

    def _write(
        self, rows: Array, z: Array, scale: Array | None, singular: Array
    ) -> tuple[Array, Array]:
        """Write the rows that were solved; the others keep their former values to the bit.

        Returns the rows' final ``z`` and which kept their former values: the singular ones, and
        any whose solution is beyond the range of the factors' dtype.
        """
        xp = self.ops.xp
        x = self.held.basis.leave(self.ops.rowwise_matmul, z, scale)
        singular = singular | ~xp.isfinite(x).all(axis=1)
        if bool(singular.any()):
            z = xp.where(singular[:, None], self._former(rows, scale), z)
            rows, x = rows[~singular], x[~singular]
        self.solved[rows] = x
        return z, singular

    def _judge(self, solution: Solution, systems: Systems) -> tuple[Array, Array]:
        """Return each row's ``|lhs z - rhs| / |rhs|``, and how far it is from its best at most."""
        xp, entries, z, rhs = self.ops.xp, solution.entries, solution.z, solution.rhs
        if rhs is None:
            rhs = right_hand_side(entries, systems)
        misfit = systems.shift[:, None] * z + entries.combine(entries.signed(solution.q)) - rhs
        if systems.base is not None:
            misfit += z @ systems.base
        error = self.solver.stationary(xp, misfit, z)
        return _relative(xp, error, rhs), self._excess(misfit, z, systems.shift)

    def _excess(self, misfit: Array, z: Array, shift: Array) -> Array:
        """Return ``|lhs z - rhs|^2 / shift`` of each row, float64; infinity without a shift.

        A row ``z^T lhs z - 2 rhs^T z`` is no further than that above its minimum, under ``x >= 0``
        too, if ``lhs - shift I`` is positive semidefinite.
        """
        xp = self.ops.xp
        error = self.solver.stationary(xp, misfit, z).astype(xp.float64)
        proven = shift > 0
        return xp.where(proven, row_dots(xp, error, error) / xp.where(proven, shift, 1), np.inf)

    def _entry_loss(self, entries: Entries, q: Array) -> float:
        """Return the observed part of the objective, added in float64."""
        if self.problem.squared_loss:
            return _total((entries.tau - q) ** 2)
        return _total(q * (entries.signed(q) - 2 * entries.tau))

    def _solve_again(
        self,
        system: Callable[[Array], tuple[Array, Array]],
        shift: Array,
        z: Array,
        failed: Array,
        singular: Array,
        excess: Array,
        stats: HalfSweepStats,
    ) -> tuple[Array, Array, Array]:
        """Repeat the failed rows in float64; return all rows, which are singular, and ``excess``.

        ``system(places)`` gives ``lhs`` and ``rhs`` of some rows of the batch; ``singular`` says
        which need no looking at.
        """
        xp, k = self.ops.xp, z.shape[1]
        z, singular, excess = z.copy(), singular.copy(), excess.copy()
        places = xp.flatnonzero(failed & ~singular)
        if len(places):
            stats.paths["rescued"] += len(places)
        height = max(1, self.ops.batch_elements // (4 * k * k))
        for first in range(0, len(places), height):
            some = places[first : first + height]
            lhs, rhs = system(some)
            wide, singular[some] = self.solver.solve_in_float64(self.ops, lhs, rhs)
            z[some] = wide.astype(z.dtype)
            misfit = (lhs @ z[some][:, :, None])[:, :, 0] - rhs
            excess[some] = self._excess(misfit, z[some], shift[some])
        return z, singular, excess


def _shared_systems(xp: Any, systems: Systems) -> tuple[Array, Any]:
    """Return ``base + shift I`` (B, k, k) and ``b0`` (B, k), without any entries."""
    rows, k = len(systems.shift), systems.columns
    dtype = systems.shift.dtype
    lhs = xp.zeros((rows, k, k), dtype)
    if systems.base is not None:
        lhs += systems.base.astype(dtype)
    add_to_diagonal(lhs, systems.shift)
    return lhs, systems.b0


def _row_terms(systems: Systems, z: Array) -> float:
    """Return the quadratic form of base and ridge, less the part of the right-hand side ``b0``."""
    total = _total(systems.shift[:, None] * z * z)
    if systems.base is not None:
        total += _total(z * (z @ systems.base))
    if systems.b0 is not None:
        total -= 2 * _total(z * systems.b0)
    return total


def _penalty(xp: Any, problem: LoadedProblem, held: FixedSide, factors: Array) -> float:
    """Return what the rows' ridge and prior add to the objective."""
    total = 0.0
    if not isinstance(problem.ridge, float) or problem.ridge:
        with np.errstate(over="ignore"):
            squares = row_dots(xp, factors, factors).astype(xp.float64)
            total = float((problem.ridge * squares).sum())
    return total + _prior_terms(held, slice(None), factors)


def _prior_terms(held: FixedSide, rows: Any, x: Array) -> float:
    """Return ``x^T base x - 2 x . rhs`` of a prior, over rows of factors ``x``."""
    total = 0.0
    if held.prior_base is not None:
        total += _total(x * (x @ held.prior_base))
    if held.rhs is not None:
        total -= 2 * _total(x * (held.rhs if held.rhs.ndim == 1 else held.rhs[rows]))
    return total


def _relative(xp: Any, misfit: Array, rhs: Array) -> Array:
    """Return the norm of each row of ``misfit`` over that of ``rhs``; 0 where both vanish."""
    return row_norms(xp, misfit) / xp.maximum(row_norms(xp, rhs), xp.finfo(rhs.dtype).tiny)


def _total(array: Array) -> float:
    return float(array.sum(dtype="float64"))
