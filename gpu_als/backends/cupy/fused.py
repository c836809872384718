"""The rows of one half-sweep on kernels of our own, launched side by side.

Every row is solved, checked and written by one launch (launch.py says which). Nothing waits for
the host until all are done: then the number of rows that failed, the loss and the largest residual
are read back together. Rows that failed, or that no kernel takes, are handed to the general path.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np

from gpu_als.backends.cupy.compile import Kernels
from gpu_als.backends.cupy.launch import (
    HALF_SWEEP,
    SEGMENT,
    DeviceLimits,
    Launch,
    Plan,
    panel_floats,
    plan_half_sweep,
    stride_of,
)
from gpu_als.backends.cupy.multiply import multiply_each
from gpu_als.backends.frame import Frame
from gpu_als.backends.stats import RESIDUAL_LIMIT, HalfSweepStats
from gpu_als.data.packing import Packing, pack_rows
from gpu_als.memory.fit_shape import SPLIT_FLOATS
from gpu_als.row_problem import Array, RowProblem
from gpu_als.solvers import ConjugateGradient, NonNegative, Solver

__all__ = ["DescribedSweep", "DeviceProblem", "Fused", "SideBySide"]


@dataclass(frozen=True)
class DeviceProblem(RowProblem):
    """A row problem with its arrays on the device.

    Attributes
    ----------
    host : RowProblem
        The same problem on the host without its entries, for planning.
    places : int64 array, shape (n_rows,)
        ``packing.order`` followed by ``packing.long_rows``, on the device.
    waves : dict
        Segments of split rows by the launch's run of places, made when first needed.
    """

    host: RowProblem = field(kw_only=True)
    places: Array = field(kw_only=True)
    waves: dict[tuple[int, int], list[Wave]] = field(default_factory=dict, kw_only=True)


@dataclass(frozen=True)
class Wave:
    """Split rows whose shares are in memory at the same time; see split.cu.

    Attributes
    ----------
    start, stop : int
        Which rows of the launch.
    bounds : int64 array, shape (n_rows + 1,)
        The segments of row i are ``bounds[i]`` to ``bounds[i + 1]``.
    segments : int64 array, shape (n_segments, 3)
        Row, first entry, number of entries.
    """

    start: int
    stop: int
    bounds: Array
    segments: Array


@dataclass(frozen=True)
class DescribedSweep:
    """A half-sweep as kernels are told of it.

    Attributes
    ----------
    problem : DeviceProblem
    record : array of dtype HALF_SWEEP, shape ()
        ``struct HalfSweep``, on the host: CuPy passes such arrays by value.
    arrays : dict of str to array
        What the record points to; None where it has a null pointer.
    """

    problem: DeviceProblem
    record: Any
    arrays: dict[str, Array]


def split_rows(
    first: np.ndarray, counts: np.ndarray, segment: int, most_segments: int
) -> list[Wave]:
    """Cut rows into segments, and the rows into waves of at most ``most_segments``.

    Parameters
    ----------
    first, counts : int64 array, shape (n_rows,)
        First entry and number of entries of each row.
    """
    pieces = -(-counts // segment)
    bounds = np.concatenate([[0], np.cumsum(pieces)])
    waves: list[Wave] = []
    start = 0
    while start < len(counts):
        stop = int(np.searchsorted(bounds, bounds[start] + most_segments, side="right")) - 1
        stop = max(stop, start + 1)
        own = bounds[start : stop + 1] - bounds[start]
        row = np.repeat(np.arange(stop - start), pieces[start:stop])
        done = (np.arange(own[-1]) - own[row]) * segment
        length = np.minimum(segment, counts[start + row] - done)
        waves.append(Wave(start, stop, own, np.stack([row, first[start + row] + done, length], 1)))
        start = stop
    return waves


@dataclass(frozen=True)
class Fused:
    """Launches the kernels of half-sweeps.

    Attributes
    ----------
    xp : module
        CuPy.
    limits : DeviceLimits
    kernels : Kernels
    streams : SideBySide
    batch_elements : int
        What the general path may use, for the rows handed to it; also bounds the workspace of
        split rows.
    tensor_cores, stored_half : bool
        See :func:`gpu_als.backends.cupy.launch.plan_half_sweep`.
    """

    xp: Any
    limits: DeviceLimits
    kernels: Kernels
    streams: SideBySide
    batch_elements: int
    tensor_cores: bool = False
    stored_half: bool = False

    def solve(
        self, problem: DeviceProblem, frame: Frame, solved: Array, solver: Solver
    ) -> tuple[HalfSweepStats, RowProblem]:
        """See :meth:`gpu_als.backends.ops.Ops.solve_fused`."""
        plan = self.plan(problem, frame, solver)
        if not plan.launches:
            return HalfSweepStats(), problem
        xp, k, n_rows = self.xp, solved.shape[1], len(solved)
        in_place = frame.rotation is None and stride_of(k) == k
        z = solved if in_place else self._enter(frame, solved, solver)
        sweep = self.describe(problem, frame, solver, z)
        self.kernels.prepare((launch.kernel, launch.macros) for launch in plan.launches)
        with self.streams as streams:
            for launch in plan.launches:
                # Workspace stays with the stream it was used on, so split rows keep to one.
                with streams.first if launch.kernel == "split" else streams.next():
                    self.launch(launch, sweep)
        residual, objective = sweep.arrays["residual"], sweep.arrays["objective"]
        good = residual <= RESIDUAL_LIMIT[solved.dtype]
        if not in_place:
            x = frame.leave(partial(multiply_each, self.xp), z[:, :k], None)
            good &= xp.isfinite(x).all(axis=1)
            xp.copyto(solved, x, where=good[:, None])
        numbers = xp.stack(
            [
                xp.where(good, objective, 0).sum(dtype=np.float64),
                xp.where(good, residual, 0).max().astype(np.float64),
                good.sum().astype(np.float64),
            ]
        )
        total, largest, solved_rows = (float(n) for n in xp.asnumpy(numbers))
        stats = HalfSweepStats(objective=total, launches=sum(map(_kernel_count, plan.launches)))
        if not isinstance(solver, ConjugateGradient):
            stats.residual = largest
        left = np.zeros(0, np.int64)
        if solved_rows < n_rows:
            left = np.flatnonzero(~xp.asnumpy(good[problem.places]))
        for launch in plan.launches:
            failed = np.searchsorted(left, [launch.start, launch.stop])
            stats.paths[launch.path] += launch.stop - launch.start - int(failed[1] - failed[0])
        return stats, self._rest(problem, left, k)

    def plan(self, problem: DeviceProblem, frame: Frame, solver: Solver) -> Plan:
        """Return the launches of a half-sweep: none where kernels do not serve it."""
        rows = problem.rows
        served = frame.fixed.dtype == np.float32 and not frame.singular and len(rows.indices) > 0
        if not served or rows.indices.dtype != np.int32:
            return Plan((), ())
        return self.plan_rows(problem.host.packing, frame.fixed.shape[1], solver)

    def plan_rows(self, packing: Packing, n_factors: int, solver: Solver) -> Plan:
        """Return :func:`~gpu_als.backends.cupy.launch.plan_half_sweep` for this device."""
        return plan_half_sweep(
            packing,
            n_factors,
            solver,
            self.limits,
            tensor_cores=self.tensor_cores,
            stored_half=self.stored_half,
        )

    def _enter(self, frame: Frame, solved: Array, solver: Solver) -> Array:
        """Return room for the solutions; where the solver is iterative, with the former ones."""
        xp, k = self.xp, solved.shape[1]
        z = xp.zeros((len(solved), stride_of(k)), np.float32)
        if isinstance(solver, ConjugateGradient):
            z[:, :k] = frame.enter(partial(multiply_each, self.xp), solved, None)
        return z

    def describe(
        self, problem: DeviceProblem, frame: Frame, solver: Solver, z: Array
    ) -> DescribedSweep:
        """Describe a half-sweep to the kernels.

        Parameters
        ----------
        z : float32 array, shape (n_rows, stride_of(k))
            Where solutions go, in the frame's coordinates.
        """
        xp, rows = self.xp, problem.rows
        k, stride = frame.fixed.shape[1], z.shape[1]
        fixed, b0 = frame.fixed, None
        if self.stored_half or stride != k:
            fixed = xp.zeros((len(fixed), stride), np.float16 if self.stored_half else np.float32)
            fixed[:, :k] = frame.fixed
        if problem.linear is not None:
            b0 = xp.zeros((rows.n_rows, stride), np.float32)
            problem.linear.write(frame.fixed, b0, problem.places)
        eigenvalues = frame.eigenvalues
        if eigenvalues is not None:
            eigenvalues = xp.zeros(stride, np.float32)
            eigenvalues[:k] = frame.eigenvalues
        shared_ridge = isinstance(frame.ridge, float)
        arrays = {
            "indptr": rows.indptr,
            "indices": rows.indices,
            "root": _as_float32(rows.weights),
            "tau": _as_float32(rows.values),
            "offset": _as_float32(problem.offset),
            "fixed": xp.ascontiguousarray(fixed),
            "eigenvalues": eigenvalues,
            "ridge": None if shared_ridge else _as_float32(frame.ridge),
            "base": _as_float32(frame.base),
            "b0": b0,
            "z": z,
            "residual": xp.full(len(z), xp.nan, np.float32),
            "objective": xp.zeros(len(z), np.float32),
        }
        record = np.zeros((), HALF_SWEEP)
        for name, array in arrays.items():
            record[name] = 0 if array is None else array.data.ptr
        whitened = frame.rotation is not None and eigenvalues is None
        record["ridge_all"] = 1 if whitened else (frame.ridge if shared_ridge else 0)
        record["residual_limit"] = RESIDUAL_LIMIT[np.dtype(np.float32)]
        record["k"], record["stride"] = k, stride
        record["squared_loss"] = problem.squared_loss
        record["steps"] = solver.steps if isinstance(solver, ConjugateGradient) else 0
        record["free_columns"] = solver.free_columns if isinstance(solver, NonNegative) else 0
        return DescribedSweep(problem, record, arrays)

    def launch(self, launch: Launch, sweep: DescribedSweep) -> None:
        """Launch one entry of the plan on the current stream."""
        rows = sweep.problem.places[launch.start : launch.stop]
        if launch.kernel == "split":
            self._launch_split(launch, sweep, rows)
            return
        arguments = [sweep.record, rows, np.int64(len(rows))]
        if launch.chunk is not None:
            arguments.append(np.int32(launch.chunk))
        self._kernel(launch, launch.kernel, launch.shared_bytes)(
            (launch.grid,), (launch.block,), tuple(arguments), shared_mem=launch.shared_bytes
        )

    def _launch_split(self, launch: Launch, sweep: DescribedSweep, rows: Array) -> None:
        macros = dict(launch.macros)
        size = 2 * macros["EDGE"] * macros["UNITS"]
        gram, solve, check, finish = (
            partial(self._kernel(launch, *function), shared_mem=function[1])
            for function in launch.functions
        )
        block, record = (launch.block,), sweep.record
        for wave in self._waves(launch, sweep.problem, size):
            own, bounds, segments = rows[wave.start : wave.stop], wave.bounds, wave.segments
            shares = self.xp.empty((len(segments), panel_floats(size)), np.float32)
            checks = self.xp.empty((len(segments), size + 1), np.float32)
            solutions = self.xp.empty((len(own), 2 * size + 1), np.float32)
            many, few = (len(segments),), (len(own),)
            gram(many, block, (record, own, segments, shares))
            solve(few, block, (record, own, bounds, shares, solutions))
            check(many, block, (record, own, segments, solutions, checks))
            results = shares, solutions, checks
            finish(few, block, (record, own, bounds, *results))

    def _waves(self, launch: Launch, problem: DeviceProblem, size: int) -> list[Wave]:
        key = launch.start, launch.stop
        if key not in problem.waves:
            rows = _order(problem.host.packing)[launch.start : launch.stop]
            first = problem.host.rows.indptr[rows]
            counts = problem.host.rows.indptr[rows + 1] - first
            most = max(1, min(self.batch_elements, SPLIT_FLOATS) // panel_floats(size))
            move = self.xp.asarray
            problem.waves[key] = [
                replace(wave, bounds=move(wave.bounds), segments=move(wave.segments))
                for wave in split_rows(first, counts, launch.segment or SEGMENT, most)
            ]
        return problem.waves[key]

    def _kernel(self, launch: Launch, function: str, shared_bytes: int) -> Any:
        kernel = self.kernels.get(launch.kernel, launch.macros, function)
        if kernel.max_dynamic_shared_size_bytes < shared_bytes:
            kernel.max_dynamic_shared_size_bytes = shared_bytes
        return kernel

    def _rest(self, problem: DeviceProblem, left: np.ndarray, k: int) -> RowProblem:
        """Return the problem of the rows at these places, in ascending order."""
        if not len(left):  # nothing as long as the data need be touched
            nothing = pack_rows(left, k, self.batch_elements)
            return replace(problem, packing=nothing)
        host = problem.host
        indefinite = np.zeros(len(left), bool)
        for span in host.packing.spans:
            here = (left >= span.start) & (left < span.stop)
            indefinite[here] = not span.definite
        rows = _order(host.packing)[left]
        counts = host.rows.indptr[rows + 1] - host.rows.indptr[rows]
        packing = pack_rows(counts, k, self.batch_elements, indefinite=indefinite)
        moved = _order(packing)  # places within left
        linear = problem.linear
        if linear is not None:
            linear = linear[left[moved]]
        packing = replace(
            packing,
            order=self.xp.asarray(rows[packing.order]),
            long_rows=tuple(int(rows[place]) for place in packing.long_rows),
        )
        return replace(problem, packing=packing, linear=linear)


def _as_float32(array: Array | None) -> Array | None:
    return None if array is None else array.astype(np.float32, copy=False)


def _order(packing: Packing) -> np.ndarray:
    """Return the rows by place, on the host."""
    return np.append(packing.order, packing.long_rows).astype(np.int64)


def _kernel_count(launch: Launch) -> int:
    return 4 if launch.kernel == "split" else 1


class SideBySide:
    """A few streams that begin after, and are waited for by, the current one.

    Launches of different size classes run side by side, so that the last blocks of one do not
    leave the device idle.
    """

    def __init__(self, xp: Any, count: int = 4) -> None:
        self._cuda = xp.cuda
        self._streams = [xp.cuda.Stream(non_blocking=True) for _ in range(count)]
        self._turn = 0

    def __enter__(self) -> SideBySide:
        ready = self._cuda.get_current_stream().record()
        for stream in self._streams:
            stream.wait_event(ready)
        return self

    @property
    def first(self) -> Any:
        """Always the same stream."""
        return self._streams[0]

    def next(self) -> Any:
        """Return the stream whose turn it is."""
        self._turn = (self._turn + 1) % len(self._streams)
        return self._streams[self._turn]

    def __exit__(self, *exception: object) -> None:
        current = self._cuda.get_current_stream()
        for stream in self._streams:
            current.wait_event(stream.record())
