"""The folder published archives are kept in, each of them downloaded once and checked."""

from __future__ import annotations

import hashlib
import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from gpu_als.datasets.download import PartialFile, receive
from gpu_als.errors import DownloadError, InputError, ReadError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["PublishedFile", "cache_folder", "fetch"]


@dataclass(frozen=True)
class PublishedFile:
    """A file on the web, with the size and the checksum that its publisher gives."""

    url: str
    size: int
    md5: str

    @property
    def name(self) -> str:
        """Its name in the cache folder."""
        return self.url.rpartition("/")[2]


def fetch(
    published: PublishedFile,
    *,
    url: str | None,
    cache_dir: str | os.PathLike[str] | None,
    show_progress: bool,
) -> Path:
    """Return where the file is in the cache folder, after downloading it if it is not there.

    The file appears under its name only once it is complete, on disk and checked. A second process
    that wants it at the same time waits for the first.

    Parameters
    ----------
    published : PublishedFile
    url : str or None
        Another address of the same file.
    cache_dir : path or None
        None: see :func:`cache_folder`.
    show_progress : bool

    Raises
    ------
    DownloadError
        If the file cannot be downloaded, or another one was received.
    ReadError
        If the file in the cache folder is another one.
    InputError
        If ``url`` is not an address.
    """
    url = published.url if url is None else _check_url(url)
    target = cache_folder(cache_dir) / published.name
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with _sole_writer(target, show_progress) as part:
            if not target.exists():  # else another process has brought it meanwhile
                receive(url, part, published.size, target=target, show_progress=show_progress)
                _check_received(url, part, published)
                part.rename(target)
                return target
    _check_cached(target, published)
    return target


def cache_folder(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """Return ``cache_dir`` or, if that is None, the folder the environment names.

    ``GPU_ALS_CACHE`` is that folder; else it is ``gpu_als`` in ``XDG_CACHE_HOME``, or in
    ``~/.cache`` where that is not an absolute path.
    """
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    if own := os.environ.get("GPU_ALS_CACHE"):
        return Path(own).expanduser()
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (shared if shared.is_absolute() else Path.home() / ".cache") / "gpu_als"


def _check_url(url: str) -> str:
    if not (isinstance(url, str) and url.startswith(("https://", "http://"))):
        raise InputError(f"url: found {url!r}; pass an address that starts with https://, or None")
    return url


def _check_received(url: str, part: PartialFile, published: PublishedFile) -> None:
    if (found := _md5(part.path)) != published.md5:
        part.discard()
        raise DownloadError(
            f"{url}: received a file with MD5 {found}, where the published one has "
            f"{published.md5}; it was removed, call again or pass url=<another address>"
        )


def _check_cached(path: Path, published: PublishedFile) -> None:
    if path.stat().st_size != published.size or _md5(path) != published.md5:
        raise ReadError(
            f"{path}: not the file published at {published.url}, which has {published.size} bytes "
            f"and MD5 {published.md5}; delete it, and it will be downloaded"
        )


def _md5(path: Path) -> str:
    # Publishers give MD5. A second file with a given MD5 cannot be made, only two that share one.
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


@contextmanager
def _sole_writer(target: Path, show_progress: bool) -> Iterator[PartialFile]:
    """Yield a partial file that no other process writes to."""
    with target.with_name(f".{target.name}.lock").open("ab") as lock:
        if _lock(lock, target, show_progress):
            yield PartialFile(target.with_name(f"{target.name}.part"))
            return
    # Without locks each process needs a file of its own, and finds none to continue.
    part = PartialFile(target.with_name(f".{target.name}.{secrets.token_hex(8)}.part"))
    try:
        yield part
    finally:
        part.discard()


def _lock(file: BinaryIO, target: Path, show_progress: bool) -> bool:
    """Wait for the lock and return True, or False where there are no locks.

    The system releases it when the file is closed, however the process ends.
    """
    if fcntl is None:
        return False
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if show_progress:
                message = f"waiting for another process that is downloading {target.name}"
                tqdm.write(message, file=sys.stderr)
            fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:  # some network file systems
        return False
    return True
