"""Kernels compiled for any architecture without a GPU, and what they take of a multiprocessor.

NVRTC, the compiler that CuPy uses too, comes from the packages ``nvidia-cuda-nvrtc`` and, for CUDA
12, ``nvidia-cuda-nvrtc-cu12``. Further versions are found in the folders that the environment
variable ``GPU_ALS_NVRTC`` names (as ``PATH`` does), for instance virtual environments of their own.
Logs are kept on disk: most runs change no kernel.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
from kept import kept

from gpu_als.backends.cupy.launch import SEGMENT, DeviceLimits, Launch, plan_half_sweep
from gpu_als.backends.cupy.nvrtc import OPTIONS, Macros, define, source_of
from gpu_als.core.packing import Packing, pack_rows
from gpu_als.core.solvers import Cholesky, ConjugateGradient, NonNegative

# Compute capability -> KB of shared memory for a block that asks, and for a multiprocessor; from
# the tables of the CUDA C++ Programming Guide. A block costs 1 KB besides, so the first is smaller.
_SHARED_KB = {
    75: (64, 64), 80: (163, 164), 86: (99, 100), 89: (99, 100), 90: (227, 228), 100: (227, 228),
    120: (99, 100),
}  # fmt: skip
DEVICES = {
    architecture: DeviceLimits(architecture, block << 10, multiprocessor << 10)
    for architecture, (block, multiprocessor) in _SHARED_KB.items()
}

SOLVERS = (Cholesky(), ConjugateGradient(), NonNegative())
# Every size of the primal form; and rows so wide that a dual block holds them in parts, and that
# no warp can hold even eight of them.
N_FACTORS = (*range(32, 257, 32), 1024, 4096)


class CompileError(RuntimeError):
    """The source does not compile; the message is the compiler's log."""


@dataclass(frozen=True)
class Resources:
    """What an entry function takes, with the functions that it calls."""

    registers: int  # of a thread
    spill_bytes: int  # stored for want of registers
    stack_bytes: int  # of local memory
    shared_bytes: int  # static


@dataclass(frozen=True)
class Build:
    """A compiled source: its entry functions by name, and what else the compiler had to say."""

    functions: dict[str, Resources]
    warnings: str


Version = tuple[int, int]


@functools.cache
def versions() -> dict[Version, Path]:
    """Find every version of NVRTC; return their libraries, oldest first."""
    packages = importlib.util.find_spec("nvidia")
    installed = packages.submodule_search_locations if packages else None
    named = filter(None, os.environ.get("GPU_ALS_NVRTC", "").split(os.pathsep))
    parts = [part for folder in installed or () for part in Path(folder).glob("*/lib")]
    parts += [part for folder in named for part in Path(folder).rglob("lib")]
    found: dict[Version, Path] = {}
    for part in parts:
        for companion in part.glob("libnvrtc-builtins.so.*"):
            major, minor, *_ = companion.name.removeprefix("libnvrtc-builtins.so.").split(".")
            library = part / f"libnvrtc.so.{major}"
            if library.exists():
                found.setdefault((int(major), int(minor)), library)
    return dict(sorted(found.items()))


def newest() -> Version | None:
    """Return the newest version, or None where there is none."""
    return max(versions(), default=None)


@functools.cache
def _library(version: Version | None = None) -> ctypes.CDLL:
    version = version or newest()
    if version is None:
        raise FileNotFoundError("the package nvidia-cuda-nvrtc is not installed")
    path = versions()[version]
    # Loaded first, since not every version looks for it beside itself.
    ctypes.CDLL(str(path.with_name("libnvrtc-builtins.so.{}.{}".format(*version))))
    return ctypes.CDLL(str(path))


CUPY_OPTIONS = ("-ftz=true", "--device-as-default-execution-space")
"""What CuPy adds of its own."""


def compile_for(
    source: str, options: Sequence[str], architecture: int, version: Version | None = None
) -> Build:
    """Compile ``source`` for compute capability ``architecture`` (90 for 9.0).

    By the newest NVRTC, unless a version is given.
    """
    options = [*options, f"-arch=sm_{architecture}", "--ptxas-options=-v"]
    return _read(_kept(source, options, version, "ProgramLog").decode())


def ptx_for(
    source: str, options: Sequence[str], architecture: int, version: Version | None = None
) -> str:
    """Return the PTX for a source, as :func:`compile_for` does what it takes of a device."""
    return _kept(source, [*options, f"-arch=compute_{architecture}"], version, "PTX").decode()


