"""Recommendations for many users on disk, written block by block."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from gpu_als.data.atomic import replacing
from gpu_als.errors import InputError
from gpu_als.progress import ProgressBar

__all__ = ["recommendation_file"]

Ids = tuple[np.ndarray | None, np.ndarray | None]
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
        Its ending says the format: ``.npy`` or ``.parquet``.
    shape : (n_users, N)
    dtype : dtype
        Of the scores.
    ids : pair of array or None
        The ids of users and items, for formats that hold ids.
    show_progress : bool
    """
    suffix = Path(file).suffix if isinstance(file, str | os.PathLike) else None
    if suffix not in _FORMATS:
        raise InputError(
            f"file must be a path that ends in {' or '.join(_FORMATS)}, which says its format; "
            f"not {file!r}"
        )
    with (
        replacing(file) as stream,
        _FORMATS[suffix](stream, shape, np.dtype(dtype), ids) as write,
        ProgressBar(show=show_progress, total=shape[0], unit="user") as bar,
    ):

        def write_block(users: np.ndarray, items: np.ndarray, scores: np.ndarray) -> None:
            write(users, items, scores)
            bar.update(len(users))

        yield write_block


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
    user_ids, item_ids = ids

    def column(numbers: np.ndarray, names: np.ndarray | None) -> Any:
        return pyarrow.array(numbers if names is None else names[numbers])

    def table(users: np.ndarray, items: np.ndarray, scores: np.ndarray) -> Any:
        row, place = np.nonzero(items >= 0)
        return pyarrow.table(
            {
                "user": column(users[row], user_ids),
                "rank": (place + 1).astype(np.int32),
                "item": column(items[row, place], item_ids),
                "score": scores[row, place],
            }
        )

    empty = np.zeros((0, shape[1]), np.int32)
    schema = table(np.zeros(0, np.int64), empty, empty.astype(dtype)).schema
    with pyarrow.parquet.ParquetWriter(stream, schema) as writer:
        yield lambda *block: writer.write_table(table(*block))


_FORMATS: dict[str, Callable[..., AbstractContextManager[Write]]] = {
    ".npy": _npy,
    ".parquet": _parquet,
}
