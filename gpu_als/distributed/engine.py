"""Half-sweeps over the workers of a Dask cluster.

A half-sweep is one task for each range of rows: it gathers the other side, solves its rows and
keeps them. What a fit is at any moment is a graph of such tasks, so whatever is lost with a worker
is computed again by Dask from what is left, and comes out the same. Now and then factors pass
through the client, and the graph begins anew from there, lest a loss cost the work of hours.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
from distributed import Future

from gpu_als.backends import BackendChoice
from gpu_als.backends.stats import HalfSweepStats
from gpu_als.distributed.cluster import Cluster
from gpu_als.distributed.side import DaskSide, rows_of
from gpu_als.distributed.sources import Source
from gpu_als.distributed.tasks import HowToSolve, describe_device
from gpu_als.engine import Factors, Model, Solvers, Sweeps
from gpu_als.errors import BackendError
from gpu_als.objectives import Objective

__all__ = ["DaskEngine"]

_SECURE_SECONDS = 60.0
"""After how much work factors pass through the client: about what a lost worker costs at most."""
_SECURE_SHARE = 0.1
"""The most of the time that this may take."""


_PATIENCE_SECONDS = 5.0
"""How long to wait for workers once the user has interrupted the fit."""


class DaskEngine:
    """The workers of a cluster, each with its ranges of rows of both sides.

    Parameters
    ----------
    cluster : Cluster
    source : Source
        Where the rows come from.
    objective : Objective
    n_factors : int
    choice : BackendChoice
        What each worker is to use; 0 threads means those that Dask gave it.

    Raises
    ------
    BackendError
        A worker cannot use that backend, or this process cannot use the GPU that is asked for.
    ClusterError
        There are no workers.
    """

    def __init__(
        self,
        cluster: Cluster,
        source: Source,
        objective: Objective,
        n_factors: int,
        choice: BackendChoice,
    ) -> None:
        self.cluster, self.source, self.objective = cluster, source, objective
        self.n_factors, self.choice = n_factors, choice
        if choice.backend == "cupy":
            _check_client(choice)
        workers = cluster.workers()
        asked = [cluster.submit(describe_device, choice, on=each) for each in workers]
        try:
            found = Counter(cluster.collect(asked))
        except BackendError as error:
            raise BackendError(f"a worker says: {error}") from error
        self.device = "Dask: " + ", ".join(f"{n} x {device}" for device, n in found.items())

    @contextmanager
    def start(self, model: Model, solvers: Solvers, copies: int) -> Iterator[Sweeps]:
        """See :class:`gpu_als.engine.Engine`."""
        has_base = self.objective.base_weight != 0
        workers = self.cluster.workers()
        sides = []
        for number, solver in enumerate(solvers):
            how = HowToSolve(solver, model.bias, self.choice, has_base)
            what = self.objective, self.n_factors, how
            sides.append(DaskSide(self.cluster, self.source, number, *what, workers))
        try:
            for side, factors in zip(sides, model.factors, strict=True):
                side.put(factors)
            yield _DaskSweeps((sides[0], sides[1]))
        finally:
            for side in sides:
                side.release()


class _DaskSweeps:
    """A state is a list of futures of pieces, or an array, for each side."""

    def __init__(self, sides: tuple[DaskSide, DaskSide]) -> None:
        self._sides, self._cluster = sides, sides[0].cluster
        self._workspace = 0
        self._secure_at = time.monotonic() + _SECURE_SECONDS

    def half_sweep(self, side: int) -> HalfSweepStats:
        solved, fixed = self._sides[side], self._sides[1 - side]
        sent = fixed.held
        total = HalfSweepStats()
        try:
            told = solved.solve(fixed)
        except KeyboardInterrupt:
            # Ctrl-C in a terminal reaches workers that were started there too.
            self._cluster = replace(self._cluster, patience=_PATIENCE_SECONDS)
            raise
        for each in told:
            total.add(each.stats)
            self._workspace = max(self._workspace, each.workspace)
        # What each worker has fetched from others, be it one range of rows that it solved or two.
        solvers = {each.worker for each in solved.held}
        total.transferred = sum(each.nbytes * len(solvers - {each.worker}) for each in sent)
        if time.monotonic() >= self._secure_at:
            self._secure()
        return total

    def _secure(self) -> None:
        begin = time.monotonic()
        for side in self._sides:
            side.secure()
        end = time.monotonic()
        self._secure_at = end + max(_SECURE_SECONDS, (end - begin) / _SECURE_SHARE)

    def state(self) -> tuple[list[Future], list[Future]]:
        return self._sides[0].pieces, self._sides[1].pieces

    def copy(self, state: Any) -> Any:
        return state

    def take(self, factors: Factors) -> Factors:
        return factors

    def arrays(self, state: Any) -> Factors:
        return self.on_host(state)

    def on_host(self, state: Any) -> tuple[np.ndarray, np.ndarray]:
        users, items = (
            each if isinstance(each, np.ndarray) else rows_of(self._cluster, each) for each in state
        )
        return users, items

    def workspace_bytes(self) -> int:
        return self._workspace


def _check_client(choice: BackendChoice) -> None:
    try:
        choice.get()
    except BackendError as error:
        raise BackendError(
            f"this process, which is to have the model, cannot use a GPU ({error}); let each "
            'process take what it has, with use_gpu=None or backend="auto"'
        ) from error
