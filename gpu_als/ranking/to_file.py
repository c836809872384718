"""Recommendations for many users on disk, written block by block."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, BinaryIO, cast

import numpy as np

from gpu_als.data.atomic import replacing
from gpu_als.errors import InputError
from gpu_als.progress import ProgressBar

__all__ = ["check_ending", "csv_lines", "json_lines", "recommendation_file"]

Ids = tuple[np.ndarray | None, ...]
"""Of users and of items, and what items are called besides; None where there are none."""
Write = Callable[[np.ndarray, np.ndarray, np.ndarray], None]
"""``write(users, items, scores)``, of shapes (n,), (n, N) and (n, N)."""


@contextmanager
def recommendation_file(
    file: str | os.PathLike[str],
    shape: tuple[int, int],
    *,
    dtype: Any,
    ids: Ids,
    show_progress: bool,
) -> Iterator[Write]:
    """Open a file for recommendations and give the function that appends a block of them.

    Parameters
    ----------
    file : path
        Its ending says the format.
    shape : (n_users, N)
    dtype : dtype
        Of the scores.
    ids : tuple of array or None
        The ids of users and items, and names of items, for formats that hold them.
    show_progress : bool
    """
    form = check_ending(file)
    with (
        replacing(file) as stream,
        _FORMATS[form](stream, shape, np.dtype(dtype), ids) as write,
        ProgressBar(show=show_progress, total=shape[0], unit="user") as bar,
    ):

        def write_block(users: np.ndarray, items: np.ndarray, scores: np.ndarray) -> None:
            write(users, items, scores)
            bar.update(len(users))

        yield write_block


def check_ending(file: Any) -> str:
    """Return the ending of a path, which says the format of recommendations."""
    if isinstance(file, str | os.PathLike):
        for ending in _FORMATS:
            if os.fspath(file).endswith(ending):
                return ending
    raise InputError(
        f"file must be a path that ends in {', '.join(_FORMATS)}, which says its format; not "
        f"{file!r}"
    )


@contextmanager
def csv_lines(
    stream: BinaryIO, shape: tuple[int, int], dtype: np.dtype, ids: Ids
) -> Iterator[Write]:
    """Give the function that appends recommendations to a stream as lines of CSV."""
    text = io.TextIOWrapper(stream, encoding="utf-8", newline="")
    writer = csv.writer(text, lineterminator="\n")
    named = {} if ids[2] is None else {"name": ids[2]}
    writer.writerow(("user", "rank", "item", *named, "score"))

    def write(users: np.ndarray, items: np.ndarray, scores: np.ndarray) -> None:
        row, place = np.nonzero(items >= 0)
        columns = (
            _names(users[row], ids[0]).tolist(),
            (place + 1).tolist(),
            _names(items[row, place], ids[1]).tolist(),
            *(names[items[row, place]].tolist() for names in named.values()),
            (f"{score:.6g}" for score in scores[row, place].tolist()),
        )
        writer.writerows(zip(*columns, strict=True))

    try:
        yield write
    finally:
        text.detach()  # flushes; the stream is closed by whoever opened it


@contextmanager
def json_lines(
    stream: BinaryIO, shape: tuple[int, int], dtype: np.dtype, ids: Ids
) -> Iterator[Write]:
    """Give the function that appends recommendations to a JSON array, a user on each line."""
    before = "["

    def write(users: np.ndarray, items: np.ndarray, scores: np.ndarray) -> None:
        nonlocal before
        lists = zip(_names(users, ids[0]).tolist(), items, scores, strict=True)
        for user, found, values in lists:
            kept = found >= 0
            named = _names(found[kept], ids[1]).tolist()
            record = {"user": user, "items": named}
            if ids[2] is not None:
                record["names"] = ids[2][found[kept]].tolist()
            record["scores"] = values[kept].tolist()
            stream.write(f"{before}\n{json.dumps(record)}".encode())
            before = ","

    yield write
    stream.write(b"[]\n" if before == "[" else b"\n]\n")


@contextmanager
def _csv_gz(stream: BinaryIO, shape: tuple[int, int], dtype: np.dtype, ids: Ids) -> Iterator[Write]:
    with (
        gzip.GzipFile(fileobj=stream, mode="wb", filename="", mtime=0) as packed,
        csv_lines(cast(BinaryIO, packed), shape, dtype, ids) as write,
    ):
        yield write


def _names(numbers: np.ndarray, names: np.ndarray | None) -> np.ndarray:
    return numbers if names is None else names[numbers]


@contextmanager
def _npy(stream: BinaryIO, shape: tuple[int, int], dtype: np.dtype, ids: Ids) -> Iterator[Write]:
    n_users, n_best = shape
    record = np.dtype(
        [("user", np.int64), ("item", np.int32, (n_best,)), ("score", dtype, (n_best,))]
    )
    header = {"descr": np.lib.format.dtype_to_descr(record), "fortran_order": False}
    np.lib.format.write_array_header_1_0(stream, header | {"shape": (n_users,)})

    def write(users: np.ndarray, items: np.ndarray, scores: np.ndarray) -> None:
        block = np.empty(len(users), record)
        block["user"], block["item"], block["score"] = users, items, scores
        stream.write(block.tobytes())

    yield write


@contextmanager
def _parquet(
    stream: BinaryIO, shape: tuple[int, int], dtype: np.dtype, ids: Ids
) -> Iterator[Write]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(
            f"file: a .parquet file needs pyarrow, which cannot be imported ({error}); install it "
            "with pip install pyarrow, or choose a name that ends in .npy"
        ) from error
    user_ids, item_ids, item_names = ids

    def table(users: np.ndarray, items: np.ndarray, scores: np.ndarray) -> Any:
        row, place = np.nonzero(items >= 0)
        return pyarrow.table(
            {
                "user": pyarrow.array(_names(users[row], user_ids)),
                "rank": (place + 1).astype(np.int32),
                "item": pyarrow.array(_names(items[row, place], item_ids)),
                **({} if item_names is None else {"name": item_names[items[row, place]]}),
                "score": scores[row, place],
            }
        )

    empty = np.zeros((0, shape[1]), np.int32)
    schema = table(np.zeros(0, np.int64), empty, empty.astype(dtype)).schema
    with pyarrow.parquet.ParquetWriter(stream, schema) as writer:
        yield lambda *block: writer.write_table(table(*block))


_FORMATS: dict[str, Callable[..., AbstractContextManager[Write]]] = {
    ".csv": csv_lines,
    ".csv.gz": _csv_gz,
    ".json": json_lines,
    ".npy": _npy,
    ".parquet": _parquet,
}
