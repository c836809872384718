"""The rows of one side, read from shards on disk part by part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from gpu_als.data.cutting import cut_rows
from gpu_als.data.shards import Shard
from gpu_als.row_problem import SparseRows

__all__ = ["ShardRows"]

_PART_BYTES = 1 << 27
"""Of a part on the host: two of them are in memory, one in use and one being read."""
_ENTRY_BYTES = 12
_ROW_BYTES = 40


@dataclass(frozen=True, eq=False)
class ShardRows:
    """Consecutive rows of a side that lies on disk; see :class:`gpu_als.side.Rows`.

    Attributes
    ----------
    shards : tuple of Shard
        Those that hold the rows, in order.
    n_fixed : int
        Number of rows of the other side.
    dtype : dtype
        That the values are wanted in.
    entries_of_rows : int64 array, shape (n_rows,)
    bounds : tuple of int
        Part i has the rows ``bounds[i]`` to ``bounds[i + 1]`` of the side, which need not begin
        with its first.
    """

    shards: tuple[Shard, ...]
    n_fixed: int
    dtype: np.dtype
    entries_of_rows: np.ndarray
    bounds: tuple[int, ...]

    @classmethod
    def of(cls, shards: Sequence[Shard], n_fixed: int, dtype: np.dtype) -> ShardRows:
        """Return all rows, in parts that fit in the memory of most machines many times."""
        counts = np.concatenate([np.diff(shard.load()[2].indptr) for shard in shards])
        every = cls(tuple(shards), n_fixed, np.dtype(dtype), counts, (0, len(counts)))
        return every.cut(_PART_BYTES, _ENTRY_BYTES, _ROW_BYTES)

    def part(self, number: int) -> SparseRows:
        """See :class:`gpu_als.side.Rows`; int32 and float32 arrays may lie on disk still."""
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
        return SparseRows(
            np.concatenate(indptr), _joined(indices), _joined(values), None, self.n_fixed
        )

    def cut(self, most_bytes: int, entry_bytes: int, row_bytes: int) -> ShardRows:
        """See :class:`gpu_als.side.Rows`; no part is larger than those of :meth:`of`.

        A part has rows of one shard, or all rows of several small ones: what is put together from
        several is copied.
        """
        how = min(most_bytes, _PART_BYTES), entry_bytes, row_bytes
        first, last = self.bounds[0], self.bounds[-1]

        def cut_between(begin: int, end: int) -> list[int]:
            cuts = cut_rows(self.entries_of_rows[begin - first : end - first], *how)
            return [begin + cut for cut in cuts[1:]]

        def are_one_part(begin: int, end: int) -> bool:
            return len(cut_between(begin, end)) == 1

        bounds = [first]
        for shard in self.shards:
            begin, end = max(shard.start, first), min(shard.stop, last)
            if are_one_part(bounds[-1], end):
                continue  # whole shards so far, which may become more
            if begin > bounds[-1]:
                bounds.append(begin)
            if not are_one_part(begin, end):
                bounds += cut_between(begin, end)
        if bounds[-1] < last:
            bounds.append(last)
        return replace(self, bounds=tuple(bounds))

    def between(self, first: int, last: int) -> ShardRows:
        """Return rows ``first`` to ``last`` of the side, in parts of the usual size."""
        shards = tuple(each for each in self.shards if each.start < last and first < each.stop)
        counts = self.entries_of_rows[first - self.bounds[0] : last - self.bounds[0]]
        some = ShardRows(shards, self.n_fixed, self.dtype, counts, (first, last))
        return some.cut(_PART_BYTES, _ENTRY_BYTES, _ROW_BYTES)

    def counts(self) -> np.ndarray:
        """See :class:`gpu_als.side.Rows`."""
        return self.entries_of_rows


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    """Return arrays as one, and a single one as it is."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
