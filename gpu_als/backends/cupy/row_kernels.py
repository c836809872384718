"""The rows of one half-sweep on kernels of our own, launched side by side.

Every row is solved, checked and written by one launch (launch.py says which). Nothing waits for
the host until all are done: then the number of rows that failed, the loss and the largest residual
are read back together. Rows that failed, or that no kernel takes, are handed to the general path.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from gpu_als.backends.cupy.arrays import rowwise_matmul
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
from gpu_als.backends.cupy.nvrtc import Kernels
from gpu_als.core.basis import FixedSide
from gpu_als.core.memory import SPLIT_FLOATS
from gpu_als.core.packing import Packing
from gpu_als.core.problem import Array, LoadedProblem, rows_left
from gpu_als.core.solvers import Solver
from gpu_als.core.stats import RESIDUAL_LIMIT, HalfSweepStats
from gpu_als.core.systems import unscaled_rhs

__all__ = ["DescribedSweep", "RowKernels", "StreamPool"]


@dataclass(frozen=True)
class SplitTiles:
    """Split rows whose partial sums are in memory at the same time; see split.cu.

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
    problem : LoadedProblem
    record : array of dtype HALF_SWEEP, shape ()
        ``struct HalfSweep``, on the host: CuPy passes such arrays by value.
    arrays : dict of str to array
        What the record points to; None where it has a null pointer.
    """

    problem: LoadedProblem
    record: Any
    arrays: dict[str, Array]


def split_rows(
    first: np.ndarray, counts: np.ndarray, segment: int, most_segments: int
) -> list[SplitTiles]:
    """Cut rows into segments, and the rows into tiles of at most ``most_segments``.

    Parameters
    ----------
    first, counts : int64 array, shape (n_rows,)
        First entry and number of entries of each row.
    """
    pieces = -(-counts // segment)
    bounds = np.concatenate([[0], np.cumsum(pieces)])
    tiles: list[SplitTiles] = []
    start = 0
    while start < len(counts):
        stop = int(np.searchsorted(bounds, bounds[start] + most_segments, side="right")) - 1
        stop = max(stop, start + 1)
        own = bounds[start : stop + 1] - bounds[start]
        row = np.repeat(np.arange(stop - start), pieces[start:stop])
        done = (np.arange(own[-1]) - own[row]) * segment
        length = np.minimum(segment, counts[start + row] - done)
        tiles.append(
            SplitTiles(start, stop, own, np.stack([row, first[start + row] + done, length], 1))
        )
        start = stop
    return tiles


@dataclass(frozen=True)
class RowKernels:
    """Launches the kernels of half-sweeps.

    Attributes
    ----------
    xp : module
        CuPy.
    limits : DeviceLimits
    kernels : Kernels
    streams : StreamPool
    batch_elements : int
        What the general path may use, for the rows handed to it; also bounds the workspace of
        split rows.
    tensor_cores, stored_half : bool
        See :func:`gpu_als.backends.cupy.launch.plan_half_sweep`.
    """

    xp: Any
    limits: DeviceLimits
    kernels: Kernels
    streams: StreamPool
    batch_elements: int
    tensor_cores: bool = False
    stored_half: bool = False

    def solve(
        self, problem: LoadedProblem, held: FixedSide, solved: Array, solver: Solver
    ) -> tuple[HalfSweepStats, LoadedProblem]:
        """Solve the rows that kernels take, as :class:`~gpu_als.core.backend.Backend` says."""
        plan = self.plan(problem, held, solver)
        if not plan.launches:
            return HalfSweepStats(), problem
        xp, k, n_rows = self.xp, solved.shape[1], len(solved)
        in_place = held.basis.rotation is None and stride_of(k) == k
        z = solved if in_place else self._enter(held, solved, solver)
        sweep = self.describe(problem, held, solver, z)
        self.kernels.prepare((launch.kernel, launch.macros) for launch in plan.launches)
        done: list[Launch] = []
        with self.kernels.or_general_path(), self.streams as streams:
            for launch in plan.launches:
                # Workspace stays with the stream it was used on, so split rows keep to one.
                with streams.first if launch.kernel == "split" else streams.next():
                    self.launch(launch, sweep)
                done.append(launch)
        # Rows without a launch keep their residual of NaN, and are left like those that failed.
        residual, bound, objective = (
            sweep.arrays[name] for name in ("residual", "bound", "objective")
        )
        good = residual <= RESIDUAL_LIMIT[solved.dtype]
        if not in_place:
            x = held.basis.leave(partial(rowwise_matmul, self.xp), z[:, :k], None)
            good &= xp.isfinite(x).all(axis=1)
            xp.copyto(solved, x, where=good[:, None])
        numbers = xp.stack(
            [
                xp.where(good, objective, 0).sum(dtype=np.float64),
                xp.where(good, residual, 0).max().astype(np.float64),
                xp.where(good, bound, 0).sum(dtype=np.float64),
                good.sum().astype(np.float64),
            ]
        )
        total, largest, above, solved_rows = (float(n) for n in xp.asnumpy(numbers))
        stats = HalfSweepStats(
            objective=total, bound=np.inf, launches=sum(map(_kernel_count, done))
        )
        if solver.exact:
            stats.residual = largest
            if all(launch.definite for launch in done) and not np.isnan(above):
                stats.bound = above
        left = np.zeros(0, np.int64)
        if solved_rows < n_rows:
            left = np.flatnonzero(~xp.asnumpy(good[problem.order]))
        for launch in done:
            failed = np.searchsorted(left, [launch.start, launch.stop])
            stats.paths[launch.path] += launch.stop - launch.start - int(failed[1] - failed[0])
        return stats, rows_left(xp, problem, left, k, self.batch_elements)

    def plan(self, problem: LoadedProblem, held: FixedSide, solver: Solver) -> Plan:
        """Return the launches of a half-sweep: none where kernels do not serve it."""
        fixed = held.basis.fixed
        served = fixed.dtype == np.float32 and not held.basis.singular and len(problem.indices) > 0
        if not served or problem.indices.dtype != np.int32:
            return Plan((), ())
        return self.plan_rows(problem.packing, fixed.shape[1], solver)

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

    def _enter(self, held: FixedSide, solved: Array, solver: Solver) -> Array:
        """Return room for the solutions; where the solver is iterative, with the former ones."""
        xp, k = self.xp, solved.shape[1]
        z = xp.zeros((len(solved), stride_of(k)), np.float32)
        if solver.from_former:
            z[:, :k] = held.basis.enter(partial(rowwise_matmul, self.xp), solved, None)
        return z

    def describe(
        self, problem: LoadedProblem, held: FixedSide, solver: Solver, z: Array
    ) -> DescribedSweep:
        """Describe a half-sweep to the kernels.

        Parameters
        ----------
        z : float32 array, shape (n_rows, stride_of(k))
            Where solutions go, in the basis's coordinates.
        """
        xp, basis = self.xp, held.basis
        k, stride = basis.fixed.shape[1], z.shape[1]
        fixed = basis.fixed
        if self.stored_half or stride != k:
            fixed = xp.zeros((len(fixed), stride), np.float16 if self.stored_half else np.float32)
            fixed[:, :k] = basis.fixed
        eigenvalues = basis.eigenvalues
        if eigenvalues is not None:
            eigenvalues = xp.zeros(stride, np.float32)
            eigenvalues[:k] = basis.eigenvalues
        shared_ridge = isinstance(problem.ridge, float)
        arrays = {
            "indptr": problem.indptr,
            "indices": problem.indices,
            "root": _as_float32(problem.root),
            "tau": _as_float32(problem.targets),
            "offset": _as_float32(held.offset),
            "fixed": xp.ascontiguousarray(fixed),
            "eigenvalues": eigenvalues,
            "ridge": None if shared_ridge else _as_float32(problem.ridge),
            "base": _as_float32(basis.base),
            "b0": self._right_hand_sides(problem, held, stride),
            "z": z,
            "residual": xp.full(len(z), xp.nan, np.float32),
            "bound": xp.zeros(len(z), np.float32),
            "objective": xp.zeros(len(z), np.float32),
        }
        record = np.zeros((), HALF_SWEEP)
        for name, array in arrays.items():
            record[name] = 0 if array is None else array.data.ptr
        whitened = basis.rotated and eigenvalues is None
        record["ridge_all"] = 1 if whitened else (problem.ridge if shared_ridge else 0)
        record["residual_limit"] = RESIDUAL_LIMIT[np.dtype(np.float32)]
        record["k"], record["stride"] = k, stride
        record["squared_loss"] = problem.squared_loss
        for name in ("steps", "free_columns"):
            record[name] = solver.kernel_options.get(name, 0)
        return DescribedSweep(problem, record, arrays)

    def _right_hand_sides(
        self, problem: LoadedProblem, held: FixedSide, stride: int
    ) -> Array | None:
        """Return ``b0`` before columns are scaled, shape (n_rows, stride); None for zeros."""
        xp, basis = self.xp, held.basis
        if problem.rhs_only is None and held.rhs is None and problem.noise is None:
            return None
        b0 = xp.zeros((problem.n_rows, stride), np.float32)
        if problem.rhs_only is not None:
            problem.rhs_only.write(basis.fixed, b0, problem.order)
        rhs = unscaled_rhs(xp, partial(rowwise_matmul, xp), problem, held)
        if rhs is not None:
            b0[:, : basis.fixed.shape[1]] += rhs
        return b0

    def launch(self, launch: Launch, sweep: DescribedSweep) -> None:
        """Launch one entry of the plan on the current stream."""
        rows = sweep.problem.order[launch.start : launch.stop]
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
        gram, solve = (
            partial(self._kernel(launch, *function), shared_mem=function[1])
            for function in launch.functions
        )
        block, record = (launch.block,), sweep.record
        for tile in self._tiles(launch, sweep.problem, size):
            own, bounds, segments = rows[tile.start : tile.stop], tile.bounds, tile.segments
            shares = self.xp.empty((len(segments), panel_floats(size) + 4), np.float32)
            gram((len(segments),), block, (record, own, segments, shares))
            solve((len(own),), block, (record, own, bounds, shares))

    def _tiles(self, launch: Launch, problem: LoadedProblem, size: int) -> list[SplitTiles]:
        key = launch.start, launch.stop, size
        if key not in problem.kept:
            rows = problem.packing.places[launch.start : launch.stop]
            first = problem.host_indptr[rows]
            counts = problem.host_indptr[rows + 1] - first
            most = max(1, min(self.batch_elements, SPLIT_FLOATS) // panel_floats(size))
            move = self.xp.asarray
            problem.kept[key] = [
                replace(tile, bounds=move(tile.bounds), segments=move(tile.segments))
                for tile in split_rows(first, counts, launch.segment or SEGMENT, most)
            ]
        kept: list[SplitTiles] = problem.kept[key]
        return kept

    def _kernel(self, launch: Launch, function: str, shared_bytes: int) -> Any:
        kernel = self.kernels.get(launch.kernel, launch.macros, function)
        if kernel.max_dynamic_shared_size_bytes < shared_bytes:
            kernel.max_dynamic_shared_size_bytes = shared_bytes
        return kernel


def _as_float32(array: Array | None) -> Array | None:
    return None if array is None else array.astype(np.float32, copy=False)


def _kernel_count(launch: Launch) -> int:
    return 2 if launch.kernel == "split" else 1


class StreamPool:
    """A few streams that begin after, and are waited for by, the current one.

    Launches of different size classes run side by side, so that the last blocks of one do not
    leave the device idle.
    """

    def __init__(self, xp: Any, count: int = 4) -> None:
        self._cuda = xp.cuda
        self._streams = [xp.cuda.Stream(non_blocking=True) for _ in range(count)]
        self._turn = 0

    def __enter__(self) -> StreamPool:
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
