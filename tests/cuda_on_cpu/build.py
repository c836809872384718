"""Compile a kernel for the CPU, load it, and launch it with CuPy's calling convention."""

from __future__ import annotations

import ctypes
import dataclasses
import functools
import hashlib
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).parent

# What a kernel may use without asking for more, and what an H100 can give to one that asks.
DEFAULT_SHARED_BYTES = 48 * 1024
MAX_SHARED_BYTES = 227 * 1024
MAX_THREADS = 1024
_ERROR_BYTES = 1024
_ORDERS = {"forward": 0, "reverse": 1, "shuffle": 2}

# Multiply-adds fuse, as on a GPU. Symbols are hidden: several kernels live in one process.
_FLAGS = (
    "-std=c++17", "-shared", "-fPIC", "-march=native", "-ffp-contract=fast",
    "-fno-strict-aliasing", "-fvisibility=hidden", "-fno-gnu-unique",
)  # fmt: skip
_SANITIZE = ("-fsanitize=address,undefined", "-fno-sanitize-recover=undefined", "-g", "-O1")
# Counting tells accesses apart by where they return to: every access needs a call of its own.
_COUNT = ("-DGPU_ALS_COUNT", "-g", "-O1", "-fno-optimize-sibling-calls", "-fno-thread-jumps")


class CudaOnCpuError(RuntimeError):
    """A kernel did what it must not do, or was called as it must not be."""


class _Launch(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint * 3),
        ("shared_bytes", ctypes.c_size_t),
        ("order", ctypes.c_int),
        ("seed", ctypes.c_uint64),
    )


@dataclasses.dataclass
class Traffic:
    """Global memory read or written: what the lanes asked for, and in 32-byte sectors."""

    accesses: int = 0
    bytes: int = 0
    sectors: int = 0


@dataclasses.dataclass
class SharedCounts:
    """Shared-memory accesses of warps, the wavefronts they took and those they needed."""

    accesses: int = 0
    wavefronts: int = 0
    ideal: int = 0

    @property
    def conflicts(self) -> int:
        """Wavefronts lost to bank conflicts."""
        return self.wavefronts - self.ideal


@dataclasses.dataclass
class Site:
    """A place in the kernel that reaches shared memory."""

    where: str
    counts: SharedCounts


@dataclasses.dataclass
class Counts:
    """What one launch did to memory; ``reads`` and ``writes`` by the name of the range."""

    reads: dict[str, Traffic]
    writes: dict[str, Traffic]
    shared: SharedCounts
    library: Path
    addresses: dict[int, SharedCounts]

    def worst_sites(self, count: int = 10) -> list[Site]:
        """Return the places that lose the most wavefronts to bank conflicts."""
        worst = sorted(self.addresses.items(), key=lambda item: -item[1].conflicts)
        worst = [item for item in worst if item[1].conflicts][:count]
        return [Site(_source_line(self.library, at), counts) for at, counts in worst]


@functools.lru_cache(maxsize=1)
def _compiler() -> tuple[str, str]:
    """Find the compiler; return its path and version."""
    path = shutil.which("g++")
    if path is None:
        raise CudaOnCpuError("g++ was not found")
    return path, subprocess.check_output([path, "--version"], text=True)


def have_compiler() -> bool:
    """Tell whether kernels can be compiled here."""
    return shutil.which("g++") is not None


def sanitized_environment() -> dict[str, str]:
    """Return what the environment of Python needs for sanitised kernels.

    The sanitisers' libraries must be there before all others. libstdc++ comes along because
    AddressSanitizer looks up at the start how exceptions are thrown. Python's own leaks at exit
    are not of interest.
    """
    names = ("libasan.so", "libubsan.so", "libstdc++.so")
    find = [_compiler()[0], "-print-file-name="]
    paths = [subprocess.check_output([find[0], find[1] + name], text=True) for name in names]
    return {
        "GPU_ALS_SANITIZE": "1",
        "LD_PRELOAD": " ".join(os.path.realpath(path.strip()) for path in paths),
        "ASAN_OPTIONS": "detect_leaks=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


def _cache() -> Path:
    """Return the folder of compiled kernels: private, since what lies in it will be loaded."""
    folder = Path(tempfile.gettempdir()) / f"cuda_on_cpu-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise CudaOnCpuError(f"{folder} belongs to somebody else")
    return folder


def _compile(text: str, flags: Sequence[str]) -> Path:
    """Compile a translation unit to a shared library, unless that has been done before."""
    path, version = _compiler()
    headers = "".join(header.read_text() for header in sorted(HERE.glob("*.h")))
    parts = (text, headers, version, platform.node(), *flags)
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:24]
    library = _cache() / f"{key}.so"
    if library.exists():
        return library
    # Finished libraries appear under their name at once: processes may compile the same one.
    with tempfile.TemporaryDirectory(dir=_cache()) as folder:
        source, output = Path(folder, "kernel.cpp"), Path(folder, "kernel.so")
        source.write_text(text)
        command = [path, *flags, f"-I{HERE}", "-o", str(output), str(source)]
        env = {key: value for key, value in os.environ.items() if key != "LD_PRELOAD"}
        done = subprocess.run(command, capture_output=True, text=True, env=env)
        if done.returncode:
            raise CudaOnCpuError(f"{' '.join(command)} failed:\n{done.stderr}")
        output.replace(library)
    return library


