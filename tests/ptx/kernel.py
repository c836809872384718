"""Load kernels for the machine, and launch them with CuPy's calling convention."""

from __future__ import annotations

import ctypes
import functools
import math
import pickle
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import nvrtc
from kept import kept

from ptx import decode

HERE = Path(__file__).parent
ARCHITECTURE = 90

# What a kernel may use without asking for more, and what an H100 can give to one that asks.
DEFAULT_SHARED_BYTES = 48 * 1024
MAX_SHARED_BYTES = 227 * 1024
MAX_THREADS = 1024
_ERROR_BYTES = 1024
_ORDERS = {"forward": 0, "reverse": 1, "shuffle": 2}
# Nothing fuses but what is one instruction of PTX.
_FLAGS = (
    "-std=c++17", "-shared", "-fPIC", "-march=native", "-O3", "-ffp-contract=off",
    "-fno-math-errno", "-fno-strict-aliasing",
)  # fmt: skip


class MachineError(RuntimeError):
    """A kernel did what it must not do, or was called as it must not be."""


@dataclass
class Traffic:
    """Global memory read or written: what the lanes asked for, and in 32-byte sectors."""

    accesses: int = 0
    bytes: int = 0
    sectors: int = 0


@dataclass
class SharedCounts:
    """Shared-memory accesses of warps, the wavefronts they took and those they needed."""

    accesses: int = 0
    wavefronts: int = 0
    ideal: int = 0

    @property
    def conflicts(self) -> int:
        """Wavefronts lost to bank conflicts."""
        return self.wavefronts - self.ideal


@dataclass
class Site:
    """An instruction that reaches shared memory: its ``file:line``, bytes of a lane, counts."""

    where: str
    width: int
    counts: SharedCounts


@dataclass
class Counts:
    """What one launch did to memory; ``reads`` and ``writes`` by the name of the array.

    Lanes share sectors and wavefronts where they go in step, which they do in order "forward".
    """

    reads: dict[Any, Traffic]
    writes: dict[Any, Traffic]
    sites: list[Site]

    @property
    def shared(self) -> SharedCounts:
        """The sum over all sites."""
        each = [site.counts for site in self.sites]
        return SharedCounts(
            sum(one.accesses for one in each),
            sum(one.wavefronts for one in each),
            sum(one.ideal for one in each),
        )

    def conflicting(self) -> list[Site]:
        """Return the places that lose wavefronts to bank conflicts."""
        return [site for site in self.sites if site.counts.conflicts]


def missing() -> str | None:
    """Return what kernels on the CPU need and is not here, or None."""
    if shutil.which("g++") is None:
        return "kernels run on an interpreter that g++ compiles, which is not here"
    if nvrtc.newest() is None:
        return "needs the package nvidia-cuda-nvrtc"
    return None


class _Launch(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_void_p) for name in (
            "code", "constants", "parameters", "ranges", "sites", "error"
        )),
        *((name, ctypes.c_uint64) for name in (
            "code_size", "error_bytes", "register_bytes", "parameter_bytes", "range_count",
            "shared_bytes", "seed",
        )),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("order", ctypes.c_int32),
    )  # fmt: skip


