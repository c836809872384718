"""Printing: plain lines and tables for people, one JSON object for programs."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from gpu_als.errors import InputError

__all__ = ["check_folder", "print_json", "print_pairs", "print_table", "say"]


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


def check_folder(file: str | None, option: str) -> None:
    """Refuse, before any work is done, a file that could not be written after it."""
    if file is None:
        return
    path = Path(file)
    if path.is_dir():
        raise InputError(f"{option}: {file} is a folder; pass the name of a file")
    if not path.absolute().parent.is_dir():
        raise InputError(f"{option}: the folder of {file} does not exist; create it first")


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
