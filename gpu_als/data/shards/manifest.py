"""What a folder of shards holds: ``manifest.json``, written last and believed only after checks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn, Self

import numpy as np

from gpu_als.data.atomic import replacing
from gpu_als.data.shards.array_files import check_file
from gpu_als.data.shards.records import (
    INDPTR_DTYPE,
    SIDES,
    FileRecord,
    IdRecord,
    ShardRecord,
    index_dtype,
    listed,
    one_of,
    parse_ids,
    parse_shard,
    whole,
)
from gpu_als.data.shards.values import VALUE_DTYPES
from gpu_als.errors import ReadError

__all__ = ["MANIFEST", "Manifest"]

MANIFEST = "manifest.json"
_FORMAT = "gpu_als shards 1"
_LARGEST = 1 << 28
"""Bytes a manifest may have; one of a trillion entries needs fewer."""
_LARGEST_FLOAT = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Manifest:
    """The whole content of ``manifest.json``.

    Attributes
    ----------
    version : int
        0 for a new folder; every append adds one. Names of files begin with it.
    shape : (int, int)
        Users and items.
    nnz : int
    duplicates : {"sum", "last"}
        What became of several values for one cell.
    source : str
        Digest of the files and options it was made from.
    value_type : {"float32", "float16", "codes"}
    codes : tuple of float
        The value of each code; empty for the other types.
    ids : mapping of str to IdRecord or None
        For each side. None: the row numbers are the ids.
    shards : mapping of str to tuple of ShardRecord
        For each side, in the order of the rows.
    """

    version: int
    shape: tuple[int, int]
    nnz: int
    duplicates: str
    source: str
    value_type: str
    codes: tuple[float, ...]
    ids: dict[str, IdRecord | None]
    shards: dict[str, tuple[ShardRecord, ...]]

    @property
    def digest(self) -> str:
        """A digest of the matrix and the ids: equal content gives equal digests."""
        content = [list(self.shape), self.value_type, list(self.codes)]
        checksums = [record.sha256 for _, record in self.files()]
        return _sha256(json.dumps([content, checksums]))

    def files(self) -> Iterator[tuple[str, FileRecord]]:
        """Yield the path of every file below the folder, and its record."""
        return listed(self.ids, self.shards)

    def names(self) -> frozenset[str]:
        """Return the paths of all files below the folder, the manifest aside."""
        return frozenset(name for name, _ in self.files())

    def write(self, folder: Path) -> None:
        """Put the manifest into place in one step, which makes the folder readable."""
        body = asdict(self) | {"format": _FORMAT, "dtypes": self._dtypes()}
        body["generation"] = body.pop("version")  # as format 1 calls it
        text = json.dumps(body | {"checksum": _checksum(body)}, indent=1)
        with replacing(folder / MANIFEST) as stream:
            stream.write(text.encode())

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the manifest, and check it and the sizes of the files it names.

        Raises
        ------
        ReadError
            If there is none, or it is damaged, contradicts itself or the files.
        FileNotFoundError
            If there is no such folder.
        """
        if not folder.is_dir():
            raise FileNotFoundError(2, "no such folder of shards", str(folder))
        path = folder / MANIFEST
        if not path.is_file():
            raise ReadError(
                f"{folder}: has no {MANIFEST}, so it is not a folder of shards, or its conversion "
                "is unfinished; run gpu-als convert once more with --resume"
            )
        manifest = cls._parse(_load(path), path)
        for name, record in manifest.files():
            check_file(folder / name, record)
        return manifest

    def _dtypes(self) -> dict[str, Any]:
        users, items = self.shape
        return {
            "indptr": INDPTR_DTYPE.str,
            "indices": {"users": index_dtype(items).str, "items": index_dtype(users).str},
            "data": VALUE_DTYPES[self.value_type].str,
        }

    @classmethod
    def _parse(cls, body: dict[str, Any], path: Path) -> Self:
        try:
            if body["format"] != _FORMAT:
                raise ValueError(f"its format is not {_FORMAT!r}")
            if body.pop("checksum") != _checksum(body):
                raise ValueError("its checksum is wrong")
            users, items = body["shape"]
            parsed = cls(
                shape=(whole(users, least=1), whole(items, least=1)),
                version=whole(body["generation"]),
                nnz=whole(body["nnz"]),
                duplicates=one_of(body["duplicates"], ("sum", "last")),
                source=_text(body["source"]),
                value_type=one_of(body["value_type"], tuple(VALUE_DTYPES)),
                codes=_codes(body["codes"]),
                ids={side: parse_ids(body["ids"][side]) for side in SIDES},
                shards={side: tuple(map(parse_shard, body["shards"][side])) for side in SIDES},
            )
            if body["dtypes"] != parsed._dtypes():
                raise ValueError("its dtypes are not those of its shape and value type")
            parsed._check()
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            _refuse(path, error)
        return parsed

    def _check(self) -> None:
        """Compare row ranges, sizes and dtypes with each other."""
        value_bytes = VALUE_DTYPES[self.value_type].itemsize
        for side, n_rows, n_columns in zip(SIDES, self.shape, self.shape[::-1], strict=True):
            shards, ids = self.shards[side], self.ids[side]
            bounds = [0, *(shard.stop for shard in shards)]
            if [shard.start for shard in shards] != bounds[:-1] or bounds[-1] != n_rows:
                raise ValueError(f"the shards of {side} do not cover rows 0 to {n_rows - 1}")
            if any(start >= stop for start, stop in pairwise(bounds)):
                raise ValueError(f"a shard of {side} has no rows")
            if sum(shard.nnz for shard in shards) != self.nnz:
                raise ValueError(f"the shards of {side} do not hold {self.nnz} entries in all")
            index_bytes = index_dtype(n_columns).itemsize
            for shard in shards:
                n_rows_here = shard.stop - shard.start
                expected = (
                    INDPTR_DTYPE.itemsize * (n_rows_here + 1),
                    index_bytes * shard.nnz,
                    value_bytes * shard.nnz,
                )
                if tuple(record.bytes for record in shard.files) != expected:
                    raise ValueError(f"the sizes of {side} {shard.start} to {shard.stop} are wrong")
            if ids is not None and ids.files[0].bytes != 8 * n_rows:
                raise ValueError(f"it does not have one id for each of {n_rows} {side}")


def _load(path: Path) -> dict[str, Any]:
    with path.open("rb") as stream:
        content = stream.read(_LARGEST + 1)
    try:
        if len(content) > _LARGEST:
            raise ValueError(f"it is larger than {_LARGEST} bytes")
        body = json.loads(content)
        if not isinstance(body, dict):
            raise ValueError("it is not a JSON object")
    except (ValueError, RecursionError) as error:
        _refuse(path, error)
    return body


def _refuse(path: Path, error: Exception) -> NoReturn:
    raise ReadError(
        f"{path}: not the manifest of a folder of shards, or a damaged one ({error!r:.200}); "
        "convert the data again, or restore the folder from a backup"
    ) from error


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r} is not a text")
    return value


def _codes(values: Any) -> tuple[float, ...]:
    if len(values) > 256 or not all(type(v) is float and abs(v) <= _LARGEST_FLOAT for v in values):
        raise ValueError("its codes are not up to 256 numbers that float32 holds")
    return tuple(values)


def _checksum(body: dict[str, Any]) -> str:
    return _sha256(json.dumps(body, sort_keys=True))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
