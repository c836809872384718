"""CUDA sources: read, inlined into one translation unit, compiled by NVRTC at first launch.

CuPy keeps compiled code on disk under a key that covers the submitted source and the options, but
not files that the source includes. So includes of our own headers are resolved here, and editing
any of them changes the key.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from typing import Any

__all__ = ["OPTIONS", "define", "source_of"]

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


def define(macros: dict[str, Any]) -> tuple[str, ...]:
    """Return the compiler options that set ``macros``."""
    return tuple(f"-D{name}={value}" for name, value in macros.items())
