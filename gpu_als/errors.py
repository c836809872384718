"""Exceptions and warnings. Every message names the argument at fault and says what to change."""

from __future__ import annotations

from typing import Any, TypeVar

__all__ = [
    "BackendError",
    "CheckpointError",
    "ClusterError",
    "ClusterWarning",
    "DownloadError",
    "GpuAlsError",
    "IdRangeError",
    "InputError",
    "ModelFileError",
    "ModelFitError",
    "NoGpuError",
    "NotFiniteError",
    "NotFittedError",
    "ParameterWarning",
    "ReadError",
    "SingularRowsWarning",
    "check_choice",
]

T = TypeVar("T")


class GpuAlsError(Exception):
    """Base of every error this package raises on purpose."""


class InputError(GpuAlsError, ValueError):
    """An argument is out of range, has the wrong shape or holds values that cannot be used."""


class IdRangeError(InputError, IndexError):
    """A row number lies outside the matrix. It is an IndexError too, as for any other sequence."""


class ReadError(GpuAlsError, ValueError):
    """A ratings file cannot be read. The message gives the file and, where known, the line."""


class ModelFileError(GpuAlsError, ValueError):
    """A model file is truncated, corrupted, foreign or inconsistent."""


class CheckpointError(ModelFileError):
    """A checkpoint is damaged, or of another fit. The message names what differs."""


class DownloadError(GpuAlsError, OSError):
    """A file cannot be downloaded. The message gives the address and where to put it by hand."""


class NotFittedError(GpuAlsError, ValueError, AttributeError):
    """The model has no factors yet: call ``fit`` or ``load`` first."""


class BackendError(GpuAlsError, RuntimeError):
    """The requested device cannot be used. The message says what to install."""


class NoGpuError(BackendError):
    """There is no CuPy, or no GPU: nothing is broken."""


class ClusterError(GpuAlsError, RuntimeError):
    """Workers of a cluster, or all of it, were lost for good. The message says how to continue."""


class ModelFitError(GpuAlsError):
    """Training met values it cannot continue from (for example NaN in warm-start factors)."""


class NotFiniteError(InputError, ModelFitError):
    """A matrix holds NaN or inf, from which no model can be fitted."""


class ParameterWarning(UserWarning):
    """An argument was converted to a form that fits, at some cost."""


class ClusterWarning(UserWarning):
    """A cluster works in a slower way than it should. The message says why."""


class SingularRowsWarning(UserWarning):
    """Some rows had a singular system and kept their former values."""


def check_choice(value: T, choices: tuple[Any, ...], *, name: str) -> T:
    """Return an argument that must be one of some strings, booleans or None."""
    if any(isinstance(value, type(one)) and value == one for one in choices):
        return value
    *most, last = map(repr, choices)
    raise InputError(f"{name} must be {', '.join(most)} or {last}, not {value!r}")
