"""One half-sweep: solve every row of one side, in place, and report how it went."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import numpy as np

from gpu_als.core.basis import Frame, make_frame
from gpu_als.core.cg import DenseSystem, conjugate_gradient
from gpu_als.core.eigh import solve_carefully
from gpu_als.core.linalg import row_dots, row_norms
from gpu_als.core.nnls import solve_nonnegative
from gpu_als.core.ops import Backend, Ops
from gpu_als.core.packing import Batch
from gpu_als.core.problem import Array, RowProblem
from gpu_als.core.solvers import ConjugateGradient, NonNegative, Solver
from gpu_als.core.stats import RESIDUAL_LIMIT, HalfSweepStats
from gpu_als.core.systems import (
    Entries,
    Solution,
    Systems,
    add_to_diagonal,
    gather,
    linear_part,
    primal_system,
    right_hand_side,
    solve_batch,
)

__all__ = ["half_sweep", "solve_parts", "solve_side"]

_WORTH_A_THREAD = 1 << 18
"""Elements below which threads wait longer for Python's lock than a batch takes to solve."""

P = ParamSpec("P")
R = TypeVar("R")


def _quietly(function: Callable[P, R]) -> Callable[P, R]:
    """Silence overflow: rows that leave the range of float32 are found and solved again."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with np.errstate(over="ignore", invalid="ignore"):
            return function(*args, **kwargs)

    return run


def half_sweep(
    ops: Ops, problem: RowProblem, frame: Frame, solved: Array, solver: Solver
) -> HalfSweepStats:
    """Solve every row of ``solved`` with the other side held, in place.

    Parameters
    ----------
    ops : Ops
        The device.
    problem : RowProblem
        With its arrays on that device.
    frame : Frame
        The fixed side and its coordinates; see :func:`~gpu_als.core.basis.make_frame`.
    solved : array, shape (n_rows, k)
        Same floating dtype as the fixed side. Rows with a singular system keep their values.
    solver : Solver
    """
    stats, problem = ops.solve_fused(problem, frame, solved, solver)
    sweep = _Sweep(ops, problem, frame, solved, solver)
    for number, row in enumerate(problem.packing.long_rows):
        stats.add(sweep.solve_long_row(row, number))
    batches = problem.packing.batches
    large = [batch for batch in batches if batch.elements >= _WORTH_A_THREAD]
    for part in ops.map(sweep.solve_rows, large):
        stats.add(part)
    for batch in batches:
        if batch.elements < _WORTH_A_THREAD:
            stats.add(sweep.solve_rows(batch))
    return stats


@dataclass(frozen=True)
class _Sweep:
    ops: Ops
    problem: RowProblem
    frame: Frame
    solved: Array
    solver: Solver

    @_quietly
    def solve_rows(self, batch: Batch) -> HalfSweepStats:
        """Solve one batch and write its rows."""
        xp, problem, frame = self.ops.xp, self.problem, self.frame
        place = slice(batch.start, batch.stop)
        rows = problem.packing.order[place]
        scale = frame.column_scale(xp, rows)
        b0 = linear_part(problem, frame, place, scale)
        systems = Systems(frame.shift(xp, rows), b0, frame.base)
        if batch.width == 0:
            return self._solve_without_entries(rows, place, systems, scale)
        starts = problem.rows.indptr[rows]
        counts = problem.rows.indptr[rows + 1] - starts
        entries = gather(self.ops, problem, frame, starts, counts, batch.width, scale)
        if batch.definite:  # all signs are positive: they need no copy of the gathered rows
            entries = replace(entries, sign=None)
        stats = HalfSweepStats()
        if frame.singular:
            z, singular = self._former(rows, scale), xp.ones(len(rows), bool)
            q = entries.predict(z)
        else:
            iterative = isinstance(self.solver, ConjugateGradient)
            start = self._former(rows, scale) if iterative else None
            solution = solve_batch(self.ops, entries, systems, self.solver, batch, start)
            z, q, failed, entries = solution.z, solution.q, solution.failed, solution.entries
            stats.paths[solution.path] += len(rows)
            singular = xp.zeros(len(rows), bool)
            if not iterative:
                residual = self._residual(solution, systems)
                failed |= ~(residual <= RESIDUAL_LIMIT[z.dtype])
                if systems.base is None:  # fewer entries than factors and nothing added to them
                    singular = (systems.shift <= 0) & (counts < z.shape[1])
                    failed |= singular
                stats.residual = float(xp.where(failed, 0, residual).max())
            if bool(failed.any()):

                def system(some: Array) -> tuple[Array, Array]:
                    wide = entries.some(xp, some), systems.some(xp, some)
                    return primal_system(self.ops, *wide)

                z, singular = self._rescue(system, z, failed, singular, stats)
                q = entries.predict(z)
        final, singular = self._write(rows, z, scale, singular)
        if final is not z:
            q = entries.predict(final)
        stats.singular = int(singular.sum())
        stats.objective = self._entry_loss(entries, q) + _row_terms(systems, final)
        return stats

    def _solve_without_entries(
        self, rows: Array, place: slice, systems: Systems, scale: Array | None
    ) -> HalfSweepStats:
        """Rows without a system of their own: ``z = b0 / shift``, for all at once."""
        xp, frame, problem = self.ops.xp, self.frame, self.problem
        k = frame.fixed.shape[1]
        stats = HalfSweepStats(Counter(shared=len(rows)))
        singular = xp.full(len(rows), frame.singular)
        if systems.base is None:
            singular |= systems.shift <= 0
        if systems.b0 is None:
            z = xp.zeros((len(rows), k), frame.fixed.dtype)
        elif systems.base is None:
            z = systems.b0 / xp.where(singular, 1, systems.shift)[:, None]
        else:
            lhs = xp.broadcast_to(systems.base, (len(rows), k, k)).astype(systems.b0.dtype)
            add_to_diagonal(lhs, systems.shift)
            z, failed = self._solve_system(lhs, systems.b0)

            def system(some: Array) -> tuple[Array, Array]:
                wide = systems.some(xp, some)
                lhs = xp.broadcast_to(wide.base, (len(some), k, k)).copy()
                add_to_diagonal(lhs, wide.shift)
                return lhs, wide.b0

            z, hopeless = self._rescue(system, z, failed, singular, stats)
            singular |= hopeless
        z, singular = self._write(rows, z, scale, singular)
        objective = _row_terms(systems, z)
        if problem.linear is not None and problem.squared_loss:  # a dense X: all cells observed
            x, ridge = frame.leave(self.ops.multiply_each, z, scale), frame.ridge_of(xp, rows)
            objective = _total((problem.linear[place] - z @ frame.fixed.T) ** 2)
            objective += _total(ridge[:, None] * x * x)
        stats.singular, stats.objective = int(singular.sum()), objective
        return stats

    @_quietly
    def solve_long_row(self, row: int, number: int) -> HalfSweepStats:
        """Solve one row whose entries do not fit a batch, segment by segment in a fixed order.

        ``row`` is the long row of that ``number`` in the packing.
        """
        xp, ops, frame = self.ops.xp, self.ops, self.frame
        rows = xp.asarray([row])
        scale = frame.column_scale(xp, rows)
        first = len(self.problem.packing.order) + number
        b0 = linear_part(self.problem, frame, slice(first, first + 1), scale)
        systems = Systems(frame.shift(xp, rows), b0, frame.base)
        lhs, rhs = self._add_segments(row, systems, scale)
        stats = HalfSweepStats(Counter(long=1))
        if frame.singular:
            z, singular = self._former(rows, scale), xp.ones(1, bool)
        else:
            single = lhs.astype(frame.fixed.dtype), rhs.astype(frame.fixed.dtype)
            if isinstance(self.solver, ConjugateGradient):
                start = self._former(rows, scale)
                z, _ = conjugate_gradient(xp, DenseSystem(xp, *single), start, self.solver.steps)
                failed = ~xp.isfinite(z).all(axis=1)
            else:
                z, failed = self._solve_system(*single)
                misfit = (lhs @ z[:, :, None])[:, :, 0] - rhs
                residual = _relative(xp, self._stationary(misfit, z), rhs)
                failed |= ~(residual <= RESIDUAL_LIMIT[z.dtype])
                stats.residual = float(xp.where(failed, 0, residual).max())
            singular = failed
            if bool(failed.any()):
                stats.paths["rescued"] += 1
                system = self._add_segments(row, systems, scale, wide=True)
                wide, singular = solve_carefully(ops, *system, self.solver)
                z = wide.astype(z.dtype)
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
        xp, k = self.ops.xp, self.frame.fixed.shape[1]
        lhs, rhs = xp.zeros((1, k, k)), xp.zeros((1, k))
        add_to_diagonal(lhs, systems.shift)
        if systems.base is not None:
            lhs += systems.base
        if systems.b0 is not None:
            rhs += systems.b0
        nothing = Systems(xp.zeros(1, self.frame.fixed.dtype), None, None)

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
        first, last = (int(end) for end in self.problem.rows.indptr[row : row + 2])

        @_quietly
        def run(start: int) -> R:
            count = min(segment, last - start)
            one = xp.asarray([start]), xp.asarray([count]), count
            return function(gather(self.ops, self.problem, self.frame, *one, scale))

        return self.ops.map(run, range(first, last, segment))

    def _solve_system(self, lhs: Array, rhs: Array) -> tuple[Array, Array]:
        if isinstance(self.solver, NonNegative):
            return solve_nonnegative(self.ops, lhs, rhs, self.solver.free_columns)
        return self.ops.cholesky_solve(lhs, rhs)

    def _former(self, rows: Array, scale: Array | None) -> Array:
        return self.frame.enter(self.ops.multiply_each, self.solved[rows], scale)

    def _write(
        self, rows: Array, z: Array, scale: Array | None, singular: Array
    ) -> tuple[Array, Array]:
        """Write the rows that were solved; the others keep their former values to the bit.

        Returns the rows' final ``z`` and which kept their former values: the singular ones, and
        any whose solution is beyond the range of the factors' dtype.
        """
        xp = self.ops.xp
        x = self.frame.leave(self.ops.multiply_each, z, scale)
        singular = singular | ~xp.isfinite(x).all(axis=1)
        if bool(singular.any()):
            z = xp.where(singular[:, None], self._former(rows, scale), z)
            rows, x = rows[~singular], x[~singular]
        self.solved[rows] = x
        return z, singular

    def _residual(self, solution: Solution, systems: Systems) -> Array:
        """Return ``|lhs z - rhs| / |rhs|`` of each row."""
        xp, entries, z, rhs = self.ops.xp, solution.entries, solution.z, solution.rhs
        if rhs is None:
            rhs = right_hand_side(entries, systems)
        misfit = systems.shift[:, None] * z + entries.combine(entries.signed(solution.q)) - rhs
        if systems.base is not None:
            misfit += z @ systems.base
        return _relative(xp, self._stationary(misfit, z), rhs)

    def _stationary(self, misfit: Array, z: Array) -> Array:
        """Under ``z >= 0`` a positive gradient at ``z = 0`` is no error."""
        if not isinstance(self.solver, NonNegative):
            return misfit
        xp = self.ops.xp
        bound = xp.arange(z.shape[1]) < z.shape[1] - self.solver.free_columns
        return xp.where(bound & (z <= 0), xp.minimum(misfit, 0), misfit)

    def _entry_loss(self, entries: Entries, q: Array) -> float:
        """Return the observed part of the objective, added in float64."""
        if self.problem.squared_loss:
            return _total((entries.tau - q) ** 2)
        return _total(q * (entries.signed(q) - 2 * entries.tau))

    def _rescue(
        self,
        system: Callable[[Array], tuple[Array, Array]],
        z: Array,
        failed: Array,
        singular: Array,
        stats: HalfSweepStats,
    ) -> tuple[Array, Array]:
        """Repeat the failed rows in float64; return all rows and which are singular.

        ``system(places)`` gives ``lhs`` and ``rhs`` of some rows of the batch; ``singular`` says
        which need no looking at.
        """
        xp, k = self.ops.xp, z.shape[1]
        z, singular = z.copy(), singular.copy()
        places = xp.flatnonzero(failed & ~singular)
        if len(places):
            stats.paths["rescued"] += len(places)
        height = max(1, self.ops.batch_elements // (4 * k * k))
        for first in range(0, len(places), height):
            some = places[first : first + height]
            wide, singular[some] = solve_carefully(self.ops, *system(some), self.solver)
            z[some] = wide.astype(z.dtype)
        return z, singular


def _row_terms(systems: Systems, z: Array) -> float:
    """Return the quadratic form of base and ridge, less the linear entries' part."""
    total = _total(systems.shift[:, None] * z * z)
    if systems.base is not None:
        total += _total(z * (z @ systems.base))
    if systems.b0 is not None:
        total -= 2 * _total(z * systems.b0)
    return total


