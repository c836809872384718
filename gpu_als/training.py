"""The one training loop: sweeps, loss, stopping, callbacks, report."""

from __future__ import annotations

import numbers
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from tqdm import tqdm

from gpu_als.backends.frame import Frame, make_frame
from gpu_als.backends.half_sweep import half_sweep
from gpu_als.backends.ops import Backend
from gpu_als.backends.stats import HalfSweepStats
from gpu_als.checkpoint import Writer
from gpu_als.errors import InputError, ModelFitError, SingularRowsWarning
from gpu_als.memory_plan import FitShape, plan_device
from gpu_als.report import FitReport
from gpu_als.row_problem import Array, RowProblem
from gpu_als.side import Side
from gpu_als.solvers import NonNegative, Solver

__all__ = ["Model", "Schedule", "StopTraining", "solve_side", "train"]

Callback = Callable[[int, float, float], Any]
Validate = Callable[[np.ndarray, np.ndarray], dict[str, float]]


class StopTraining(Exception):
    """Raised by a callback to end the fit after the current iteration, keeping its factors."""


@dataclass(frozen=True)
class Schedule:
    """When to stop.

    Attributes
    ----------
    iterations : int
        Most iterations to run.
    tol : float or None
        Stop when an iteration lowers the loss by less than ``tol`` times the loss.
    patience : int or None
        Stop when the first validation metric has not improved for this many iterations.
    """

    iterations: int
    tol: float | None = None
    patience: int | None = None

    def __post_init__(self) -> None:
        if self.iterations < 0:
            raise InputError(f"iterations must be 0 or more, not {self.iterations}")
        number = isinstance(self.tol, numbers.Real)
        if self.tol is not None and not (number and self.tol >= 0):
            raise InputError(f"tol must be None or a number of at least 0, not {self.tol!r}")
        whole = isinstance(self.patience, numbers.Integral)
        if self.patience is not None and not (whole and self.patience >= 1):
            raise InputError(f"patience must be None or an integer from 1, not {self.patience!r}")


@dataclass
class Model:
    """Factors: on the host at first, on the device from when :func:`train` begins.

    Attributes
    ----------
    user_factors : array, shape (n_users, k)
    item_factors : array, shape (n_items, k)
        Callbacks find in them the present state, which the next half-sweep changes in place.
    bias : bool
        The last column of each holds the biases: factors whose partner is fixed at 1.
    """

    user_factors: Array
    item_factors: Array
    bias: bool = False

    @property
    def factors(self) -> tuple[Array, Array]:
        """Those of the users and of the items."""
        return self.user_factors, self.item_factors


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
) -> HalfSweepStats:
    """Run one half-sweep whose rows come in parts; see :func:`solve_side`."""
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
            frame = make_frame(backend, problem, fixed, rotate=rotate)
        own = replace(frame, ridge=problem.ridge)
        stats.add(half_sweep(backend, problem, own, solved[place], solver))
        stats.penalty += _penalty(backend.xp, problem, solved[place])
    return stats


def _penalty(xp: Any, problem: RowProblem, factors: Array) -> float:
    """Return ``sum_u ridge_u |x_u|^2``."""
    if isinstance(problem.ridge, float) and problem.ridge == 0:
        return 0.0
    with np.errstate(over="ignore"):
        squares = xp.einsum("uk,uk->u", factors, factors).astype(xp.float64)
        return float((problem.ridge * squares).sum())


class _OnDevice:
    """The parts of a side on the device: the only one stays there, several pass through."""

    def __init__(self, backend: Backend, side: Side, dtype: np.dtype) -> None:
        self._backend, self._side, self._dtype = backend, side, dtype
        self._only = backend.load(self._problem(0)) if side.n_parts == 1 else None

    def __iter__(self) -> Iterator[tuple[slice, RowProblem]]:
        if self._only is not None:
            yield self._side.place(0), self._only
            return
        numbers = range(self._side.n_parts)
        makers = (partial(self._problem, number) for number in numbers)
        for number, problem in zip(numbers, self._backend.load_ahead(makers), strict=True):
            yield self._side.place(number), problem

    def _problem(self, number: int) -> RowProblem:
        problem = self._side.problem(number)
        _check_scale(problem, self._dtype)
        return problem


