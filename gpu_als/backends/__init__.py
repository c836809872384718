"""The devices a fit can run on."""

from __future__ import annotations

import os
import warnings
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gpu_als.errors import BackendError, InputError, NoGpuError, check_choice

if TYPE_CHECKING:
    from gpu_als.core.backend import Backend

__all__ = [
    "BACKENDS",
    "PRECISIONS",
    "BackendChoice",
    "cuda_is_usable",
    "cuda_problem",
    "get_backend",
]


BACKENDS = ("auto", "numpy", "cupy")
PRECISIONS = ("float32", "tf32x3", "float16")


def get_backend(
    backend: str = "auto", *, num_threads: int = 0, precision: str = "float32"
) -> Backend:
    """Return the backend of that name.

    Parameters
    ----------
    backend : {"auto", "numpy", "cupy"}
        "auto" takes CuPy where it is installed and a GPU can be used, NumPy elsewhere. Where they
        are there but do not work, one warning says why.
    num_threads : int
        Threads of the NumPy backend; 0 means all processors.
    precision : {"float32", "tf32x3", "float16"}
        How a GPU multiplies float32 factors. "float32": in float32. "tf32x3": long rows' Grams on
        tensor cores, every factor split into two TF32 numbers, to the accuracy of float32.
        "float16": the fixed side is gathered as float16, half the memory traffic, with an error
        of 5e-4 in each factor it is rounded to; products are in float32. A CPU, and float64
        factors, always use their full precision.

    Raises
    ------
    BackendError
        "cupy" was asked for, but CuPy or a GPU is missing or broken; the message says what to do.
    """
    whole = isinstance(num_threads, int | np.integer) and not isinstance(num_threads, bool)
    if not whole or num_threads < 0:
        raise InputError(f"num_threads must be 0 (all processors) or more, not {num_threads!r}")
    check_choice(precision, PRECISIONS, name="precision")
    check_choice(backend, BACKENDS, name="backend")
    if backend == "auto":
        problem = cuda_problem(precision)
        if problem is not None and not isinstance(problem, NoGpuError):
            _warn_of(problem)
        backend = "numpy" if problem else "cupy"
    if backend == "cupy":
        return _cupy_backend(precision)
    found: Backend = _numpy_backend(int(num_threads))
    return found


class BackendChoice(NamedTuple):
    """Which backend a fit uses: the arguments of :func:`get_backend`, not yet tried.

    It can be sent to the process in which the backend is to work.
    """

    backend: str = "auto"
    num_threads: int = 0
    precision: str = "float32"

    def get(self) -> Backend:
        """Return the backend."""
        return get_backend(self.backend, num_threads=self.num_threads, precision=self.precision)


_broken: BackendError | None = None
"""Why no GPU works in this process, from the first time that one did not."""


def cuda_problem(precision: str = "float32") -> BackendError | None:
    """Return why backend "auto" takes the CPU, or None where it takes the GPU.

    What is there but broken is not tried again.
    """
    global _broken
    if _broken is None:
        try:
            _cupy_backend(precision)
        except NoGpuError as error:
            return error
        except BackendError as error:
            _broken = _broken or error
    return _broken


def cuda_is_usable() -> bool:
    """Tell whether the CuPy backend can run here."""
    return cuda_problem() is None


@cache
def _warn_of(problem: BackendError) -> None:
    """Warn, once for each problem."""
    warnings.warn(f"this process does not use the GPU: {problem}", RuntimeWarning, stacklevel=4)


@lru_cache(maxsize=4)
def _numpy_backend(num_threads: int) -> Any:
    """Keep one pool of threads for each of the latest numbers of them."""
    from gpu_als.backends.numpy.backend import NumpyBackend  # once a fit needs it

    return NumpyBackend(num_threads)


if hasattr(os, "register_at_fork"):
    # Threads do not survive a fork: the child process makes pools of its own.
    os.register_at_fork(after_in_child=_numpy_backend.cache_clear)


def _cupy_backend(precision: str = "float32") -> Any:
    from gpu_als.backends.cupy.backend import CupyBackend  # only here, so CuPy stays optional

    return CupyBackend.for_current_device(precision)
