"""What a folder of shards consists of, and how JSON says it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = [
    "INDPTR_DTYPE",
    "SHARD_FILES",
    "SIDES",
    "FileRecord",
    "IdRecord",
    "ShardRecord",
    "index_dtype",
    "listed",
    "one_of",
    "parse_ids",
    "parse_shard",
    "whole",
]

SIDES = ("users", "items")
"""The two orientations, after which their folders are named: whose rows a matrix has."""
SHARD_FILES = ("indptr", "indices", "data")
INDPTR_DTYPE = np.dtype("<i8")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ID_FILES = {"integers": 1, "texts": 2}


@dataclass(frozen=True)
class FileRecord:
    """A file: its plain name, its size and its SHA-256."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class ShardRecord:
    """Rows ``start`` to ``stop`` - 1 of one orientation, as three files of raw arrays."""

    start: int
    stop: int
    nnz: int
    indptr: FileRecord
    indices: FileRecord
    data: FileRecord

    @property
    def files(self) -> tuple[FileRecord, FileRecord, FileRecord]:
        """The files, in the order of their names above."""
        return self.indptr, self.indices, self.data


@dataclass(frozen=True)
class IdRecord:
    """The ids of one side: "integers" (one file of int64) or "texts" (int64 ends, and UTF-8)."""

    kind: str
    files: tuple[FileRecord, ...]


def listed(
    ids: Mapping[str, IdRecord | None], shards: Mapping[str, Iterable[ShardRecord]]
) -> Iterator[tuple[str, FileRecord]]:
    """Yield the path of each of these files below the folder, and its record."""
    for side in SIDES:
        of_side = ids[side]
        for record in () if of_side is None else of_side.files:
            yield record.name, record
        for shard in shards[side]:
            for record in shard.files:
                yield f"{side}/{record.name}", record


def index_dtype(n_columns: int) -> np.dtype:
    """Return the type of column numbers: int32 where it holds them all."""
    return np.dtype("<i4" if n_columns < 2**31 else "<i8")


def parse_shard(body: Any) -> ShardRecord:
    """Return what the JSON of a shard says; a ValueError, KeyError or TypeError if it says none."""
    return ShardRecord(
        whole(body["start"]),
        whole(body["stop"]),
        whole(body["nnz"]),
        *(_parse_file(body[name]) for name in SHARD_FILES),
    )


def parse_ids(body: Any) -> IdRecord | None:
    """Return what the JSON of ids stands for, as :func:`parse_shard` does for a shard."""
    if body is None:
        return None
    kind = one_of(body["kind"], tuple(_ID_FILES))
    files = tuple(map(_parse_file, body["files"]))
    if len(files) != _ID_FILES[kind]:
        raise ValueError(f"ids that are {kind} have {_ID_FILES[kind]} file(s)")
    return IdRecord(kind, files)


def _parse_file(body: Any) -> FileRecord:
    name, checksum = body["name"], body["sha256"]
    if not (isinstance(name, str) and _NAME.fullmatch(name)):
        raise ValueError(f"{name!r} is not the plain name of a file")
    if not (isinstance(checksum, str) and _SHA256.fullmatch(checksum)):
        raise ValueError(f"{checksum!r} is not a SHA-256")
    return FileRecord(name, whole(body["bytes"]), checksum)


def whole(value: Any, *, least: int = 0) -> int:
    if type(value) is not int or not least <= value < 2**62:
        raise ValueError(f"{value!r} is not a whole number from {least}")
    return value


def one_of(value: Any, allowed: tuple[str, ...]) -> str:
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{value!r} is not one of {allowed}")
    return value
