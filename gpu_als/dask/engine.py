"""Half-sweeps over the workers of a Dask cluster.

A half-sweep is one task for each range of rows: it gathers the other side, solves its rows and
keeps them. What a fit is at any moment is a graph of such tasks, so whatever is lost with a worker
is computed again by Dask from what is left, and comes out the same. Now and then factors pass
through the client, and the graph begins anew from there, so that a loss does not cost hours.

Where all workers have a GPU of their own and NCCL, a half-sweep gathers the other side by it. Then
tasks need one another at the same time, and none can be computed again by itself. If one is lost,
the fit returns to the factors that passed through the client last, and continues from there with
tasks of the first kind, which find the same.
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from typing import Any, TypeVar

import dask
import numpy as np
from distributed import Future

from gpu_als.backends import BackendChoice
from gpu_als.core.objectives import Objective
from gpu_als.core.stats import HalfSweepStats
from gpu_als.dask.cluster import Cluster, ExchangeError, partition_by_work, place, work_of_rows
from gpu_als.dask.nccl import Group
from gpu_als.dask.tasks import (
    Device,
    FactorBlock,
    HowToSolve,
    Metadata,
    describe_device,
    first_block,
    host_rows,
    is_there,
    make_side,
    metadata,
    solve,
    solve_together,
)
from gpu_als.errors import BackendError, ClusterWarning
from gpu_als.train.engine import SIDES, Factors, Model, Solvers, Sweeps, side_ridge
from gpu_als.train.row_blocks import RowBlocks, join

__all__ = ["DaskEngine", "DaskSide"]

T = TypeVar("T")

_SECURE_SECONDS = 60.0
"""After how much work factors pass through the client: about what a lost worker costs at most."""
_SECURE_SHARE = 0.1
"""The most of the time that this may take."""
_TIMEOUT_SECONDS = 5.0
"""How long to wait for workers once the user has interrupted the fit."""


class DaskEngine:
    """The workers of a cluster, each with its ranges of rows of both sides.

    Parameters
    ----------
    cluster : Cluster
    both : pair of RowBlocks
        Those of the users and of the items.
    objective : Objective
    n_factors : int
        Columns of the factors, biases included.
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
        both: tuple[RowBlocks, RowBlocks],
        objective: Objective,
        n_factors: int,
        choice: BackendChoice,
    ) -> None:
        self.cluster, self.both, self.objective = cluster, both, objective
        self.n_factors, self.choice = n_factors, choice
        if choice.backend == "cupy":
            _check_client(choice)
        workers = cluster.workers()
        asked = [cluster.submit(describe_device, choice, on=each) for each in workers]
        try:
            found: list[Device] = cluster.collect(asked)
        except BackendError as error:
            raise BackendError(f"a worker says: {error}") from error
        self._gpus = {device.worker: device.gpu for device in found}
        number = Counter(device.name for device in found)
        self.device = "Dask: " + ", ".join(f"{n} x {name}" for name, n in number.items())

    @contextmanager
    def start(self, model: Model, solvers: Solvers, copies: int) -> Iterator[Sweeps]:
        """Give each worker its rows and the factors of ``model``, and begin a fit from them."""
        workers = self.cluster.workers()
        shape = len(model.user_factors), len(model.item_factors)
        sides = []
        for name, rows, solver in zip(SIDES, self.both, solvers, strict=True):
            how = HowToSolve(solver, model.bias, self.choice, shape)
            what = name, rows, self.objective, self.n_factors, how
            sides.append(DaskSide(self.cluster, *what, workers))
        sweeps = _DaskSweeps((sides[0], sides[1]))
        try:
            sweeps.begin(model.factors, self._form_group(sides))
            yield sweeps
        finally:
            sweeps.end()

    def _form_group(self, sides: Sequence[DaskSide]) -> Group | None:
        """Have workers exchange factors by NCCL, if each has a GPU and a range of both sides."""
        members = sides[0].placement
        gpus = {self._gpus.get(member) for member in members}
        able = None not in gpus and len(gpus) == len(members) > 1
        if not able or sides[1].placement != members or not dask.config.get("gpu-als.nccl", True):
            return None
        for side in sides:
            side.load()  # from then on workers do the same at the same time
        try:
            return Group.form(self.cluster, members, self.choice)
        except ExchangeError as error:
            _warn(error)
            return None