def train(
    backend: Backend,
    sides: tuple[Side, Side],
    solvers: tuple[Solver, Solver],
    model: Model,
    schedule: Schedule,
    *,
    report: FitReport,
    constant: float = 0.0,
    loss_scale: float = 1.0,
    validate: Validate | None = None,
    callback: Callback | None = None,
    progress: bool = False,
    best: tuple[np.ndarray, np.ndarray] | None = None,
    checkpoints: Writer | None = None,
) -> None:
    """Alternate half-sweeps over users and items until the schedule says stop.

    Parameters
    ----------
    backend : Backend
    sides, solvers : pairs
        For users and for items.
    model : Model
        Initial factors; holds the result, on the device: with ``validate`` the best iteration's
        factors, else the last's.
    schedule : Schedule
    report : FitReport
        Filled as the fit goes on, so that callbacks can read it.
    constant, loss_scale : float
        The reported loss is ``(objective + constant) * loss_scale``.
    validate : callable, optional
        ``(user_factors, item_factors) -> metrics``; the first metric is the one to lower.
    callback : callable, optional
        ``callback(iteration, seconds, loss)`` after each iteration, counted from 0; may raise
        :class:`StopTraining`.
    progress : bool
        Show a progress bar.
    best : pair of array, optional
        With a report of iterations already run: the factors of the best of them, where those are
        not the initial factors of this call.
    checkpoints : Writer, optional
        Saves the state after iterations.

    Raises
    ------
    ModelFitError
        The initial factors are not finite.
    BackendError
        The device has too little memory; the message says how much is needed.
    """
    for name, factors in (("user", model.user_factors), ("item", model.item_factors)):
        if not np.isfinite(factors).all():
            raise ModelFitError(
                f"the initial {name}_factors hold NaN or inf; set them to None to start afresh"
            )
    if callback is not None and not callable(callback):
        raise InputError(f"callback must be a function or None, not {callback!r}")
    first = report.iterations
    lowest = min((_score(metrics) for metrics in report.metrics), default=np.inf)
    # Those being trained; the best so far; those a callback looks at.
    copies = 1 + (validate is not None) + (callback is not None)
    sides = _cut_to_fit(backend, sides, model, copies)
    dtype = model.user_factors.dtype
    bar = tqdm(total=schedule.iterations, initial=first, disable=not progress)
    with backend.session(), bar:
        users, items = backend.from_host(model.user_factors), backend.from_host(model.item_factors)
        user_parts, item_parts = (_OnDevice(backend, side, dtype) for side in sides)
        model.user_factors, model.item_factors = kept = users, items
        if best is not None:
            kept = backend.from_host(best[0]), backend.from_host(best[1])
        elif validate is not None:
            kept = users.copy(), items.copy()
        done = first > 0 and _settled(schedule, report, first - 1)
        for iteration in range(first, first if done else schedule.iterations):
            begin = time.perf_counter()
            user_stats = solve_parts(backend, user_parts, items, users, solvers[0], bias=model.bias)
            middle = time.perf_counter()
            item_stats = solve_parts(backend, item_parts, users, items, solvers[1], bias=model.bias)
            end = time.perf_counter()
            # The items' half-sweep has gone over everything but the ridge of the users.
            loss = (item_stats.objective + user_stats.penalty + constant) * loss_scale
            _record(report, user_stats, item_stats, loss, (middle - begin, end - middle))
            improved = True
            if validate is not None:
                metrics = validate(backend.to_host(users), backend.to_host(items))
                report.metrics.append(metrics)
                improved = _score(metrics) < lowest
                lowest = min(lowest, _score(metrics))
                if improved and iteration + 1 < schedule.iterations:
                    kept = users.copy(), items.copy()
                elif improved:
                    kept = users, items
            if improved:
                report.best_iteration = iteration + 1
            bar.set_postfix(_shown(report), refresh=False)
            bar.update()
            try:
                if callback is not None:
                    callback(iteration, end - begin, loss)
            except StopTraining:
                report.stopped = "callback"
            last = report.stopped == "callback" or _settled(schedule, report, iteration)
            last = last or iteration + 1 == schedule.iterations
            if checkpoints is not None and checkpoints.is_due(iteration + 1, last=last):
                best_so_far = None if improved else _on_host(backend, kept)
                checkpoints.write(_on_host(backend, (users, items)), best_so_far, report)
            if last:
                break
        if validate is None:
            kept = users, items
        model.user_factors, model.item_factors = kept
        report.workspace_bytes = backend.workspace_bytes()
    if report.singular_rows:
        warnings.warn(
            f"{report.singular_rows} rows had a singular system and kept their former values; "
            "raise regularization",
            SingularRowsWarning,
            stacklevel=3,
        )


