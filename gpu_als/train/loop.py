"""The one training loop: sweeps, loss, stopping, callbacks, report."""

from __future__ import annotations

import numbers
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpu_als.core.solvers import Solver
from gpu_als.core.stats import HalfSweepStats
from gpu_als.errors import InputError, ModelFitError, SingularRowsWarning
from gpu_als.progress import ProgressBar
from gpu_als.train.checkpoint import Writer
from gpu_als.train.engine import Engine, Model
from gpu_als.train.report import FitReport

__all__ = ["Schedule", "StopTraining", "train"]

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
        Stop when an iteration lowers the loss by no more than ``tol`` times the loss.
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


def train(
    engine: Engine,
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
    engine : Engine
        Has the data, and runs half-sweeps over it.
    solvers : pair
        For users and for items.
    model : Model
        Initial factors; holds the result, as the engine hands it out: with ``validate`` the best
        iteration's factors, else the last's. Callbacks find the present state in it.
    schedule : Schedule
    report : FitReport
        Filled during the fit, so that callbacks can read it.
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
    bar = ProgressBar(show=progress, total=schedule.iterations, initial=first)
    with engine.start(model, solvers, copies) as sweeps, bar:
        if best is not None:
            kept = sweeps.from_host(best)
        elif validate is not None:
            kept = sweeps.copy(sweeps.state())
        try:
            done = first > 0 and _settled(schedule, report, first - 1)
            for iteration in range(first, first if done else schedule.iterations):
                begin = time.perf_counter()
                user_stats = sweeps.half_sweep(0)
                middle = time.perf_counter()
                item_stats = sweeps.half_sweep(1)
                end = time.perf_counter()
                # The items' half-sweep has gone over everything but the ridge of the users.
                loss = (item_stats.objective + user_stats.penalty + constant) * loss_scale
                seconds = middle - begin, end - middle
                _record(report, user_stats, item_stats, loss, loss_scale, seconds)
                improved = True
                if validate is not None:
                    metrics = validate(*sweeps.to_host(sweeps.state()))
                    report.metrics.append(metrics)
                    improved = _score(metrics) < lowest
                    lowest = min(lowest, _score(metrics))
                    if improved and iteration + 1 < schedule.iterations:
                        kept = sweeps.copy(sweeps.state())
                    elif improved:
                        kept = sweeps.state()
                if improved:
                    report.best_iteration = iteration + 1
                bar.set_postfix(_shown(report))
                bar.update()
                try:
                    if callback is not None:
                        model.factors = sweeps.arrays(sweeps.state())
                        callback(iteration, end - begin, loss)
                except StopTraining:
                    report.stopped = "callback"
                last = report.stopped == "callback" or _settled(schedule, report, iteration)
                last = last or iteration + 1 == schedule.iterations
                if checkpoints is not None and checkpoints.is_due(iteration + 1, last=last):
                    best_so_far = None if improved else sweeps.to_host(kept)
                    checkpoints.write(sweeps.to_host(sweeps.state()), best_so_far, report)
                if last:
                    break
        except KeyboardInterrupt:
            model.factors = sweeps.arrays(sweeps.state())
            raise
        model.factors = sweeps.arrays(sweeps.state() if validate is None else kept)
        report.workspace_bytes = sweeps.workspace_bytes()
    if report.singular_rows:
        warnings.warn(
            f"{report.singular_rows} rows had a singular system and kept their former values; "
            "raise regularization",
            SingularRowsWarning,
            stacklevel=3,
        )


def _score(metrics: dict[str, float]) -> float:
    """Return what validation watches: the first metric."""
    return next(iter(metrics.values()))


def _record(
    report: FitReport,
    users: HalfSweepStats,
    items: HalfSweepStats,
    loss: float,
    scale: float,
    seconds: tuple[float, float],
) -> None:
    report.losses.append(loss)
    report.seconds.append(seconds)
    report.user_rows, report.item_rows = users.paths, items.paths
    report.user_steps, report.item_steps = users.steps, items.steps
    user_bound, item_bound = (
        side.bound * scale if np.isfinite(side.bound) else None for side in (users, items)
    )
    report.bounds.append((user_bound, item_bound))
    report.singular_rows = users.singular + items.singular
    report.transferred.append((users.transferred, items.transferred))
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
