"""One side of the data on the workers of a cluster, and its factors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from distributed import Future

from gpu_als.core.objectives import Objective
from gpu_als.dask.cluster import Cluster
from gpu_als.dask.nccl import Group
from gpu_als.dask.placement import cut_by_work, homes, work_of_rows
from gpu_als.dask.sources import Source
from gpu_als.dask.tasks import (
    HowToSolve,
    Piece,
    Told,
    first_piece,
    gram_of,
    is_there,
    join,
    make_part,
    rows_of_piece,
    solve,
    solve_together,
    sum_grams,
    tell,
)

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
    bounds : tuple of int
        Where the ranges begin, and the number of rows.
    homes : list of str
        The worker of each range.
    pieces : list of Future
        The present factors.
    held : list of Told
        Who made each piece, and its size.
    group : Group or None
        Workers that exchange factors by NCCL, each with one range, in the order of their ranks.
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
        self.bounds = cut_by_work(work, len(workers))
        self.homes = homes([None] * (len(self.bounds) - 1), workers)
        what = _NAMES[number], objective, n_factors, how.backend, source.shape
        self._parts = []
        for home, (first, last) in zip(self.homes, pairwise(self.bounds), strict=True):
            rows = source.rows(cluster, number, first, last)
            self._parts.append(cluster.submit(make_part, rows, *what, on=home))
        self.pieces: list[Future] = []
        self.held: list[Told] = []
        self._coming: list[Future] = []
        self._is_secure = False
        self.group: Group | None = None

    def load(self) -> None:
        """Wait until every worker has its rows."""
        self._collect([self.cluster.submit(is_there, part) for part in self._parts])

    def put(self, factors: np.ndarray) -> None:
        """Set the factors, shape (n_rows, k)."""
        together = self.group is not None
        ranges = zip(self.homes, pairwise(self.bounds), strict=True)
        self._coming = [
            self.cluster.submit(
                first_piece,
                np.ascontiguousarray(factors[first:last]),
                self._how,
                together,
                on=home,
                only=together,
            )
            for home, (first, last) in ranges
        ]
        self._arrive()
        self._is_secure = True

    def solve(self, fixed: DaskSide) -> list[Told]:
        """Run a half-sweep with the other side held."""
        self._coming = self._begin(fixed)
        self._is_secure = False
        self._arrive()
        return self.held

    def _begin(self, fixed: DaskSide) -> list[Future]:
        """Submit a half-sweep. An error of it finds no Gram here that it could keep on a worker."""
        submit = self.cluster.submit
        gram = None
        if self._how.wants_gram:
            gram = submit(sum_grams, fixed._of_each(gram_of, fixed.pieces))
        if self.group is None:
            self.homes = homes(self.homes, self.cluster.workers())
            return [
                submit(solve, part, former, fixed.pieces, gram, self._how, on=home)
                for part, former, home in zip(self._parts, self.pieces, self.homes, strict=True)
            ]
        exchange = self._how, self.group.token, fixed.bounds
        return [
            submit(solve_together, part, former, own, gram, *exchange, on=home, only=True)
            for part, former, own, home in zip(
                self._parts, self.pieces, fixed.pieces, self.homes, strict=True
            )
        ]

    def rows(self) -> np.ndarray:
        """Return the present factors."""
        if self.group is None:
            return rows_of(self.cluster, self.pieces)
        return join(self._collect(self._of_each(rows_of_piece, self.pieces)))

    def secure(self) -> None:
        """Have the factors no longer depend on earlier ones, if they do."""
        if not self._is_secure:
            self.put(self.rows())

    def release(self) -> None:
        """Let go of everything that workers hold, even if an error keeps this object."""
        for future in (*self._parts, *self.pieces, *self._coming):
            future.release()

    def _arrive(self) -> None:
        self.held = self._collect(self._of_each(tell, self._coming))
        self.pieces, self._coming = self._coming, []

    def _of_each(self, function: Callable[[Piece], Any], pieces: Sequence[Future]) -> list[Future]:
        """Have a function of each piece, where the piece is; one on a GPU stays there."""
        return [
            self.cluster.submit(function, piece, on=home, only=self.group is not None)
            for piece, home in zip(pieces, self.homes, strict=True)
        ]

    def _collect(self, futures: Sequence[Future]) -> list[Any]:
        return self.cluster.collect(futures, needed=self.group.members if self.group else ())


def rows_of(cluster: Cluster, pieces: Sequence[Future]) -> np.ndarray:
    """Return pieces on the host as one array of this process."""
    found: list[Piece] = cluster.collect(pieces)
    return join([piece.rows for piece in found])
