"""Folders of shards, where commands otherwise take files of ratings."""

from __future__ import annotations

import argparse
import os

from gpu_als.cli.options import READING_OPTIONS
from gpu_als.errors import InputError

__all__ = ["check_not_inside", "refuse_folder", "refuse_reading_options"]


def refuse_folder(file: str, name: str, remedy: str) -> None:
    """Refuse a folder in the place of a file; ``name`` is what the user calls it."""
    if os.path.isdir(file):
        raise InputError(f"{name}: {file} is a folder; {remedy}")


def refuse_reading_options(args: argparse.Namespace, folder: str) -> None:
    """Refuse options that say how to read files where there are only shards."""
    for name in READING_OPTIONS:
        if getattr(args, name) is not None:
            option = name.replace("_", "-")
            raise InputError(
                f"--{option} is for reading files, and {folder} is a folder of shards; leave it out"
            )


def check_not_inside(folder: str, option: str, file: str | None) -> None:
    """Refuse to write a file among shards."""
    if file is None:
        return
    within = os.path.join(os.path.realpath(folder), "")
    if os.path.realpath(file).startswith(within):
        raise InputError(f"{option}: {file} would lie among the shards; pass a file elsewhere")
