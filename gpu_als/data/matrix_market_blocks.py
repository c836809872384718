"""Matrix Market files of coordinates, read some lines at a time."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

import numpy as np
import scipy.io

from gpu_als.data.columns import Triples
from gpu_als.data.text_layout import Layout
from gpu_als.data.text_rows import triples_in_lines
from gpu_als.data.text_stream import TextStream
from gpu_als.errors import ReadError

__all__ = ["damage_reported", "matrix_market_shape", "read_matrix_market_blocks"]

_SIGN = {"general": 0, "symmetric": 1, "skew-symmetric": -1}
_FIELDS = ("real", "double", "integer", "unsigned-integer", "pattern")


@contextmanager
def damage_reported(path: Path) -> Iterator[None]:
    """Make ReadErrors of what SciPy raises while it reads a damaged file."""
    with path.open("rb"):
        pass  # SciPy's messages for files it cannot open vary
    try:
        yield
    except (ValueError, OverflowError, TypeError, EOFError, OSError, zlib.error) as error:
        raise ReadError(f"{path}: not a Matrix Market file ({error}); write it again") from error


def matrix_market_shape(path: Path) -> tuple[int, int]:
    """Return the numbers of rows and columns that the head of a file gives."""
    return _head(path)[0]


def read_matrix_market_blocks(path: Path, *, chunk_bytes: int) -> Iterator[tuple[int, Triples]]:
    """Read a Matrix Market file block by block.

    Parameters
    ----------
    path : Path
        ``.mtx``, also with ``.gz``.
    chunk_bytes : int
        How much text a block holds, besides the rest of its last line.

    Yields
    ------
    position : int
        How many bytes of the file have been taken from it.
    block : Triples
        Row and column numbers from 0, int64. Of a symmetric matrix both halves.

    Raises
    ------
    ReadError
        If the file is not a Matrix Market file, is damaged, or holds a dense or complex matrix.
    FileNotFoundError
        If there is no such file.
    """
    shape, n_stated, field, symmetry = _head(path)
    n_found = 0
    layout = Layout(path, None, 0, 1, None if field == "pattern" else 2)
    with TextStream.open(path) as stream:
        chunks = stream.chunks(chunk_bytes, line=_skip_head(stream) + 1)
        for block in triples_in_lines(layout, chunks, chunk_bytes):
            n_found += len(block.users)
            _check_numbers(path, block, shape)
            rows, columns = block.users - 1, block.items - 1
            found = Triples(rows, columns, block.ratings)
            yield stream.position(), _mirrored(found, _SIGN[symmetry])
    if n_found != n_stated:
        raise ReadError(f"{path}: found {n_found} entries where its head says {n_stated}")


def _head(path: Path) -> tuple[tuple[int, int], int, str, str]:
    with damage_reported(path):
        rows, columns, entries, layout, field, symmetry = scipy.io.mminfo(path)
    if layout != "coordinate" or field not in _FIELDS or symmetry not in _SIGN:
        raise ReadError(
            f"{path}: cannot read {layout} matrices that are {field} and {symmetry}; write it as a "
            "real matrix in coordinate format"
        )
    return (rows, columns), entries, field, symmetry


def _skip_head(stream: TextStream) -> int:
    """Read up to the line of the sizes, and return how many lines that were."""
    for number in count(1):
        line = stream.readline()
        if not line or not (line.startswith(b"%") or line.isspace()):
            return number
    raise AssertionError


def _check_numbers(path: Path, block: Triples, shape: tuple[int, int]) -> None:
    for numbers, size, what in zip(block[:2], shape, ("row", "column"), strict=True):
        if numbers.dtype == object:
            raise ReadError(f"{path}: found {what} numbers that are not integers; write it again")
        lowest, highest = numbers.min(), numbers.max()
        if lowest < 1 or highest > size:
            raise ReadError(
                f"{path}: found {what} numbers from {lowest} to {highest} where only 1 to {size} "
                "exist; write it again"
            )


def _mirrored(block: Triples, sign: int) -> Triples:
    """Append the other half of a symmetric matrix, of which files hold one."""
    if sign == 0:
        return block
    other = block.users != block.items
    rows = np.concatenate([block.users, block.items[other]])
    columns = np.concatenate([block.items, block.users[other]])
    if block.ratings is None:
        return Triples(rows, columns, None)
    values = np.concatenate([block.ratings, sign * block.ratings[other]])
    return Triples(rows, columns, values)
