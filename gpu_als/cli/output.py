"""Printing: lines and tables for people, one JSON object for programs; checks of paths."""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from gpu_als.errors import InputError

__all__ = [
    "check_folder", "check_not_inside", "print_json", "print_pairs", "print_table", "printable",
    "refuse_folder", "say",
]  # fmt: skip

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


def say(args: argparse.Namespace, text: str) -> None:
    """Print a line at once, unless stdout is kept for JSON."""
    if not args.json:
        print(text, flush=True)


def print_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print columns that are aligned to the right."""
    lines = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())


def print_pairs(pairs: Iterable[tuple[str, str]]) -> None:
    """Print names and what they stand for, in two columns."""
    pairs = list(pairs)
    width = max((len(name) for name, _ in pairs), default=0)
    for name, text in pairs:
        print(f"{name.ljust(width)}  {text}")


def print_json(content: dict[str, Any]) -> None:
    """Print one JSON object; what JSON cannot hold (NaN, infinity) becomes null."""
    json.dump(_plain(content), sys.stdout, indent=2, allow_nan=False)
    print()


def printable(ids: np.ndarray | None) -> np.ndarray | None:
    """Return ids without the control characters that a terminal would obey."""
    if ids is None or ids.dtype.kind != "U" or not sys.stdout.isatty():
        return ids
    return np.array([_CONTROL.sub(lambda found: repr(found[0])[1:-1], id_) for id_ in ids.tolist()])


def check_folder(file: str | None, option: str) -> None:
    """Refuse, before any work is done, a file that could not be written after it."""
    if file is None:
        return
    path = Path(file)
    if path.is_dir():
        raise InputError(f"{option}: {file} is a folder; pass the name of a file")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{option}: the folder of {file} does not exist; create it first")


def refuse_folder(file: str, name: str, remedy: str) -> None:
    """Refuse a folder in the place of a file; ``name`` is what the user calls it."""
    if os.path.isdir(file):
        raise InputError(f"{name}: {file} is a folder; {remedy}")


def check_not_inside(folder: str, option: str, file: str | None) -> None:
    """Refuse to write a file among shards."""
    if file is None:
        return
    within = os.path.join(os.path.realpath(folder), "")
    if os.path.realpath(file).startswith(within):
        raise InputError(f"{option}: {file} would lie among the shards; pass a file elsewhere")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
