"""From files of ratings to shards, in bounded memory: what an external sort is for.

Three stages, each of which starts from what the one before has put on disk:

1. *read*: the input is read once, block by block. Ids are collected, entries go to one file.
2. *sort*: entries get their row and column numbers and are sorted out, for either orientation, into
   files of parts: ranges of cells that fit in memory.
3. *build*: part after part is sorted in memory and written to the shards.

Then the manifest makes the folder readable. What was completed before a run was killed stands in
the journal.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

from gpu_als.data.columns import Column
from gpu_als.data.interactions import check_duplicates
from gpu_als.data.shards.build_stage import build
from gpu_als.data.shards.folder import claimed, discard, sweep
from gpu_als.data.shards.journal import Journal
from gpu_als.data.shards.manifest import MANIFEST, Manifest
from gpu_als.data.shards.read_stage import read_input
from gpu_als.data.shards.reader import ShardedMatrix
from gpu_als.data.shards.records import SIDES
from gpu_als.data.shards.sort_stage import sort_out
from gpu_als.data.shards.sources import Columns, Source, TextForm
from gpu_als.data.shards.task import Task
from gpu_als.data.text_layout import Header
from gpu_als.errors import InputError

__all__ = ["append", "convert"]

AnyPath = str | os.PathLike[str]
Sources = AnyPath | Iterable[AnyPath]


def convert(
    sources: Sources,
    folder: AnyPath,
    *,
    user: Column = None,
    item: Column = None,
    rating: Column = None,
    delimiter: str | None = None,
    header: Header = "auto",
    duplicates: Literal["sum", "last"] = "sum",
    value_type: Literal["float32", "float16", "codes"] = "float32",
    lossy: bool = False,
    shard_bytes: int = 1 << 28,
    memory: int = 1 << 31,
    resume: bool = False,
    show_progress: bool = True,
) -> ShardedMatrix:
    """Convert files of ratings to a folder of shards, in bounded memory.

    The result is the matrix that :func:`~gpu_als.data.readers.read_interactions` returns, whatever
    the memory: users and items in ascending order of their ids. The distinct ids have to fit in
    memory: about 64 bytes for an integer, 300 for a text, and as much again to work with.

    Parameters
    ----------
    sources : path or iterable of paths
        Files as :func:`~gpu_als.data.readers.read_triples` reads them (of ``.mtx`` those in
        coordinate format, of ``.npz`` matrices those in CSR, CSC or COO format), or ``.parquet``,
        which needs pyarrow. All of them with ids, or all of them matrices, which are added up.
    folder : path
        A new one, or an empty one, or what an unfinished conversion has left.
    user, item, rating, delimiter, header
        As :func:`~gpu_als.data.readers.read_triples` takes them.
    duplicates : {"sum", "last"}
        What becomes of several values for one user and item, in whichever files: their sum, or
        the last one.
    value_type : {"float32", "float16", "codes"}
        How values are stored; loaded they are float32. Codes take one byte and are for up to 256
        different values, such as ratings from 0.5 to 5.
    lossy : bool
        Whether float16 may round. Otherwise values it cannot hold are refused.
    shard_bytes : int
        How large a shard is at most, if it has more than one row.
    memory : int
        How many bytes the process may take.
    resume : bool
        Whether to continue an unfinished conversion of the same files with the same options after
        its last completed step. Otherwise it is discarded.
    show_progress : bool

    Returns
    -------
    ShardedMatrix

    Raises
    ------
    ReadError
        If a file cannot be read or its ratings cannot be used.
    InputError
        If an argument is out of range, the folder holds other files or finished shards, or the
        memory is too little.
    OSError
        If the folder cannot be written. It can then be gone on with ``resume``.
    """
    check_duplicates(duplicates)
    task = Task(
        folder=Path(folder),
        sources=_open_sources(sources, Columns(user, item, rating), TextForm(delimiter, header)),
        duplicates=duplicates,
        value_type=value_type,
        lossy=lossy,
        shard_bytes=shard_bytes,
        memory=memory,
        show_progress=show_progress,
    )
    with claimed(task.folder):
        if not (task.folder / MANIFEST).exists():
            return _run(task, resume=resume)
        finished = ShardedMatrix.open(task.folder)
        if resume and _is_result(finished, task):
            return finished
    raise InputError(
        f"{folder}: holds finished shards; pass the name of a new folder, or append to them"
    )


def append(
    sources: Sources,
    folder: AnyPath,
    *,
    user: Column = None,
    item: Column = None,
    rating: Column = None,
    delimiter: str | None = None,
    header: Header = "auto",
    lossy: bool = False,
    shard_bytes: int = 1 << 28,
    memory: int = 1 << 31,
    resume: bool = False,
    show_progress: bool = True,
) -> ShardedMatrix:
    """Append files of ratings to a folder of shards.

    All shards are written anew, beside the old ones, and replace them in one step; what was
    opened before can be read on until the next time. Users and items keep their rows, and new ones
    get the rows behind them, in ascending order of their ids. A new rating of a user and item that
    have one is added to it or replaces it, as the folder's duplicates were treated.

    Parameters
    ----------
    sources, user, item, rating, delimiter, header, lossy, shard_bytes, memory, show_progress
        As in :func:`convert`. The other options are those of the folder. A folder made from
        matrices takes matrices, and grows to the largest shape.
    folder : path
        What :func:`convert` has made.
    resume : bool
        Whether to continue from the last completed step of an unfinished run of the same files. If
        they are what was appended last, nothing is done.

    Returns
    -------
    ShardedMatrix

    Raises
    ------
    ReadError
        If the folder or a file cannot be read.
    InputError
        If an argument is out of range, or the memory is too little.
    OSError
        If the folder cannot be written. It still holds what it did.
    """
    path = Path(folder)
    Manifest.read(path)  # fails before a folder is made where none is
    with claimed(path):
        existing = ShardedMatrix.open(path)
        task = Task(
            folder=path,
            sources=_open_sources(
                sources, Columns(user, item, rating), TextForm(delimiter, header)
            ),
            existing=existing,
            duplicates=existing.manifest.duplicates,
            value_type=existing.value_type,
            lossy=lossy,
            shard_bytes=shard_bytes,
            memory=memory,
            show_progress=show_progress,
        )
        if resume and _is_result(existing, task):
            return existing
        return _run(task, resume=resume)


def _open_sources(sources: Sources, columns: Columns, form: TextForm) -> tuple[Source, ...]:
    paths = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    if not paths:
        raise InputError("sources: found none; pass at least one file of ratings")
    return tuple(Source(Path(path), columns, form) for path in paths)


def _is_result(found: ShardedMatrix, task: Task) -> bool:
    """Return whether the task was done already, and if so remove what a killed run has left."""
    same = found.manifest.source == task.digest(found.manifest.version)
    if same:
        discard(task.folder, found.manifest.names())
    return same


def _run(task: Task, *, resume: bool) -> ShardedMatrix:
    """Do what is left of the task; the folder is claimed."""
    identity = task.identity(task.version)
    journal = Journal.load(task.work) if resume else None
    if journal is None:
        discard(task.folder, task.kept)
        task.work.mkdir()
        journal = Journal(identity)
    else:
        sweep(task.folder, task.kept | journal.check(identity, task.folder))
    try:
        if journal.stage == "read":
            read_input(task, journal)
        if journal.stage == "sort":
            sort_out(task, journal)
        build(task, journal)
    except BaseException:
        if journal.stage == "read":  # there is nothing to continue from
            discard(task.folder, task.kept)
        raise
    manifest = Manifest(
        version=task.version,
        shape=journal.shape,
        nnz=sum(shard.nnz for shard in journal.finished["users"]),
        duplicates=task.duplicates,
        source=task.digest(task.version),
        value_type=task.value_type,
        codes=tuple(journal.codes),
        ids=journal.ids,
        shards={side: tuple(journal.finished[side]) for side in SIDES},
    )
    manifest.write(task.folder)
    discard(task.folder, task.kept | manifest.names())
    return ShardedMatrix.open(task.folder)
