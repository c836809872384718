"""CUDA sources: read, inlined into one translation unit, compiled by NVRTC at first launch.

CuPy keeps compiled code on disk under a key that covers the submitted source and the options, but
not files that the source includes. So includes of our own headers are resolved here, and editing
any of them changes the key.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
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
    """A kernel does not compile for this device."""


class Kernels:
    """The compiled kernels of one device, each specialisation compiled when first asked for.

    Parameters
    ----------
    cupy : module
    architecture : int
        Compute capability, for messages.
    """

    def __init__(self, cupy: Any, architecture: int) -> None:
        self._cupy = cupy
        self._architecture = architecture
        self._modules: dict[tuple[str, Macros], Any] = {}
        self._functions: dict[tuple[str, Macros, str], Any] = {}

    def get(self, file: str, macros: Macros, function: str) -> Any:
        """Return ``function`` of ``kernels/<file>.cu`` with these macros, ready to launch.

        Raises
        ------
        KernelError
            It does not compile; the message names the architecture.
        """
        key = file, macros, function
        if key not in self._functions:
            kernel = self._module(file, macros).get_function(function)
            # Blocks of kernels that split a multiprocessor's memory differently never share it.
            kernel.preferred_shared_memory_carveout = 100
            self._functions[key] = kernel
        return self._functions[key]

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
            module = self._cupy.RawModule(
                code=defines + source_of(file), options=OPTIONS, backend="nvrtc"
            )
            try:
                module.compile()
            except self._cupy.cuda.compiler.CompileException as error:
                raise KernelError(
                    f"kernel {file} ({', '.join(define(macros))}) does not compile for "
                    f"sm_{self._architecture}: {error}"
                ) from error
            self._modules[file, macros] = module
        return self._modules[file, macros]
