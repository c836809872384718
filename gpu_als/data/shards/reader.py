"""A matrix that lies on disk in shards of rows, in both orientations."""

from __future__ import annotations

import hashlib
import os
import stat
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import scipy.sparse as sp
from tqdm import tqdm

from gpu_als.data.interactions import Interactions
from gpu_als.data.matrix import as_csr
from gpu_als.data.shards.id_files import read_ids
from gpu_als.data.shards.in_memory import write_matrix
from gpu_als.data.shards.manifest import Manifest
from gpu_als.data.shards.records import INDPTR_DTYPE, SIDES, FileRecord, ShardRecord, index_dtype
from gpu_als.data.shards.values import VALUE_DTYPES, decode
from gpu_als.errors import InputError, ReadError

__all__ = ["Shard", "ShardedMatrix"]

_READ_BYTES = 1 << 22


class Shard:
    """Consecutive rows of one orientation.

    Attributes
    ----------
    start, stop : int
        The rows are ``start`` to ``stop`` - 1.
    n_columns : int
    nnz : int
    """

    def __init__(
        self, folder: Path, record: ShardRecord, n_columns: int, manifest: Manifest
    ) -> None:
        self.start, self.stop, self.nnz = record.start, record.stop, record.nnz
        self.n_columns = n_columns
        self._folder, self._record = folder, record
        self._value_dtype, self._codes = VALUE_DTYPES[manifest.value_type], manifest.codes
        self._checked = False

    def __repr__(self) -> str:
        """Say which rows these are."""
        return f"<Shard of rows {self.start} to {self.stop - 1}, {self.nnz} entries>"

    def load(self) -> tuple[int, int, sp.csr_matrix]:
        """Return the rows as a matrix that reads from the disk as it is used.

        Index arrays are memory maps, and so are values stored as float32; others are converted
        to float32 here. Treat them as read-only. Where indptr needs int64 because the shard has
        2**31 entries or more, SciPy makes a copy of int32 indices in int64.

        The first time, all that lies in the files is checked, so that nothing that uses the
        matrix can read outside it. Whether it is what was written only
        :meth:`ShardedMatrix.verify` tells.

        Returns
        -------
        start, stop : int
        matrix : csr_matrix of float32, shape (stop - start, n_columns)
            As :func:`~gpu_als.data.matrix.as_csr` returns it.

        Raises
        ------
        ReadError
            If a file is gone or has another size, or the arrays make no matrix.
        """
        record = self._record
        indptr = _map(self._folder, record.indptr, INDPTR_DTYPE)
        indices = _map(self._folder, record.indices, index_dtype(self.n_columns))
        stored = _map(self._folder, record.data, self._value_dtype)
        try:
            if indptr[-1] != self.nnz:  # SciPy would leave out what is beyond
                raise ValueError(f"indptr ends at {indptr[-1]}")
            values = decode(stored, self._codes)
            shape = (self.stop - self.start, self.n_columns)
            matrix = sp.csr_matrix((values, indices, indptr), shape=shape, copy=False)
            if not self._checked:
                self._check(matrix)
        except (ValueError, IndexError) as error:
            raise ReadError(
                f"{self._folder / record.indptr.name}: this shard is damaged ({error}); convert "
                "the data again, or restore the folder from a backup"
            ) from error
        matrix.has_canonical_format = True
        return self.start, self.stop, matrix

    def _check(self, matrix: sp.csr_matrix) -> None:
        as_csr(matrix, name="shard")
        if not matrix.has_canonical_format:
            raise ValueError("the columns of a row do not rise")
        self._checked = True