class DaskSide:
    """Ranges of rows of one side, each on a worker, and their present factors.

    Parameters
    ----------
    cluster : Cluster
    name : str
        "users" or "items".
    rows : RowBlocks
    objective : Objective
    n_factors : int
    how : HowToSolve
    workers : mapping of str to int
        Address and number of threads of those that are to have the rows.

    Attributes
    ----------
    bounds : tuple of int
        Where the ranges begin, and the number of rows.
    placement : list of str
        The worker of each range.
    factors : list of Future
        The present factors, a block for each range.
    known : list of Metadata
        Who made each block, and its size.
    group : Group or None
        Workers that exchange factors by NCCL, each with one range, in the order of their ranks.
    """

    def __init__(
        self,
        cluster: Cluster,
        name: str,
        rows: RowBlocks,
        objective: Objective,
        n_factors: int,
        how: HowToSolve,
        workers: Mapping[str, int],
    ) -> None:
        self.cluster, self._how = cluster, how
        self.bounds = partition_by_work(work_of_rows(rows.counts(), n_factors), len(workers))
        self.placement = place([None] * (len(self.bounds) - 1), workers)
        ridge = side_ridge(objective, rows, name)
        self._sides = [
            cluster.submit(
                make_side, name, objective, rows.between(first, last), n_factors, ridge, on=worker
            )
            for worker, (first, last) in zip(self.placement, pairwise(self.bounds), strict=True)
        ]
        self.factors: list[Future] = []
        self.known: list[Metadata] = []
        self._coming: list[Future] = []
        self._is_secure = False
        self.group: Group | None = None

    def load(self) -> None:
        """Wait until every worker has its rows."""
        self._collect([self.cluster.submit(is_there, side) for side in self._sides])

    def put(self, factors: np.ndarray) -> None:
        """Set the factors, shape (n_rows, k)."""
        together = self.group is not None
        ranges = zip(self.placement, pairwise(self.bounds), strict=True)
        self._coming = [
            self.cluster.submit(
                first_block,
                np.ascontiguousarray(factors[first:last]),
                self._how,
                together,
                on=worker,
                only=together,
            )
            for worker, (first, last) in ranges
        ]
        self._receive()
        self._is_secure = True

    def solve(self, fixed: DaskSide) -> list[Metadata]:
        """Run a half-sweep with the other side held."""
        submit, how = self.cluster.submit, self._how
        if self.group is None:
            self.placement = place(self.placement, self.cluster.workers())
            ranges = zip(self._sides, self.factors, self.placement, strict=True)
            self._coming = [
                submit(solve, side, former, fixed.factors, how, on=worker)
                for side, former, worker in ranges
            ]
        else:
            exchange = how, self.group.token, fixed.bounds
            own = zip(self._sides, self.factors, fixed.factors, self.placement, strict=True)
            self._coming = [
                submit(solve_together, side, former, held, *exchange, on=worker, only=True)
                for side, former, held, worker in own
            ]
        self._is_secure = False
        self._receive()
        return self.known

    def to_host(self) -> np.ndarray:
        """Return the present factors."""
        if self.group is None:
            return rows_of(self.cluster, self.factors)
        return join(self._collect(self._of_each(host_rows, self.factors)))

    def secure(self) -> None:
        """Have the factors no longer depend on earlier ones, if they do."""
        if not self._is_secure:
            self.put(self.to_host())

    def release(self) -> None:
        """Let go of everything that workers hold, even if an error keeps this object."""
        for future in (*self._sides, *self.factors, *self._coming):
            future.release()

    def _receive(self) -> None:
        self.known = self._collect(self._of_each(metadata, self._coming))
        self.factors, self._coming = self._coming, []

    def _of_each(
        self, function: Callable[[FactorBlock], Any], blocks: Sequence[Future]
    ) -> list[Future]:
        """Have a function of each block, where the block is; one on a GPU stays there."""
        only = self.group is not None
        return [
            self.cluster.submit(function, block, on=worker, only=only)
            for block, worker in zip(blocks, self.placement, strict=True)
        ]

    def _collect(self, futures: Sequence[Future]) -> list[Any]:
        return self.cluster.collect(futures, needed=self.group.members if self.group else ())


def rows_of(cluster: Cluster, blocks: Sequence[Future]) -> np.ndarray:
    """Return blocks of factors on the host as one array of this process."""
    found: list[FactorBlock] = cluster.collect(blocks)
    return join([block.rows for block in found])


