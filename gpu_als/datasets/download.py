"""One file over HTTP, continued where an earlier attempt stopped."""

from __future__ import annotations

import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpu_als.errors import DownloadError
from gpu_als.progress import ProgressBar

__all__ = ["PartialFile", "receive"]

_TIMEOUT = 30.0  # seconds without a single byte
_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True)
class PartialFile:
    """What has been received of a file, beside a note of the ETag the server gave it."""

    path: Path

    @property
    def size(self) -> int:
        """Bytes received so far."""
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def etag(self) -> str | None:
        """The ETag of the file the bytes are from, if its server gave a strong one."""
        return self._note.read_text() if self._note.exists() else None

    def restart(self, etag: str | None) -> None:
        """Drop the bytes; those that follow are from a file with this ETag."""
        self.path.write_bytes(b"")
        self._note.unlink(missing_ok=True)
        if etag is not None and not etag.startswith("W/"):  # weak ones say nothing about bytes
            self._note.write_text(etag)

    def rename(self, target: Path) -> None:
        """Give the file its name, in one step."""
        os.replace(self.path, target)
        self.discard()

    def discard(self) -> None:
        """Remove everything."""
        self.path.unlink(missing_ok=True)
        self._note.unlink(missing_ok=True)

    @property
    def _note(self) -> Path:
        return self.path.with_name(f"{self.path.name}.etag")


def receive(url: str, part: PartialFile, size: int, *, target: Path, show_progress: bool) -> None:
    """Complete ``part`` from ``url``.

    Bytes that are there already are not asked for again, unless the server has another file by now
    or knows no ranges. On failure ``part`` keeps what was received.

    Parameters
    ----------
    url : str
    part : PartialFile
    size : int
        Bytes the complete file has.
    target : Path
        What the file is to become; used in messages.
    show_progress : bool

    Raises
    ------
    DownloadError
        If there is no connection, the connection breaks, or the server has no file of this size.
    """
    if part.size > size:
        part.discard()
    if part.size == size:
        return
    with _explained(url, target):
        response, start = _resume_or_start(url, part)
    with response:
        if response.length is not None and start + response.length != size:
            raise DownloadError(
                f"{url}: found a file of {start + response.length} bytes, where {target.name} has "
                f"{size}; pass url=<address of the published file>, or put that file at {target}"
            )
        if start == 0:
            part.restart(response.headers.get("ETag"))
        bar = ProgressBar(
            show=show_progress,
            desc=target.name,
            total=size,
            initial=start,
            unit="B",
            unit_scale=True,
        )
        with part.path.open("ab") as file, bar:
            for chunk in _chunks(response, size - start, url, target):
                file.write(chunk)
                bar.update(len(chunk))
            file.flush()
            os.fsync(file.fileno())
    if part.size < size:
        raise DownloadError(
            f"{url}: the connection ended after {part.size} of {size} bytes; call again to "
            "continue from there"
        )


def _resume_or_start(url: str, part: PartialFile) -> tuple[Any, int]:
    """Return a response and the position in the file at which its body starts."""
    start = part.size
    if start:
        headers = {"Range": f"bytes={start}-"}
        if part.etag is not None:
            headers["If-Range"] = part.etag
        try:
            response = _open(url, headers)
        except urllib.error.HTTPError as error:
            if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise
        else:
            if response.status == http.client.OK:  # no ranges here, or another file by now
                return response, 0
            if response.headers.get("Content-Range", "").startswith(f"bytes {start}-"):
                return response, start
            response.close()
    return _open(url, {}), 0


def _open(url: str, headers: dict[str, str]) -> Any:
    request = urllib.request.Request(url, headers={"User-Agent": "gpu-als", **headers})
    try:
        return urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()  # it holds the connection
        raise


def _chunks(response: Any, count: int, url: str, target: Path) -> Iterator[bytes]:
    """Yield at most ``count`` bytes of the body as they arrive."""
    while count:
        with _explained(url, target):
            chunk = response.read1(min(count, _CHUNK_BYTES))
        if not chunk:
            return
        yield chunk
        count -= len(chunk)


@contextmanager
def _explained(url: str, target: Path) -> Iterator[None]:
    """Turn what the network does wrong into an error that says what to do."""
    try:
        yield
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if type(error) is urllib.error.URLError else error
        raise DownloadError(
            f"{url}: the download failed ({reason or type(error).__name__}); call again to "
            f"continue, pass url=<another address of the same file>, or put the file at {target}"
        ) from error
