"""The ids of users and items as files: raw int64, or the ends and the UTF-8 of all texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np

from gpu_als.data.shards.records import IdRecord
from gpu_als.data.shards.writer import hashed_file
from gpu_als.errors import InputError, ReadError

__all__ = ["id_file_names", "read_ids", "write_ids"]

_IDS_AT_ONCE = 1 << 16
_LARGEST_RATIO = 100
"""How many times the size of their files texts may take in memory: one long id makes all long."""
_ALWAYS_ALLOWED = 1 << 26


def id_file_names(version: int, side: str) -> tuple[str, str, str]:
    """Return the names of a side's files of integers, of ends and of texts."""
    return tuple(f"{version}-{side}.{kind}" for kind in ("int64", "ends", "utf8"))  # type: ignore[return-value]


def write_ids(
    folder: Path, version: int, side: str, ids: np.ndarray | list[str] | None
) -> IdRecord | None:
    """Write the ids of one side.

    Parameters
    ----------
    ids : ndarray of int64, list of str, or None
        The id of each row. None: the row numbers are the ids, and nothing is written.

    Raises
    ------
    InputError
        For a text that is not Unicode.
    """
    if ids is None:
        return None
    integers, ends, texts = (folder / name for name in id_file_names(version, side))
    if isinstance(ids, np.ndarray):
        with hashed_file(integers) as file:
            file.write(ids.astype("<i8"))
        return IdRecord("integers", (file.record(),))
    with hashed_file(ends) as end_file, hashed_file(texts) as text_file:
        total, remaining = 0, iter(ids)
        while some := list(islice(remaining, _IDS_AT_ONCE)):
            encoded = list(map(_encode, some))
            upto = total + np.cumsum([len(text) for text in encoded], dtype=np.int64)
            end_file.write(upto.astype("<i8"))
            text_file.write(b"".join(encoded))
            total = int(upto[-1])
    return IdRecord("texts", (end_file.record(), text_file.record()))


def _encode(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InputError(f"ids: found {text!r}, which UTF-8 cannot write; correct it") from None


def read_ids(
    record: IdRecord | None, read: Callable[[str, str], np.ndarray], folder: Path
) -> np.ndarray | None:
    """Return the ids of one side, as :class:`~gpu_als.data.ids.IdMap` keeps them.

    Parameters
    ----------
    record : IdRecord or None
    read : callable
        From the name of a file and a dtype to its content.
    folder : Path
        For messages.

    Returns
    -------
    ndarray of int64 or str, shape (rows,), or None

    Raises
    ------
    ReadError
        If texts are not UTF-8, their ends do not fit, or one is so long that all of them, as
        wide as it, would take far more memory than the files account for.
    """
    if record is None:
        return None
    if record.kind == "integers":
        return read(record.files[0].name, "<i8").astype(np.int64, copy=False)
    ends, content = read(record.files[0].name, "<i8"), read(record.files[1].name, "u1").tobytes()
    path = folder / record.files[1].name
    lengths = np.diff(ends, prepend=0)
    if (lengths < 0).any() or ends[-1] != len(content):
        raise ReadError(f"{path}: its ids do not end where they should; convert the data again")
    claimed = 4 * len(ends) * int(lengths.max())
    if claimed > max(_ALWAYS_ALLOWED, _LARGEST_RATIO * (len(content) + ends.nbytes)):
        raise ReadError(
            f"{path}: an id of {lengths.max()} bytes would make all of them take {claimed} bytes; "
            "shorten the long ids and convert the data again"
        )
    try:
        return np.array(list(_split(content, ends)), dtype=np.str_)
    except UnicodeDecodeError as error:
        raise ReadError(f"{path}: an id is not UTF-8 ({error}); convert the data again") from error


def _split(content: bytes, ends: np.ndarray) -> Iterator[str]:
    start = 0
    for end in ends.tolist():
        yield content[start:end].decode()
        start = end
