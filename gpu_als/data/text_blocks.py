"""Delimited text, read some lines at a time: what :mod:`~gpu_als.data.text_table` reads at once."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain, islice
from pathlib import Path
from typing import Any, BinaryIO, cast

from gpu_als.data import text_table
from gpu_als.data.text_table import Column, Header, Triples
from gpu_als.errors import ReadError

__all__ = ["TextStream", "read_text_blocks", "triples_in_lines"]

_Piece = tuple[int, str]
_BYTES_OF_A_ROW = 20
"""Bytes of text that, as lines of it, take as much memory as a row of single fields."""


class TextStream:
    """A file, perhaps compressed, of which only so much is read at a time."""

    def __init__(self, raw: BinaryIO, stream: BinaryIO, piece_bytes: int) -> None:
        self._raw, self._stream, self._piece_bytes = raw, stream, piece_bytes

    def read(self, size: int) -> bytes:
        """Return some bytes, none at the end."""
        return self._stream.read(min(size, self._piece_bytes))

    def readline(self) -> bytes:
        """Return the rest of the line."""
        return self._stream.readline()

    def position(self) -> int:
        """Return how many bytes of the file, compressed if it is, have been taken from it."""
        return self._raw.tell()

    def pieces(self, path: Path) -> Iterator[_Piece]:
        """Yield the text that is left, in whole lines, each piece after its first line's number."""
        return text_table._pieces(cast(BinaryIO, self), path)

    @classmethod
    @contextmanager
    def open(cls, path: Path, piece_bytes: int) -> Iterator[TextStream]:
        """Open a file; a damaged archive is a ReadError whenever it shows."""
        with path.open("rb") as raw:
            packed = path.suffix.lower() == ".gz"
            stream = cast(BinaryIO, gzip.GzipFile(fileobj=raw)) if packed else raw
            try:
                yield cls(raw, stream, piece_bytes)
            except (gzip.BadGzipFile, EOFError, zlib.error) as error:
                raise ReadError(
                    f"{path}: damaged gzip file ({error}); compress it again"
                ) from error


def read_text_blocks(
    path: Path,
    suffix: str,
    *,
    user: Column,
    item: Column,
    rating: Column,
    delimiter: str | None,
    header: Header,
    piece_bytes: int,
) -> Iterator[tuple[int, Triples]]:
    """Read a text file block by block.

    Parameters
    ----------
    path, suffix, user, item, rating, delimiter, header
        As :func:`~gpu_als.data.text_table.read_table` takes them.
    piece_bytes : int
        How much text a block holds, besides the rest of its last line.

    Yields
    ------
    position : int
        How many bytes of the file have been taken from it.
    block : Triples
        Whether ids are integers or texts may differ from block to block.

    Raises
    ------
    ReadError, InputError, FileNotFoundError
        As :func:`~gpu_als.data.readers.read_triples` does.
    """
    columns = (user, item, rating)
    text_table._check_arguments(*columns, delimiter, header)
    with TextStream.open(path, piece_bytes) as stream:
        pieces = stream.pieces(path)
        first = next(pieces, None)
        if first is None:
            raise ReadError(
                f"{path}: the file is empty; it needs one line 'user,item,rating' per rating"
            )
        layout, body = text_table._find_layout(path, suffix, first, columns, delimiter, header)
        empty = True
        for block in triples_in_lines(layout, chain([body], pieces), piece_bytes):
            empty = False
            yield stream.position(), block
        if empty:
            raise ReadError(f"{path}: found no ratings below the header; add one line per rating")


def triples_in_lines(layout: Any, pieces: Iterator[_Piece], piece_bytes: int) -> Iterator[Triples]:
    """Yield what pieces of whole lines, of about so many bytes, hold where the layout says."""
    rows_at_once = min(text_table._ROWS_AT_ONCE, max(1, piece_bytes // _BYTES_OF_A_ROW))
    for line, text in pieces:
        table = text_table._Table(layout)
        if text_table._is_quoting(layout.delimiter) and '"' in text:
            # Quoted fields may contain line ends, and so run from one piece into the next.
            rows = text_table._quoted_rows(chain([(line, text)], pieces), layout)
            while some := list(islice(rows, rows_at_once)):
                table._add_rows(some)
                yield table.triples()
                table = text_table._Table(layout)
        elif text and not text.isspace():
            table.read(iter([(line, text)]))
            yield table.triples()
