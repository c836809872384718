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

from gpu_als.data.cutting import cut_rows
from gpu_als.objectives import Implicit, Objective
from gpu_als.row_problem import RowProblem, SparseRows

__all__ = ["Rows", "Side", "WholeRows"]


class Rows(Protocol):
    """The rows of a side, wherever they are kept."""

    @property
    def bounds(self) -> Sequence[int]:
        """Part i has the rows ``bounds[i]`` to ``bounds[i + 1]``."""
        ...

    def part(self, number: int) -> SparseRows | np.ndarray:
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
    rows : SparseRows, or array of shape (n_rows, n_fixed)
    bounds : tuple of int
    """

    rows: SparseRows | np.ndarray
    bounds: tuple[int, ...]

    @classmethod
    def of(cls, rows: SparseRows | np.ndarray) -> WholeRows:
        """Return all rows as one part."""
        return cls(rows, (0, rows.n_rows if isinstance(rows, SparseRows) else len(rows)))

    def part(self, number: int) -> SparseRows | np.ndarray:
        """See :class:`Rows`; no entry is copied."""
        first, last = self.bounds[number : number + 2]
        rows = self.rows
        if isinstance(rows, np.ndarray):
            return rows[first:last]
        ends = rows.indptr[first : last + 1]
        place = slice(int(ends[0]), int(ends[-1]))
        weights = None if rows.weights is None else rows.weights[place]
        return SparseRows(
            ends - ends[0], rows.indices[place], rows.values[place], weights, rows.n_fixed
        )

    def cut(self, most_bytes: int, entry_bytes: int, row_bytes: int) -> WholeRows:
        """See :class:`Rows`."""
        return replace(self, bounds=cut_rows(self.counts(), most_bytes, entry_bytes, row_bytes))

    def counts(self) -> np.ndarray:
        """See :class:`Rows`."""
        if isinstance(self.rows, np.ndarray):
            return np.full(len(self.rows), self.rows.shape[1])
        counts: np.ndarray = np.diff(self.rows.indptr)
        return counts


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
        given = isinstance(held, SparseRows) and held.weights is not None
        return given or isinstance(self.objective, Implicit)

    def place(self, number: int) -> slice:
        """Return which rows a part has."""
        return slice(*self.rows.bounds[number : number + 2])

    def problem(self, number: int) -> RowProblem:
        """Return the problem of a part, on the host."""
        return self.objective.row_problem(
            self.rows.part(number), self.n_factors, self.batch_elements, self.name
        )

    def cut(self, most_bytes: int, entry_bytes: int, row_bytes: int) -> Side:
        """Return the same side in parts; see :meth:`Rows.cut`."""
        return replace(self, rows=self.rows.cut(most_bytes, entry_bytes, row_bytes))