def _relative(xp: Any, misfit: Array, rhs: Array) -> Array:
    """Return the norm of each row of ``misfit`` over that of ``rhs``; 0 where both vanish."""
    return row_norms(xp, misfit) / xp.maximum(row_norms(xp, rhs), xp.finfo(rhs.dtype).tiny)


def _total(array: Array) -> float:
    return float(array.sum(dtype="float64"))


def solve_side(
    backend: Backend,
    problem: RowProblem,
    fixed: Array,
    solved: Array,
    solver: Solver,
    *,
    bias: bool = False,
    frame: Frame | None = None,
) -> HalfSweepStats:
    """Run one half-sweep on the device; with ``bias`` the last columns are biases.

    The partner of the solved side's bias is 1, and the fixed side's bias is taken off the targets.
    """
    whole = [(slice(None), problem)]
    return solve_parts(backend, whole, fixed, solved, solver, bias=bias, frame=frame)


def solve_parts(
    backend: Backend,
    parts: Iterable[tuple[slice, RowProblem]],
    fixed: Array,
    solved: Array,
    solver: Solver,
    *,
    bias: bool = False,
    frame: Frame | None = None,
    gram: Array | None = None,
) -> HalfSweepStats:
    """Run one half-sweep whose rows come in parts; see :func:`solve_side`.

    ``gram`` is ``fixed^T fixed`` in float64, if that is known already.
    """
    offset = None
    if bias:
        offset = fixed[:, -1].copy()
        fixed = fixed.copy()
        fixed[:, -1] = 1
    stats = HalfSweepStats()
    for place, problem in parts:
        if bias:
            problem = problem.with_offset(offset)
        if frame is None:
            rotate = not isinstance(solver, NonNegative)
            frame = make_frame(backend, problem, fixed, rotate=rotate, known_gram=gram)
        own = replace(frame, ridge=problem.ridge)
        stats.add(half_sweep(backend, problem, own, solved[place], solver))
        stats.penalty += _penalty(backend.xp, problem, solved[place])
    return stats


