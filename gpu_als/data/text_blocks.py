"""Delimited text, read some lines at a time."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from gpu_als.data.columns import Column, Triples
from gpu_als.data.text_layout import Header, check_arguments, find_layout
from gpu_als.data.text_rows import triples_in_lines
from gpu_als.data.text_stream import TextStream
from gpu_als.errors import ReadError

__all__ = ["read_text_blocks"]


def read_text_blocks(
    path: Path,
    suffix: str,
    *,
    user: Column,
    item: Column,
    rating: Column,
    delimiter: str | None,
    header: Header,
    chunk_bytes: int,
) -> Iterator[tuple[int, Triples]]:
    """Read a text file block by block.

    Parameters
    ----------
    path : Path
    suffix : str
        That of ``path`` without ``.gz``.
    user, item, rating, delimiter, header
        As :func:`~gpu_als.data.readers.read_triples` takes them.
    chunk_bytes : int
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
    check_arguments(columns, delimiter, header)
    with TextStream.open(path) as stream:
        chunks = stream.chunks(chunk_bytes)
        first = next(chunks, None)
        if first is None:
            raise ReadError(
                f"{path}: the file is empty; it needs one line 'user,item,rating' per rating"
            )
        layout, body = find_layout(path, suffix, first, columns, delimiter, header)
        empty = True
        for block in triples_in_lines(layout, chain([body], chunks), chunk_bytes):
            empty = False
            yield stream.position(), block
        if empty:
            raise ReadError(f"{path}: found no ratings below the header; add one line per rating")
