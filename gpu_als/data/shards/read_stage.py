"""The first stage of a conversion: reads the input once, collects ids, stores entries."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from gpu_als.data.model_file import read_arrays, write_arrays
from gpu_als.data.shards.entries import changed, write_block
from gpu_als.data.shards.existing_entries import existing_blocks, n_existing_bytes
from gpu_als.data.shards.id_files import write_ids
from gpu_als.data.shards.journal import Journal
from gpu_als.data.shards.numbering import IdCollector, NumberCollector, Rows
from gpu_als.data.shards.records import SIDES
from gpu_als.data.shards.task import Task
from gpu_als.data.shards.values import Encoder
from gpu_als.errors import InputError, ModelFileError, ReadError
from gpu_als.progress import ProgressBar

__all__ = ["ENTRIES", "load_rows", "read_input"]

ENTRIES = "entries"
_ENTRY_BYTES = 128
"""What an entry of a folder takes while it is handed on."""
_Collectors = tuple[IdCollector, IdCollector] | tuple[NumberCollector, NumberCollector]


def read_input(task: Task, journal: Journal) -> None:
    """Store the entries, as far as the ids are known, and write the ids.

    Raises
    ------
    ReadError
        If a file cannot be read, or its ratings cannot be used.
    InputError
        If files with ids and matrices are mixed, or the ids do not fit in memory.
    """
    collectors = _collectors(task)
    encoder = Encoder(task.value_type, lossy=task.lossy)  # to learn early what it cannot hold
    value_dtype = np.dtype("<f2")
    n_entries = 0
    total = sum(source.size for source in task.sources)
    total += 0 if task.existing is None else n_existing_bytes(task.existing)
    bar = ProgressBar(
        show=task.show_progress, total=total, desc="reading", unit="B", unit_scale=True
    )
    with bar, (task.work / ENTRIES).open("wb") as stream:
        for users, items, values in _input(task, collectors, bar):
            encoder.encode(values)
            narrow = _narrowest(values)
            write_block(stream, users, items, narrow)
            value_dtype = np.result_type(value_dtype, narrow.dtype)
            n_entries += len(values)
            task.budget.check_ids(sum(collector.nbytes for collector in collectors))
        stream.flush()
        os.fsync(stream.fileno())
        journal.entries_bytes = stream.tell()
    if n_entries == 0 and isinstance(collectors[0], IdCollector):
        raise ReadError(f"{task.sources[0].path}: found no ratings; add some")
    ids, rows = zip(*(collector.finish() for collector in collectors), strict=True)
    task.budget.check_ids(sum(each.nbytes for each in rows))
    for side, ids_here, rows_here in zip(SIDES, ids, rows, strict=True):
        journal.ids[side] = write_ids(task.folder, task.version, side, ids_here)
        write_arrays(_rows_file(task, side), vars(rows_here))
    journal.shape = len(rows[0].counts), len(rows[1].counts)
    journal.value_dtype = value_dtype.str
    journal.stage = "sort"
    journal.save(task.work)


def load_rows(task: Task) -> dict[str, Rows]:
    """Return the rows of the ids of both sides, as :func:`read_input` left them."""
    return {side: _load(_rows_file(task, side)) for side in SIDES}


def _load(path: Path) -> Rows:
    try:
        return Rows(**read_arrays(path))
    except (FileNotFoundError, ModelFileError, TypeError) as error:
        raise changed(path) from error


def _rows_file(task: Task, side: str) -> Path:
    return task.work / f"{side}.npz"


def _collectors(task: Task) -> _Collectors:
    """Return what numbers the rows of both sides."""
    existing = task.existing
    matrices = {source.path: source.shape for source in task.sources if source.shape is not None}
    with_ids = [source.path for source in task.sources if source.shape is None]
    if existing is not None and existing.user_ids is not None:
        with_ids.insert(0, task.folder)
    elif existing is not None:
        matrices[task.folder] = existing.shape
    if matrices and with_ids:
        raise InputError(
            f"sources: {with_ids[0]} has ids, but {next(iter(matrices))} holds a matrix, whose row "
            "numbers are the ids; convert them separately"
        )
    if with_ids:
        known = (None, None) if existing is None else (existing.user_ids, existing.item_ids)
        return IdCollector(known[0]), IdCollector(known[1])
    sizes = [max(shape[axis] for shape in matrices.values()) for axis in (0, 1)]
    task.budget.check_ids(NumberCollector.BYTES_OF_A_ROW * sum(sizes))
    return NumberCollector(sizes[0]), NumberCollector(sizes[1])


def _input(
    task: Task, collectors: _Collectors, bar: ProgressBar
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield entries: for both ids what the collectors made of them, and values."""
    block_bytes = task.budget.block_bytes
    if task.existing is not None:
        for n_bytes, rows, columns, values in existing_blocks(
            task.existing, block_bytes // _ENTRY_BYTES
        ):
            yield collectors[0].add_known(rows), collectors[1].add_known(columns), values
            bar.update(n_bytes)
    for source in task.sources:
        done = 0
        for position, block in source.blocks(block_bytes):
            try:
                users = collectors[0].add(block.users, name="users")
                items = collectors[1].add(block.items, name="items")
                values = _check_ratings(block.ratings, len(users))
            except InputError as error:
                raise ReadError(f"{source.path}: {error}") from error
            yield users, items, values
            bar.update(position - done)
            done = position
        bar.update(source.size - done)


def _check_ratings(ratings: Any, n_entries: int) -> np.ndarray:
    if ratings is None:
        return np.ones(n_entries, np.float16)
    values = np.asarray(ratings)
    if values.dtype.kind not in "biuf":
        raise InputError(f"ratings: found values of type {values.dtype}; write them as numbers")
    values = values.astype(np.float64, copy=False)
    if not np.isfinite(values).all():
        raise InputError(
            f"ratings: found {np.count_nonzero(~np.isfinite(values))} NaN or infinite value(s); "
            "remove these entries or give them finite ratings"
        )
    return values


def _narrowest(values: np.ndarray) -> np.ndarray:
    """Return values in the smallest float type that holds them all."""
    with np.errstate(over="ignore"):
        for kind in ("<f2", "<f4"):
            narrow = values.astype(kind)
            if (narrow == values).all():
                return narrow
    return values.astype("<f8")