class _DaskSweeps:
    """A state is a list of futures of blocks, or an array, for each side.

    None is the present state, whatever that is by the time it is looked at. With a group none but
    arrays outlast it.
    """

    def __init__(self, sides: tuple[DaskSide, DaskSide]) -> None:
        self._sides, self._cluster = sides, sides[0].cluster
        self._workspace = 0
        self._secure_at = time.monotonic() + _SECURE_SECONDS
        # With a group: factors that the client has, and the half-sweeps since.
        self._safe: Factors = (None, None)
        self._since: list[int] = []
        self._rolling_back = False

    def begin(self, factors: Factors, group: Group | None) -> None:
        """Give workers the factors to begin with."""
        self._safe, self._group = factors, group
        self._with_fallback(lambda: self._put(factors))

    @property
    def _group(self) -> Group | None:
        return self._sides[0].group

    @_group.setter
    def _group(self, group: Group | None) -> None:
        for side in self._sides:
            side.group = group

    def half_sweep(self, side: int) -> HalfSweepStats:
        solved, fixed = self._sides[side], self._sides[1 - side]
        total = HalfSweepStats()
        try:
            known = self._with_fallback(lambda: solved.solve(fixed))
        except KeyboardInterrupt:
            # Ctrl-C in a terminal reaches workers that were started there too.
            self._cluster = replace(self._cluster, timeout=_TIMEOUT_SECONDS)
            for each_side in self._sides:
                each_side.cluster = self._cluster
            raise
        if self._group is not None:
            self._since.append(side)
        for each in known:
            total.add(each.stats)
            self._workspace = max(self._workspace, each.workspace)
        # What each worker has fetched from others, be it one range of rows that it solved or two.
        solvers = {each.worker for each in known}
        total.transferred = sum(each.nbytes * len(solvers - {each.worker}) for each in fixed.known)
        if time.monotonic() >= self._secure_at:
            self._secure()
        return total

    def _secure(self) -> None:
        begin = time.monotonic()
        if self._group is None:
            for side in self._sides:
                side.secure()
        else:
            self._safe, self._since = self.to_host(None), []
        end = time.monotonic()
        self._secure_at = end + max(_SECURE_SECONDS, (end - begin) / _SECURE_SHARE)

    def _with_fallback(self, act: Callable[[], T]) -> T:
        """Do something with the group, or without it if that fails."""
        if self._group is not None:
            try:
                return act()
            except ExchangeError as error:
                self._fall_back(error)
        return act()

    def _fall_back(self, error: ExchangeError) -> None:
        _warn(error)
        self._rolling_back = True
        self._leave()
        self._put(self._safe)
        for side in self._since:
            self._sides[side].solve(self._sides[1 - side])
        self._rolling_back, self._safe, self._since = False, (None, None), []

    def _put(self, factors: Factors) -> None:
        for side, own in zip(self._sides, factors, strict=True):
            side.put(own)

    def _leave(self) -> None:
        if self._group is not None:
            self._group.leave(self._cluster)
        self._group = None

    def end(self) -> None:
        """Let go of everything that workers hold."""
        for side in self._sides:
            side.release()
        self._leave()

    def state(self) -> None:
        return None

    def copy(self, state: Any) -> Any:
        if state is None and self._group is None:
            return tuple(side.factors for side in self._sides)
        return self.to_host(state)

    def from_host(self, factors: Factors) -> Factors:
        return factors

    def arrays(self, state: Any) -> Factors:
        return self.to_host(state)

    def to_host(self, state: Any) -> tuple[np.ndarray, np.ndarray]:
        if state is None and self._rolling_back:  # and was interrupted
            state = self._safe
        if state is None:
            return self._with_fallback(lambda: (self._sides[0].to_host(), self._sides[1].to_host()))
        users, items = (
            each if isinstance(each, np.ndarray) else rows_of(self._cluster, each) for each in state
        )
        return users, items

    def workspace_bytes(self) -> int:
        return self._workspace


def _warn(error: ExchangeError) -> None:
    warnings.warn(
        f"factors do not go by NCCL from here on, but as Dask sends data: {error}",
        ClusterWarning,
        stacklevel=2,
    )


def _check_client(choice: BackendChoice) -> None:
    try:
        choice.get()
    except BackendError as error:
        raise BackendError(
            f"this process, which is to have the model, cannot use a GPU ({error}); let each "
            'process take what it has, with use_gpu=None or backend="auto"'
        ) from error