def _on_host(backend: Backend, factors: tuple[Array, Array]) -> tuple[np.ndarray, np.ndarray]:
    return backend.to_host(factors[0]), backend.to_host(factors[1])


def _cut_to_fit(
    backend: Backend, sides: tuple[Side, Side], model: Model, copies: int
) -> tuple[Side, Side]:
    """Return both sides in parts that the device has room for, before anything is put there."""
    room = backend.room()
    if room is None:
        return sides
    shape = FitShape(
        len(model.user_factors),
        len(model.item_factors),
        max(side.rows.entries for side in sides),
        model.user_factors.shape[1],
        model.user_factors.dtype.itemsize,
        max(side.rows.longest() for side in sides),
        copies,
    )
    plan = plan_device(shape, *room)
    if plan.part_bytes is None:
        return sides
    users, items = (side.cut(plan.part_bytes, shape.entry_bytes, shape.row_bytes) for side in sides)
    return users, items


def _score(metrics: dict[str, float]) -> float:
    """Return what validation watches: the first metric."""
    return next(iter(metrics.values()))


def _check_scale(problem: RowProblem, dtype: np.dtype) -> None:
    """Refuse ridges and bases that the factors' dtype cannot hold."""
    limit = float(np.sqrt(np.finfo(dtype).max))
    if not float(np.max(problem.ridge)) <= limit:
        raise InputError(
            f"regularization, scaled to rows, exceeds {limit:.0e}, what {dtype} can work with; "
            "lower it (or its exponent) or pass dtype=numpy.float64"
        )
    if problem.base_weight and not 1 / limit <= problem.base_weight <= limit:
        raise InputError(
            f"unobserved_weight {problem.base_weight:g} is beyond what {dtype} can work with; "
            f"keep it between {1 / limit:.0e} and {limit:.0e}"
        )


def _record(
    report: FitReport,
    users: HalfSweepStats,
    items: HalfSweepStats,
    loss: float,
    seconds: tuple[float, float],
) -> None:
    report.losses.append(loss)
    report.seconds.append(seconds)
    report.user_rows, report.item_rows = users.paths, items.paths
    report.singular_rows = users.singular + items.singular
    report.launches = users.launches + items.launches
    report.max_residual = max(report.max_residual, users.residual, items.residual)


def _shown(report: FitReport) -> dict[str, str]:
    shown = {"loss": f"{report.losses[-1]:.6g}"}
    if report.metrics:
        shown |= {name: f"{value:.4f}" for name, value in report.metrics[-1].items()}
    return shown


def _settled(schedule: Schedule, report: FitReport, iteration: int) -> bool:
    """Apply the stopping rules and note which one ended the fit."""
    waited = iteration + 1 - report.best_iteration
    if schedule.patience is not None and report.metrics and waited >= schedule.patience:
        report.stopped = "patience"
        return True
    if schedule.tol is not None and iteration > 0:
        before, after = report.losses[-2:]
        if before - after <= schedule.tol * abs(before):
            report.stopped = "tol"
            return True
    return False