def load(
    source: str,
    name: str,
    macros: Mapping[str, Any] | None = None,
    *,
    sanitize: bool = False,
    count: bool = False,
) -> Kernel:
    """Compile the kernel ``name`` of a CUDA source and load it.

    Parameters
    ----------
    source
        A whole translation unit, nothing left to include.
    name
        Its kernel, declared ``extern "C" __global__ void name(...)``.
    macros
        Macros to define, as ``-D`` would.
    sanitize
        Compile with the sanitisers (:func:`sanitized_environment`); also asked for by
        ``GPU_ALS_SANITIZE=1`` in the environment.
    count
        Count the accesses to memory, and look for races in shared memory.

    Raises
    ------
    CudaOnCpuError
        If it does not compile.
    """
    sanitize = sanitize or os.environ.get("GPU_ALS_SANITIZE") == "1"
    if sanitize and "libasan" not in os.environ.get("LD_PRELOAD", ""):
        raise CudaOnCpuError("sanitised kernels need Python started in sanitized_environment()")
    flags = [*_FLAGS, *(_SANITIZE if sanitize else () if count else ("-O2",))]
    flags += _COUNT if count else ()
    flags += [f"-D{key}={_macro(value)}" for key, value in (macros or {}).items()]
    text = (
        "#define GPU_ALS_ON_CPU\n"
        '#include "cuda_on_cpu.h"\n'
        f'#line 1 "{name}.cu"\n{source}\n'
        f"CUDA_ON_CPU_KERNEL({name})\n"
    )
    return Kernel(name, _compile(text, flags), count=count)


def _macro(value: Any) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


