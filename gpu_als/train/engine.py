"""Where half-sweeps run: what the training loop asks of it, and the engine of this process.

The loop sees no arrays but those of finished fits. An engine has the data and, from when a fit
starts, the factors; it solves one side at a time and tells how that went.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from gpu_als.backends import BackendChoice
from gpu_als.core.backend import Backend
from gpu_als.core.half_sweep import hold_fixed, solve_rows
from gpu_als.core.memory import FitShape, plan_device
from gpu_als.core.objectives import Objective
from gpu_als.core.problem import Array, LoadedProblem
from gpu_als.core.solvers import Solver
from gpu_als.core.stats import HalfSweepStats
from gpu_als.train.row_blocks import Rows, Side

__all__ = [
    "Engine",
    "Factors",
    "LocalEngine",
    "Model",
    "OnDevice",
    "Solvers",
    "Sweeps",
    "fit_to_device",
]

Factors = tuple[Any, Any]
Solvers = tuple[Solver, Solver]


@dataclass
class Model:
    """Factors: those a fit begins with, on the host, and those it ends with, on the device.

    Attributes
    ----------
    user_factors : array, shape (n_users, k)
    item_factors : array, shape (n_items, k)
    bias : bool
        The last column of each holds the biases: factors whose partner is fixed at 1.
    """

    user_factors: Array
    item_factors: Array
    bias: bool = False

    @property
    def factors(self) -> tuple[Array, Array]:
        """Those of the users and of the items."""
        return self.user_factors, self.item_factors

    @factors.setter
    def factors(self, both: Factors) -> None:
        self.user_factors, self.item_factors = both


class Sweeps(Protocol):
    """A fit under way: the factors of both sides, and the half-sweeps that change them.

    A *state* is both sides' factors, wherever and however the engine keeps them.
    """

    def half_sweep(self, side: int) -> HalfSweepStats:
        """Solve every row of side 0, the users, or 1, the items, with the other side held."""
        ...

    def state(self) -> Any:
        """Return the present state, which the next half-sweep may change in place."""
        ...

    def copy(self, state: Any) -> Any:
        """Return a state that no half-sweep changes."""
        ...

    def take(self, factors: Factors) -> Any:
        """Return NumPy arrays as a state."""
        ...

    def arrays(self, state: Any) -> Factors:
        """Return a state as a model holds it: arrays of a device, not copied if they are that."""
        ...

    def on_host(self, state: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return a state as NumPy arrays."""
        ...

    def workspace_bytes(self) -> int:
        """Return the largest workspace so far of any one backend, in bytes."""
        ...


class Engine(Protocol):
    """Where half-sweeps run, with the data they run on."""

    @property
    def device(self) -> str:
        """The devices in words, for reports."""
        ...

    def start(self, model: Model, solvers: Solvers, copies: int) -> AbstractContextManager[Sweeps]:
        """Begin a fit from the factors of ``model``.

        Parameters
        ----------
        model : Model
            Its factors are finite and on the host.
        solvers : pair
            For users and for items.
        copies : int
            How often the factors will be there at the same time.
        """
        ...


@dataclass(frozen=True)
class LocalEngine:
    """Half-sweeps in this process, on one device.

    Attributes
    ----------
    backend : Backend
    sides : pair of Side
        Of users and items.
    """

    backend: Backend
    sides: tuple[Side, Side]

    @classmethod
    def of(
        cls, rows: tuple[Rows, Rows], objective: Objective, n_factors: int, choice: BackendChoice
    ) -> LocalEngine:
        """Return the engine for the rows of users and items."""
        backend = choice.get()
        users, items = (
            Side(name, objective, each, n_factors, backend.batch_elements)
            for name, each in zip(("users", "items"), rows, strict=True)
        )
        return cls(backend, (users, items))

    @property
    def device(self) -> str:
        """See :class:`Engine`."""
        return self.backend.device

    @contextmanager
    def start(self, model: Model, solvers: Solvers, copies: int) -> Iterator[Sweeps]:
        """See :class:`Engine`."""
        sides, stay = fit_to_device(self.backend, self.sides, model, copies)
        with self.backend.session():
            yield _LocalSweeps(self.backend, sides, model, solvers, stay=stay)


class _LocalSweeps:
    def __init__(
        self,
        backend: Backend,
        sides: tuple[Side, Side],
        model: Model,
        solvers: Solvers,
        *,
        stay: bool,
    ) -> None:
        self._backend, self._solvers, self._bias = backend, solvers, model.bias
        self._factors, self._sides = self.take(model.factors), sides
        self._parts = [OnDevice(backend, side, stay=stay) for side in sides]

    def half_sweep(self, side: int) -> HalfSweepStats:
        solved, fixed = self._factors[side], self._factors[1 - side]
        how = self._solvers[side]
        own = self._sides[side]
        held = hold_fixed(
            self._backend, own.objective, own.name, fixed, own.ridge(),
            rotate=how.rotates, bias=self._bias,
        )  # fmt: skip
        stats = HalfSweepStats()
        for place, problem in self._parts[side]:
            rows = held.of_rows(place)
            stats.add(solve_rows(self._backend, problem, rows, solved[place], how))
        return stats

    def state(self) -> Factors:
        return self._factors

    def copy(self, state: Factors) -> Factors:
        return state[0].copy(), state[1].copy()

    def take(self, factors: Factors) -> Factors:
        return self._backend.from_host(factors[0]), self._backend.from_host(factors[1])

    def arrays(self, state: Factors) -> Factors:
        return state

    def on_host(self, state: Factors) -> tuple[np.ndarray, np.ndarray]:
        return self._backend.to_host(state[0]), self._backend.to_host(state[1])

    def workspace_bytes(self) -> int:
        return self._backend.workspace_bytes()


class OnDevice:
    """The parts of a side on the device: they stay there, or pass through in every half-sweep."""

    def __init__(self, backend: Backend, side: Side, *, stay: bool) -> None:
        self._backend, self._side = backend, side
        self._kept: list[LoadedProblem] | None = None
        if stay or side.n_parts == 1:
            self._kept = [backend.load(side.problem(number)) for number in range(side.n_parts)]

    def __iter__(self) -> Iterator[tuple[slice, LoadedProblem]]:
        numbers = range(self._side.n_parts)
        makers = (partial(self._side.problem, number) for number in numbers)
        problems = self._kept or self._backend.load_ahead(makers)
        return zip(map(self._side.place, numbers), problems, strict=True)


def fit_to_device(
    backend: Backend, sides: tuple[Side, Side], model: Model, copies: int
) -> tuple[tuple[Side, Side], bool]:
    """Return both sides in parts that the device has room for, and whether they can stay there.

    Nothing is put there yet.
    """
    room = backend.available_memory()
    if room is None:
        return sides, False
    counts = [side.rows.counts() for side in sides]
    shape = FitShape(
        len(model.user_factors),
        len(model.item_factors),
        max(int(each.sum()) for each in counts),
        model.user_factors.shape[1] - model.bias,
        model.user_factors.dtype.itemsize,
        max(int(each.max(initial=0)) for each in counts),
        copies,
        model.bias,
        base=any(side.has_base for side in sides),
        weighted=any(side.is_weighted for side in sides),
        ones=float(any(side.objective.rhs_only for side in sides)),
        half=backend.stores_half,
    )
    plan = plan_device(shape, *room)
    if plan.part_bytes is None:
        return sides, True
    users, items = (side.cut(plan.part_bytes, shape.entry_bytes, shape.row_bytes) for side in sides)
    return (users, items), False
