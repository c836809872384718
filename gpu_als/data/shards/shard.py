"""Consecutive rows of a matrix that lies on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import scipy.sparse as sp

from gpu_als.data.csr import check_csr
from gpu_als.data.shards.array_files import map_array
from gpu_als.data.shards.records import INDPTR_DTYPE, ShardRecord, index_dtype
from gpu_als.data.shards.values import VALUE_DTYPES, decode
from gpu_als.errors import ReadError

__all__ = ["Shard"]


class Shard:
    """Consecutive rows of one orientation.

    It can be pickled, without its content, for a process that sees the same folder.

    Attributes
    ----------
    start, stop : int
        The rows are ``start`` to ``stop`` - 1.
    n_columns : int
    nnz : int
    """

    def __init__(
        self,
        folder: Path,
        record: ShardRecord,
        n_columns: int,
        value_type: str,
        codes: tuple[float, ...],
    ) -> None:
        self.start, self.stop, self.nnz = record.start, record.stop, record.nnz
        self.n_columns = n_columns
        self._folder, self._record = folder, record
        self._value_dtype, self._codes = VALUE_DTYPES[value_type], np.array(codes, np.float32)
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
        matrix can read outside it. Only :meth:`ShardedMatrix.verify`
        checks that it is what was written.

        Returns
        -------
        start, stop : int
        matrix : csr_matrix of float32, shape (stop - start, n_columns)
            As :func:`~gpu_als.data.csr.as_csr` returns it.

        Raises
        ------
        ReadError
            If a file is gone or has another size, or the arrays make no matrix.
        """
        indptr = self.starts()
        if indptr[-1] != self.nnz:  # SciPy would leave out what is beyond
            raise self.damaged(f"indptr ends at {indptr[-1]}")
        arrays = self.decode(self.stored()), self.columns(), indptr
        try:
            matrix = sp.csr_matrix(arrays, shape=(self.stop - self.start, self.n_columns))
            if not self._checked:
                check_csr(matrix, name="shard")
                self._checked = True
        except ValueError as error:
            raise self.damaged(error) from error
        matrix.has_canonical_format = True
        return self.start, self.stop, matrix

    def starts(self, first: int = 0, stop: int | None = None) -> np.ndarray:
        """Return where rows start among the entries, int64, as a memory map; unchecked.

        Parameters
        ----------
        first, stop : int
            Rows, counted from the first of the shard. The last one is that behind the shard.
        """
        return map_array(self._folder, self._record.indptr, INDPTR_DTYPE, first, stop)

    def columns(self, first: int = 0, stop: int | None = None) -> np.ndarray:
        """Return the columns of entries, int32 or int64, as a memory map; unchecked."""
        return map_array(
            self._folder, self._record.indices, index_dtype(self.n_columns), first, stop
        )

    def stored(self, first: int = 0, stop: int | None = None) -> np.ndarray:
        """Return the values of entries as they are stored, as a memory map."""
        return map_array(self._folder, self._record.data, self._value_dtype, first, stop)

    def decode(self, stored: np.ndarray) -> np.ndarray:
        """Return stored values as float32; those stored so already are not copied.

        Raises
        ------
        ReadError
            If one is a code that stands for nothing.
        """
        try:
            return decode(stored, self._codes)
        except IndexError as error:
            raise self.damaged(error) from error

    def damaged(self, problem: object) -> ReadError:
        """Return the error that says so."""
        return ReadError(
            f"{self._folder / self._record.indptr.name}: this shard is damaged ({problem}); "
            "convert the data again, or restore the folder from a backup"
        )
