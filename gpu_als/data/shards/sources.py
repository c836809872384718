"""The files a conversion reads, whatever their format, in blocks that fit in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from gpu_als.data.columns import Column, Triples, refuse_columns
from gpu_als.data.formats import format_of
from gpu_als.data.matrix_market_blocks import matrix_market_shape, read_matrix_market_blocks
from gpu_als.data.npz_blocks import npz_shape, read_npz_blocks
from gpu_als.data.parquet_blocks import read_parquet_blocks
from gpu_als.data.text_blocks import read_text_blocks
from gpu_als.data.text_layout import Header

__all__ = ["Columns", "Source", "TextForm"]

_ROW_BYTES = 256
"""What a row takes in memory while it is read from an array and handed on."""
_TEXT_FACTOR = 48
"""The same for a byte of text; lines may be as short as ``1,2,3``."""
_LEAST_ROWS, _MOST_ROWS = 1 << 10, 1 << 18
_LEAST_TEXT, _MOST_TEXT = 1 << 14, 1 << 22
_PYARROW = 96 << 20


@dataclass(frozen=True)
class Columns:
    """Which columns hold what; see :func:`~gpu_als.data.readers.read_triples`."""

    user: Column = None
    item: Column = None
    rating: Column = None


@dataclass(frozen=True)
class TextForm:
    """What delimited text looks like; see :func:`~gpu_als.data.readers.read_triples`."""

    delimiter: str | None = None
    header: Header = "auto"


class Source:
    """A file of ratings.

    Parameters
    ----------
    path : Path
    columns : Columns
    form : TextForm

    Attributes
    ----------
    path : Path
    size : int
        Bytes of the file.
    fingerprint : list
        The absolute path, the size and the time of the last change.
    reading : list
        The columns and the form of text.
    library_bytes : int
        What a library that reads such files takes in memory.
    shape : (int, int) or None
        Of a matrix, whose row and column numbers are its ids. None for a file with ids.

    Raises
    ------
    ReadError
        If the format cannot be read, or the file is damaged.
    InputError
        If columns are given for a matrix.
    FileNotFoundError
        If there is no such file.
    """

    def __init__(self, path: Path, columns: Columns, form: TextForm) -> None:
        self.path = path
        found = path.stat()
        self.size = found.st_size
        self.fingerprint = [str(path.resolve()), found.st_size, found.st_mtime_ns]
        self.reading = [asdict(columns), asdict(form)]
        self._columns, self._form = columns, form
        self._suffix = ".parquet" if path.suffix.lower() == ".parquet" else format_of(path)
        self.library_bytes = _PYARROW if self._suffix == ".parquet" else 0
        self.shape: tuple[int, int] | None = None
        if self._suffix == ".mtx":
            self.shape = matrix_market_shape(path)
        elif self._suffix == ".npz":
            self.shape = npz_shape(path)
        if self.shape is not None:
            refuse_columns(path, (columns.user, columns.item, columns.rating))

    def blocks(self, memory: int) -> Iterator[tuple[int, Triples]]:
        """Read the file in blocks that take about so many bytes of memory.

        Yields
        ------
        position : int
            Bytes of the file read so far.
        block : Triples
            Not empty.
        """
        columns = asdict(self._columns)
        rows_at_once = max(_LEAST_ROWS, min(memory // _ROW_BYTES, _MOST_ROWS))
        chunk_bytes = max(_LEAST_TEXT, min(memory // _TEXT_FACTOR, _MOST_TEXT))
        if self._suffix == ".parquet":
            return read_parquet_blocks(self.path, **columns, rows_at_once=rows_at_once)
        if self._suffix == ".npz":
            return read_npz_blocks(self.path, **columns, rows_at_once=rows_at_once)
        if self._suffix == ".mtx":
            return read_matrix_market_blocks(self.path, chunk_bytes=chunk_bytes)
        return read_text_blocks(
            self.path, self._suffix, **columns, **asdict(self._form), chunk_bytes=chunk_bytes
        )
