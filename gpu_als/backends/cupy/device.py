"""CuPy and the current GPU, or what is wrong with them and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from gpu_als.errors import BackendError, NoGpuError

__all__ = ["current_device", "device_needed", "load_libraries"]

_INSTALL = "pip install 'gpu-als[cuda13]' (or [cuda12] for a CUDA 12 driver)"
_INSUFFICIENT_DRIVER, _NO_DEVICE = 35, 100
"""Of CUDA's error codes; CuPy has no names for them."""


def current_device() -> tuple[Any, int]:
    """Return CuPy and the number of the current device.

    Raises
    ------
    BackendError
        CuPy cannot be imported, or there is no device. A :class:`NoGpuError` where nothing is
        broken.
    """
    with _explained("needs CuPy, which cannot be imported", f"install it with {_INSTALL}"):
        import cupy
    with device_needed():
        return cupy, cupy.cuda.runtime.getDevice()


@contextmanager
def device_needed() -> Iterator[None]:
    """Make any failure a BackendError about the device."""
    with _explained(
        "found no usable GPU",
        "check that nvidia-smi lists one and that its driver supports the installed CuPy's CUDA "
        "version",
    ):
        yield


def load_libraries(cupy: Any) -> tuple[type[Exception], ...]:
    """Try what all work needs; return the errors that CuPy raises when a device fails.

    Raises
    ------
    BackendError
        NVRTC, cuBLAS or cuSOLVER is missing, or does not serve this device.
    """
    with _explained(
        "cannot compute on this GPU",
        f"install CUDA's libraries (NVRTC, cuBLAS, cuSOLVER), which come with {_INSTALL}",
    ):
        ones = cupy.full((2, 2), 1, np.float32)  # by a kernel that NVRTC compiles
        cupy.asnumpy(ones @ ones)
        from cupy_backends.cuda.libs import cublas, cusolver
    return (
        cupy.cuda.runtime.CUDARuntimeError,
        cupy.cuda.driver.CUDADriverError,
        cublas.CUBLASError,
        cusolver.CUSOLVERError,
    )


@contextmanager
def _explained(problem: str, remedy: str) -> Iterator[None]:
    """Make any failure but a lack of memory a BackendError with its cause."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # CuPy's own, or whatever a broken installation comes up with
        kind = NoGpuError if _is_absence(error) else BackendError
        cause = " ".join(f"{type(error).__name__}: {error}".split())  # CuPy's can fill a page
        raise kind(
            f"backend 'cupy' {problem} ({cause}); {remedy}, or use backend='numpy'"
        ) from error


def _is_absence(error: Exception) -> bool:
    """Return whether there is no CuPy, no driver or no GPU, as on most machines."""
    if isinstance(error, ModuleNotFoundError):
        return error.name == "cupy"
    status = getattr(error, "status", None)
    if status == _INSUFFICIENT_DRIVER:  # one too old, or none
        from cupy.cuda import runtime

        return bool(runtime.driverGetVersion() == 0)
    return status == _NO_DEVICE