def cubin(launch: Launch, architecture: int, version: Version | None = None) -> bytes:
    """Return the machine code of the specialisation that a launch asks for, with line numbers."""
    options = [*OPTIONS, *define(launch.macros), f"-arch=sm_{architecture}", "-lineinfo"]
    return _kept(source_of(launch.kernel), options, version, "CUBIN")


def _kept(source: str, options: Sequence[str], version: Version | None, wanted: str) -> bytes:
    """Return the result of :func:`_compile`, from disk where it is there."""
    version, options = version or newest(), [*options, *CUPY_OPTIONS]

    def make(file: Path) -> None:
        file.write_bytes(_compile(source, options, version, wanted))

    return kept([source, *options, str(version), wanted], make).read_bytes()


def _compile(source: str, options: Sequence[str], version: Version | None, wanted: str) -> bytes:
    """Return what NVRTC has: the ``ProgramLog``, the ``PTX`` or the ``CUBIN``."""
    nvrtc = _library(version)
    program = ctypes.c_void_p()
    arguments = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    nvrtc.nvrtcCreateProgram(ctypes.byref(program), source.encode(), b"kernel.cu", 0, None, None)

    def get(what: str) -> bytes:
        size = ctypes.c_size_t()
        getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size))
        found = ctypes.create_string_buffer(size.value)
        getattr(nvrtc, f"nvrtcGet{what}")(program, found)
        return found.raw if what == "CUBIN" else found.value  # texts end with a zero

    try:
        if nvrtc.nvrtcCompileProgram(program, len(options), arguments):
            raise CompileError(get("ProgramLog").decode())
        return get(wanted)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


_ENTRY = re.compile(r"Compiling entry function '(\w+)'")
_LOCAL = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores")
_USED = re.compile(r"Used (\d+) registers(?:.* (\d+) bytes smem)?")
_OTHER = re.compile(r"ptxas info +: (Function properties|Compile time|\d+ bytes gmem)|$")


def _read(log: str) -> Build:
    """Read a log: ptxas lists an entry function, then the functions that it calls."""
    functions: dict[str, Resources] = {}
    warnings = []
    for line in log.splitlines():
        if entry := _ENTRY.search(line):
            name = entry[1]
            functions[name] = Resources(0, 0, 0, 0)
        elif local := _LOCAL.search(line):
            own = functions[name]
            functions[name] = replace(
                own,
                stack_bytes=own.stack_bytes + int(local[1]),
                spill_bytes=own.spill_bytes + int(local[2]),
            )
        elif used := _USED.search(line):
            functions[name] = replace(
                functions[name], registers=int(used[1]), shared_bytes=int(used[2] or 0)
            )
        elif not _OTHER.match(line):
            warnings.append(line)
    return Build(functions, "\n".join(warnings))


@functools.cache
def rows_of_every_length() -> Packing:
    """Return rows of every length from none to more than two segments, definite and indefinite."""
    counts = np.arange(2 * SEGMENT + 2).repeat(2)
    return pack_rows(counts, 32, 1 << 40, indefinite=np.arange(len(counts)) % 2 == 1)


def specialisations(
    limits: DeviceLimits, n_factors: Iterable[int] = N_FACTORS
) -> dict[tuple[str, Macros], Launch]:
    """Return what plans for a device can launch, by kernel and macros.

    Of launches of one specialisation the one that asks for the most shared memory stands for all,
    of specialisations that differ in WARPS alone the one with the most threads.
    """
    found: dict[tuple[str, Macros], Launch] = {}
    for k, solver, *storage in product(n_factors, SOLVERS, (False, True), (False, True)):
        tensor_cores, stored_half = storage
        plan = plan_half_sweep(
            rows_of_every_length(), k, solver, limits,
            tensor_cores=tensor_cores, stored_half=stored_half,
        )  # fmt: skip
        for launch in plan.launches:
            key = launch.kernel, tuple(pair for pair in launch.macros if pair[0] != "WARPS")
            known = found.setdefault(key, launch)
            found[key] = max(known, launch, key=lambda one: (one.block, one.shared_bytes))
    return found


def build(launch: Launch, architecture: int, version: Version | None = None) -> Build:
    """Compile the specialisation that a launch asks for."""
    macros = define(launch.macros)
    try:
        return compile_for(source_of(launch.kernel), [*OPTIONS, *macros], architecture, version)
    except CompileError as error:
        error.add_note(f"{launch.kernel} {' '.join(macros)} for sm_{architecture}")
        raise


def build_all(
    launches: Sequence[Launch], architecture: int, version: Version | None = None
) -> list[Build]:
    """Compile the specialisations that several launches ask for."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return list(pool.map(lambda launch: build(launch, architecture, version), launches))