def _penalty(xp: Any, problem: RowProblem, factors: Array) -> float:
    """Return ``sum_u ridge_u |x_u|^2``."""
    if isinstance(problem.ridge, float) and problem.ridge == 0:
        return 0.0
    with np.errstate(over="ignore"):
        squares = row_dots(xp, factors, factors).astype(xp.float64)
        return float((problem.ridge * squares).sum())


def hold_fixed(backend, objective, side, fixed, ridge, *, rotate=True, bias=False, gram=None):  # type: ignore
    offset = None
    if bias:
        offset = fixed[:, -1].copy()
        fixed = fixed.copy()
        fixed[:, -1] = 1
    one = ridge.smallest if ridge.uniform else backend.xp.full(1, ridge.smallest)
    stand_in = RowProblem(None, None, None, objective.base_weight, one, None, True)  # type: ignore
    return offset, make_frame(backend, stand_in, fixed, rotate=rotate, known_gram=gram)


def solve_rows(backend, problem, held, solved, solver):  # type: ignore
    offset, frame = held
    if offset is not None:
        problem = problem.with_offset(offset)
    frame = replace(frame, ridge=problem.ridge)
    stats = half_sweep(backend, problem, frame, solved, solver)
    stats.penalty += _penalty(backend.xp, problem, solved)
    return stats
