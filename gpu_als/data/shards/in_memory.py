"""Writes a matrix that is in memory as shards."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from gpu_als.data.interactions import Interactions
from gpu_als.data.shards.folder import claimed, discard
from gpu_als.data.shards.id_files import write_ids
from gpu_als.data.shards.manifest import MANIFEST, Manifest
from gpu_als.data.shards.plan import check_shard_bytes, shard_bounds
from gpu_als.data.shards.records import SIDES
from gpu_als.data.shards.values import Encoder, check_value_type
from gpu_als.data.shards.writer import writing_side
from gpu_als.errors import InputError

__all__ = ["write_matrix"]


def write_matrix(
    data: Interactions, folder: Path, *, value_type: str, lossy: bool, shard_bytes: int
) -> None:
    """Write shards of both orientations, the ids and the manifest.

    The arguments are those of :meth:`~gpu_als.data.shards.ShardedMatrix.from_matrix`.
    """
    check_value_type(value_type, lossy=lossy)
    check_shard_bytes(shard_bytes)
    with claimed(folder):
        if (folder / MANIFEST).exists():
            raise InputError(f"{folder}: holds shards already; pass the name of a new folder")
        discard(folder)
        try:
            _write(data, folder, Encoder(value_type, lossy=lossy), value_type, shard_bytes)
        except BaseException:
            discard(folder)
            raise


def _write(
    data: Interactions, folder: Path, encoder: Encoder, value_type: str, shard_bytes: int
) -> None:
    matrix = data.user_items
    shards = {}
    for side, rows in zip(SIDES, (matrix, matrix.T.tocsr()), strict=True):
        n_rows, n_columns = rows.shape
        counts = np.diff(rows.indptr)
        bounds = shard_bounds(counts, n_columns, value_type, shard_bytes)
        first_of_row = np.arange(n_rows, dtype=np.int64) * n_columns
        with writing_side(folder / side, 0, bounds, n_columns, encoder.encode) as writer:
            writer.add(np.repeat(first_of_row, counts) + rows.indices, rows.data)
        shards[side] = tuple(writer.finished)
    ids = {
        side: write_ids(folder, 0, side, _as_written(each))
        for side, each in zip(SIDES, (data.user_ids, data.item_ids), strict=True)
    }
    Manifest(
        version=0,
        shape=matrix.shape,
        nnz=int(matrix.nnz),
        duplicates="sum",
        source="",
        value_type=value_type,
        codes=tuple(encoder.codes),
        ids=ids,
        shards=shards,
    ).write(folder)


def _as_written(ids: np.ndarray | None) -> np.ndarray | list[str] | None:
    return ids.tolist() if ids is not None and ids.dtype.kind == "U" else ids
