"""A matrix that lies on disk in shards of rows, in both orientations."""

from __future__ import annotations

import hashlib
import os
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import scipy.sparse as sp

from gpu_als.data.csr import check_index_array
from gpu_als.data.ids import IdMap
from gpu_als.data.interactions import Interactions, encode
from gpu_als.data.shards.array_files import map_array, open_file
from gpu_als.data.shards.id_files import read_ids
from gpu_als.data.shards.in_memory import write_matrix
from gpu_als.data.shards.manifest import Manifest
from gpu_als.data.shards.records import SIDES
from gpu_als.data.shards.row_reading import read_rows
from gpu_als.data.shards.shard import Shard
from gpu_als.errors import InputError, ReadError
from gpu_als.progress import ProgressBar

__all__ = ["ShardedMatrix"]

_READ_BYTES = 1 << 22


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
        values = manifest.value_type, manifest.codes
        self.users, self.items = (
            tuple(Shard(folder / side, record, n, *values) for record in manifest.shards[side])
            for side, n in zip(SIDES, self.shape[::-1], strict=True)
        )

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what opens it again, and no ids that were read."""
        return type(self), (self.folder, self.manifest)

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
            As :func:`~gpu_als.data.csr.as_csr` takes it.
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

    def rows(self, numbers: Any) -> sp.csr_matrix:
        """Return some users' entries; nothing else is read.

        Parameters
        ----------
        numbers : array-like of int, shape (n,), or slice
            Users by number, in any order, also several times.

        Returns
        -------
        csr_matrix of float32, shape (n, items)
            In memory, as :func:`~gpu_als.data.csr.as_csr` returns it.

        Raises
        ------
        InputError
            If ``numbers`` are not integers; an :class:`~gpu_als.errors.IdRangeError` if one is
            negative or not below the number of users.
        ReadError
            If a file is gone or has another size, or these rows are damaged.
        """
        n_users = self.shape[0]
        if isinstance(numbers, slice):
            numbers = range(*numbers.indices(n_users))
        numbers = check_index_array(numbers, n_users, name="numbers")
        return read_rows(self.users, numbers, self.folder / SIDES[0])

    def encode(
        self,
        users: Any,
        items: Any,
        ratings: Any = None,
        *,
        unknown: Literal["raise", "skip"] = "raise",
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Express other ratings in rows and columns; see :meth:`gpu_als.Interactions.encode`."""
        n_users, n_items = self.shape
        maps = IdMap(self.user_ids, n_users), IdMap(self.item_ids, n_items)
        return encode(maps, users, items, ratings, unknown=unknown, dtype=self.dtype)

    def verify(self, *, show_progress: bool = True) -> None:
        """Read every file and compare its checksum with that in the manifest.

        Raises
        ------
        ReadError
            For the first file that differs.
        """
        files = list(self.manifest.files())
        total = sum(record.bytes for _, record in files)
        with ProgressBar(
            show=show_progress, total=total, desc="verifying", unit="B", unit_scale=True
        ) as bar:
            for name, record in files:
                path = (self.folder / name).parent
                with os.fdopen(open_file(path, record), "rb") as stream:
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
            return np.array(map_array(self.folder, by_name[name], np.dtype(dtype)))

        return read_ids(record, read, self.folder)
