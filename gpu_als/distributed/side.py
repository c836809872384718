"""One side of the data on the workers of a cluster, and its factors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np
from distributed import Future

from gpu_als.distributed.balance import cut_by_work, homes, work_of_rows
from gpu_als.distributed.cluster import Cluster
from gpu_als.distributed.sources import Source
from gpu_als.distributed.tasks import (
    HowToSolve,
    Piece,
    Told,
    first_piece,
    gram_of,
    join,
    make_part,
    solve,
    sum_grams,
    tell,
)
from gpu_als.objectives import Objective

__all__ = ["DaskSide", "rows_of"]

_NAMES = ("users", "items")


class DaskSide:
    """Ranges of rows, each at home on a worker, and their present factors.

    Parameters
    ----------
    cluster : Cluster
    source : Source
    number : int
        0, the users, or 1, the items.
    objective : Objective
    n_factors : int
    how : HowToSolve
    workers : mapping of str to int
        Address and number of threads of those that are to have the rows.

    Attributes
    ----------
    pieces : list of Future
        The present factors.
    held : list of Told
        Who made each piece, and its size.
    """

    def __init__(
        self,
        cluster: Cluster,
        source: Source,
        number: int,
        objective: Objective,
        n_factors: int,
        how: HowToSolve,
        workers: Mapping[str, int],
    ) -> None:
        self.cluster, self._how = cluster, how
        work = work_of_rows(source.counts()[number], n_factors)
        self._bounds = cut_by_work(work, len(workers))
        self._homes = homes([None] * (len(self._bounds) - 1), workers)
        what = _NAMES[number], objective, n_factors, how.backend, source.shape
        self._parts = []
        for home, (first, last) in zip(self._homes, pairwise(self._bounds), strict=True):
            rows = source.rows(cluster, number, first, last)
            self._parts.append(cluster.submit(make_part, rows, *what, on=home))
        self.pieces: list[Future] = []
        self.held: list[Told] = []
        self._coming: list[Future] = []
        self._is_secure = False

    def put(self, factors: np.ndarray) -> None:
        """Set the factors, shape (n_rows, k)."""
        ranges = zip(self._homes, pairwise(self._bounds), strict=True)
        self._coming = [
            self.cluster.submit(
                first_piece, np.ascontiguousarray(factors[first:last]), self._how, on=home
            )
            for home, (first, last) in ranges
        ]
        self._arrive()
        self._is_secure = True

    def solve(self, fixed: DaskSide) -> list[Told]:
        """Run a half-sweep with the other side held."""
        submit = self.cluster.submit
        self._homes = homes(self._homes, self.cluster.workers())
        gram = None
        if self._how.wants_gram:
            gram = submit(sum_grams, [submit(gram_of, piece) for piece in fixed.pieces])
        self._coming = [
            submit(solve, part, former, fixed.pieces, gram, self._how, on=home)
            for part, former, home in zip(self._parts, self.pieces, self._homes, strict=True)
        ]
        self._is_secure = False
        self._arrive()
        return self.held

    def secure(self) -> None:
        """Have the factors no longer depend on earlier ones, if they do."""
        if not self._is_secure:
            self.put(rows_of(self.cluster, self.pieces))

    def release(self) -> None:
        """Let go of everything that workers hold, even if an error keeps this object."""
        for future in (*self._parts, *self.pieces, *self._coming):
            future.release()

    def _arrive(self) -> None:
        self.held = self.cluster.collect([self.cluster.submit(tell, each) for each in self._coming])
        self.pieces, self._coming = self._coming, []


def rows_of(cluster: Cluster, pieces: Sequence[Future]) -> np.ndarray:
    """Return pieces as one array of this process."""
    found: list[Piece] = cluster.collect(pieces)
    return join([piece.rows for piece in found])
