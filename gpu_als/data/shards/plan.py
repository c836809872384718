"""Where rows are cut into shards, and entries into parts that are sorted in memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from gpu_als.data.csr import partition_rows
from gpu_als.data.shards.records import INDPTR_DTYPE, index_dtype
from gpu_als.data.shards.values import VALUE_DTYPES
from gpu_als.errors import InputError

__all__ = ["Parts", "check_shard_bytes", "shard_bounds"]


def check_shard_bytes(shard_bytes: int) -> None:
    """Refuse a size of shards that is not a positive integer."""
    if isinstance(shard_bytes, bool) or not isinstance(shard_bytes, int) or shard_bytes < 1:
        raise InputError(f"shard_bytes: found {shard_bytes!r}; pass a number of bytes from 1")


def shard_bounds(
    counts: np.ndarray, n_columns: int, value_type: str, shard_bytes: int
) -> np.ndarray:
    """Cut rows into shards of at most ``shard_bytes``, but of one row at least.

    Parameters
    ----------
    counts : ndarray of int, shape (rows,)
        Entries of each row. With duplicates in them shards come out smaller.
    n_columns : int
    value_type : str
    shard_bytes : int

    Returns
    -------
    ndarray of int64, shape (shards + 1,)
        The first row of each shard, and the number of rows.
    """
    entry_bytes = index_dtype(n_columns).itemsize + VALUE_DTYPES[value_type].itemsize
    return np.array(
        partition_rows(counts, shard_bytes, entry_bytes, INDPTR_DTYPE.itemsize), np.int64
    )


@dataclass(frozen=True)
class Parts:
    """Ranges of cells, each with so few different cells that they can be sorted in memory.

    A cell is known by its key, ``row * n_columns + column``.

    Attributes
    ----------
    firsts : ndarray of int64, shape (parts,)
        The key of the first cell of each part.
    n_columns : int
    """

    firsts: np.ndarray
    n_columns: int

    @classmethod
    def of(cls, counts: np.ndarray, n_columns: int, limit: int) -> Parts:
        """Cut between rows so that no part has more than ``limit`` entries.

        A row that has more is cut itself, into ranges of so many columns.

        Parameters
        ----------
        counts : ndarray of int64, shape (rows,)
        n_columns, limit : int

        Raises
        ------
        InputError
            If there are so many rows and columns that int64 cannot number the cells.
        """
        if len(counts) * n_columns >= 2**63:
            raise InputError(
                f"{len(counts)} rows and {n_columns} columns make more cells than 64 bits can "
                "number; leave out users or items without ratings"
            )
        bounds = np.array(partition_rows(counts, limit, 1, 0), np.int64)
        starts = bounds[:-1] * n_columns
        long = starts[counts[bounds[:-1]] > limit]  # such a row is alone in its part
        inside = [np.arange(first, first + n_columns, limit)[1:] for first in long.tolist()]
        return cls(np.sort(np.concatenate([starts, *inside])), n_columns)

    def of_keys(self, keys: np.ndarray) -> np.ndarray:
        """Return the number of the part of each key, in the smallest type that holds it."""
        numbers = np.searchsorted(self.firsts, keys, side="right") - 1
        return numbers.astype(np.min_scalar_type(len(self.firsts)))

    def of_key(self, key: int) -> int:
        """Return the number of the part of one key."""
        return int(np.searchsorted(self.firsts, key, side="right")) - 1