class ShardedMatrix:
    """Interactions on disk, for data larger than memory.

    Made by :meth:`from_matrix`, :func:`~gpu_als.data.shards.convert` or ``gpu-als convert``, and
    opened by :meth:`open`.

    Attributes
    ----------
    shape : (int, int)
        Users and items.
    nnz : int
    dtype : numpy.dtype
        float32, the type of the values that shards load.
    value_type : {"float32", "float16", "codes"}
        How they are stored.
    users : tuple of Shard
        All rows of the matrix users x items, in order.
    items : tuple of Shard
        All rows of its transpose, items x users.
    folder : Path
    manifest : Manifest
    digest : str
        Equal for equal content: of matrix, ids and how the values are stored.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder = folder
        self.shape, self.nnz = manifest.shape, manifest.nnz
        self.value_type, self.digest = manifest.value_type, manifest.digest
        self.manifest = manifest
        self.users, self.items = (
            tuple(Shard(folder / side, record, n, manifest) for record in manifest.shards[side])
            for side, n in zip(SIDES, self.shape[::-1], strict=True)
        )

    def __repr__(self) -> str:
        """Say how large it is and where it lies."""
        return f"<ShardedMatrix of shape {self.shape}, {self.nnz} entries, in {self.folder}>"

    @classmethod
    def open(cls, folder: str | os.PathLike[str], *, verify: bool = False) -> Self:
        """Open a folder of shards.

        The manifest is checked, and the size of every file; nothing else is read yet.

        Parameters
        ----------
        folder : path
        verify : bool
            Whether to read everything and compare checksums, with a progress bar.

        Raises
        ------
        ReadError
            If the folder holds no shards, or only part of them, or is damaged.
        FileNotFoundError
            If there is no such folder.
        """
        path = Path(folder)
        matrix = cls(path, Manifest.read(path))
        if verify:
            matrix.verify()
        return matrix

    @classmethod
    def from_matrix(
        cls,
        matrix: Any,
        folder: str | os.PathLike[str],
        *,
        user_ids: Any = None,
        item_ids: Any = None,
        value_type: str = "float32",
        lossy: bool = False,
        shard_bytes: int = 1 << 28,
    ) -> Self:
        """Write a matrix that fits in memory as shards.

        Parameters
        ----------
        matrix : Interactions, or sparse or dense matrix, shape (users, items)
            As :func:`~gpu_als.data.matrix.as_csr` takes it.
        folder : path
            A new one, or an empty one.
        user_ids, item_ids : array-like of int or str, or None
            As in :meth:`Interactions.from_matrix`; Interactions have their own.
        value_type, lossy, shard_bytes
            As in :func:`~gpu_als.data.shards.convert`.

        Returns
        -------
        ShardedMatrix

        Raises
        ------
        InputError
            If the folder is not empty, or the matrix, the ids or the options cannot be used.
        """
        if not isinstance(matrix, Interactions):
            matrix = Interactions.from_matrix(matrix, user_ids=user_ids, item_ids=item_ids)
        elif user_ids is not None or item_ids is not None:
            raise InputError("user_ids, item_ids: Interactions have their own; leave them None")
        path = Path(folder)
        write_matrix(matrix, path, value_type=value_type, lossy=lossy, shard_bytes=shard_bytes)
        return cls.open(path)

    @cached_property
    def user_ids(self) -> np.ndarray | None:
        """The id of each row, int64 or str, shape (users,); None: the numbers are the ids."""
        return self._read_ids("users")

    @cached_property
    def item_ids(self) -> np.ndarray | None:
        """The id of each column, int64 or str, shape (items,); None: the numbers are the ids."""
        return self._read_ids("items")

    def verify(self, *, show_progress: bool = True) -> None:
        """Read every file and compare its checksum with that in the manifest.

        Raises
        ------
        ReadError
            For the first file that differs.
        """
        files = list(self.manifest.files())
        total = sum(record.bytes for _, record in files)
        with tqdm(
            total=total, desc="verifying", unit="B", unit_scale=True, disable=not show_progress
        ) as bar:
            for name, record in files:
                path = (self.folder / name).parent
                with os.fdopen(_open(path, record), "rb") as stream:
                    found = hashlib.sha256()
                    while block := stream.read(_READ_BYTES):
                        found.update(block)
                        bar.update(len(block))
                if found.hexdigest() != record.sha256:
                    raise ReadError(
                        f"{path / record.name}: its checksum is wrong; convert the data again, or "
                        "restore the folder from a backup"
                    )

    def _read_ids(self, side: str) -> np.ndarray | None:
        record = self.manifest.ids[side]
        by_name = {} if record is None else {file.name: file for file in record.files}

        def read(name: str, dtype: str) -> np.ndarray:
            return np.array(_map(self.folder, by_name[name], np.dtype(dtype)))

        return read_ids(record, read, self.folder)


def _map(folder: Path, record: FileRecord, dtype: np.dtype) -> np.ndarray:
    """Return a file's content as a read-only memory map."""
    with os.fdopen(_open(folder, record), "rb") as stream:
        if record.bytes == 0:
            return np.zeros(0, dtype)  # there are no empty maps
        return np.memmap(stream, dtype, "r")


def _open(folder: Path, record: FileRecord) -> int:
    """Open a file, following no link, and check its size."""
    path = folder / record.name
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | _BINARY)
    except OSError as error:
        raise ReadError(
            f"{path}: cannot be opened ({error.strerror}); if data were appended meanwhile, open "
            "the folder again"
        ) from error
    found = os.fstat(descriptor)
    if not stat.S_ISREG(found.st_mode) or found.st_size != record.bytes:
        os.close(descriptor)
        raise ReadError(
            f"{path}: found {found.st_size} bytes where the manifest says a file of "
            f"{record.bytes}; convert the data again, or restore the folder from a backup"
        )
    return descriptor


_BINARY = getattr(os, "O_BINARY", 0)
