"""Fits that save their state and go on from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from gpu_als.checkpoint import Checkpoint, Identity, Saved, Writer, digest
from gpu_als.errors import CheckpointError
from gpu_als.report import FitReport
from gpu_als.training import Model

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
        See :func:`gpu_als.training.train`.
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
    data: dict[str, tuple[Any, ...]],
    shapes: tuple[tuple[int, int], ...],
    *,
    bias: bool = False,
) -> Run:
    """Return where a fit begins: at the state in the file ``resume``, if one is given.

    Parameters
    ----------
    checkpoint : Checkpoint, path or None
    resume : path or None
    report : FitReport
        A new one.
    parameters : dict
        Of the estimator; those that do not change the factors are left out of account.
    data : dict of str to tuple of array
        What the fit is given.
    shapes : pair of (int, int)
        Of the users' and the items' factors in training.

    Raises
    ------
    CheckpointError
        The file is damaged, or of a fit with other parameters or data.
    """
    if checkpoint is None and resume is None:
        return Run(None, None, report, None)
    own = {name: value for name, value in parameters.items() if name not in _OF_NO_EFFECT}
    if not isinstance(own.get("random_state"), int | np.integer):
        own.pop("random_state", None)  # its state has moved on since
    identity = Identity(own, {name: digest(*arrays) for name, arrays in data.items()})
    writer = None
    if checkpoint is not None:
        writer = Writer(Checkpoint.of(checkpoint), identity)
    if resume is None:
        return Run(None, None, report, writer)
    saved = Saved.read(resume)
    saved.check(resume, identity)
    for pair in (saved.user_factors, saved.item_factors), saved.best or ():
        if pair and tuple(factors.shape for factors in pair) != shapes:
            raise CheckpointError(f"{resume}: its factors do not have the shapes {shapes}")
    saved.report.device, saved.report.stopped = report.device, "iterations"
    if writer is not None:
        writer.done = saved.report.iterations
    model = Model(saved.user_factors, saved.item_factors, bias)
    return Run(model, saved.best, saved.report, writer)
