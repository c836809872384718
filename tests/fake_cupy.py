"""A stand-in for CuPy on the CPU: the parts of its interface the backend uses, over NumPy.

It lets the CuPy backend's own lines run where there is no GPU: what is moved to the device, the
addresses handed to cuSOLVER, the status read back, the kernels with what they are launched with.
Arrays are a NumPy subclass whose ``data.ptr`` is their address; the two cuSOLVER calls run LAPACK
on the memory behind the addresses they get; kernels run on the CPU (ptx), and may reach nothing but
what is on the device.
That the real CuPy has every name used is tested apart (test_cupy_backend.py).
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.machinery
import os
import sys
import types
import weakref
from collections.abc import Iterator

import fake_nccl
import numpy as np
import nvrtc
import ptx
import scipy.linalg


class Memory(weakref.WeakValueDictionary):
    """What holds the memory of the device's arrays, which threads make and drop at any time."""

    def copy(self) -> dict[int, np.ndarray]:
        arrays = (reference() for reference in self.valuerefs())
        return {id(array): array for array in arrays if array is not None}


ON_DEVICE = Memory()


class DeviceArray(np.ndarray):
    """A NumPy array that tells its address as CuPy's do."""

    def __array_finalize__(self, other):
        whole = self
        while isinstance(whole.base, np.ndarray):
            whole = whole.base
        ON_DEVICE[id(whole)] = whole

    @property
    def data(self):
        return types.SimpleNamespace(ptr=self.__array_interface__["data"][0])

    @property
    def __cuda_array_interface__(self):
        return self.__array_interface__

    def get(self):
        return np.array(self, subok=False)


class OutOfMemoryError(MemoryError):
    """What CuPy raises when the device is full."""


class CUDARuntimeError(RuntimeError):
    """What CuPy raises without a usable GPU, with CUDA's number for it."""

    def __init__(self, message: str, status: int = 100) -> None:
        super().__init__(message)
        self.status = status


class CUDADriverError(RuntimeError):
    """What CuPy raises where a module cannot be loaded or a kernel not be launched."""


class CUBLASError(RuntimeError):
    """What CuPy raises where cuBLAS fails."""


class CUSOLVERError(RuntimeError):
    """What CuPy raises where cuSOLVER fails."""


def _on_device(function):
    def call(*args, **kwargs):
        out = function(*args, **kwargs)
        return out.view(DeviceArray) if isinstance(out, np.ndarray) else out

    return call


def _view(address: int, shape: tuple[int, ...], dtype: type) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    buffer = (ctypes.c_byte * size).from_address(address)
    return np.frombuffer(buffer, dtype).reshape(shape)


def _factor(matrix: np.ndarray) -> int:
    """Factor in place as LAPACK does, which reads columns first; return the status."""
    try:
        upper = scipy.linalg.cholesky(np.triu(matrix).T, lower=True).T
    except scipy.linalg.LinAlgError:
        return 1
    matrix[...] = np.triu(upper) + np.tril(matrix, -1)
    return 0


def _solve(matrix: np.ndarray, vector: np.ndarray) -> None:
    with contextlib.suppress(scipy.linalg.LinAlgError):  # after a failed factorisation
        vector[...] = scipy.linalg.cho_solve((np.triu(matrix), False), vector, check_finite=False)


def _cusolver(dtype: type) -> dict[str, object]:
    """Return the Cholesky routines of one precision, on the memory behind the addresses."""

    def potrf_batched(handle, uplo, n, addresses, lda, status, count):
        states = _view(status, (count,), np.int32)
        for number, address in enumerate(_view(addresses, (count,), np.uint64)):
            states[number] = _factor(_view(int(address), (n, lda), dtype))

    def potrs_batched(handle, uplo, n, n_rhs, matrices, lda, rhs, ldb, status, count):
        assert n_rhs == 1
        pairs = zip(
            _view(matrices, (count,), np.uint64), _view(rhs, (count,), np.uint64), strict=True
        )
        for at_matrix, at_rhs in pairs:
            _solve(_view(int(at_matrix), (n, lda), dtype), _view(int(at_rhs), (n,), dtype))

    def buffer_size(handle, uplo, n, matrix, lda):
        return 3 * n

    def potrf(handle, uplo, n, matrix, lda, work, size, status):
        assert size == 3 * n
        _view(work, (size,), dtype)[:] = np.nan
        _view(status, (1,), np.int32)[0] = _factor(_view(matrix, (n, lda), dtype))

    def potrs(handle, uplo, n, n_rhs, matrix, lda, rhs, ldb, status):
        assert n_rhs == 1
        _solve(_view(matrix, (n, lda), dtype), _view(rhs, (n,), dtype))

    letter = "s" if dtype is np.float32 else "d"
    return {
        f"{letter}potrfBatched": potrf_batched,
        f"{letter}potrsBatched": potrs_batched,
        f"{letter}potrf_bufferSize": buffer_size,
        f"{letter}potrf": potrf,
        f"{letter}potrs": potrs,
    }


