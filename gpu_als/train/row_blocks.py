"""One side of the data, in parts: row problems made when they are needed.

Where everything fits on the device there is one part, which stays there. Otherwise the parts pass
through it in every half-sweep, one being solved while the next is on its way. A row's solution does
not depend on the part it is in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from gpu_als.core.basis import SideRidge
from gpu_als.core.objectives import Objective, row_problem
from gpu_als.core.problem import RowProblem, SparseRows
from gpu_als.data.csr import partition_rows
from gpu_als.data.shards import Shard

__all__ = ["Rows", "ShardRows", "Side", "WholeRows"]


class Rows(Protocol):
    """The rows of a side, wherever they are kept."""

    @property
    def n_fixed(self) -> int:
        """Number of rows of the other side."""
        ...

    @property
    def bounds(self) -> Sequence[int]:
        """Part i has the rows ``bounds[i]`` to ``bounds[i + 1]``."""
        ...

    def part(self, number: int) -> SparseRows:
        """Return the rows of one part."""
        ...

    def cut(self, most_bytes: int, entry_bytes: int, row_bytes: int) -> Rows:
        """Return the same rows in parts of at most ``most_bytes``, or of one row."""
        ...

    def counts(self) -> np.ndarray:
        """Return the number of entries of each row, int64, shape (n_rows,)."""
        ...


@dataclass(frozen=True)
class WholeRows:
    """Rows in memory.

    Attributes
    ----------
    rows : SparseRows
    bounds : tuple of int
    """

    rows: SparseRows
    bounds: tuple[int, ...]

    @classmethod
    def of(cls, rows: SparseRows) -> WholeRows:
        """Return all rows as one part."""
        return cls(rows, (0, rows.n_rows))

    def part(self, number: int) -> SparseRows:
        """See :class:`Rows`; no entry is copied."""
        return self.rows.between(*self.bounds[number : number + 2])

    @property
    def n_fixed(self) -> int:
        """See :class:`Rows`."""
        return self.rows.n_fixed

    def cut(self, most_bytes: int, entry_bytes: int, row_bytes: int) -> WholeRows:
        """See :class:`Rows`."""
        return replace(
            self, bounds=partition_rows(self.counts(), most_bytes, entry_bytes, row_bytes)
        )

    def counts(self) -> np.ndarray:
        """See :class:`Rows`."""
        return self.rows.counts


@dataclass(frozen=True)
class Side:
    """One side's row problems.

    Attributes
    ----------
    name : str
        "users" or "items".
    objective : Objective
    rows : Rows
    n_factors : int
    batch_elements : int
    """

    name: str
    objective: Objective
    rows: Rows
    n_factors: int
    batch_elements: int

    @property
    def n_parts(self) -> int:
        """Number of parts."""
        return len(self.rows.bounds) - 1

    @property
    def is_weighted(self) -> bool:
        """Whether entries have weights besides their targets, which those of iALS are too."""
        held = self.rows.rows if isinstance(self.rows, WholeRows) else None
        return (held is not None and held.weights is not None) or self.objective.weighted

    @property
    def has_base(self) -> bool:
        """Whether rows share a base."""
        return self.objective.base_weight != 0 or self.objective.prior(self.name).base is not None

    def place(self, number: int) -> slice:
        """Return which rows a part has."""
        return slice(*self.rows.bounds[number : number + 2])

    def problem(self, number: int) -> RowProblem:
        """Return the problem of a part, on the host."""
        rows = self.rows.part(number)
        return row_problem(self.objective, rows, self.n_factors, self.batch_elements, self.name)

    def ridge(self) -> SideRidge:
        """Return the ridges of all rows."""
        n_fixed = self.rows.n_fixed
        return SideRidge.of(self.objective.ridge(self.rows.counts(), n_fixed, self.name))

    def cut(self, most_bytes: int, entry_bytes: int, row_bytes: int) -> Side:
        """Return the same side in parts; see :meth:`Rows.cut`."""
        return replace(self, rows=self.rows.cut(most_bytes, entry_bytes, row_bytes))


_PART_BYTES = 1 << 27
"""Of a part on the host: two of them are in memory, one in use and one being read."""
_ENTRY_BYTES = 12
_ROW_BYTES = 40


@dataclass(frozen=True, eq=False)
class ShardRows:
    """Consecutive rows of a side that lies on disk; see :class:`gpu_als.train.row_blocks.Rows`.

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
        """See :class:`Rows`; int32 and float32 arrays may lie on disk still."""
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
        """See :class:`gpu_als.train.row_blocks.Rows`; no part is larger than those of :meth:`of`.

        A part has rows of one shard, or all rows of several small ones: what is put together from
        several is copied.
        """
        how = min(most_bytes, _PART_BYTES), entry_bytes, row_bytes
        first, last = self.bounds[0], self.bounds[-1]

        def cut_between(begin: int, end: int) -> list[int]:
            cuts = partition_rows(self.entries_of_rows[begin - first : end - first], *how)
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
        """See :class:`gpu_als.train.row_blocks.Rows`."""
        return self.entries_of_rows


def _joined(arrays: list[np.ndarray]) -> np.ndarray:
    """Return arrays as one, and a single one as it is."""
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
