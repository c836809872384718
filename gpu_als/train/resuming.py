"""Fits that save their state and go on from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpu_als.errors import CheckpointError, InputError
from gpu_als.train.checkpoint import Checkpoint, Saved, Writer
from gpu_als.train.engine import Model
from gpu_als.train.report import FitReport

__all__ = ["Run", "begin"]

_OF_NO_EFFECT = (
    "iterations", "tol", "patience",  # when to stop may change
    "backend", "use_gpu", "num_threads", "use_native", "calculate_training_loss",
)  # fmt: skip


@dataclass(frozen=True)
class Run:
    """Where a fit begins.

    Attributes
    ----------
    model : Model or None
        The factors to go on from; None to start afresh.
    best : pair of array, or None
        See :func:`gpu_als.train.loop.train`.
    report : FitReport
    checkpoints : Writer or None
    """

    model: Model | None
    best: tuple[np.ndarray, np.ndarray] | None
    report: FitReport
    checkpoints: Writer | None


def begin(
    checkpoint: Any,
    resume: Any,
    report: FitReport,
    parameters: dict[str, Any],
    data: dict[str, Callable[[], str]],
    shapes: tuple[tuple[int, int], ...],
    *,
    bias: bool = False,
) -> Run:
    """Return where a fit begins: at a saved state, if there is one to go on from.

    Parameters
    ----------
    checkpoint : Checkpoint, path or None
    resume : path, bool or None
        The file to go on from. True: that of ``checkpoint``, if it is there.
    report : FitReport
        A new one.
    parameters : dict
        Of the estimator; those that do not change the factors are left out of account.
    data : dict of str to function
        What the fit is given, by name; the functions return fingerprints.
    shapes : pair of (int, int)
        Of the users' and the items' factors in training.

    Raises
    ------
    InputError
        The checkpoint cannot be written, or nothing says which file to go on from.
    CheckpointError
        The file is damaged, of a fit with other parameters or data, or of more iterations.
    """
    place = None if checkpoint is None else Checkpoint.of(checkpoint)
    file = _file_to_read(place, resume)
    if place is None and file is None:
        return Run(None, None, report, None)
    fit = _what_it_is(parameters, data, shapes, report.entries)
    writer = None if place is None else Writer(place, fit)
    if file is None:
        return Run(None, None, report, writer)
    saved = Saved.read(file)
    saved.check(file, fit)
    _check_factors(saved, file, shapes, np.dtype(parameters["dtype"]))
    done = saved.report.iterations
    if done > parameters["iterations"]:
        raise CheckpointError(
            f"{file}: {done} iterations have been run already; pass iterations={done} or more, or "
            "start afresh without resume"
        )
    if writer is not None:
        writer.done = done
    saved.report.device, saved.report.stopped = report.device, report.stopped
    return Run(Model(*saved.factors, bias), saved.best, saved.report, writer)


def _file_to_read(place: Checkpoint | None, resume: Any) -> Any:
    if resume is not True:
        return resume or None
    if place is None:
        raise InputError(
            "resume=True goes on from the file of checkpoint, which is None; pass checkpoint=FILE "
            "too, or resume=FILE"
        )
    return place.path if place.path.exists() else None


def _what_it_is(
    parameters: dict[str, Any],
    data: dict[str, Callable[[], str]],
    shapes: tuple[tuple[int, int], ...],
    entries: int,
) -> dict[str, Any]:
    """Return what tells a fit from others, as it comes back from JSON."""
    own = {name: value for name, value in parameters.items() if name not in _OF_NO_EFFECT}
    seed = own["random_state"]
    if not (seed is None or isinstance(seed, int | np.integer)):
        own["random_state"] = type(seed).__name__  # its state has moved on since
    own |= {"shape": [n_rows for n_rows, _ in shapes], "entries": entries}
    own |= {name: fingerprint() for name, fingerprint in data.items()}
    plain: dict[str, Any] = json.loads(json.dumps(own, default=_as_plain))
    return plain


def _as_plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else str(value)


def _check_factors(
    saved: Saved, file: Any, shapes: tuple[tuple[int, int], ...], dtype: np.dtype
) -> None:
    for pair in (saved.factors, saved.best or saved.factors):
        for factors, shape in zip(pair, shapes, strict=True):
            if factors.shape != shape or factors.dtype != dtype:
                raise CheckpointError(
                    f"{file}: its factors are no {dtype} arrays of the shapes {shapes}; start "
                    "afresh without resume"
                )