class RawModule:
    """Compiles kernels for the CPU."""

    def __init__(self, code: str, options: tuple[str, ...], backend: str) -> None:
        assert backend == "nvrtc"
        self._input = code, options

    def compile(self) -> None:
        self._module = ptx.Module(*self._input)

    def get_function(self, name: str) -> ptx.Kernel:
        kernel = self._module.get_function(name)
        kernel.arrays = ON_DEVICE
        return kernel


class Stream:
    """Work is done at once and in order, so there is nothing to wait for."""

    ptr = 1

    def __init__(self, non_blocking: bool = False) -> None:
        self.non_blocking = non_blocking

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def record(self) -> None:
        pass

    def wait_event(self, event: None) -> None:
        pass

    def synchronize(self) -> None:
        pass


class Device(contextlib.nullcontext):
    """The only one."""

    def __init__(self, device: int = 0) -> None:
        super().__init__(self)

    @property
    def pci_bus_id(self) -> str:
        """Another for each process, as each worker has a GPU of its own."""
        return f"0000:{os.getpid():x}"


def _modules() -> dict[str, types.ModuleType]:
    names = (
        "cupy", "cupy.cuda", "cupy.cuda.device", "cupy.cuda.runtime", "cupy_backends",
        "cupy_backends.cuda", "cupy_backends.cuda.libs",
    )  # fmt: skip
    modules = {name: types.ModuleType(name) for name in names}
    cupy = modules["cupy"]
    cupy.__spec__ = importlib.machinery.ModuleSpec("cupy", None)
    for name in dir(np):
        if not name.startswith("__"):
            setattr(cupy, name, getattr(np, name))
    for name in (
        "array", "asarray", "ascontiguousarray", "empty", "zeros", "ones", "full", "arange",
        "where", "einsum",
    ):  # fmt: skip
        setattr(cupy, name, _on_device(getattr(np, name)))
    cupy.asnumpy = np.array
    cupy.cuda = modules["cupy.cuda"]
    cupy.cuda.device = modules["cupy.cuda.device"]
    cupy.cuda.device.get_cusolver_handle = lambda: 0
    cupy.cuda.Device = Device
    cupy.cuda.nccl = fake_nccl
    cupy.cuda.Stream = Stream
    cupy.cuda.memory = types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError)
    cupy.cuda.get_current_stream = Stream
    cupy.cuda.compiler = types.SimpleNamespace(CompileException=nvrtc.CompileError)
    cupy.RawModule = RawModule
    cupy.get_default_memory_pool = lambda: types.SimpleNamespace(free_bytes=lambda: 0)
    cupy.cuda.alloc_pinned_memory = bytearray
    cupy.get_default_pinned_memory_pool = lambda: types.SimpleNamespace(free_all_blocks=int)
    cupy.cuda.driver = types.SimpleNamespace(CUDADriverError=CUDADriverError)
    cupy.cuda.runtime = modules["cupy.cuda.runtime"]
    vars(cupy.cuda.runtime).update(
        CUDARuntimeError=CUDARuntimeError,
        deviceSynchronize=lambda: None,
        getDevice=lambda: 0,
        getDeviceProperties=lambda device: {
            "name": b"stand-in",
            "major": 9,
            "minor": 0,
            "sharedMemPerBlockOptin": 232448,
            "sharedMemPerMultiprocessor": 233472,
            "totalGlobalMem": 1 << 30,
            "multiProcessorCount": 132,
        },
        getDeviceCount=lambda: 1,
        runtimeGetVersion=lambda: 13000,
        driverGetVersion=lambda: 13000,
        memGetInfo=lambda: (1 << 30, 1 << 30),
    )
    libs = modules["cupy_backends.cuda.libs"]
    libs.cublas = types.SimpleNamespace(CUBLAS_FILL_MODE_LOWER=0, CUBLASError=CUBLASError)
    libs.cusolver = types.SimpleNamespace(
        CUSOLVERError=CUSOLVERError, **_cusolver(np.float32), **_cusolver(np.float64)
    )
    return modules


@contextlib.contextmanager
def installed() -> Iterator[types.ModuleType]:
    """Make ``import cupy`` find the stand-in, and forget modules that imported either."""

    def is_affected(name: str) -> bool:
        root = name.partition(".")[0]
        return root in ("cupy", "cupy_backends") or name in ("gpu_als.backends.cupy.cusolver",)

    before = {name: module for name, module in sys.modules.items() if is_affected(name)}
    for name in before:
        del sys.modules[name]
    modules = _modules()
    sys.modules.update(modules)
    try:
        yield modules["cupy"]
    finally:
        for name in [name for name in sys.modules if is_affected(name)]:
            del sys.modules[name]
        sys.modules.update(before)
