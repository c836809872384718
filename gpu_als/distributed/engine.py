"""Half-sweeps over the workers of a Dask cluster.

A half-sweep is one task for each range of rows: it gathers the other side, solves its rows and
keeps them. What a fit is at any moment is a graph of such tasks, so whatever is lost with a worker
is computed again by Dask from what is left, and comes out the same.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import dask
import numpy as np
from distributed import Client, Future, wait
from distributed.comm import CommClosedError
from distributed.scheduler import KilledWorker

from gpu_als.backends import BackendChoice
from gpu_als.backends.stats import HalfSweepStats
from gpu_als.distributed.balance import cut_by_work, homes, work_of_rows
from gpu_als.distributed.sources import Source
from gpu_als.distributed.tasks import (
    HowToSolve,
    Piece,
    Told,
    describe_device,
    first_piece,
    gram_of,
    join,
    make_part,
    solve,
    sum_grams,
    tell,
)
from gpu_als.engine import Factors, Model, Solvers, Sweeps
from gpu_als.errors import BackendError, ClusterError
from gpu_als.objectives import Objective

__all__ = ["DaskEngine"]

_LOOK_SECONDS = 2.0
"""How often to look whether the cluster is still there."""
_PATIENCE_SECONDS = 60.0
"""How long to wait for a worker when there is none."""
_HINT = (
    "with fit(..., checkpoint=FILE) the state of the last iteration is in that file, and "
    "resume=True goes on from it"
)
_SIDES = ("users", "items")


@contextmanager
def told_plainly() -> Iterator[None]:
    """Turn what a cluster can die of into errors that say so."""
    try:
        yield
    except KilledWorker as error:
        raise ClusterError(
            f"workers died again and again over one task ({error.task}), most likely for want of "
            "memory; give them more memory, add workers, or use fewer factors. Then " + _HINT
        ) from error
    except MemoryError as error:
        raise ClusterError(
            f"a worker ran out of memory ({error}); give it more memory, add workers, or use fewer "
            "factors. Then " + _HINT
        ) from error
    except (CancelledError, CommClosedError, TimeoutError, OSError) as error:
        raise ClusterError(
            f"the cluster was lost ({type(error).__name__}: {error}); {_HINT}"
        ) from error


class DaskEngine:
    """The workers of a cluster, each with its ranges of rows of both sides.

    Parameters
    ----------
    client : distributed.Client
    source : Source
        Where the rows come from.
    objective : Objective
    n_factors : int
    choice : BackendChoice
        What each worker is to use; 0 threads means those that Dask gave it.

    Raises
    ------
    BackendError
        A worker cannot use that backend.
    ClusterError
        There are no workers.
    """

    def __init__(
        self,
        client: Client,
        source: Source,
        objective: Objective,
        n_factors: int,
        choice: BackendChoice,
    ) -> None:
        self.client, self.source, self.objective = client, source, objective
        self.n_factors, self.choice = n_factors, choice
        with told_plainly():
            workers = wait_for_workers(client)
            asked = [
                client.submit(
                    describe_device, choice, workers=[each], allow_other_workers=True, pure=False
                )
                for each in workers
            ]
            try:
                found = Counter(collect(client, asked))
            except BackendError as error:
                raise BackendError(f"a worker says: {error}") from error
        self.n_workers = len(workers)
        self.device = "Dask: " + ", ".join(f"{n} x {device}" for device, n in found.items())

    @contextmanager
    def start(self, model: Model, solvers: Solvers, copies: int) -> Iterator[Sweeps]:
        """See :class:`gpu_als.engine.Engine`."""
        with told_plainly(), _large_graphs():
            sweeps = _DaskSweeps(self, model, solvers)
        yield sweeps


class _DaskSweeps:
    """Lists of futures of pieces; a new list for each half-sweep."""

    def __init__(self, engine: DaskEngine, model: Model, solvers: Solvers) -> None:
        self._client = client = engine.client
        has_base = engine.objective.base_weight != 0
        self._how = [HowToSolve(solver, model.bias, engine.choice, has_base) for solver in solvers]
        self._workspace = 0
        self._parts: list[list[Future]] = []
        self._homes: list[list[str]] = []
        self._pieces: list[list[Future]] = []
        self._solved: list[list[tuple[str, int]]] = []  # who has solved each piece; its bytes
        workers = wait_for_workers(client)
        for side, (name, counts) in enumerate(zip(_SIDES, engine.source.counts(), strict=True)):
            work = work_of_rows(counts, engine.n_factors)
            bounds = cut_by_work(work, engine.n_workers)
            places = homes([None] * (len(bounds) - 1), workers)
            what = name, engine.objective, engine.n_factors, engine.choice, engine.source.shape
            parts, pieces, solved = [], [], []
            for number, (first, last) in enumerate(pairwise(bounds)):
                at = {"workers": [places[number]], "allow_other_workers": True, "pure": False}
                rows = engine.source.rows(client, side, first, last)
                factors = np.ascontiguousarray(model.factors[side][first:last])
                parts.append(client.submit(make_part, rows, *what, **at))
                pieces.append(client.submit(first_piece, factors, self._how[side], **at))
                solved.append((places[number], factors.nbytes))
            self._parts.append(parts)
            self._homes.append(places)
            self._pieces.append(pieces)
            self._solved.append(solved)
        # Former pieces stay for one half-sweep, to compute the present ones from them again.
        self._former = list(self._pieces)

    @told_plainly()
    def half_sweep(self, side: int) -> HalfSweepStats:
        client, how = self._client, self._how[side]
        self._homes[side] = homes(self._homes[side], wait_for_workers(client))
        fixed, gram = self._pieces[1 - side], None
        if how.wants_gram:
            grams = [client.submit(gram_of, piece, pure=False) for piece in fixed]
            gram = client.submit(sum_grams, grams, pure=False)
        pieces, tellers = [], []
        for part, former, home in zip(
            self._parts[side], self._pieces[side], self._homes[side], strict=True
        ):
            at = {"workers": [home], "allow_other_workers": True, "pure": False}
            piece = client.submit(solve, part, former, fixed, gram, how, **at)
            pieces.append(piece)
            tellers.append(client.submit(tell, piece, **at))
        told: list[Told] = collect(client, tellers)
        self._former[side], self._pieces[side] = self._pieces[side], pieces
        total = HalfSweepStats()
        for each in told:
            total.add(each.stats)
            self._workspace = max(self._workspace, each.workspace)
        total.transferred = self._gathered(1 - side, {each.worker for each in told})
        self._solved[side] = [(each.worker, each.nbytes) for each in told]
        return total

    def _gathered(self, fixed: int, workers: set[str]) -> int:
        """Return the bytes of the fixed side that workers had to fetch from others."""
        return sum(nbytes * len(workers - {owner}) for owner, nbytes in self._solved[fixed])

    def state(self) -> tuple[list[Future], list[Future]]:
        return self._pieces[0], self._pieces[1]

    def copy(self, state: Any) -> Any:
        return state

    def take(self, factors: Factors) -> Factors:
        return factors

    def arrays(self, state: Any) -> Factors:
        return self.on_host(state)

    @told_plainly()
    def on_host(self, state: Any) -> tuple[np.ndarray, np.ndarray]:
        users, items = (self._whole(each) for each in state)
        return users, items

    def _whole(self, pieces: list[Future] | np.ndarray) -> np.ndarray:
        if isinstance(pieces, np.ndarray):
            return pieces
        found: list[Piece] = collect(self._client, pieces)
        return join([piece.rows for piece in found])

    def workspace_bytes(self) -> int:
        return self._workspace


def wait_for_workers(client: Client) -> dict[str, int]:
    """Return the address and the number of threads of each worker; wait a while if there is none.

    Raises
    ------
    ClusterError
        None came.
    """
    until = time.monotonic() + _PATIENCE_SECONDS
    while not (found := client.nthreads()):
        if time.monotonic() > until:
            raise ClusterError(f"the cluster has no workers (any more); {_HINT}")
        time.sleep(_LOOK_SECONDS / 10)
    workers: dict[str, int] = found
    return workers


def collect(client: Client, futures: Sequence[Future]) -> list[Any]:
    """Return the results of futures, and see meanwhile whether there is anyone to compute them."""
    pending = set(futures)
    while pending:
        try:
            pending = wait(pending, timeout=_LOOK_SECONDS).not_done
        except TimeoutError:
            wait_for_workers(client)
    found: list[Any] = client.gather(list(futures))
    return found


@contextmanager
def _large_graphs() -> Iterator[None]:
    """Send data in graphs without a warning: lost workers' rows are made again from there."""
    with dask.config.set({"distributed.admin.large-graph-warning-threshold": "1 PiB"}):
        yield
