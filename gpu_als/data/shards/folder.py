"""A folder of shards as its writers see it: one of them at a time, and only its own files."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path

from gpu_als.data.shards.manifest import MANIFEST
from gpu_als.data.shards.records import SIDES
from gpu_als.errors import InputError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["WORK", "claimed", "discard", "sweep"]

WORK = "unfinished"
"""The folder inside it that holds what only a conversion needs."""
_SHARD_FILE = r"\d+-\d{6,}\.(indptr|indices|data)"
_ID_FILE = r"\d+-(users|items)\.(int64|ends|utf8)"
_UNFINISHED = r"\.({})\.[0-9a-f]{{16}}\.tmp"


def _own(pattern: str) -> re.Pattern[str]:
    """Match such names, and those that the files have before they are complete."""
    return re.compile(f"{pattern}|{_UNFINISHED.format(pattern)}")


_IN_SIDE = _own(_SHARD_FILE)
_IN_FOLDER = _own(f"{_ID_FILE}|{re.escape(MANIFEST)}")


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Make the folder if there is none, and keep other writers out of it.

    Raises
    ------
    InputError
        If another process is writing to it, or it holds files that are not of shards.
    """
    created = not folder.exists()
    folder.mkdir(exist_ok=True)
    foreign = [name for name in os.listdir(folder) if not _is_own(folder / name)]
    if foreign:
        raise InputError(
            f"{folder}: holds other files ({', '.join(sorted(foreign)[:3])}); pass the name of a "
            "new folder"
        )
    with _locked(folder):
        try:
            for side in SIDES:
                (folder / side).mkdir(exist_ok=True)
            yield
        finally:
            for path in (*(folder / side for side in SIDES), *([folder] if created else [])):
                with contextlib.suppress(OSError):
                    path.rmdir()  # nothing has come of it


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            # The system releases the lock however the process ends.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{folder}: another process is writing to it; wait for it") from None
        except OSError:  # some network file systems have no locks
            pass
        yield
    finally:
        os.close(descriptor)


def sweep(folder: Path, keep: Collection[str]) -> None:
    """Remove files of shards and ids, complete or not, except the manifest and those to ``keep``.

    Parameters
    ----------
    folder : Path
        It is claimed.
    keep : collection of str
        Paths below the folder, as :meth:`~gpu_als.data.shards.manifest.Manifest.files` yields
        them.
    """
    kept = {*keep, MANIFEST}
    for inside, pattern in (("", _IN_FOLDER), *((f"{side}/", _IN_SIDE) for side in SIDES)):
        for name in os.listdir(folder / inside):
            path = f"{inside}{name}"
            if pattern.fullmatch(name) and path not in kept:
                (folder / path).unlink(missing_ok=True)


def discard(folder: Path, keep: Collection[str] = ()) -> None:
    """Remove an unfinished conversion, and whatever :func:`sweep` does."""
    shutil.rmtree(folder / WORK, ignore_errors=True)
    sweep(folder, keep)


def _is_own(path: Path) -> bool:
    if path.is_symlink():  # what it leads to is not ours to write to
        return False
    if path.name in (*SIDES, WORK):
        return path.is_dir()
    return path.is_file() and _IN_FOLDER.fullmatch(path.name) is not None