@functools.cache
def _machine() -> ctypes.CDLL:
    """Compile the machine, unless that has been done before, and load it."""
    source, version = HERE / "machine.cpp", subprocess.check_output(["g++", "--version"], text=True)
    files = [file.read_text("utf-8") for file in sorted((source, *HERE.glob("*.h")))]

    def compile_it(library: Path) -> None:
        command = ["g++", *_FLAGS, str(source), "-o", str(library)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise MachineError(f"{' '.join(command)} failed:\n{done.stderr}")

    parts = (*files, version, platform.node(), *_FLAGS)
    return ctypes.CDLL(str(kept(parts, compile_it)))


class Module:
    """A compiled source, as CuPy's ``RawModule`` is.

    Raises
    ------
    nvrtc.CompileError
        It does not compile.
    """

    def __init__(self, source: str, options: Sequence[str]) -> None:
        self._ptx = nvrtc.ptx_for(source, [*options, "-lineinfo"], ARCHITECTURE)

    def get_function(self, name: str) -> Kernel:
        """Return one of its kernels."""
        parts = (self._ptx, name, Path(decode.__file__).read_text("utf-8"))

        def write(file: Path) -> None:
            file.write_bytes(pickle.dumps(decode.decode(self._ptx, name)))

        return Kernel(name, pickle.loads(kept(parts, write).read_bytes()))


def load(source: str, name: str, macros: Mapping[str, Any] | None = None) -> Kernel:
    """Compile the kernel ``name`` of a CUDA source and load it.

    Parameters
    ----------
    source
        A whole translation unit, nothing left to include.
    name
        Its kernel, declared ``extern "C" __global__ void name(...)``.
    macros
        Macros to define.

    Raises
    ------
    nvrtc.CompileError
        It does not compile.
    DecodeError, MachineError
        It has instructions that the machine does not know.
    """
    defines = "".join(f"#define {key} {value}\n" for key, value in (macros or {}).items())
    return Module(defines + source, nvrtc.OPTIONS).get_function(name)


class Kernel:
    """A kernel for the CPU, called as CuPy's ``RawKernel`` is.

    Attributes
    ----------
    max_dynamic_shared_size_bytes : int
        The most shared memory a launch may ask for; as with CuPy, more than 48 KiB must be
        allowed first.
    preferred_shared_memory_carveout : int
        Percent of a multiprocessor's memory; of no effect here.
    order : str
        The order in which threads run: "forward", "reverse" or "shuffle:SEED".
    arrays : dict of arrays
        Global memory by name, besides the arguments: all that the kernel may reach.
    """

    preferred_shared_memory_carveout = -1

    def __init__(self, name: str, program: decode.Program) -> None:
        self.name = name
        self.order = "forward"
        self.arrays: dict[Any, np.ndarray] = {}
        self._counted: tuple[list[Any], np.ndarray, np.ndarray] | None = None
        self._max_shared = DEFAULT_SHARED_BYTES
        self._program = program
        numbers = [_machine().machine_operation(each.encode()) for each in program.operations]
        if -1 in numbers:
            unknown = program.operations[numbers.index(-1)]
            raise MachineError(f"{name}: the machine does not know {unknown}")
        self._code = program.code.copy()
        self._code[:, 0] = np.array(numbers)[program.code[:, 0]]

    @property
    def max_dynamic_shared_size_bytes(self) -> int:
        return self._max_shared

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size: int) -> None:
        if not 0 <= size <= MAX_SHARED_BYTES:
            raise MachineError(f"{size} bytes of shared memory; there are {MAX_SHARED_BYTES}")
        self._max_shared = size

    def launch(
        self, grid: Sequence[int], block: Sequence[int], args: Sequence[Any], shared_mem: int = 0
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
        MachineError
            If the arguments do not fit the kernel, or the kernel did what it must not do.
        """
        if shared_mem > self._max_shared:
            raise MachineError(
                f"{self.name}: {shared_mem} bytes of shared memory, {self._max_shared} allowed"
            )
        if math.prod(block) > MAX_THREADS:
            raise MachineError(f"{self.name}: {tuple(block)} threads are more than {MAX_THREADS}")
        program = self._program
        names, ranges = self._ranges(args)
        sites = np.zeros((len(program.code), 3), np.int64)
        parameters = np.frombuffer(self._parameters(args), np.uint8)
        constants = np.frombuffer(program.constants, np.uint8)
        error = ctypes.create_string_buffer(_ERROR_BYTES)
        order, _, seed = self.order.partition(":")
        launch = _Launch(
            code=self._code.ctypes.data, code_size=len(self._code),
            constants=constants.ctypes.data, register_bytes=program.register_bytes,
            parameters=parameters.ctypes.data, parameter_bytes=len(parameters),
            ranges=ranges.ctypes.data, range_count=len(ranges), sites=sites.ctypes.data,
            error=ctypes.addressof(error), error_bytes=_ERROR_BYTES, shared_bytes=shared_mem,
            seed=int(seed or 1), grid=_three(grid), block=_three(block), order=_ORDERS[order],
        )  # fmt: skip
        failed = _machine().machine_run(ctypes.byref(launch))
        self._counted = names, ranges, sites
        if failed:
            message = re.sub(
                r"#(\d+)", lambda found: program.places[int(found[1])], error.value.decode()
            )
            raise MachineError(f"kernel {self.name}, {message}")

    __call__ = launch

    def _ranges(self, args: Sequence[Any]) -> tuple[list[Any], np.ndarray]:
        """Return the names of all arrays, and where each begins and ends, with room for counts."""
        arrays = self.arrays.copy()
        arrays |= {f"argument {n}": a for n, a in enumerate(args) if _is_pointer(a)}
        ranges = np.zeros((len(arrays), 8), np.int64)
        for row, array in zip(ranges, arrays.values(), strict=True):
            begin = array.__array_interface__["data"][0]
            row[:2] = begin, begin + array.nbytes
        return list(arrays), ranges

    def _parameters(self, args: Sequence[Any]) -> bytes:
        values = [_argument(value) for value in args]
        sizes = tuple(len(value) for value in values)
        if sizes != self._program.parameter_sizes:
            raise MachineError(
                f"{self.name}: arguments of {sizes} bytes for parameters of "
                f"{self._program.parameter_sizes} bytes"
            )
        out = bytearray()
        for value in values:
            out += bytes(-len(out) % min(len(value), 8)) + value
        return bytes(out)

    @property
    def counts(self) -> Counts:
        """What the last launch did to memory."""
        assert self._counted is not None, "not launched"
        names, ranges, sites = self._counted
        program = self._program
        widths = {
            number: int(name.split(".")[2]) // 8
            for number, name in enumerate(program.operations)
            if name.startswith(("ld.shared.", "st.shared."))
        }
        return Counts(
            {name: Traffic(*row[2:5].tolist()) for name, row in zip(names, ranges, strict=True)},
            {name: Traffic(*row[5:8].tolist()) for name, row in zip(names, ranges, strict=True)},
            [
                Site(
                    program.places[at],
                    widths[program.code[at, 0]] * int(program.code[at, 2]),
                    SharedCounts(*sites[at].tolist()),
                )
                for at in np.flatnonzero(sites[:, 0])
            ],
        )


def _is_pointer(value: Any) -> bool:
    return isinstance(value, np.ndarray) and not value.dtype.names


def _three(sizes: Sequence[int]) -> tuple[int, ...]:
    if not 1 <= len(sizes) <= 3 or min(sizes) < 1:
        raise MachineError(f"a grid or block of {tuple(sizes)}")
    return (*sizes, 1, 1)[:3]


def _argument(value: Any) -> bytes:
    """Return the bytes that a kernel gets for an argument."""
    if _is_pointer(value):
        return np.uintp(value.__array_interface__["data"][0]).tobytes()
    if isinstance(value, np.ndarray | np.generic):
        return value.tobytes()
    if isinstance(value, bool):
        return np.bool_(value).tobytes()
    if isinstance(value, int):
        return np.int64(value).tobytes()
    if isinstance(value, float):
        return np.float64(value).tobytes()
    raise TypeError(f"a kernel cannot take {type(value).__name__}")
