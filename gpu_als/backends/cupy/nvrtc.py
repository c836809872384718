"""CUDA sources: read, inlined into one translation unit, compiled by NVRTC at first launch.

CuPy keeps compiled code on disk under a key that covers the submitted source and the options, but
not files that the source includes. So includes of our own headers are resolved here, and editing
any of them changes the key.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from importlib import resources
from typing import Any

from gpu_als.errors import BackendError

__all__ = ["OPTIONS", "KernelError", "Kernels", "Macros", "define", "source_of"]

Macros = tuple[tuple[str, int], ...]

OPTIONS = ("--std=c++17",)

_INCLUDE = re.compile(r'^#include "(.+)"$')


@cache
def source_of(kernel: str) -> str:
    """Return the translation unit of ``kernels/<kernel>.cu``, its own includes resolved.

    ``#line`` markers keep the compiler's messages pointing at the files.
    """
    seen: set[str] = set()
    return "\n".join(_inlined(f"{kernel}.cu", seen)) + "\n"


def _inlined(name: str, seen: set[str]) -> list[str]:
    if name in seen:
        return []
    seen.add(name)
    folder = resources.files("gpu_als.backends.cupy") / "kernels"
    lines = [f'#line 1 "{name}"']
    for number, line in enumerate((folder / name).read_text("utf-8").splitlines(), start=1):
        include = _INCLUDE.match(line)
        if include:
            lines += [*_inlined(include[1], seen), f'#line {number + 1} "{name}"']
        else:
            lines.append("" if line == "#pragma once" else line)
    return lines


def define(macros: Macros) -> tuple[str, ...]:
    """Return the compiler options that set ``macros``."""
    return tuple(f"-D{name}={value}" for name, value in macros)


class KernelError(BackendError):
    """A kernel cannot be compiled for this device, or not be loaded."""


class Kernels:
    """The compiled kernels of one device, each specialisation compiled when first asked for.

    Parameters
    ----------
    cupy : module
    architecture : int
        Compute capability, for messages.
    usable : bool
        They are to be used at all.

    Attributes
    ----------
    usable : bool
        No kernel has failed so far.
    """

    def __init__(self, cupy: Any, architecture: int, *, usable: bool = True) -> None:
        self.usable = usable
        self._cupy = cupy
        self._architecture = architecture
        self._modules: dict[tuple[str, Macros], Any] = {}
        self._functions: dict[tuple[str, Macros, str], Any] = {}

    def get(self, file: str, macros: Macros, function: str) -> Any:
        """Return ``function`` of ``kernels/<file>.cu`` with these macros, ready to launch.

        Raises
        ------
        KernelError
            It cannot be compiled or loaded; the message names the architecture and the cause.
        """
        key = file, macros, function
        if key not in self._functions:
            kernel = self._module(file, macros).get_function(function)
            # Blocks of kernels that split a multiprocessor's memory differently never share it.
            kernel.preferred_shared_memory_carveout = 100
            self._functions[key] = kernel
        return self._functions[key]

    @contextmanager
    def or_general_path(self) -> Iterator[None]:
        """Swallow the failure of a kernel, with one warning; no kernel is used from then on."""
        cupy = self._cupy
        try:
            yield
        except (KernelError, cupy.cuda.driver.CUDADriverError) as error:
            # Where a kernel has left the device itself in error, there is no other path.
            cupy.cuda.runtime.deviceSynchronize()
            if self.usable:
                self.usable = False
                warnings.warn(
                    f"a kernel failed on sm_{self._architecture} ({error}); using the general path",
                    RuntimeWarning,
                    stacklevel=4,
                )

    def prepare(self, specialisations: Iterable[tuple[str, Macros]]) -> int:
        """Compile what is missing, several at a time; return how many were."""
        missing = list(dict.fromkeys(spec for spec in specialisations if spec not in self._modules))
        device = self._cupy.cuda.Device()

        def compile_one(specialisation: tuple[str, Macros]) -> None:
            with device:  # a new thread begins on the first one
                self._module(*specialisation)

        if missing:
            with ThreadPoolExecutor(min(len(missing), os.cpu_count() or 1)) as pool:
                list(pool.map(compile_one, missing))
        return len(missing)

    def _module(self, file: str, macros: Macros) -> Any:
        if (file, macros) not in self._modules:
            # In the source, because CuPy compiles an empty program for every new set of options.
            defines = "".join(f"#define {name} {value}\n" for name, value in macros)
            code = defines + source_of(file)
            try:
                module = self._cupy.RawModule(code=code, options=OPTIONS, backend="nvrtc")
                module.compile()
            except MemoryError:
                raise
            except Exception as error:  # of NVRTC, of the driver, of the folder of compiled code
                raise KernelError(
                    f"kernel {file} ({', '.join(define(macros))}) cannot be compiled and loaded "
                    f"for sm_{self._architecture}: {type(error).__name__}: {error}"
                ) from error
            self._modules[file, macros] = module
        return self._modules[file, macros]