class Kernel:
    """A kernel for the CPU, called as CuPy's ``RawKernel`` is.

    Attributes
    ----------
    max_dynamic_shared_size_bytes : int
        The most shared memory a launch may ask for; as with CuPy, more than 48 KiB must be
        allowed first.
    order : str
        The order in which threads run: "forward", "reverse" or "shuffle:SEED".
    preferred_shared_memory_carveout : int
        Percent of a multiprocessor's memory; of no effect here.
    counts : Counts or None
        What the last launch did to memory, if the kernel counts.
    """

    preferred_shared_memory_carveout = -1

    def __init__(self, name: str, library: Path, *, count: bool = False) -> None:
        self.name = name
        self.order = os.environ.get("CUDA_ON_CPU_ORDER", "forward")
        self.counts: Counts | None = None
        self._count = count
        self._max_shared = DEFAULT_SHARED_BYTES
        self._path = library
        self._library = ctypes.CDLL(str(library))
        self._launch = self._library.cuda_on_cpu_launch
        self._launch.restype = None
        sizes = self._library.cuda_on_cpu_parameter_sizes
        sizes.restype = ctypes.POINTER(ctypes.c_size_t)
        self._sizes: list[int] = []
        while size := sizes()[len(self._sizes)]:
            self._sizes.append(size)

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        return self._max_shared

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size: int) -> None:
        if not 0 <= size <= MAX_SHARED_BYTES:
            raise CudaOnCpuError(f"{size} bytes of shared memory; there are {MAX_SHARED_BYTES}")
        self._max_shared = size

    def launch(
        self,
        grid: Sequence[int],
        block: Sequence[int],
        args: Sequence[Any],
        shared_mem: int = 0,
    ) -> None:
        """Run the kernel.

        Parameters
        ----------
        grid, block
            How many blocks, and how many threads in each: one to three numbers.
        args
            Arrays, of which the address is passed; structured arrays and NumPy scalars, passed
            by value; Python integers as ``long long``, floats as ``double``.
        shared_mem
            Bytes of dynamic shared memory.

        Raises
        ------
        CudaOnCpuError
            If the arguments do not fit the kernel, or the kernel did what it must not do.
        """
        if shared_mem > self._max_shared:
            raise CudaOnCpuError(
                f"{self.name}: {shared_mem} bytes of shared memory, {self._max_shared} allowed"
            )
        order, _, seed = self.order.partition(":")
        launch = _Launch(_three(grid), _three(block), shared_mem, _ORDERS[order], int(seed or 1))
        if np.prod(launch.block) > MAX_THREADS:
            raise CudaOnCpuError(f"{self.name}: {tuple(block)} threads are more than {MAX_THREADS}")
        values = [_argument(value) for value in args]
        sizes = [len(value) for value in values]
        if sizes != self._sizes:
            raise CudaOnCpuError(
                f"{self.name}: arguments of {sizes} bytes for parameters of {self._sizes} bytes"
            )
        buffers = [ctypes.create_string_buffer(value, len(value)) for value in values]
        pointers = (ctypes.c_void_p * len(buffers))(*map(ctypes.addressof, buffers))
        error = ctypes.create_string_buffer(_ERROR_BYTES)
        if self._count:
            self._library.cuda_on_cpu_start_counting()
        self._launch(ctypes.byref(launch), pointers, error)
        if self._count:
            self.counts = self._read_counts()
        if error.value:
            raise CudaOnCpuError(_with_source_lines(error.value.decode(), self._path))

    __call__ = launch

    def count_range(self, name: str, array: np.ndarray) -> None:
        """Count what is read of and written to an array under a name; a name can be moved."""
        address, size = ctypes.c_void_p(array.ctypes.data), ctypes.c_size_t(array.nbytes)
        self._library.cuda_on_cpu_count_range(name.encode(), address, size)

    def _read_counts(self) -> Counts:
        report = self._library.cuda_on_cpu_counts
        report.restype = ctypes.c_char_p
        counts = Counts({}, {}, SharedCounts(), self._path, {})
        for line in report().decode().splitlines():
            kind, key, *numbers = line.split("\t")
            first, second, third = map(int, numbers)
            if kind == "shared":
                counts.addresses[int(key)] = SharedCounts(first, second, third)
                counts.shared.accesses += first
                counts.shared.wavefronts += second
                counts.shared.ideal += third
            else:
                side = counts.reads if kind == "read" else counts.writes
                side[key] = Traffic(first, second, third)
        return counts


def _three(sizes: Sequence[int]) -> ctypes.Array:
    if not 1 <= len(sizes) <= 3 or min(sizes) < 1:
        raise CudaOnCpuError(f"a grid or block of {tuple(sizes)}")
    return (ctypes.c_uint * 3)(*sizes, *(1 for _ in range(3 - len(sizes))))


def _argument(value: Any) -> bytes:
    """Return the bytes that a kernel gets for an argument."""
    if isinstance(value, np.ndarray) and value.dtype.names:
        return value.tobytes()
    if isinstance(value, np.ndarray):
        return np.uintp(value.ctypes.data).tobytes()
    if isinstance(value, bool):
        return np.bool_(value).tobytes()
    if isinstance(value, int):
        return np.int64(value).tobytes()
    if isinstance(value, np.generic):
        return value.tobytes()
    if isinstance(value, float):
        return np.float64(value).tobytes()
    raise TypeError(f"a kernel cannot take {type(value).__name__}")


def _with_source_lines(message: str, library: Path) -> str:
    """Put places of the kernel's source in the place of addresses of its code."""
    return re.sub(
        "code (0x[0-9a-f]+)", lambda found: _source_line(library, int(found[1], 16)), message
    )


def _source_line(library: Path, address: int) -> str:
    """Where in the kernel's source an address lies, seen from outside these headers."""
    command = ["addr2line", "-i", "-e", str(library), hex(address)]
    lines = subprocess.check_output(command, text=True).split("\n")
    frames = [line.split(" ")[0] for line in lines if line]
    own = {header.name for header in HERE.glob("*.h")}
    outside = [frame for frame in frames if Path(frame).name.split(":")[0] not in own]
    return Path((outside or frames)[0]).name
