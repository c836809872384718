"""One side of the interactions as blocks of rows, wherever they lie: what a fit is given twice.

A row's solution does not depend on the block it is in, so blocks are cut as memory wants it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

import numpy as np

from gpu_als.core.problem import SparseRows
from gpu_als.data.csr import as_csr, partition_rows
from gpu_als.data.shards import Shard

__all__ = [
    "MemoryRows", "RowBlocks", "ShardRows", "add_hashes", "hash_arrays", "hash_entries", "join",
]  # fmt: skip


class RowBlocks(Protocol):
    """The rows of one side, or consecutive ones of them, in blocks.

    Attributes
    ----------
    bounds : tuple of int
        Block i has the rows ``bounds[i]`` to ``bounds[i + 1]`` of the side. The first bound is
        above 0 where rows of the side are left out.
    n_fixed : int
        Number of rows of the other side.
    nbytes : int
        Memory of this process that the rows take: 0 where they lie elsewhere.
    weighted : bool
        Entries have sample weights.
    """

    @property
    def bounds(self) -> tuple[int, ...]: ...

    @property
    def n_fixed(self) -> int: ...

    @property
    def nbytes(self) -> int: ...

    @property
    def weighted(self) -> bool: ...

    def block(self, number: int) -> SparseRows:
        """Return the rows of one block."""
        ...

    def counts(self) -> np.ndarray:
        """Return the number of entries of each row, int64, shape (n_rows,); loads no block."""
        ...

    def partition(self, max_bytes: int, entry_bytes: int, row_bytes: int) -> Self:
        """Return the same rows in blocks of at most ``max_bytes``, or of one row."""
        ...

    def between(self, first: int, last: int) -> Any:
        """Return rows ``first`` to ``last`` of the side, as they are sent to a worker."""
        ...

    def astype(self, dtype: np.dtype) -> Self:
        """Return the same rows with their values in another dtype."""
        ...


@dataclass(frozen=True, eq=False)
class MemoryRows:
    """Rows in memory; see :class:`RowBlocks`.

    Attributes
    ----------
    rows : SparseRows
        The first of them is row ``bounds[0]`` of the side.
    bounds : tuple of int
    """

    rows: SparseRows
    bounds: tuple[int, ...]

    @classmethod
    def of(cls, rows: SparseRows, first: int = 0) -> MemoryRows:
        """Return all rows as one block."""
        return cls(rows, (first, first + rows.n_rows))

    @property
    def n_fixed(self) -> int:
        """Number of rows of the other side."""
        return self.rows.n_fixed

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        arrays = vars(self.rows).values()
        return sum(each.nbytes for each in arrays if isinstance(each, np.ndarray))

    @property
    def weighted(self) -> bool:
        """Whether entries have sample weights."""
        return self.rows.weights is not None

    def block(self, number: int) -> SparseRows:
        """Return the rows of one block; no entry is copied."""
        begin = self.bounds[0]
        first, last = self.bounds[number : number + 2]
        return self.rows.between(first - begin, last - begin)

    def counts(self) -> np.ndarray:
        """Return the number of entries of each row; all cells of a dense one."""
        if self.rows.dense is not None:
            return np.full(self.rows.n_rows, self.n_fixed)
        return self.rows.counts

    def partition(self, max_bytes: int, entry_bytes: int, row_bytes: int) -> MemoryRows:
        """Return the same rows in other blocks."""
        cuts = partition_rows(self.counts(), max_bytes, entry_bytes, row_bytes)
        return replace(self, bounds=tuple(self.bounds[0] + cut for cut in cuts))

    def between(self, first: int, last: int) -> MemoryRows:
        """Return copies of some rows, which the user may not change any more."""
        rows = self.rows.between(first - self.bounds[0], last - self.bounds[0])
        copies = rows.indices.copy(), rows.values.copy()
        return MemoryRows.of(replace(rows, indices=copies[0], values=copies[1]), first)

    def astype(self, dtype: np.dtype) -> MemoryRows:
        """Return the same rows with other values; refuses those that the dtype cannot hold."""
        if dtype == self.rows.values.dtype:
            return self
        matrix = as_csr(self.rows.to_csr(), dtype=dtype)
        return replace(self, rows=SparseRows.from_csr(matrix, self.rows.weights))


_BLOCK_BYTES = 1 << 27
"""Of a block read from disk: two of them are in memory, one in use and one being read."""
_ENTRY_BYTES = 12
_ROW_BYTES = 40


@dataclass(frozen=True, eq=False)
class ShardRows:
    """Rows that lie on disk; see :class:`RowBlocks`.

    Attributes
    ----------
    shards : tuple of Shard
        Those that hold the rows, in order.
    n_fixed : int
    dtype : dtype
        That the values are wanted in.
    entries_of_rows : int64 array, shape (n_rows,)
    bounds : tuple of int
    """

    shards: tuple[Shard, ...]
    n_fixed: int
    dtype: np.dtype
    entries_of_rows: np.ndarray
    bounds: tuple[int, ...]

    nbytes, weighted = 0, False

    @classmethod
    def of(cls, shards: Sequence[Shard], dtype: np.dtype) -> ShardRows:
        """Return all rows, in blocks that fit in the memory of most machines many times."""
        counts = np.concatenate([np.diff(shard.load()[2].indptr) for shard in shards])
        bounds = 0, len(counts)
        every = cls(tuple(shards), shards[0].n_columns, np.dtype(dtype), counts, bounds)
        return every.partition(_BLOCK_BYTES, _ENTRY_BYTES, _ROW_BYTES)

    def block(self, number: int) -> SparseRows:
        """Return the rows of one block; int32 and float32 arrays may lie on disk still."""
        first, last = self.bounds[number : number + 2]
        indptr, indices, values = [np.zeros(1, np.int64)], [], []
        for shard in self.shards:
            if shard.start < last and first < shard.stop:
                rows = max(first, shard.start) - shard.start, min(last, shard.stop) - shard.start
                ends = shard.starts(rows[0], rows[1] + 1)
                place = int(ends[0]), int(ends[-1])
                indptr.append(ends[1:] - ends[0] + indptr[-1][-1])
                indices.append(shard.columns(*place))
                values.append(shard.decode(shard.stored(*place)).astype(self.dtype, copy=False))
        return SparseRows(np.concatenate(indptr), join(indices), join(values), None, self.n_fixed)

    def counts(self) -> np.ndarray:
        """Return the number of entries of each row."""
        return self.entries_of_rows

    def partition(self, max_bytes: int, entry_bytes: int, row_bytes: int) -> ShardRows:
        """Return the same rows in other blocks, none of them larger than those of :meth:`of`.

        A block has rows of one shard, or all rows of several small ones: what is put together
        from several is copied.
        """
        how = min(max_bytes, _BLOCK_BYTES), entry_bytes, row_bytes
        first, last = self.bounds[0], self.bounds[-1]

        def cut_between(begin: int, end: int) -> list[int]:
            cuts = partition_rows(self.entries_of_rows[begin - first : end - first], *how)
            return [begin + cut for cut in cuts[1:]]

        def are_one_block(begin: int, end: int) -> bool:
            return len(cut_between(begin, end)) == 1

        bounds = [first]
        for shard in self.shards:
            begin, end = max(shard.start, first), min(shard.stop, last)
            if are_one_block(bounds[-1], end):
                continue  # whole shards so far, which may become more
            if begin > bounds[-1]:
                bounds.append(begin)
            if not are_one_block(begin, end):
                bounds += cut_between(begin, end)
        if bounds[-1] < last:
            bounds.append(last)
        return replace(self, bounds=tuple(bounds))

    def between(self, first: int, last: int) -> ShardRows:
        """Return some rows, of which nothing is read yet."""
        shards = tuple(each for each in self.shards if each.start < last and first < each.stop)
        counts = self.entries_of_rows[first - self.bounds[0] : last - self.bounds[0]]
        some = ShardRows(shards, self.n_fixed, self.dtype, counts, (first, last))
        return some.partition(_BLOCK_BYTES, _ENTRY_BYTES, _ROW_BYTES)

    def astype(self, dtype: np.dtype) -> ShardRows:
        """Return the same rows, to be read as another dtype."""
        return replace(self, dtype=np.dtype(dtype))


def join(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """Return arrays as one, and a single one as it is."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


