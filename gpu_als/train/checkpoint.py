"""The state of a fit on disk, from which it continues as if it had never stopped.

A sweep follows from the factors alone: nothing random happens after the first are drawn. So the
factors of both sides, the report and, with a validation set, the best factors so far are a fit's
whole state. With them is kept what the fit is: its parameters, and fingerprints of its data.
"""

from __future__ import annotations

import glob
import json
import numbers
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from gpu_als.data.model_file import npz_path, read_arrays, write_arrays
from gpu_als.errors import CheckpointError, InputError, ModelFileError
from gpu_als.train.engine import Model
from gpu_als.train.report import FitReport

__all__ = ["Checkpoint", "Run", "Saved", "Writer", "begin"]

_KIND = "gpu_als checkpoint 1"
_UNFINISHED = ".{name}." + 16 * "[0-9a-f]" + ".tmp"
"""What :func:`gpu_als.data.atomic.replacing` leaves behind when the process is killed."""
_WITHOUT_EFFECT = (
    "iterations", "tol", "patience",  # when to stop may change
    "backend", "use_gpu", "num_threads", "use_native", "calculate_training_loss",
)  # fmt: skip
Factors = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Checkpoint:
    """Where a fit saves its state, and how often.

    The file is always whole: a new state replaces the former in one step. It serves one
    fit at a time.

    Parameters
    ----------
    file : path
        ``.npz`` is appended to a bare name.
    iterations : int, optional
        Save once so many iterations were run since the last time.
    seconds : float, optional
        Save once so many seconds have passed since the last time, at the end of an iteration.
        With ``iterations`` too, whichever comes first; without either, after every iteration. The
        last iteration is always saved.
    """

    file: str | os.PathLike[str]
    iterations: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.file, str | os.PathLike):
            raise InputError(f"checkpoint: its file must be a path, not {self.file!r}")
        whole = _is_a(numbers.Integral, self.iterations)
        if self.iterations is not None and not (whole and self.iterations >= 1):
            raise InputError(
                f"checkpoint: iterations must be an integer from 1 or None, not {self.iterations!r}"
            )
        real = _is_a(numbers.Real, self.seconds)
        if self.seconds is not None and not (real and 0 <= self.seconds < float("inf")):
            raise InputError(
                f"checkpoint: seconds must be a finite number from 0 or None, not {self.seconds!r}"
            )

    @classmethod
    def of(cls, value: Any) -> Self:
        """Return what a ``checkpoint`` argument stands for: a path, or a checkpoint itself."""
        return value if isinstance(value, cls) else cls(value)

    @property
    def path(self) -> Path:
        """The file, with its ending."""
        return npz_path(self.file)


@dataclass(frozen=True)
class Saved:
    """A state read from a file.

    Attributes
    ----------
    fit : mapping
        What identifies the fit, by name: numbers, strings, lists and None.
    factors : pair of array
        Those of the users and of the items.
    best : pair of array, or None
        The factors of the best iteration so far, where that is not the last.
    report : FitReport
    """

    fit: Mapping[str, Any]
    factors: Factors
    best: Factors | None
    report: FitReport

    @classmethod
    def read(cls, file: str | os.PathLike[str]) -> Self:
        """Read a file.

        Raises
        ------
        CheckpointError
            It is damaged, or not a checkpoint.
        FileNotFoundError
            There is no such file.
        """
        try:
            arrays = read_arrays(file)
        except ModelFileError as error:
            raise CheckpointError(str(error)) from error
        if str(arrays.get("kind")) != _KIND:
            raise CheckpointError(
                f"{file}: not a checkpoint of this version of gpu_als; pass a file that a fit was "
                "given as its checkpoint"
            )
        try:
            state = json.loads(str(arrays["state"]))
            report = FitReport.from_dict(state["report"])
            _check_report(report)
            factors, best = _factors(arrays, ""), None
            if report.best_iteration < report.iterations:
                best = _factors(arrays, "best_")
            return cls(dict(state["fit"]), factors, best, report)
        except (KeyError, TypeError, ValueError, RecursionError) as error:
            raise CheckpointError(
                f"{file}: the checkpoint is incomplete or contradicts itself ({error}); start "
                "afresh without resume"
            ) from error

    def check(self, file: object, fit: Mapping[str, Any]) -> None:
        """Refuse to continue a fit that this state does not belong to.

        Parameters
        ----------
        file : path
            Where the state is from, for the message.
        fit : mapping
            What identifies the fit.

        Raises
        ------
        CheckpointError
            The message names what differs.
        """
        differing = [
            f"{name} (then {self.fit.get(name)!r}, now {fit.get(name)!r})"
            for name in {**fit, **self.fit}
            if self.fit.get(name) != fit.get(name)
        ]
        if differing:
            raise CheckpointError(
                f"{file} is the state of another fit; different: {', '.join(differing)}. "
                "Continue with the parameters and the data it was started with, or start afresh "
                "without resume"
            )


