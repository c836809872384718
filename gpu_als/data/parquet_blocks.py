"""Parquet files, read some rows at a time; needs pyarrow."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gpu_als.data.columns import COLUMNS, Column, Triples, find_column, named_column
from gpu_als.errors import InputError, ReadError

__all__ = ["read_parquet_blocks"]

_BUFFER_BYTES = 1 << 18


def read_parquet_blocks(
    path: Path, *, user: Column, item: Column, rating: Column, rows_at_once: int
) -> Iterator[tuple[int, Triples]]:
    """Read a Parquet file block by block.

    Parameters
    ----------
    path : Path
    user, item, rating : str, int or None
        Name or position, from 0, of a column; None looks for common names. Ratings may be
        missing altogether.
    rows_at_once : int
        How many rows a block holds at most.

    Yields
    ------
    position : int
        How many bytes of the file have been read, estimated.
    block : Triples

    Raises
    ------
    ReadError
        If the file cannot be read.
    InputError
        If an argument names a column that does not exist, or pyarrow is missing.
    FileNotFoundError
        If there is no such file.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(
            f"{path}: a .parquet file needs pyarrow, which cannot be imported ({error}); install "
            "it with pip install pyarrow, or write the ratings as .csv"
        ) from error
    size = path.stat().st_size
    try:
        with pyarrow.parquet.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
            names = _columns(path, file.schema_arrow.names, (user, item, rating))
            total, done = file.metadata.num_rows, 0
            for batch in file.iter_batches(
                rows_at_once, columns=list(names.values()), use_threads=False
            ):
                if batch.num_rows == 0:
                    continue
                done += batch.num_rows
                arrays = {which: _array(batch.column(name)) for which, name in names.items()}
                yield (
                    size * done // total,
                    Triples(arrays["user"], arrays["item"], arrays.get("rating")),
                )
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the disk's; damaged pages are OSErrors without a number
        raise ReadError(f"{path}: not a sound Parquet file ({error}); write it again") from error


def _columns(path: Path, names: list[str], columns: tuple[Column, ...]) -> dict[str, str]:
    """Return the names of the columns of users, items and, where there is one, ratings."""
    found: dict[str, str] = {}
    for which, column in zip(COLUMNS, columns, strict=True):
        if isinstance(column, str):
            found[which] = names[named_column(path, names, which, column)]
            continue
        if column is None:
            column = find_column(names, which)
        if column is not None and column < len(names):
            found[which] = names[column]
        elif column is not None or which != "rating":
            raise ReadError(
                f"{path}: found no {which} column among {', '.join(map(repr, names))}; pass "
                f"{which}=<column name or position>"
            )
    if len(set(found.values())) < len(found):
        raise InputError(
            f"user, item, rating: {', '.join(found.values())} of {path} are not distinct; pass "
            "different columns"
        )
    return found


def _array(column: Any) -> np.ndarray:
    return np.asarray(column.to_numpy(zero_copy_only=False))
