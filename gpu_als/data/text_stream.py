"""Text files, perhaps compressed, of which only so much is read at a time."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

from gpu_als.errors import ReadError

__all__ = ["Chunk", "TextStream"]

Chunk = tuple[int, str]
"""The number of its first line, and some whole lines."""


class TextStream:
    """An open file of text; see :meth:`open`."""

    def __init__(self, path: Path, raw: BinaryIO, stream: BinaryIO) -> None:
        self._path, self._raw, self._stream = path, raw, stream

    @classmethod
    @contextmanager
    def open(cls, path: Path) -> Iterator[TextStream]:
        """Open a file; a damaged archive is a ReadError whenever it shows."""
        with path.open("rb") as raw:
            packed = path.suffix.lower() == ".gz"
            stream = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if packed else raw
            try:
                yield cls(path, raw, stream)
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise ReadError(
                    f"{path}: damaged gzip file ({error}); compress it again"
                ) from error

    def readline(self) -> bytes:
        """Return the rest of the line."""
        return self._stream.readline()

    def position(self) -> int:
        """Return how many bytes of the file, compressed if it is, have been taken from it.

        0 where it cannot tell, as a file inside an archive cannot.
        """
        return self._raw.tell() if self._raw.seekable() else 0

    def chunks(self, chunk_bytes: int, line: int = 1) -> Iterator[Chunk]:
        """Yield the text that is left, leaving out chunks that are all blank.

        Parameters
        ----------
        chunk_bytes : int
            How much text a chunk holds, besides the rest of its last line.
        line : int
            The number of the line with which it begins.
        """
        while chunk := self._stream.read(chunk_bytes):
            text = _decode(chunk + self._stream.readline(), self._path, line)
            if line == 1:
                text = text.removeprefix("\ufeff")
            if "\r" in text:
                text = text.replace("\r\n", "\n").replace("\r", "\n")
            if text and not text.isspace():
                yield line, text
            line += text.count("\n")


def _decode(chunk: bytes, path: Path, line: int) -> str:
    if b"\0" in chunk:
        line += chunk.count(b"\n", 0, chunk.index(b"\0"))
        raise ReadError(
            f"{path}:{line}: found a NUL byte; this is not a text file, or a damaged one"
        )
    try:
        return chunk.decode("utf-8")
    except UnicodeDecodeError as error:
        line += chunk.count(b"\n", 0, error.start)
        raise ReadError(
            f"{path}:{line}: found bytes that are not UTF-8 text; save the file as UTF-8"
        ) from None
