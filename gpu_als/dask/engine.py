"""Half-sweeps over the workers of a Dask cluster.

A half-sweep is one task for each range of rows: it gathers the other side, solves its rows and
keeps them. What a fit is at any moment is a graph of such tasks, so whatever is lost with a worker
is computed again by Dask from what is left, and comes out the same. Now and then factors pass
through the client, and the graph begins anew from there, lest a loss cost the work of hours.

Where all workers have a GPU of their own and NCCL, a half-sweep gathers the other side by it. Then
tasks need one another at the same time, and none can be computed again by itself. If one is lost,
the fit goes back to the factors that passed through the client last, and on from there by tasks of
the first kind, which find the same.
"""

from __future__ import annotations

import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import dask
import numpy as np

from gpu_als.backends import BackendChoice
from gpu_als.core.objectives import Objective
from gpu_als.core.stats import HalfSweepStats
from gpu_als.dask.cluster import Cluster, ExchangeError
from gpu_als.dask.nccl import Group
from gpu_als.dask.side import DaskSide, rows_of
from gpu_als.dask.sources import Source
from gpu_als.dask.tasks import Device, HowToSolve, describe_device
from gpu_als.errors import BackendError, ClusterWarning
from gpu_als.train.engine import Factors, Model, Solvers, Sweeps

__all__ = ["DaskEngine"]

T = TypeVar("T")

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
            found: list[Device] = cluster.collect(asked)
        except BackendError as error:
            raise BackendError(f"a worker says: {error}") from error
        self._gpus = {device.worker: device.gpu for device in found}
        number = Counter(device.name for device in found)
        self.device = "Dask: " + ", ".join(f"{n} x {name}" for name, n in number.items())

    @contextmanager
    def start(self, model: Model, solvers: Solvers, copies: int) -> Iterator[Sweeps]:
        """See :class:`gpu_als.train.engine.Engine`."""
        has_base = self.objective.base_weight != 0
        workers = self.cluster.workers()
        sides = []
        for number, solver in enumerate(solvers):
            how = HowToSolve(solver, model.bias, self.choice, has_base)
            what = self.objective, self.n_factors, how
            sides.append(DaskSide(self.cluster, self.source, number, *what, workers))
        sweeps = _DaskSweeps((sides[0], sides[1]))
        try:
            sweeps.begin(model.factors, self._form_group(sides))
            yield sweeps
        finally:
            sweeps.end()

    def _form_group(self, sides: Sequence[DaskSide]) -> Group | None:
        """Have workers exchange factors by NCCL, if each has a GPU and a range of both sides."""
        homes = sides[0].homes
        gpus = {self._gpus.get(home) for home in homes}
        apt = None not in gpus and len(gpus) == len(homes) > 1 and sides[1].homes == homes
        if not apt or not dask.config.get("gpu-als.nccl", True):
            return None
        for side in sides:
            side.load()  # from then on workers do the same at the same time
        try:
            return Group.form(self.cluster, homes, self.choice)
        except ExchangeError as error:
            _warn(error)
            return None


class _DaskSweeps:
    """A state is a list of futures of pieces, or an array, for each side.

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
        self._goes_back = False

    def begin(self, factors: Factors, group: Group | None) -> None:
        """Give workers the factors to begin with."""
        self._safe, self._group = factors, group
        self._surely(lambda: self._put(factors))

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
            told = self._surely(lambda: solved.solve(fixed))
        except KeyboardInterrupt:
            # Ctrl-C in a terminal reaches workers that were started there too.
            self._cluster = replace(self._cluster, patience=_PATIENCE_SECONDS)
            for each_side in self._sides:
                each_side.cluster = self._cluster
            raise
        if self._group is not None:
            self._since.append(side)
        for each in told:
            total.add(each.stats)
            self._workspace = max(self._workspace, each.workspace)
        # What each worker has fetched from others, be it one range of rows that it solved or two.
        solvers = {each.worker for each in solved.held}
        total.transferred = sum(each.nbytes * len(solvers - {each.worker}) for each in fixed.held)
        if time.monotonic() >= self._secure_at:
            self._secure()
        return total

    def _secure(self) -> None:
        begin = time.monotonic()
        if self._group is None:
            for side in self._sides:
                side.secure()
        else:
            self._safe, self._since = self.on_host(None), []
        end = time.monotonic()
        self._secure_at = end + max(_SECURE_SECONDS, (end - begin) / _SECURE_SHARE)

    def _surely(self, act: Callable[[], T]) -> T:
        """Do something with the group, or without it if that fails."""
        if self._group is not None:
            try:
                return act()
            except ExchangeError as error:
                self._do_without_group(error)
        return act()

    def _do_without_group(self, error: ExchangeError) -> None:
        _warn(error)
        self._goes_back = True
        self._leave()
        self._put(self._safe)
        for side in self._since:
            self._sides[side].solve(self._sides[1 - side])
        self._goes_back, self._safe, self._since = False, (None, None), []

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
            return tuple(side.pieces for side in self._sides)
        return self.on_host(state)

    def take(self, factors: Factors) -> Factors:
        return factors

    def arrays(self, state: Any) -> Factors:
        return self.on_host(state)

    def on_host(self, state: Any) -> tuple[np.ndarray, np.ndarray]:
        if state is None and self._goes_back:  # and was interrupted
            state = self._safe
        if state is None:
            return self._surely(lambda: (self._sides[0].rows(), self._sides[1].rows()))
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