# Fingerprints

_HASHED_AT_ONCE = 1 << 20
"""Elements of an array, so that it is never copied as a whole."""


def hash_arrays(*arrays: np.ndarray | None) -> str:
    """Return a digest of the values of one-dimensional arrays; "none" where all are None.

    Integers are the same in every type that holds them. None stands for no array.
    """
    if all(array is None for array in arrays):
        return "none"
    total = hashlib.blake2b(digest_size=8)
    for array in arrays:
        if array is None:
            continue
        kind = array.dtype
        if kind.kind in "iu":
            kind = np.dtype(np.int32 if array.max(initial=0) < 2**31 else np.int64)
        total.update(f"{kind.name}{len(array)}".encode())
        for start in range(0, len(array), _HASHED_AT_ONCE):
            part = array[start : start + _HASHED_AT_ONCE]
            total.update(np.ascontiguousarray(part, kind).data)
    return total.hexdigest()


def hash_entries(first_row: int, rows: SparseRows) -> int:
    """Return a hash of rows' entries, from 0 to 2^64 - 1.

    It is the sum of one hash for each entry, so it does not matter how a matrix is cut into blocks
    of rows, nor in which types they are held, if these hold the values exactly.

    Parameters
    ----------
    first_row : int
        The number of the first of these rows in the matrix.
    rows : SparseRows
    """
    total = 0
    for start in range(0, len(rows.indices), _HASHED_AT_ONCE):
        stop = min(start + _HASHED_AT_ONCE, len(rows.indices))
        first, last = np.searchsorted(rows.indptr, (start, stop - 1), side="right") - 1
        counts = np.diff(np.clip(rows.indptr[first : last + 2], start, stop))
        numbers = np.arange(first_row + first, first_row + last + 1, dtype=np.uint64)
        mixed = np.repeat(numbers * np.uint64(0x9E3779B97F4A7C15), counts)
        mixed ^= rows.indices[start:stop].astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
        mixed ^= rows.values[start:stop].astype(np.float64).view(np.uint64)
        for shift, factor in ((31, 0xBF58476D1CE4E5B9), (29, 0x94D049BB133111EB)):
            mixed ^= mixed >> np.uint64(shift)
            mixed *= np.uint64(factor)
        total += int(mixed.sum(dtype=np.uint64))
    return total % 2**64


def add_hashes(hashes: Iterable[int]) -> str:
    """Return the fingerprint of a matrix, given the hashes of its blocks of rows."""
    return f"{sum(hashes) % 2**64:016x}"
