"""The state of a fit on disk, from which it goes on as if it had never stopped.

A sweep follows from the factors alone: nothing random happens after the first are drawn. So the
factors of both sides, the number of iterations done and, with a validation set, the best factors so
far are a fit's whole state. With them are kept what they belong to (parameters, a digest of the
data) and the report.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import numpy as np

from gpu_als.data.model_file import read_arrays, write_arrays
from gpu_als.errors import CheckpointError, InputError
from gpu_als.report import FitReport

__all__ = ["Checkpoint", "Identity", "Saved", "Writer", "digest"]

_KIND = "gpu_als checkpoint 1"
Factors = tuple[np.ndarray, np.ndarray]


@dataclass(frozen=True)
class Checkpoint:
    """Where a fit saves its state, and how often.

    Parameters
    ----------
    file : path
        ``.npz`` is appended to a bare name. Always whole: a new state takes the place of the former
        at one blow.
    iterations : int, optional
        Save once so many iterations were run since the last time.
    seconds : float, optional
        Save once so many seconds have passed since the last time, at the end of an iteration.
        Without either, after every iteration. The last iteration is always saved.
    """

    file: str | os.PathLike[str]
    iterations: int | None = None
    seconds: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.file, str | os.PathLike):
            raise InputError(f"checkpoint: its file must be a path, not {self.file!r}")
        whole = isinstance(self.iterations, int) and not isinstance(self.iterations, bool)
        if self.iterations is not None and not (whole and self.iterations >= 1):
            raise InputError(
                f"checkpoint: iterations must be an integer from 1 or None, not {self.iterations!r}"
            )
        number = isinstance(self.seconds, int | float) and not isinstance(self.seconds, bool)
        if self.seconds is not None and not (number and 0 <= self.seconds < float("inf")):
            raise InputError(
                f"checkpoint: seconds must be a finite number from 0 or None, not {self.seconds!r}"
            )

    @classmethod
    def of(cls, value: Any) -> Self:
        """Return what a ``checkpoint`` argument stands for: a path, or a checkpoint itself."""
        return value if isinstance(value, cls) else cls(value)


@dataclass(frozen=True)
class Identity:
    """What tells one fit from another.

    Attributes
    ----------
    parameters : mapping
        Whatever changes the factors, by name.
    data : mapping of str to str
        Digests of what the fit is given, by name.
    """

    parameters: Mapping[str, Any]
    data: Mapping[str, str]


@dataclass(frozen=True)
class Saved:
    """A state read from a file.

    Attributes
    ----------
    belongs_to : Identity
    user_factors, item_factors : array
    best : pair of array, or None
        The factors of the best iteration so far, where that is not the last.
    report : FitReport
    """

    belongs_to: Identity
    user_factors: np.ndarray
    item_factors: np.ndarray
    best: Factors | None
    report: FitReport

    @classmethod
    def read(cls, file: str | os.PathLike[str]) -> Self:
        """Read a file.

        Raises
        ------
        CheckpointError
            It is damaged, or no checkpoint.
        FileNotFoundError
            There is no such file.
        """
        arrays = read_arrays(file)
        if str(arrays.get("kind", "")) != _KIND:
            raise CheckpointError(f"{file}: no checkpoint of this version of gpu_als")
        try:
            state = json.loads(str(arrays["state"]))
            belongs_to = Identity(dict(state["parameters"]), dict(state["data"]))
            report = FitReport.from_dict(state["report"])
            pairs = [
                (arrays[f"{name}user_factors"], arrays[f"{name}item_factors"])
                for name in ("", "best_")
                if f"{name}user_factors" in arrays
            ]
            now = pairs[0]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise CheckpointError(f"{file}: the checkpoint is incomplete ({error})") from error
        for pair in pairs:
            for factors in pair:
                if factors.ndim != 2 or factors.dtype.kind != "f" or not np.isfinite(factors).all():
                    raise CheckpointError(f"{file}: its factors are no finite matrices")
        return cls(belongs_to, *now, pairs[1] if len(pairs) > 1 else None, report)

    def check(self, file: Any, belongs_to: Identity) -> None:
        """Refuse to go on with a fit that this state is not of.

        Raises
        ------
        CheckpointError
            The message names what differs.
        """
        then = self.belongs_to
        differing = [
            f"{name} (then {then.parameters.get(name)!r}, now {value!r})"
            for name, value in _plain(belongs_to.parameters).items()
            if then.parameters.get(name) != value
        ]
        differing += [
            f"the {name}"
            for name in belongs_to.data
            if then.data.get(name) != belongs_to.data[name]
        ]
        if differing:
            raise CheckpointError(
                f"{file} is the state of another fit; different: {', '.join(differing)}. Go on "
                "with the parameters and the data it was started with, or start afresh without "
                "resume"
            )


@dataclass
class Writer:
    """Writes the state of one fit whenever it is time.

    Attributes
    ----------
    checkpoint : Checkpoint
    belongs_to : Identity
    done : int
        Iterations run when last saved.
    clock : callable
        Seconds since some moment.
    """

    checkpoint: Checkpoint
    belongs_to: Identity
    done: int = 0
    clock: Callable[[], float] = time.monotonic
    _at: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._at = self.clock()

    def is_due(self, iterations: int, *, last: bool) -> bool:
        """Tell whether to save now, after so many iterations in all."""
        every, seconds = self.checkpoint.iterations, self.checkpoint.seconds
        if last or (every is None and seconds is None):
            return True
        if every is not None and iterations - self.done >= every:
            return True
        return seconds is not None and self.clock() - self._at >= seconds

    def write(self, now: Factors, best: Factors | None, report: FitReport) -> None:
        """Save a state; see :class:`Saved`."""
        arrays = {"user_factors": now[0], "item_factors": now[1]}
        if best is not None:
            arrays |= {"best_user_factors": best[0], "best_item_factors": best[1]}
        state = {
            "parameters": _plain(self.belongs_to.parameters),
            "data": dict(self.belongs_to.data),
            "report": report.to_dict(),
        }
        write_arrays(self.checkpoint.file, {"kind": _KIND, "state": json.dumps(state), **arrays})
        self.done, self._at = report.iterations, self.clock()


def digest(*arrays: Any) -> str:
    """Return a digest of the shapes, types and bytes of arrays; None counts as an array too."""
    total = hashlib.blake2b(digest_size=16)
    for array in arrays:
        if array is None:
            total.update(b"none")
            continue
        whole = np.ascontiguousarray(array)
        total.update(f"{whole.dtype.str}{whole.shape}".encode())
        total.update(whole.data if whole.size else b"")
    return total.hexdigest()


def _plain(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return values as they come back from JSON."""
    plain: dict[str, Any] = json.loads(json.dumps(dict(parameters), default=_as_text))
    return plain


def _as_text(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    return str(value)
