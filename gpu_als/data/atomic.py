"""Files that appear under their name whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["replacing"]


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """Open a new file, which takes the place of ``path`` once all has gone well.

    It lies in the same folder, because a file can be replaced in one step only within one file
    system, and is called ``.<name>.<16 hex digits>.tmp``. When anything fails it is removed, and
    what was at ``path`` stays; only a process that is killed leaves it behind, and it may then be
    deleted. Both the file and its new name are on disk when this returns, so that a power cut
    leaves the old file or the new one.

    What a link points to is replaced, not the link. The new file has the permissions of the one it
    replaces, or those of any new file.

    Parameters
    ----------
    path : path

    Yields
    ------
    binary file object, open for writing

    Raises
    ------
    FileNotFoundError, IsADirectoryError, PermissionError
        Before there is anything to write: if there is no such folder, ``path`` is a folder, or
        either may not be written to.
    OSError
        If the file cannot be written, or ``path`` is a device, a pipe or a socket.
    """
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder; make it first", str(target.parent))
    known = target.exists()
    if known and not (target.is_file() or target.is_dir()):
        raise OSError(errno.EINVAL, "a device or pipe, which no file replaces", str(target))
    if known:
        target.open("ab").close()  # may it be written to? Renaming would not ask
    unfinished = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
    try:
        with unfinished.open("xb") as stream:
            if known:
                shutil.copymode(target, unfinished)  # before anything is in it
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(unfinished, target)
    except BaseException:
        unfinished.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def _sync_folder(folder: Path) -> None:
    """Write the names in a folder to disk, where the system can do that for folders."""
    # The file has its name by now: a power cut could undo that, which is not a reason to fail.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