@dataclass
class Writer:
    """Writes the state of one fit whenever it is time.

    Attributes
    ----------
    checkpoint : Checkpoint
    fit : mapping
        As in :class:`Saved`.
    done : int
        Iterations run when the state was last saved.

    Raises
    ------
    InputError
        The file cannot be written to.
    """

    checkpoint: Checkpoint
    fit: Mapping[str, Any]
    done: int = field(default=0, init=False)
    _at: float = field(init=False)

    def __post_init__(self) -> None:
        _prepare(self.checkpoint.path)
        self._at = time.monotonic()

    def is_due(self, iterations: int, *, last: bool) -> bool:
        """Return whether to save now, after so many iterations in all."""
        every, seconds = self.checkpoint.iterations, self.checkpoint.seconds
        if last or (every is None and seconds is None):
            return True
        if every is not None and iterations - self.done >= every:
            return True
        return seconds is not None and time.monotonic() - self._at >= seconds

    def write(self, factors: Factors, best: Factors | None, report: FitReport) -> None:
        """Save a state; see :class:`Saved`.

        Raises
        ------
        OSError
            It cannot be written; the former state stays.
        """
        state = {"fit": dict(self.fit), "report": report.to_dict()}
        arrays: dict[str, Any] = {"kind": _KIND, "state": json.dumps(state)}
        for which, pair in (("", factors), ("best_", best)):
            if pair is not None:
                arrays |= {f"{which}user_factors": pair[0], f"{which}item_factors": pair[1]}
        try:
            write_arrays(self.checkpoint.path, arrays)
        except OSError as error:
            if error.filename is None:  # a full disk does not say of which file
                error.filename = str(self.checkpoint.path)
            raise
        self.done, self._at = report.iterations, time.monotonic()


def _is_a(kind: type, value: object) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def _factors(arrays: Mapping[str, np.ndarray], which: str) -> Factors:
    pair = arrays[f"{which}user_factors"], arrays[f"{which}item_factors"]
    if not all(np.isfinite(factors).all() for factors in pair):
        raise ValueError("its factors hold NaN or inf")
    return pair


def _check_report(report: FitReport) -> None:
    """Refuse a report that training could not continue from."""
    done = report.iterations
    counted = (
        len(report.losses) == done
        and len(report.metrics) in (0, done)
        and all(report.metrics)
        and report.best_iteration in range(done + 1)
    )
    figures = [*report.losses, report.max_residual]
    figures += [figure for metrics in report.metrics for figure in metrics.values()]
    if not counted or not all(_is_a(numbers.Real, figure) for figure in figures):
        raise ValueError("its report does not fit its iterations")


def _prepare(path: Path) -> None:
    """Check that a file can be written, and delete what killed fits have left beside it."""
    target = Path(os.path.realpath(path))
    if target.is_dir() or not os.access(target.parent, os.W_OK):
        raise InputError(
            f"checkpoint: {path} cannot be written; pass a file in a folder that exists and may be "
            "written to"
        )
    for unfinished in target.parent.glob(_UNFINISHED.format(name=glob.escape(target.name))):
        unfinished.unlink(missing_ok=True)


@dataclass(frozen=True)
class Run:
    """Where a fit begins.

    Attributes
    ----------
    model : Model or None
        The factors to continue from; None to start afresh.
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
    """Return where a fit begins: at a saved state, if there is one to continue from.

    Parameters
    ----------
    checkpoint : Checkpoint, path or None
    resume : path, bool or None
        The file to continue from. True: that of ``checkpoint``, if it is there.
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
        The checkpoint cannot be written, or no file to continue from is named.
    CheckpointError
        The file is damaged, of a fit with other parameters or data, or of more iterations.
    """
    place = None if checkpoint is None else Checkpoint.of(checkpoint)
    file = _file_to_read(place, resume)
    if place is None and file is None:
        return Run(None, None, report, None)
    fit = _identity(parameters, data, shapes, report.entries)
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
            "resume=True continues from the file of checkpoint, which is None; pass "
            "checkpoint=FILE too, or resume=FILE"
        )
    return place.path if place.path.exists() else None


def _identity(
    parameters: dict[str, Any],
    data: dict[str, Callable[[], str]],
    shapes: tuple[tuple[int, int], ...],
    entries: int,
) -> dict[str, Any]:
    """Return what identifies a fit, as it comes back from JSON."""
    own = {name: value for name, value in parameters.items() if name not in _WITHOUT_EFFECT}
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
                    f"{file}: its factors are not {dtype} arrays of the shapes {shapes}; start "
                    "afresh without resume"
                )
